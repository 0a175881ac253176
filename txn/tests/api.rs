//! What must stay true of the public types: threads, object safety, errors.

use std::sync::Arc;

use voussoir_txn::store::{MemoryStore, Opened, Record, SagaStore};
use voussoir_txn::two_phase::{
    BeginError, CommitError, Coordinator, CoordinatorConfig, DecisionLog, EnlistError, Gid,
    GidError, OpenCoordinatorError, Participant, ParticipantError, PrepareError, StoreLog, Txn,
};
use voussoir_txn::*;

const fn is_send_sync<T: Send + Sync>() {}

const _: () = {
    is_send_sync::<Config>();
    is_send_sync::<Coordinator>();
    is_send_sync::<CoordinatorConfig>();
    is_send_sync::<Arc<dyn DecisionLog>>();
    is_send_sync::<Arc<dyn Participant>>();
    is_send_sync::<Gid>();
    is_send_sync::<StoreLog<MemoryStore>>();
    is_send_sync::<Txn>();
    is_send_sync::<End>();
    is_send_sync::<Handle>();
    is_send_sync::<MemoryStore>();
    is_send_sync::<Opened>();
    is_send_sync::<Record>();
    is_send_sync::<Retry>();
    is_send_sync::<Saga<u64>>();
    is_send_sync::<SagaInfo>();
    is_send_sync::<Sagas>();
    is_send_sync::<StepCx>();
    is_send_sync::<StepRef<u64>>();
};

#[tokio::test]
async fn seams_are_object_safe() {
    let store: Arc<dyn SagaStore> = Arc::new(MemoryStore::new());
    assert_eq!(store.open().await.expect("it opens").epoch, 1);
    let clock: Arc<dyn Clock> = Arc::new(|| 7);
    assert_eq!(clock.now(), 7);
    let clock: Arc<dyn Clock> = Arc::new(System::new());
    assert!(clock.now() > 1_600_000_000_000_000_000, "ns since the UNIX epoch");
}

#[test]
fn errors_are_errors() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    is_error::<BeginError>();
    is_error::<CommitError>();
    is_error::<ConfigError>();
    is_error::<EnlistError>();
    is_error::<GidError>();
    is_error::<OpenCoordinatorError>();
    is_error::<ParticipantError>();
    is_error::<PrepareError>();
    is_error::<DefinitionError>();
    is_error::<OpenError>();
    is_error::<ResolveError>();
    is_error::<StartError>();
    is_error::<StepError>();
    is_error::<StoreError>();
    is_error::<WaitError>();
}

//! What must stay true of the public types: threads, object safety, errors.

use std::sync::Arc;

use voussoir_queue::backend::{Backend, BackendError, Embedded, Received};
use voussoir_queue::format::{FormatError, Header, RecordHeader};
use voussoir_queue::routing::{Router, Rule};
use voussoir_queue::store::{
    Done, JournalPartition, JournalStore, MemoryPartition, PartitionLog, PartitionStore, Write,
};
use voussoir_queue::work::{
    DeadLetter, Delivery, JournalWork, MemoryWork, Receipt, WorkConfig, WorkError, WorkQueue,
    WorkStats, WorkStore, WorkWrite,
};
use voussoir_queue::*;

const fn is_send_sync<T: Send + Sync>() {}
const fn is_send<T: Send>() {}

const _: () = {
    is_send_sync::<AppendFuture>();
    is_send_sync::<Batch>();
    is_send_sync::<BatchBuilder>();
    is_send_sync::<Config>();
    is_send_sync::<Fetched>();
    is_send_sync::<Header>();
    is_send_sync::<JournalPartition>();
    is_send_sync::<JournalStore>();
    is_send_sync::<MemoryPartition>();
    is_send_sync::<Partition>();
    is_send_sync::<Record>();
    is_send_sync::<RecordHeader>();
    is_send_sync::<Records<'static>>();
    is_send_sync::<Retention>();
    is_send_sync::<Stats>();
    is_send_sync::<WaitFuture>();
    is_send_sync::<Write>();
    is_send_sync::<DeadLetter>();
    is_send_sync::<Delivery>();
    is_send_sync::<JournalWork>();
    is_send_sync::<Receipt>();
    is_send_sync::<Router>();
    is_send_sync::<Rule>();
    is_send_sync::<WorkConfig>();
    is_send_sync::<WorkQueue>();
    is_send_sync::<WorkStats>();
    is_send_sync::<WorkWrite>();
    is_send_sync::<Queue>();
    is_send_sync::<Topic>();
    is_send_sync::<Producer>();
    is_send_sync::<TransactionalProducer>();
    is_send::<Consumer>();
    is_send::<SendFuture>();
    is_send::<CommitFuture>();
    is_send::<Transaction<'static>>();
    is_send::<Done>();
    is_send_sync::<Arc<dyn Backend>>();
    is_send_sync::<Arc<dyn backend::Producer>>();
    is_send::<Box<dyn backend::Consumer>>();
    is_send_sync::<Embedded>();
    is_send_sync::<Received>();
};

#[cfg(feature = "stream")]
const _: () = is_send::<RecordStream>();
#[cfg(feature = "jetstream")]
const _: () = is_send_sync::<backend::jetstream::JetStream>();

#[test]
fn seams_are_object_safe() {
    let store: Arc<dyn PartitionStore> = Arc::new(MemoryPartition::new(1));
    let log: Arc<dyn PartitionLog> = store.log();
    assert_eq!(log.bounds(), 0..0);
    let store: Arc<dyn WorkStore> = Arc::new(MemoryWork::new());
    assert_eq!(store.bounds(), 0..0);
}

#[test]
fn errors_are_errors() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    is_error::<BackendError>();
    is_error::<CommitError>();
    is_error::<ConfigError>();
    is_error::<ConsumeError>();
    is_error::<SendError>();
    is_error::<TopicError>();
    is_error::<FetchError>();
    is_error::<FormatError>();
    is_error::<OpenError>();
    is_error::<ProduceError>();
    is_error::<StoreError>();
    is_error::<WorkError>();
}

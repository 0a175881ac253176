//! What must stay true of the public types: threads, errors.

use voussoir_quorum::crdt::*;
use voussoir_quorum::paxos::{Acceptor, ProposeRejected, Proposer};
use voussoir_quorum::table::{
    Coordinator, OperationError, Outcome, Rejected, Replica, ReplicaRejected, TableConfig,
};
use voussoir_quorum::version::codec::{DecodeError, Limits};
use voussoir_quorum::version::*;
use voussoir_quorum::{Bytes, ConfigError, SessionToken, TokenError};

const fn is_send_sync<T: Send + Sync>() {}

const _: () = {
    is_send_sync::<Actor>();
    is_send_sync::<Acceptor>();
    is_send_sync::<Coordinator>();
    is_send_sync::<Dot>();
    is_send_sync::<DotContext>();
    is_send_sync::<DotSource>();
    is_send_sync::<Hlc>();
    is_send_sync::<HlcConfig>();
    is_send_sync::<Limits>();
    is_send_sync::<LwwRegister<Bytes>>();
    is_send_sync::<OrMap<u64, Set<Bytes>>>();
    is_send_sync::<PnCounter>();
    is_send_sync::<Proposer>();
    is_send_sync::<Replica>();
    is_send_sync::<SessionToken>();
    is_send_sync::<Siblings<Bytes>>();
    is_send_sync::<TableConfig>();
    is_send_sync::<Timestamp>();
    is_send_sync::<VersionVector>();
};

#[test]
fn errors_are_errors() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    is_error::<ConfigError>();
    is_error::<CounterError>();
    is_error::<DecodeError>();
    is_error::<DotError>();
    is_error::<ObserveError>();
    is_error::<OperationError>();
    is_error::<ProposeRejected>();
    is_error::<PutError>();
    is_error::<Rejected>();
    is_error::<ReplicaRejected>();
    is_error::<TickError>();
    is_error::<TokenError>();
}

#[test]
fn only_a_write_of_unknown_outcome_must_not_be_repeated() {
    let unknown = OperationError::WriteUnknown { holders: 1, needed: 2 };
    assert_eq!((unknown.outcome(), unknown.is_retryable()), (Outcome::Unknown, false));
    let failed = OperationError::RepairFailed { holders: 1, needed: 2 };
    assert_eq!((failed.outcome(), failed.is_retryable()), (Outcome::NotApplied, true));
    assert!(!OperationError::Refused.is_retryable());
}

//! What the public types promise to whoever composes them.

use std::sync::Arc;

use bytes::Bytes;
use voussoir_raft::memory::{MemoryStore, Network, NetworkNode};
use voussoir_raft::{
    Chunks, Completion, Config, Inbox, LogStore, ProposeError, Raft, ReadError, SnapshotReader,
    SnapshotWriter, StartError, StateMachine, Stats, Status, StopReason, StoreError, Transport,
};

fn send_sync<T: Send + Sync + 'static>() {}
fn send<T: Send>(_: T) {}

#[test]
fn handles_and_values_go_anywhere() {
    send_sync::<Raft>();
    send_sync::<Config>();
    send_sync::<Status>();
    send_sync::<Stats>();
    send_sync::<MemoryStore>();
    send_sync::<Network>();
    send_sync::<NetworkNode>();
    send_sync::<ProposeError>();
    send_sync::<ReadError>();
    send_sync::<StartError>();
    send_sync::<StopReason>();
    send_sync::<StoreError>();
}

#[test]
fn seams_are_objects() {
    send_sync::<Arc<dyn LogStore>>();
    send_sync::<Arc<dyn Transport>>();
    send_sync::<Arc<dyn Inbox>>();
    send_sync::<Box<dyn SnapshotReader>>();
    fn movable<T: Send + 'static>() {}
    movable::<Box<dyn StateMachine>>();
    movable::<Box<dyn Chunks>>();
    movable::<Box<dyn SnapshotWriter>>();
    movable::<Completion>();
}

#[test]
fn futures_may_be_spawned() {
    fn check(raft: &Raft) {
        send(raft.propose(Bytes::new()));
        send(raft.read(tokio::time::Instant::now()));
        send(raft.shutdown());
    }
    fn start(config: Config, machine: Box<dyn StateMachine>) {
        let store = Arc::new(MemoryStore::new());
        send(Raft::start(config, store, machine, Network::new().node(1)));
    }
    // Compiling them is the test.
    let (_, _) = (check as fn(&Raft), start as fn(Config, Box<dyn StateMachine>));
}

#[test]
fn errors_say_what_happened() {
    let lost = ProposeError::Unknown(voussoir_raft::Doubt::TimedOut);
    assert_eq!(lost.outcome(), voussoir_raft::Outcome::Unknown);
    assert!(lost.is_retryable());
    let long = ProposeError::TooLarge { bytes: 2, max_bytes: 1 };
    assert_eq!(long.outcome(), voussoir_raft::Outcome::NotApplied);
    assert!(!long.is_retryable());
    assert_eq!(lost.to_string(), "outcome unknown: not decided in time");
}

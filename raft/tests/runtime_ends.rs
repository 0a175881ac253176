//! A runtime that goes before its node: nothing is wrong then, and nothing is said to be.

mod hooked;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use async_trait::async_trait;
use bytes::Bytes;
use hooked::{Hooked, Hooks};
use parking_lot::Mutex;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{
    Chunks, Command, Config, LogStore, LogWrite, MachineError, Raft, Role, StateMachine,
    StopReason, WholeSnapshot,
};

static ERRORS: AtomicUsize = AtomicUsize::new(0);

/// Counts events at the level error.
struct Errors;

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        ERRORS.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Machine {
    quick: bool,
    /// Lets a store go on that holds the driver, once the machine's task is gone.
    ended: Option<Sender<()>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error here only says that no store waits.
        self.ended.take().map(|ended| ended.send(()));
    }
}

#[async_trait]
impl StateMachine for Machine {
    fn is_quick(&self) -> bool {
        self.quick
    }

    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        assert!(commands.iter().all(|command| command.data != "panic"), "as told");
        Ok(commands.iter().map(|_| Bytes::new()).collect())
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        Ok(Box::new(WholeSnapshot::new("")))
    }

    async fn restore(&mut self, _: &mut dyn Chunks) -> Result<(), MachineError> {
        Ok(())
    }
}

/// Holds the driver in the write of a command, until the machine is gone.
struct Holding {
    asks: Sender<()>,
    machine_ended: Mutex<Receiver<()>>,
}

impl Hooks for Holding {
    fn before_write(&self, write: &LogWrite) {
        if write.entries.iter().any(|entry| !entry.data.is_empty()) {
            self.asks.send(()).expect("the test waits");
            self.machine_ended.lock().recv().expect("the machine ends once");
        }
    }
}

/// A node that has started and leads.
async fn leading(log: Arc<dyn LogStore>, machine: Machine) -> Raft {
    let transport = Network::new().node(1);
    let raft = Raft::start(Config::new(1, [1]), log, Box::new(machine), transport).await.unwrap();
    raft.status().wait_for(|status| status.leader.is_some()).await.unwrap();
    raft
}

/// A node on a runtime that ends while the driver is in the middle of a turn, and drops the task of
/// the machine before the turn goes on.
fn hears_of_the_machine_first() -> Option<StopReason> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let ((asks, asked), (ends, ended)) = (channel(), channel());
    let log = Arc::new(Hooked::new(Holding { asks, machine_ended: Mutex::new(ended) }));
    let machine = Machine { quick: false, ended: Some(ends) };
    let raft = runtime.block_on(leading(log, machine));
    let proposer = raft.clone();
    let proposal = runtime.spawn(async move { proposer.propose("x".into()).await });
    asked.recv().expect("the driver writes");
    drop((runtime, proposal));
    raft.stopped()
}

/// A node that has started and leads, on a runtime that is dropped after `last` command.
fn lives_until(last: &'static str, workers: usize, quick: bool) -> Option<StopReason> {
    let mut builder = match workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(workers.max(1)).enable_all().build().unwrap();
    let raft = runtime.block_on(async {
        let machine = Machine { quick, ended: None };
        let raft = leading(Arc::new(MemoryStore::new()), machine).await;
        let answer = raft.propose(last.into()).await;
        if answer.is_err() {
            // The caller hears of a panic before the node does, which is to say so first.
            raft.status().wait_for(|status| status.leader.is_none()).await.unwrap();
        }
        raft
    });
    drop(runtime);
    let status = raft.status();
    let shown = (status.borrow().role, status.borrow().leader);
    assert_eq!(shown, (Role::Follower, None), "a node that has stopped leads nobody");
    raft.stopped()
}

#[test]
fn a_runtime_that_ends_first_is_no_panic_and_no_error() {
    tracing::subscriber::set_global_default(Errors).unwrap();
    for round in 0..60 {
        for quick in [false, true] {
            let reason = lives_until("x", round % 3, quick);
            assert_eq!(reason, Some(StopReason::RuntimeEnded), "{} workers", round % 3);
        }
    }
    assert_eq!(hears_of_the_machine_first(), Some(StopReason::RuntimeEnded));
    assert_eq!(ERRORS.load(Ordering::SeqCst), 0, "errors were logged");
    std::panic::set_hook(Box::new(|_| {}));
    for quick in [false, true] {
        assert_eq!(lives_until("panic", 2, quick), Some(StopReason::Panicked));
    }
    assert!(ERRORS.load(Ordering::SeqCst) >= 2, "a panic is an error");
}

//! What happens on another thread while the node's loop is in the middle of a turn.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_raft::{LogWrite, SnapshotAnswer};

use crate::hooked::{Hooked, Hooks};
use crate::script::{Script, name};

/// Says that a snapshot is about to be adopted, and waits for leave.
struct Hesitant {
    asks: Sender<()>,
    leave: Mutex<Receiver<()>>,
}

impl Hooks for Hesitant {
    fn before_write(&self, write: &LogWrite) {
        if write.snapshot.is_some() {
            self.asks.send(()).expect("the test waits");
            self.leave.lock().recv().expect("the test gives leave");
        }
    }
}

/// A snapshot that is just being adopted is not asked for again. Stored a second time it would
/// wait for a decision that the core has taken already, and stand in the way of all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_snapshot_that_is_being_adopted_is_not_received_again() {
    let (asks, asked) = channel();
    let (gives, leave) = channel();
    let log = Hooked::new(Hesitant { asks, leave: Mutex::new(leave) });
    let script = Script::over(Arc::new(log)).await;
    script.hears_leader(5);
    let shot = name(50, 5, 11);
    assert_eq!(script.open(&shot, 1).await, SnapshotAnswer::Next { number: 0 });
    assert_eq!(script.chunk(11, 0, "one").await, SnapshotAnswer::Next { number: 1 });
    assert_eq!(script.close(11).await, SnapshotAnswer::Done);
    asked.recv_timeout(Duration::from_secs(30)).expect("it is adopted");
    assert_eq!(script.open(&shot, 1).await, SnapshotAnswer::Done);
    gives.send(()).expect("the store waits");
    script.until(|status| status.applied == 50).await;
    assert_eq!(script.text(), "one");
}

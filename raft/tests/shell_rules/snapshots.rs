//! Snapshots that come in, part by part.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Semaphore;
use voussoir_raft::{HaltReason, SnapshotAnswer, SnapshotPart, StopReason};

use crate::cluster::{append, timeout};
use crate::script::{PEER, Script, name};

const NEXT_0: SnapshotAnswer = SnapshotAnswer::Next { number: 0 };
const NEXT_1: SnapshotAnswer = SnapshotAnswer::Next { number: 1 };
const NEXT_2: SnapshotAnswer = SnapshotAnswer::Next { number: 2 };

/// A snapshot overtakes the machine: it is stored while entries before it are being applied, and
/// the one that is restored is newer than the one that was asked for.
#[tokio::test(start_paused = true)]
async fn what_a_snapshot_includes_is_not_applied_to_it() {
    let script = Script::start().await;
    script.machine.gate.forget_permits(Semaphore::MAX_PERMITS);
    script.hears_leader(5);
    script.append(5, 1, 0, &["a"]);
    script.until(|status| status.commit == 1).await;
    // The machine is at "a" now, and stays there.
    for (identity, index, text) in [(11, 50, "fifty"), (12, 80, "eighty")] {
        assert_eq!(script.open(&name(index, 5, identity), 1).await, NEXT_0);
        assert_eq!(script.chunk(identity, 0, text).await, NEXT_1);
        assert_eq!(script.close(identity).await, SnapshotAnswer::Done);
        script.until(|status| status.snapshot == index).await;
        if index == 50 {
            script.append(5, 51, 5, &["x", "y", "z"]);
            script.until(|status| status.commit == 53).await;
        }
    }
    script.machine.gate.add_permits(10);
    script.until(|status| status.applied == 80).await;
    assert_eq!(script.text(), "eighty");
    script.append(5, 81, 5, &["!"]);
    script.until(|status| status.applied == 81).await;
    assert_eq!(script.text(), "eighty!");
}

#[tokio::test(start_paused = true)]
async fn half_a_snapshot_is_not_taken() {
    let script = Script::start().await;
    script.hears_leader(5);
    assert_eq!(script.open(&name(50, 5, 11), 2).await, NEXT_0);
    assert_eq!(script.chunk(11, 0, "one").await, NEXT_1);
    assert_eq!(script.close(11).await, NEXT_1, "the second half is missing");
    assert_eq!(script.close(12).await, SnapshotAnswer::Rejected, "nobody has opened that one");
    assert_eq!(script.chunk(11, 1, "two").await, NEXT_2);
    assert_eq!(script.close(11).await, SnapshotAnswer::Done);
    script.until(|status| status.applied == 50).await;
    assert_eq!(script.text(), "onetwo");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_counts_when_it_is_durable() {
    let script = Script::start().await;
    script.hears_leader(5);
    assert_eq!(script.open(&name(50, 5, 11), 1).await, NEXT_0);
    assert_eq!(script.chunk(11, 0, "one").await, NEXT_1);
    script.store.hold_snapshots();
    let close = SnapshotPart::Close { identity: 11 };
    let mut closing = pin!(script.inbox.snapshot(PEER, close));
    let early = tokio::time::timeout(Duration::from_secs(1), &mut closing).await;
    assert!(early.is_err(), "its chunks are not durable: {early:?}");
    assert_eq!(script.status().commit, 0);
    script.store.free();
    assert_eq!(timeout(closing).await, SnapshotAnswer::Done);
    script.until(|status| status.applied == 50).await;
    assert_eq!(script.text(), "one");
}

/// The connection breaks behind three chunks, of which the first one is being stored.
#[tokio::test(start_paused = true)]
async fn chunks_that_have_arrived_outlive_their_connection() {
    let script = Script::start().await;
    script.hears_leader(5);
    assert_eq!(script.open(&name(50, 5, 11), 4).await, NEXT_0);
    {
        let part = |number, text| {
            let data = append(text);
            script.inbox.snapshot(PEER, SnapshotPart::Chunk { identity: 11, number, data })
        };
        for mut call in [part(0, "one,"), part(1, "two,"), part(2, "three,")] {
            let first = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
            assert!(first.is_pending(), "{first:?}");
        }
    }
    let next = SnapshotAnswer::Next { number: 3 };
    assert_eq!(script.open(&name(50, 5, 11), 4).await, next, "they need not be sent again");
    assert_eq!(script.chunk(11, 3, "four").await, SnapshotAnswer::Next { number: 4 });
    assert_eq!(script.close(11).await, SnapshotAnswer::Done);
    script.until(|status| status.applied == 50).await;
    assert_eq!(script.text(), "one,two,three,four");
}

#[tokio::test(start_paused = true)]
async fn chunks_are_stored_once_and_in_order() {
    let script = Script::start().await;
    script.hears_leader(5);
    assert_eq!(script.open(&name(50, 5, 11), 3).await, NEXT_0);
    assert_eq!(script.chunk(11, 0, "one,").await, NEXT_1);
    assert_eq!(script.chunk(11, 0, "one,").await, NEXT_1, "a repetition");
    assert_eq!(script.chunk(11, 2, "three").await, NEXT_1, "it has overtaken the second");
    assert_eq!(script.chunk(11, 1, "two,").await, NEXT_2);
    assert_eq!(script.chunk(11, 2, "three").await, SnapshotAnswer::Next { number: 3 });
    assert_eq!(script.chunk(11, 3, "four").await, SnapshotAnswer::Next { number: 3 });
    assert_eq!(script.close(11).await, SnapshotAnswer::Done);
    script.until(|status| status.applied == 50).await;
    assert_eq!(script.text(), "one,two,three");
}

/// The leader changes in the middle of a transfer. The new one has a snapshot of the same entries
/// and has cut it elsewhere.
#[tokio::test(start_paused = true)]
async fn two_snapshots_of_the_same_entries_are_not_mixed() {
    let script = Script::start().await;
    script.hears_leader(5);
    assert_eq!(script.open(&name(50, 5, 11), 2).await, NEXT_0);
    assert_eq!(script.chunk(11, 0, "one").await, NEXT_1);
    assert_eq!(script.open(&name(50, 5, 11), 2).await, NEXT_1, "the same one goes on");
    assert_eq!(script.open(&name(50, 5, 12), 2).await, NEXT_0, "another one starts over");
    assert_eq!(script.chunk(11, 1, "two").await, SnapshotAnswer::Rejected, "it has been given up");
    assert_eq!(script.chunk(12, 0, "o").await, NEXT_1);
    assert_eq!(script.chunk(12, 1, "netwo").await, NEXT_2);
    assert_eq!(script.close(12).await, SnapshotAnswer::Done);
    script.until(|status| status.applied == 50).await;
    assert_eq!(script.text(), "onetwo");
}

/// The next leader has the entries that the follower lacks.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_the_log_has_overtaken_is_given_up() {
    let script = Script::start().await;
    script.hears_leader(5);
    assert_eq!(script.open(&name(3, 5, 11), 3).await, NEXT_0);
    assert_eq!(script.chunk(11, 0, "one,").await, NEXT_1);
    script.append(5, 1, 0, &["a", "b"]);
    script.until(|status| status.applied == 2).await;
    assert_eq!(script.chunk(11, 1, "two,").await, NEXT_2, "it is of use");
    script.append(5, 3, 5, &["c"]);
    script.until(|status| status.applied == 3).await;
    let gone = script.chunk(11, 2, "three").await;
    assert_eq!(gone, SnapshotAnswer::Rejected, "half a snapshot stays on the disk");
    assert_eq!(script.text(), "abc");
}

/// Without room the transfer is put off. With a broken disk the node says so: it may have nothing
/// else to write, and nobody would hear of it.
#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_under_a_snapshot_stops_the_node() {
    let script = Script::start().await;
    script.hears_leader(5);
    script.until(|status| status.term == 5).await;
    assert_eq!(script.open(&name(50, 5, 11), 2).await, NEXT_0);
    script.store.fill();
    assert_eq!(script.chunk(11, 0, "one").await, SnapshotAnswer::Rejected);
    assert_eq!(script.open(&name(50, 5, 11), 2).await, SnapshotAnswer::Rejected);
    script.store.free();
    assert_eq!(script.open(&name(50, 5, 11), 2).await, NEXT_0, "there is room again");
    assert_eq!(script.raft.stopped(), None);
    script.store.fill();
    script.store.fail();
    assert_eq!(script.chunk(11, 0, "one").await, SnapshotAnswer::Rejected);
    let mut status = script.raft.status();
    timeout(async { while status.changed().await.is_ok() {} }).await;
    let halted = HaltReason::PersistFailed;
    let cause = Some("the store failed: injected".to_owned());
    assert_eq!(script.raft.stopped(), Some(StopReason::Halted { reason: halted, cause }));
    assert_eq!(status.borrow().halted, Some(halted));
}

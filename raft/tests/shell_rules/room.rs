//! What a node makes of a disk that has no room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use voussoir_raft::{
    AppendHead, Entry, EntryKind, Heartbeat, Message, Role, Room, SnapshotAnswer, SnapshotPart,
};

use crate::cluster::{append, timeout};
use crate::hooked::{Hooked, Hooks};
use crate::script::{Script, name};

/// Has room, or none.
#[derive(Clone, Default)]
struct Narrow {
    is_full: Arc<AtomicBool>,
}

impl Hooks for Narrow {
    fn room(&self) -> Option<Room> {
        let bytes = if self.is_full.load(Ordering::Relaxed) { 0 } else { 1 << 30 };
        Some(Room { bytes, max_bytes: 4 << 30, share: 1 << 29 })
    }
}

/// The completion of a write speaks for itself. Where the candidate forgets the entry, the leader
/// before would count it among those who have it.
#[tokio::test(start_paused = true)]
async fn what_a_candidate_forgets_is_not_acknowledged_by_its_write() {
    for is_full in [false, true] {
        let store = Narrow::default();
        let mut script = Script::of_many(Arc::new(Hooked::new(store.clone()))).await;
        script.append(5, 1, 0, &["a"]);
        script.until(|status| status.durable == 1 && status.applied == 1).await;
        script.store.stall();
        let (prev_index, prev_term) = (1, 5);
        let head =
            AppendHead { term: 5, session: 1, prev_index, prev_term, commit: 1, probe: false };
        let entry = Entry { term: 5, index: 2, kind: EntryKind::Command, data: append("b") };
        script.says(Message::Append { head, entries: vec![entry] });
        timeout(async {
            while script.store.stalled() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        script.sent_so_far();
        store.is_full.store(is_full, Ordering::Relaxed);
        // It looks ten times a second.
        tokio::time::sleep(Duration::from_millis(110)).await;
        script.says(Message::TimeoutNow { term: 5 });
        let status = script.until(|status| status.role == Role::Candidate).await;
        assert_eq!(status.last, if is_full { 1 } else { 2 });
        script.store.resume();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let is_ack =
            |message: &Message| matches!(message, Message::AppendAck(ack) if ack.matched == 2);
        let acks = script.sent_so_far().iter().filter(|message| is_ack(message)).count();
        assert_eq!(acks, usize::from(!is_full), "the entry is kept: {}", !is_full);
    }
}

/// Nobody sends the rest of it, and what there is takes the room of the entries that come instead.
#[tokio::test(start_paused = true)]
async fn half_a_snapshot_of_an_earlier_leader_is_given_up_without_room() {
    for (is_full, leader, next) in [(true, 3, 0), (true, 2, 1), (false, 3, 1)] {
        let store = Narrow::default();
        let script = Script::over(Arc::new(Hooked::new(store.clone()))).await;
        script.append(5, 1, 0, &["a"]);
        script.until(|status| status.applied == 1).await;
        let shot = name(50, 5, 11);
        assert_eq!(script.open(&shot, 2).await, SnapshotAnswer::Next { number: 0 });
        assert_eq!(script.chunk(11, 0, "one").await, SnapshotAnswer::Next { number: 1 });
        store.is_full.store(is_full, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(110)).await;
        let heartbeat = Message::Heartbeat(Heartbeat { term: 6, round: 1, commit: 0 });
        script.inbox.message(leader, heartbeat);
        script.until(|status| (status.term, status.leader) == (6, Some(leader))).await;
        let part = SnapshotPart::Open { term: 6, name: shot, chunks: 2 };
        assert_eq!(script.part(part).await, SnapshotAnswer::Next { number: next }, "of {leader}");
    }
}

/// What it sends may come before what it says.
#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_leader_that_is_news_goes_on_without_room() {
    let store = Narrow::default();
    let script = Script::over(Arc::new(Hooked::new(store.clone()))).await;
    script.append(5, 1, 0, &["a"]);
    script.until(|status| status.applied == 1).await;
    store.is_full.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(110)).await;
    let sends = |part| timeout(script.inbox.snapshot(3, part));
    let open = SnapshotPart::Open { term: 7, name: name(50, 5, 11), chunks: 3 };
    assert_eq!(sends(open).await, SnapshotAnswer::Next { number: 0 });
    for number in 0..2 {
        script.hears_leader(5);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let chunk = SnapshotPart::Chunk { identity: 11, number, data: append("one") };
        assert_eq!(sends(chunk).await, SnapshotAnswer::Next { number: number + 1 });
    }
}

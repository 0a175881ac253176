//! What every transport keeps.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::message::{AppendHead, Heartbeat, Message};
use crate::store::SnapshotName;
use crate::transport::{AttachError, Inbox, SnapshotAnswer, SnapshotPart, Transport};
use crate::types::{Entry, EntryKind, SnapshotMeta};

/// How long a message may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Holds a transport against [`Transport`]'s promises. `one` and `two` are nodes that reach each
/// other, with no group attached.
///
/// # Panics
/// Where a promise is broken, saying which.
///
/// # Cancel safety
/// A test that is dropped has tested nothing.
pub async fn transport(one: Arc<dyn Transport>, two: Arc<dyn Transport>) {
    assert_ne!(one.local(), two.local(), "two nodes have two names");
    let inbox = Arc::new(Recorder::default());
    let other_group = Arc::new(Recorder::default());
    two.attach(7, Arc::clone(&inbox) as Arc<dyn Inbox>).expect("nothing is attached yet");
    two.attach(8, Arc::clone(&other_group) as Arc<dyn Inbox>).expect("nor for this group");
    let again = two.attach(7, Arc::clone(&inbox) as Arc<dyn Inbox>);
    assert_eq!(again, Err(AttachError::Attached { group: 7 }), "one node per group");

    for message in messages() {
        let arrived = sent(&*one, &*two, &inbox, message.clone()).await;
        assert_eq!(arrived, (one.local(), message), "it arrives as it was, with its sender");
    }
    assert!(other_group.messages.lock().is_empty(), "groups do not hear each other");
    together(&*one, two.local(), [(7, &*inbox), (8, &*other_group)]).await;

    for part in parts() {
        let answer = one.snapshot(two.local(), 7, part.clone(), PATIENCE).await;
        assert_eq!(answer, Ok(SnapshotAnswer::Next { number: 42 }), "the inbox's answer");
        assert_eq!(inbox.parts.lock().pop(), Some((one.local(), part)));
    }

    let mute = Arc::new(Mute);
    two.attach(10, mute as Arc<dyn Inbox>).expect("nothing is attached for this group");
    let patience = Duration::from_millis(300);
    let late = one.snapshot(two.local(), 10, parts()[2].clone(), patience);
    let late = tokio::time::timeout(PATIENCE, late).await.expect("it waits at most its time-out");
    assert!(late.is_err(), "there was no answer: {late:?}");
    two.detach(10);

    let nobody = one.snapshot(two.local(), 9, parts()[2].clone(), Duration::from_secs(1)).await;
    assert!(nobody.is_err(), "nobody answers for a group that is not attached");
    two.detach(7);
    let gone = one.snapshot(two.local(), 7, parts()[2].clone(), Duration::from_secs(1)).await;
    assert!(gone.is_err(), "nobody answers for a group that was detached");
    two.attach(7, inbox).expect("what was detached can be attached again");
    two.detach(7);
    two.detach(8);
}

fn messages() -> Vec<Message> {
    let entry = |index: u64, len: usize| Entry {
        term: 3,
        index,
        kind: EntryKind::Command,
        data: Bytes::from(vec![index as u8; len]),
    };
    let head =
        AppendHead { term: 3, session: 1, prev_index: 4, prev_term: 2, commit: 4, probe: false };
    vec![
        Message::Heartbeat(Heartbeat { term: 3, round: 1, commit: 2 }),
        Message::Append { head, entries: Vec::new() },
        Message::Append { head, entries: vec![entry(5, 0), entry(6, 10), entry(7, 1 << 20)] },
        Message::Stale { term: 9 },
    ]
}

fn parts() -> [SnapshotPart; 3] {
    let meta = SnapshotMeta { index: 9, term: 3, members: vec![1, 2, 3].into() };
    [
        SnapshotPart::Open { term: 3, name: SnapshotName { meta, identity: 5 }, chunks: 1 },
        SnapshotPart::Chunk { identity: 5, number: 0, data: Bytes::from(vec![5; 1 << 19]) },
        SnapshotPart::Close { identity: 5 },
    ]
}

/// Sends until it arrives: messages may be lost while a connection is being made.
async fn sent(
    one: &dyn Transport,
    two: &dyn Transport,
    inbox: &Recorder,
    message: Message,
) -> (u64, Message) {
    let arrives = async {
        loop {
            let _ = one.send(two.local(), 7, message.clone());
            let arrived = inbox.arrived.notified();
            // A repetition is legal, so is what is left of an earlier one.
            if tokio::time::timeout(Duration::from_millis(200), arrived).await.is_ok() {
                let found = inbox.messages.lock().drain(..).find(|(_, it)| *it == message);
                if let Some(found) = found {
                    return found;
                }
                // Something else came: not to be asked for without a pause.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, arrives).await.expect("a message arrives at last")
}

/// Sends messages of two groups together until each group has all of its own.
async fn together(one: &dyn Transport, to: u64, groups: [(u64, &Recorder); 2]) {
    // Of all lengths, and more than go into one message anywhere.
    let entry = |index, bytes| Entry {
        term: 2,
        index,
        kind: EntryKind::Command,
        data: Bytes::from(vec![index as u8; bytes]),
    };
    let append = |index, bytes| {
        let (term, session, commit, probe) = (2, 3, 4, false);
        let (prev_index, prev_term) = (index - 1, 1);
        let head = AppendHead { term, session, prev_index, prev_term, commit, probe };
        Message::Append { head, entries: vec![entry(index, bytes), entry(index + 1, 0)] }
    };
    // Other ones for each group.
    let of = |group: u64| -> Vec<Message> {
        let short = (0..40).map(|number| append(100 * group + number, 50 * number as usize));
        let long = [append(100 * group + 50, 200_000), Message::Stale { term: group }];
        short.chain(long).collect()
    };
    let pairs = of(groups[0].0).into_iter().zip(of(groups[1].0));
    let all: Vec<_> = pairs.flat_map(|(a, b)| [(groups[0].0, a), (groups[1].0, b)]).collect();
    let arrives = async {
        for (at, (group, inbox)) in groups.into_iter().enumerate() {
            let (mut missing, foreign) = (of(group), of(groups[1 - at].0));
            while !missing.is_empty() {
                let _ = one.send_all(to, all.clone());
                tokio::time::sleep(Duration::from_millis(20)).await;
                for (from, message) in inbox.messages.lock().drain(..) {
                    assert_eq!(from, one.local(), "with its sender");
                    assert!(!foreign.contains(&message), "groups do not hear each other");
                    missing.retain(|wanted| *wanted != message);
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, arrives).await.expect("all of them arrive at last");
}

/// Never answers.
struct Mute;

#[async_trait]
impl Inbox for Mute {
    fn message(&self, _from: u64, _message: Message) {}

    fn unreachable(&self, _peer: u64) {}

    async fn snapshot(&self, _from: u64, _part: SnapshotPart) -> SnapshotAnswer {
        std::future::pending().await
    }
}

#[derive(Default)]
struct Recorder {
    messages: Mutex<Vec<(u64, Message)>>,
    parts: Mutex<Vec<(u64, SnapshotPart)>>,
    arrived: Notify,
}

#[async_trait]
impl Inbox for Recorder {
    fn message(&self, from: u64, message: Message) {
        self.messages.lock().push((from, message));
        self.arrived.notify_one();
    }

    fn unreachable(&self, _peer: u64) {}

    async fn snapshot(&self, from: u64, part: SnapshotPart) -> SnapshotAnswer {
        self.parts.lock().push((from, part));
        SnapshotAnswer::Next { number: 42 }
    }
}

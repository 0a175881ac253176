//! A transport that does to parts of snapshots what networks do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::sleep;
use voussoir_raft::memory::NetworkNode;
use voussoir_raft::{
    AttachError, Inbox, Message, SendError, SnapshotAnswer, SnapshotPart, Transport,
};
use voussoir_sim::{Report, Rng};

/// What the couriers of one run have seen and done, each of which has to happen now and then.
pub(crate) const FIGURES: [&str; 9] = [
    "parts lost",
    "answers lost",
    "parts doubled",
    "parts overtaken",
    "transfers resumed",
    "transfers started over",
    "transfers refused",
    "transfers done",
    "snapshots replaced in the middle",
];

/// What the couriers of one cluster know together.
#[derive(Default)]
pub(crate) struct Post {
    counts: [u64; FIGURES.len()],
    /// For each receiver: the snapshot last opened, and whether some of it had arrived.
    latest: HashMap<u64, (u64, bool)>,
    sent: u64,
    arrived: u64,
}

impl Post {
    pub(crate) fn report(&self, mut report: Report) -> Report {
        for (name, count) in FIGURES.into_iter().zip(self.counts) {
            report = report.with(name, count);
        }
        report
    }

    fn answered(&mut self, to: u64, part: &SnapshotPart, answer: SnapshotAnswer) {
        let latest = self.latest.entry(to).or_default();
        match (part, answer) {
            (SnapshotPart::Open { name, .. }, SnapshotAnswer::Next { number }) => {
                let same = latest.0 == name.identity;
                self.counts[4] += u64::from(number > 0);
                self.counts[5] += u64::from(number == 0 && latest.1 && same);
                self.counts[8] += u64::from(number == 0 && latest.1 && !same);
                *latest = (name.identity, number > 0);
            }
            (SnapshotPart::Chunk { .. }, SnapshotAnswer::Next { number }) => latest.1 |= number > 0,
            (SnapshotPart::Close { .. }, SnapshotAnswer::Done) => {
                latest.1 = false;
                self.counts[7] += 1;
            }
            (_, SnapshotAnswer::Rejected) => self.counts[6] += 1,
            _ => {}
        }
    }
}

pub(crate) struct Courier {
    pub(crate) node: Arc<NetworkNode>,
    pub(crate) rng: Mutex<Rng>,
    pub(crate) post: Arc<Mutex<Post>>,
}

impl Courier {
    fn millis(&self, below: u64) -> Duration {
        Duration::from_millis(self.rng.lock().below(below))
    }
}

#[async_trait]
impl Transport for Courier {
    fn local(&self) -> u64 {
        self.node.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.node.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.node.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.node.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        self.node.send_all(to, messages)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        let fate = self.rng.lock().below(100);
        let number = {
            let mut post = self.post.lock();
            post.sent += 1;
            post.sent
        };
        sleep(self.millis(20)).await;
        if fate < 2 {
            self.post.lock().counts[0] += 1;
            sleep(timeout).await;
            return Err(SendError::NoAnswer);
        }
        {
            let mut post = self.post.lock();
            post.counts[3] += u64::from(number < post.arrived);
            post.arrived = post.arrived.max(number);
        }
        if (2..12).contains(&fate) {
            self.post.lock().counts[2] += 1;
            let (node, part, late) = (Arc::clone(&self.node), part.clone(), self.millis(1500));
            tokio::spawn(async move {
                sleep(late).await;
                node.snapshot(to, group, part, timeout).await
            });
        }
        let answer = self.node.snapshot(to, group, part.clone(), timeout).await?;
        self.post.lock().answered(to, &part, answer);
        if (12..14).contains(&fate) {
            self.post.lock().counts[1] += 1;
            sleep(timeout).await;
            return Err(SendError::NoAnswer);
        }
        Ok(answer)
    }
}

//! What a member of a group does about what its bus tells: a scripted bus, and no other member.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use voussoir_txn::choreography::*;
use voussoir_txn::{Bytes, async_trait};

/// What a participant has done with its bus.
#[derive(Debug, PartialEq)]
enum Did {
    /// A poll with these partitions full. One that was dropped is told again.
    Polled(Vec<u32>),
    GaveBack(usize),
    Published(Vec<String>),
}

struct Script {
    polls: Mutex<Option<mpsc::UnboundedReceiver<Vec<Delivery>>>>,
    did: mpsc::UnboundedSender<Did>,
}

struct Scripted {
    polls: mpsc::UnboundedReceiver<Vec<Delivery>>,
    did: mpsc::UnboundedSender<Did>,
}

#[async_trait]
impl Bus for Script {
    async fn publish(&self, _: &[Event]) -> Result<(), BusError> {
        Ok(())
    }

    async fn subscribe(&self, _: &str) -> Result<Box<dyn Subscription>, BusError> {
        let polls = self.polls.lock().take().expect("one subscription");
        Ok(Box::new(Scripted { polls, did: self.did.clone() }))
    }

    async fn tail(&self) -> Result<Box<dyn Tail>, BusError> {
        Err(BusError::NotApplied("a script has none".into()))
    }
}

#[async_trait]
impl Subscription for Scripted {
    async fn poll(
        &mut self,
        max_wait: Duration,
        full: &BTreeSet<u32>,
    ) -> Result<Vec<Delivery>, BusError> {
        let _ = self.did.send(Did::Polled(full.iter().copied().collect()));
        match tokio::time::timeout(max_wait, self.polls.recv()).await {
            Ok(Some(deliveries)) => Ok(deliveries),
            Ok(None) => std::future::pending().await,
            Err(_) => Ok(Vec::new()),
        }
    }

    fn give_back(&mut self, count: usize) -> Result<(), BusError> {
        if count > 0 {
            let _ = self.did.send(Did::GaveBack(count));
        }
        Ok(())
    }

    async fn commit(&mut self, commit: Commit) -> Result<(), BusError> {
        if !commit.publish.is_empty() {
            let kinds = commit.publish.into_iter().map(|event| event.kind);
            let _ = self.did.send(Did::Published(kinds.collect()));
        }
        Ok(())
    }
}

/// A participant that reacts to `a` when `gate` opens, and its bus.
struct Member {
    running: Running,
    polls: mpsc::UnboundedSender<Vec<Delivery>>,
    did: mpsc::UnboundedReceiver<Did>,
    gate: Arc<Notify>,
    began: Arc<AtomicU64>,
}

impl Member {
    fn start() -> Self {
        let (polls, of_bus) = mpsc::unbounded_channel();
        let (done, did) = mpsc::unbounded_channel();
        let (gate, began) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
        let (opens, begins) = (Arc::clone(&gate), Arc::clone(&began));
        let rule = Rule::on("a", "r", move |_| {
            let opens = Arc::clone(&opens);
            begins.fetch_add(1, Ordering::SeqCst);
            async move {
                opens.notified().await;
                Ok(vec![NewEvent::new("b", "")])
            }
        });
        let participant = Participant::new("p", [rule.timeout(DAY)]).unwrap();
        let bus = Arc::new(Script { polls: Mutex::new(Some(of_bus)), did: done });
        let running = Running::start(bus, &participant, ChoreographyConfig::default()).unwrap();
        Self { running, polls, did, gate, began }
    }

    /// One that has partition 0, and a reaction to the event of it that runs.
    async fn at_work() -> Self {
        let mut member = Self::start();
        member.polls.send(vec![assigned(0, vec![]), event(0, "first")]).unwrap();
        until_polled(&mut member.did, &[]).await;
        while member.began.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        member
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn assigned(partition: u32, state: Vec<(Bytes, Bytes)>) -> Delivery {
    Delivery::Assigned { partition, state }
}

fn event(partition: u32, id: &str) -> Delivery {
    Delivery::Event { partition, event: Event::first(id, "a", id, "") }
}

/// What it has done until it polled with `full`.
async fn until_polled(did: &mut mpsc::UnboundedReceiver<Did>, full: &[u32]) -> Vec<Did> {
    let polled = Did::Polled(full.to_vec());
    let mut seen = Vec::new();
    let all = async {
        loop {
            let did = did.recv().await.expect("it runs");
            if did == polled {
                return;
            }
            seen.push(did);
        }
    };
    let ended = tokio::time::timeout(DAY / 2, all).await;
    assert!(ended.is_ok(), "no poll with {full:?} full: {seen:?}");
    seen
}

/// A rolling deployment: the member that goes waits for its reaction, and the group goes on.
#[tokio::test(start_paused = true)]
async fn a_member_that_stops_goes_on_polling_and_takes_nothing_more() {
    let Member { running, polls, mut did, gate, began } = Member::at_work().await;
    let stopping = tokio::spawn(running.stop());
    until_polled(&mut did, &[0]).await;
    // The group is rebalanced: another partition comes, and events with it.
    polls.send(vec![assigned(1, vec![]), event(1, "second"), event(0, "third")]).unwrap();
    assert_eq!(until_polled(&mut did, &[0, 1]).await, [Did::GaveBack(2)]);
    polls.send(vec![Delivery::Lost { partition: 1 }]).unwrap();
    assert_eq!(until_polled(&mut did, &[0]).await, []);
    assert!(!stopping.is_finished(), "its reaction runs");
    gate.notify_one();
    stopping.await.unwrap();
    let mut rest = Vec::new();
    while let Some(did) = did.recv().await {
        rest.push(did);
    }
    assert_eq!(rest.pop(), Some(Did::Published(vec!["b".into()])));
    assert!(rest.iter().all(|did| *did == Did::Polled(vec![0])), "{rest:?}");
    assert_eq!(began.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_stops_does_not_wait_for_what_another_one_does_again() {
    let Member { running, polls, mut did, .. } = Member::at_work().await;
    let stopping = tokio::spawn(running.stop());
    until_polled(&mut did, &[0]).await;
    polls.send(vec![Delivery::Lost { partition: 0 }]).unwrap();
    stopping.await.unwrap();
    while let Some(did) = did.recv().await {
        assert!(matches!(did, Did::Polled(_)), "{did:?}");
    }
}

/// Subscribing again would not help, and rebalance the group each time.
#[tokio::test(start_paused = true)]
async fn a_partition_whose_state_is_garbled_waits_and_holds_up_no_other() {
    let Member { running, polls, mut did, gate, began } = Member::start();
    let garbled = vec![(Bytes::from_static(b"d"), Bytes::from_static(b"?"))];
    let ours = assigned(0, vec![]);
    polls.send(vec![ours, assigned(1, garbled), event(1, "waits"), event(0, "first")]).unwrap();
    let seen = until_polled(&mut did, &[1]).await;
    assert_eq!(seen, [Did::Polled(vec![]), Did::GaveBack(2)]);
    assert_eq!(running.stats().error, Some(BusError::Garbled { partition: 1 }));
    polls.send(vec![event(0, "first")]).unwrap();
    gate.notify_one();
    while running.stats().published == 0 {
        let seen = did.recv().await.expect("it runs");
        assert!(matches!(seen, Did::Polled(_) | Did::Published(_)), "{seen:?}");
    }
    assert_eq!(running.stats().error, Some(BusError::Garbled { partition: 1 }), "also later");
    assert_eq!((running.stats().events, began.load(Ordering::SeqCst)), (1, 1));
    // A member that can read it has it now.
    polls.send(vec![Delivery::Lost { partition: 1 }]).unwrap();
    until_polled(&mut did, &[]).await;
    assert_eq!(running.stats().error, None);
    gate.notify_one();
    // What it can read by now it goes on with.
    polls.send(vec![assigned(1, vec![]), event(1, "waits")]).unwrap();
    while began.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    running.stop().await;
}

/// A bus on which everything works but commits. Tells of each subscription.
struct Full(mpsc::UnboundedSender<tokio::time::Instant>);

struct OfFull {
    is_polled: bool,
}

#[async_trait]
impl Bus for Full {
    async fn publish(&self, _: &[Event]) -> Result<(), BusError> {
        Ok(())
    }

    async fn subscribe(&self, _: &str) -> Result<Box<dyn Subscription>, BusError> {
        let _ = self.0.send(tokio::time::Instant::now());
        Ok(Box::new(OfFull { is_polled: false }))
    }

    async fn tail(&self) -> Result<Box<dyn Tail>, BusError> {
        Err(BusError::NotApplied("it has none".into()))
    }
}

#[async_trait]
impl Subscription for OfFull {
    async fn poll(&mut self, _: Duration, _: &BTreeSet<u32>) -> Result<Vec<Delivery>, BusError> {
        if std::mem::replace(&mut self.is_polled, true) {
            return std::future::pending().await;
        }
        Ok(vec![assigned(0, vec![]), event(0, "first")])
    }

    fn give_back(&mut self, _: usize) -> Result<(), BusError> {
        Ok(())
    }

    async fn commit(&mut self, _: Commit) -> Result<(), BusError> {
        Err(BusError::NotApplied("it is full".into()))
    }
}

/// Each subscription rebalances the group.
#[tokio::test(start_paused = true)]
async fn pauses_grow_while_polls_succeed_and_commits_fail() {
    let (subscribed, mut subscriptions) = mpsc::unbounded_channel();
    let rule = Rule::on("a", "r", |_| async { Ok(vec![]) });
    let participant = Participant::new("p", [rule]).unwrap();
    let bus = Arc::new(Full(subscribed));
    let _running = Running::start(bus, &participant, ChoreographyConfig::default()).unwrap();
    let mut last = subscriptions.recv().await.unwrap();
    for pause in [100, 200, 400, 800, 1600, 3200, 6400, 6400] {
        let next = subscriptions.recv().await.unwrap();
        let millis = (next - last).as_millis();
        assert!((pause..pause + 10).contains(&millis), "{millis} ms, not {pause} ms");
        last = next;
    }
}

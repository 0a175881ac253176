//! Changes of the membership at running nodes, on paused time.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, append, soon, timeout};
use parking_lot::Mutex;
use tokio::time::Instant;
use voussoir_raft::memory::NetworkNode;
use voussoir_raft::{
    AttachError, Change, ChangeError, ChangeRejected, Inbox, Membership, Message, Outcome,
    SendError, SnapshotAnswer, SnapshotPart, TransferError, Transport, async_trait,
};

/// Three voters, and two nodes that are to join. Snapshots are taken all the time, so that those
/// who join get one.
async fn growing() -> Cluster {
    Cluster::tuned(5, |config| {
        config.dynamic = true;
        config.voters = if config.id > 3 { Vec::new() } else { vec![1, 2, 3] };
        config.snapshot_after_entries = 5;
        config.keep_entries = 0;
    })
    .await
}

async fn say(cluster: &Cluster, leader: u64, text: &str) {
    timeout(cluster.raft(leader).propose(append(text))).await.expect("a majority is there");
}

#[tokio::test(start_paused = true)]
async fn a_node_is_replaced_in_one_call_while_commands_go_on() {
    let mut cluster = growing().await;
    let leader = cluster.led_by(3).await;
    for at in 0..20 {
        say(&cluster, leader, &at.to_string()).await;
    }
    let old = leader % 3 + 1;
    timeout(cluster.raft(old).shutdown()).await;
    let raft = cluster.raft(leader).clone();
    let replaced = raft.replace(old, 4, "four", soon());
    let talk = async {
        for at in 20..40 {
            say(&cluster, leader, &at.to_string()).await;
        }
    };
    let (index, ()) = timeout(async { tokio::join!(replaced, talk) }).await;
    let index = index.expect("it catches up");
    let members = raft.members().borrow().clone();
    let mut expected: Vec<u64> = (1..=4).filter(|id| *id != old).collect();
    expected.sort_unstable();
    assert_eq!((members.voters(), members.address(4)), (&expected[..], Some("four")));
    cluster.until(4, |status| status.is_voter && status.members_index == index).await;
    // It counts: with it and the leader there is a majority, also after its restart.
    cluster.restart(4).await;
    let third = expected.iter().copied().find(|id| ![leader, 4].contains(id)).unwrap();
    timeout(cluster.raft(third).shutdown()).await;
    say(&cluster, leader, "with four").await;
    cluster.until(4, |status| status.applied >= index).await;
    let text = cluster.text(leader);
    timeout(cluster.raft(4).read(soon())).await.expect("two of three confirm it");
    assert_eq!(cluster.text(4), text);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_removed_is_followed_at_once() {
    let cluster = growing().await;
    let leader = cluster.led_by(3).await;
    say(&cluster, leader, "a").await;
    let change = Change::new().remove(leader);
    timeout(cluster.raft(leader).change(change, soon())).await.expect("two are there");
    let status = cluster.until(leader, |status| status.removed.is_some()).await;
    assert_eq!((status.is_voter, status.leader), (false, None));
    let before = Instant::now();
    let next = cluster.led_by_other_than(leader, 2).await;
    assert!(before.elapsed() < Duration::from_millis(100), "nobody waits for a time-out");
    say(&cluster, next, "b").await;
    assert_eq!(cluster.text(next), "ab");
}

#[tokio::test(start_paused = true)]
async fn a_change_ends_by_its_deadline_and_can_be_asked_for_again() {
    let cluster = growing().await;
    let leader = cluster.led_by(3).await;
    let raft = cluster.raft(leader);
    timeout(cluster.raft(4).shutdown()).await;
    let change = Change::new().voter(4);
    let deadline = Instant::now() + Duration::from_secs(2);
    let late = timeout(raft.change(change.clone(), deadline)).await.unwrap_err();
    assert_eq!((Instant::now(), late.clone()), (deadline, ChangeError::TimedOut));
    assert_eq!((late.outcome(), late.is_retryable()), (Outcome::Unknown, true));
    // Dropped: it makes room too. Five is there.
    drop(tokio::time::timeout(Duration::from_secs(1), raft.change(change, soon())).await);
    timeout(raft.change(Change::new().voter(5).remove(4), soon())).await.expect("five is there");
    let members = raft.members().borrow().clone();
    assert_eq!((members.voters(), members.learners()), (&[1, 2, 3, 5][..], &[][..]));
    let follower = leader % 3 + 1;
    let elsewhere = cluster.raft(follower).change(Change::new().remove(5), soon());
    let refused = timeout(elsewhere).await.unwrap_err();
    let not_here = ChangeRejected::NotLeader { leader: Some(leader) };
    assert_eq!(refused, ChangeError::Rejected(not_here));
    assert_eq!((refused.outcome(), refused.is_retryable()), (Outcome::NotApplied, true));
    timeout(raft.shutdown()).await;
    let stopped = timeout(raft.change(Change::new(), soon())).await;
    assert!(matches!(stopped, Err(ChangeError::Stopped(_))), "{stopped:?}");
}

#[tokio::test(start_paused = true)]
async fn leadership_is_transferred_by_one_call() {
    let cluster = growing().await;
    let leader = cluster.led_by(3).await;
    let raft = cluster.raft(leader);
    let to = leader % 3 + 1;
    let before = Instant::now();
    assert_eq!(timeout(raft.transfer_leadership(Some(to), soon())).await, Ok(to));
    assert!(before.elapsed() < Duration::from_millis(100), "nobody waits for a time-out");
    let again = timeout(raft.transfer_leadership(None, soon())).await;
    assert_eq!(again, Err(TransferError::NotLeader { leader: Some(to) }));
    say(&cluster, to, "goes on").await;
}

#[tokio::test(start_paused = true)]
async fn a_transfer_to_whom_nobody_can_elect_is_refused_at_once() {
    let cluster = growing().await;
    let leader = cluster.led_by(3).await;
    let raft = cluster.raft(leader);
    timeout(raft.change(Change::new().learner(4), soon())).await.expect("it is there");
    let before = Instant::now();
    let refused = async |to| timeout(raft.transfer_leadership(to, soon())).await;
    assert_eq!(refused(Some(leader)).await, Err(TransferError::ToSelf));
    for to in [4, 5, 0, 99, u64::MAX] {
        assert_eq!(refused(Some(to)).await, Err(TransferError::NotVoter { to }));
    }
    assert_eq!(Instant::now(), before);
    say(&cluster, leader, "goes on").await;
    let others = (1..=3).filter(|id| *id != leader).fold(Change::new(), Change::remove);
    timeout(raft.change(others, soon())).await.expect("a majority is there");
    let before = Instant::now();
    assert_eq!(refused(None).await, Err(TransferError::NoOtherVoter));
    assert_eq!(Instant::now(), before);
    say(&cluster, leader, ", alone").await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_adds_no_node_is_refused_at_once() {
    let cluster = growing().await;
    let leader = cluster.led_by(3).await;
    let raft = cluster.raft(leader);
    let (before, members) = (Instant::now(), raft.members().borrow().clone());
    for change in
        [Change::new().voter(0), Change::new().learner(0), Change::new().voter(4).voter(0)]
    {
        let refused = timeout(raft.change(change, soon())).await.unwrap_err();
        assert_eq!(refused, ChangeError::Rejected(ChangeRejected::NoId));
        assert_eq!((refused.outcome(), refused.is_retryable()), (Outcome::NotApplied, false));
    }
    let refused = timeout(raft.replace(leader % 3 + 1, 0, "nowhere", soon())).await;
    assert_eq!(refused, Err(ChangeError::Rejected(ChangeRejected::NoId)));
    assert_eq!((Instant::now(), raft.members().borrow().clone()), (before, members));
    say(&cluster, leader, "goes on").await;
}

// It may be elected again where nobody followed it in time: that is no transfer.
#[tokio::test(start_paused = true)]
async fn a_leader_that_leads_again_has_handed_over_to_nobody() {
    let mut cluster = Cluster::new(2).await;
    let leader = cluster.leader().await;
    let other = 3 - leader;
    say(&cluster, leader, "a").await;
    let term = cluster.status(leader).term;
    timeout(cluster.raft(other).shutdown()).await;
    // Its log is the longer one from now on: nobody else can be elected.
    let raft = cluster.raft(leader).clone();
    let longer = tokio::spawn(async move { raft.propose(append("b")).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let raft = cluster.raft(leader).clone();
    let deadline = Instant::now() + Duration::from_secs(20);
    let transfer = tokio::spawn(async move { raft.transfer_leadership(None, deadline).await });
    cluster.until(leader, |status| status.leader.is_none()).await;
    cluster.restart(other).await;
    cluster.until(leader, |status| status.term > term && status.leader == Some(leader)).await;
    let ended = timeout(transfer).await.expect("it does not panic");
    assert_eq!((ended, Instant::now()), (Err(TransferError::TimedOut), deadline));
    drop(timeout(longer).await);
}

/// A transport that notes what it is told of the members.
struct Noting {
    inner: Arc<NetworkNode>,
    told: Mutex<Vec<Membership>>,
    /// To whom something was sent before any membership had named that node.
    unlisted: Mutex<Vec<u64>>,
}

static NOTED: Mutex<Vec<Arc<Noting>>> = Mutex::new(Vec::new());

#[async_trait]
impl Transport for Noting {
    fn local(&self) -> u64 {
        self.inner.local()
    }

    fn members(&self, _: u64, members: &Membership) {
        self.told.lock().push(members.clone());
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.inner.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.inner.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        if !self.told.lock().iter().any(|members| members.contains(to)) {
            self.unlisted.lock().push(to);
        }
        self.inner.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let send = |(group, message)| self.send(to, group, message);
        messages.into_iter().map(send).fold(Ok(()), Result::and)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        self.inner.snapshot(to, group, part, timeout).await
    }
}

#[tokio::test(start_paused = true)]
async fn transports_are_told_of_every_membership_and_its_addresses() {
    let tune = |config: &mut voussoir_raft::Config| {
        config.dynamic = true;
        config.voters = if config.id > 1 { Vec::new() } else { vec![1] };
    };
    let cluster = Cluster::wrapped(2, tune, |inner| {
        let noting = Arc::new(Noting { inner, told: Mutex::default(), unlisted: Mutex::default() });
        NOTED.lock().push(Arc::clone(&noting));
        noting
    })
    .await;
    let raft = cluster.raft(1);
    timeout(raft.status().wait_for(|status| status.leader == Some(1))).await.expect("it runs");
    let change = Change::new().voter(2).address(2, "here");
    timeout(raft.change(change, soon())).await.expect("both are there");
    cluster.until(2, |status| status.is_voter).await;
    for (at, start) in [Membership::new([1]), Membership::default()].into_iter().enumerate() {
        let told = NOTED.lock()[at].told.lock().clone();
        assert_eq!(told[0], start, "at the start");
        let last = told.last().expect("it has heard of the change");
        assert_eq!((last.voters(), last.address(2)), (&[1, 2][..], Some("here")));
        assert!(told.iter().any(|members| members.learners() == [2]), "{told:?}");
    }
    let unlisted = NOTED.lock()[0].unlisted.lock().clone();
    assert!(
        unlisted.is_empty(),
        "it hears of a member before anything is sent there: {unlisted:?}"
    );
}

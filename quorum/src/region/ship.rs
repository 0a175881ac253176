//! Telling the other regions what this node has written.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::handle::{MAX_STATE_BYTES, Peer, Region, Shared, bytes_of};
use super::outbox::Fate;
use super::stats::PeerState;
use super::wire::{Answer, Envelope, Question, Reply, Sender};
use crate::link::{Class, Link};
use crate::pace::Pace;
use crate::table::Value;

/// How long an idle task waits before it looks whether the region is still there.
const IDLE: Duration = Duration::from_secs(1);

impl Region {
    /// Starts the tasks that keep the regions equal until the node ends, or a link is dropped
    /// elsewhere: one for each other region, and one that collects tombstones. `local` reaches the
    /// nodes of the own region, as [`Node::maintain`](crate::Node::maintain) has it; `wide` hands
    /// questions to [`Region::answer`] of the nodes of all regions, the own one too. Does nothing
    /// when it was called before.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn maintain(&self, local: &Arc<dyn Link>, wide: &Arc<dyn Link>) {
        let links = (Arc::downgrade(local), Arc::downgrade(wide));
        if self.shared.links.set(links).is_err() {
            return;
        }
        for region in self.shared.feed.peers.keys() {
            tokio::spawn(run(Arc::downgrade(&self.shared), *region));
        }
        if let Some(every) = self.shared.node.collect_every() {
            tokio::spawn(super::collect::run(Arc::downgrade(&self.shared), every));
        }
    }

    pub(super) fn peer(&self, region: u64) -> Option<&Peer> {
        self.shared.feed.peers.get(&region)
    }

    /// Ships one batch.
    async fn ship(&self, region: u64, keys: &[Bytes]) -> Option<Vec<Fate>> {
        let (wide, peer) = (self.wide()?, self.peer(region)?);
        // Before any state is read: what was deleted and collected since is refused.
        let epoch = self.epoch_of(&wide, region).await?;
        let scope = self.shared.node.own_scope().await?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for key in keys {
            let state = self.shared.node.own_state(&scope, key.clone()).await?;
            bytes += bytes_of(&state) + key.len();
            if bytes > MAX_STATE_BYTES && !entries.is_empty() {
                break;
            }
            entries.push((key.clone(), state));
        }
        let count = entries.len();
        let pace = Pace::new(self.shared.config.bytes_per_second);
        let fates = self.send(&wide, region, epoch, entries).await?;
        if fates.len() != count {
            return None;
        }
        let held = fates.iter().filter(|fate| **fate == Fate::Held).count();
        {
            let mut contact = peer.contact.lock();
            contact.stats.shipped_keys += held as u64;
            contact.stats.bytes += bytes as u64;
        }
        pace.keep(bytes as u64).await;
        Some(fates)
    }

    /// Sends states to a region. `epoch` is what the region said before any of them was read.
    pub(super) async fn send(
        &self,
        wide: &Arc<dyn Link>,
        region: u64,
        epoch: u64,
        entries: Vec<(Bytes, Value)>,
    ) -> Option<Vec<Fate>> {
        let question = Question::Ship { epoch, entries };
        let Answer::Fates { epoch, fates } = self.ask(wide, region, question).await? else {
            return None;
        };
        self.peer(region)?.contact.lock().epoch = epoch;
        Some(fates)
    }

    /// The epoch of collected tombstones of a region, as it was told last.
    pub(super) async fn epoch_of(&self, wide: &Arc<dyn Link>, region: u64) -> Option<u64> {
        let known = self.peer(region)?.contact.lock().epoch;
        if known > 0 {
            return Some(known);
        }
        self.greet(wide, region).await.map(|(epoch, _)| epoch)
    }

    /// Asks a region who its replicas are. Returns its epoch and the node that has answered.
    pub(super) async fn greet(&self, wide: &Arc<dyn Link>, region: u64) -> Option<(u64, u64)> {
        let peer = self.peer(region)?;
        let to = self.node_of(peer);
        let answer = self.ask_node(wide, region, to, Question::Hello).await?;
        let Answer::Welcome { epoch, membership, .. } = answer else { return None };
        let own: BTreeSet<u64> = self.shared.node.current().ids().into_iter().collect();
        let nodes = membership.ids();
        let mut contact = peer.contact.lock();
        if nodes.iter().any(|id| own.contains(id)) {
            contact.state = PeerState::SharedNodes;
            contact.pass_over(self.shared.node.id(), to);
            return None;
        }
        // Those of the map last: its replicas may all have been replaced.
        let seeds = self.shared.config.member(region).map(|member| member.nodes.clone());
        let seeds = seeds.unwrap_or_default();
        let is_new = |id: &u64| !nodes.contains(id);
        contact.nodes = nodes.iter().copied().chain(seeds.into_iter().filter(is_new)).collect();
        // It is asked again.
        let (at, len) = (contact.nodes.iter().position(|id| *id == to), contact.nodes.len());
        contact.turn = at.unwrap_or(0) + len - self.shared.node.id() as usize % len;
        contact.epoch = epoch;
        Some((epoch, to))
    }

    /// The node of a region that is asked now.
    fn node_of(&self, peer: &Peer) -> u64 {
        peer.contact.lock().node(self.shared.node.id())
    }

    pub(super) async fn ask(
        &self,
        wide: &Arc<dyn Link>,
        region: u64,
        question: Question,
    ) -> Option<Answer> {
        let to = self.node_of(self.peer(region)?);
        self.ask_node(wide, region, to, question).await
    }

    pub(super) fn envelope(&self, to: u64, sender: Sender, question: Question) -> Envelope {
        Envelope { from: self.shared.config.own, to, map: self.map_stamp(), sender, question }
    }

    /// Asks a node of a region. None: it did not answer, did nothing, or has another map. The next
    /// question goes to the next node.
    pub(super) async fn ask_node(
        &self,
        wide: &Arc<dyn Link>,
        region: u64,
        to: u64,
        question: Question,
    ) -> Option<Answer> {
        let config = &self.shared.config;
        let sender = self.sender();
        // After its membership was taken: what was read as a replica is said as one.
        let is_hello = matches!(question, Question::Hello);
        if !is_hello && !self.shared.node.is_whole() {
            return None;
        }
        let envelope = self.envelope(region, sender, question);
        let deadline = Instant::now() + config.timeout;
        let called = timeout_at(deadline, wide.call(to, Class::Bulk, envelope.encode(), deadline));
        let reply = match called.await {
            Ok(Ok(reply)) => Reply::decode(reply).ok().filter(|reply| reply.sender.node == to),
            _ => None,
        };
        let is_over =
            reply.as_ref().is_some_and(|reply| !self.is_heard(region, reply.sender.stamp));
        let answer = reply.map(|reply| reply.answer);
        let Some(peer) = self.peer(region) else {
            return answer.filter(|answer| !is_over && !is_refusal(answer));
        };
        let mut contact = peer.contact.lock();
        let (state, is_good) = match &answer {
            Some(Answer::OtherMap { epoch, is_member }) => {
                (PeerState::OtherMap { epoch: *epoch, is_member: *is_member }, false)
            }
            Some(Answer::OtherRegion { region }) => {
                (PeerState::OtherRegion { region: *region }, false)
            }
            Some(Answer::Over) => (PeerState::Over { is_own: true }, false),
            Some(_) if is_over => (PeerState::Over { is_own: false }, false),
            Some(Answer::Later) => (PeerState::Reached, false),
            Some(_) => (PeerState::Reached, true),
            None => (PeerState::Away, false),
        };
        contact.state = state;
        if is_good {
            return answer;
        }
        contact.pass_over(self.shared.node.id(), to);
        None
    }
}

fn is_refusal(answer: &Answer) -> bool {
    let is_other = matches!(answer, Answer::OtherMap { .. } | Answer::OtherRegion { .. });
    is_other || matches!(answer, Answer::Over | Answer::Later)
}

async fn run(shared: Weak<Shared>, region: u64) {
    // Ends: with the last handle to the region or a link, or when the node ends.
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let handle = Region { shared };
        if handle.wide().is_none() || handle.local().is_none() || handle.shared.node.has_ended() {
            return;
        }
        let Some(peer) = handle.peer(region) else { return };
        let feed = Arc::clone(&handle.shared.feed);
        let knows = match handle.wide().filter(|_| handle.shared.node.is_whole()) {
            Some(wide) => handle.learn_floors(&wide).await,
            None => false,
        };
        if !knows {
            // It reads nothing of its own that it could ship.
            drop(handle);
            tokio::time::sleep(IDLE / 10).await;
            continue;
        }
        if peer.outbox.lock().begin_comparison(feed.now()) {
            tokio::spawn(super::compare::run(handle.clone(), region));
        }
        let keys = peer.outbox.lock().next_batch(feed.now(), handle.shared.config.max_batch_keys);
        if !keys.is_empty() {
            match handle.ship(region, &keys).await {
                Some(fates) => peer.outbox.lock().shipped(feed.now(), &fates),
                None => peer.outbox.lock().failed(feed.now()),
            }
            continue;
        }
        let due = peer.outbox.lock().next_deadline();
        drop(handle);
        let idle = Instant::now() + IDLE;
        let at = due.and_then(|due| feed.began.checked_add(Duration::from_nanos(due)));
        let Some(peer) = feed.peers.get(&region) else { return };
        tokio::select! {
            biased;
            () = sleep_until(at.map_or(idle, |at| at.min(idle))) => {}
            () = peer.woken.notified() => {}
        }
    }
}

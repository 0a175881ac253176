//! What the nodes know of each other, once for all their groups: who is alive, in which life, and
//! which leaderships have ended. Also the heartbeats of all groups on their way to one peer.
//!
//! Plain state: no clock, no task, no I/O. The shell's hub and the simulation both drive it.

use std::collections::{BTreeMap, VecDeque};

use crate::codec;
use crate::message::{GroupBeat, NodeBeat};

/// The most heartbeats and answers in one message: 40 KiB.
pub(crate) const MAX_BEATS: usize = 1024;

/// The most ended leaderships in one message. Later ones wait until these are acknowledged.
const MAX_RESIGNED_PER_MESSAGE: usize = 1024;

/// The most ended leaderships that wait for one peer. Past it this node is silent to the peer until
/// it is taken for dead there, which says the same of all groups at once.
const MAX_RESIGNED: usize = 65_536;

/// A leadership of this node that has ended.
#[derive(Clone, Copy, Debug)]
struct Resigned {
    group: u64,
    term: u64,
    /// The first tick that named it; 0: none yet. Every later tick names it too.
    told_at: u64,
}

/// Another node.
#[derive(Debug, Default)]
struct Peer {
    /// Groups of which both nodes are members.
    groups: usize,
    /// The life of its process; `None` while it is not known to be alive.
    life: Option<u64>,
    /// Time of the latest message of that life.
    heard_at: u64,
    /// The next message to it counts as a tick.
    is_due: bool,
    /// The life and the tick of it that were last heard.
    seen: (u64, u64),
    /// Invariant: at most one of each group; those with a `told_at` come first.
    resigned: VecDeque<Resigned>,
    beats: Vec<(u64, GroupBeat)>,
    /// Nothing is sent to it before.
    silent_until: u64,
}

/// All other nodes.
#[derive(Debug)]
pub(crate) struct Peers {
    /// Names this life of this node.
    life: u64,
    /// Between two ticks, in ns.
    interval: u64,
    /// The silence after which a peer is no longer known to be alive, in ns.
    suspect_after: u64,
    /// The caller's time at the latest tick or message.
    caller: u64,
    /// A time of its own that stands still while this node does: after a pause, or when the clock
    /// jumps, the peers have not been silent for as long.
    now: u64,
    /// The latest tick. One count for all peers, so that it goes on for one that was forgotten.
    tick: u64,
    /// The most heartbeats and answers in one message, at most `MAX_BEATS`.
    max_beats: usize,
    /// The most ended leaderships in one message, at most `MAX_RESIGNED_PER_MESSAGE`.
    max_resigned: usize,
    known: BTreeMap<u64, Peer>,
}

impl Peers {
    pub(crate) fn new(life: u64, interval: u64, suspect_after: u64, now: u64) -> Self {
        Self {
            life,
            interval,
            suspect_after,
            caller: now,
            now: 0,
            tick: 0,
            max_beats: MAX_BEATS,
            max_resigned: MAX_RESIGNED_PER_MESSAGE,
            known: BTreeMap::new(),
        }
    }

    /// Makes no message longer than `bytes`, as far as heartbeats and ended leaderships count: half
    /// of it is for each.
    pub(crate) fn with_messages_of(mut self, bytes: usize) -> Self {
        let half = bytes.saturating_sub(codec::NODE_BEAT_HEAD) / 2;
        self.max_beats = (half / codec::BEAT).clamp(1, MAX_BEATS);
        self.max_resigned = (half / codec::RESIGNATION).clamp(1, MAX_RESIGNED_PER_MESSAGE);
        self
    }

    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    /// The lives of the peers that share a group with this node; `None`: not known to be alive.
    pub(crate) fn lives(&self) -> impl Iterator<Item = (u64, Option<u64>)> + '_ {
        self.known.iter().filter(|(_, peer)| peer.groups > 0).map(|(id, peer)| (*id, peer.life))
    }

    pub(crate) fn is_alive(&self, id: u64) -> bool {
        self.known.get(&id).is_some_and(|peer| peer.life.is_some())
    }

    /// A group more has this peer as a member. Returns the peer's life, if it is alive.
    pub(crate) fn link(&mut self, to: u64) -> Option<u64> {
        let peer = self.known.entry(to).or_default();
        peer.groups += 1;
        peer.life
    }

    /// A group less has this peer as a member.
    pub(crate) fn unlink(&mut self, from: u64) {
        if let Some(peer) = self.known.get_mut(&from) {
            peer.groups = peer.groups.saturating_sub(1);
        }
        self.forget_strangers();
    }

    fn forget_strangers(&mut self) {
        self.known.retain(|_, peer| {
            peer.groups > 0 || !peer.beats.is_empty() || !peer.resigned.is_empty()
        });
    }

    /// Puts a heartbeat, or the answer to one, on its way. Returns the message that is full with
    /// it, to be sent at once.
    pub(crate) fn push(&mut self, to: u64, group: u64, beat: GroupBeat) -> Option<NodeBeat> {
        let (life, now) = (self.life, self.now);
        let peer = self.known.entry(to).or_default();
        peer.beats.push((group, beat));
        let is_full = peer.beats.len() >= self.max_beats;
        let full = is_full.then(|| peer.next_beat(life, 0, 0));
        full.filter(|_| now >= peer.silent_until)
    }

    /// This node's leadership of `group` in `term`, in which the group had quiesced, is over: tells
    /// `members` until they have heard it.
    pub(crate) fn resign(&mut self, group: u64, term: u64, members: &[u64]) {
        let silence = self.suspect_after.saturating_mul(4);
        for member in members {
            let peer = self.known.entry(*member).or_default();
            peer.resigned.retain(|resigned| resigned.group != group);
            peer.resigned.push_back(Resigned { group, term, told_at: 0 });
            // At once, and again with every tick.
            peer.is_due = true;
            if peer.resigned.len() > MAX_RESIGNED {
                peer.resigned.clear();
                peer.silent_until = self.now.saturating_add(silence);
            }
        }
    }

    fn advance(&mut self, caller: u64) {
        let passed = caller.saturating_sub(self.caller).min(self.interval.saturating_mul(2));
        (self.caller, self.now) = (caller, self.now.saturating_add(passed));
    }

    /// The common tick: all peers are told that this node is alive with the next flush. Returns
    /// those that have been silent for too long.
    pub(crate) fn tick(&mut self, caller: u64) -> Vec<u64> {
        self.advance(caller);
        let mut suspects = Vec::new();
        for (id, peer) in &mut self.known {
            let silent = self.now.saturating_sub(peer.heard_at) > self.suspect_after;
            if silent && peer.life.take().is_some() {
                suspects.push(*id);
            }
            if peer.groups == 0 && peer.life.is_none() {
                // It hears nothing any more, and so takes this node for dead.
                peer.resigned.clear();
            }
            peer.is_due = peer.groups > 0 || !peer.resigned.is_empty();
        }
        self.forget_strangers();
        suspects
    }

    /// The messages that are due.
    pub(crate) fn flush(&mut self) -> Vec<(u64, NodeBeat)> {
        let (life, now) = (self.life, self.now);
        self.tick += u64::from(self.known.values().any(|peer| peer.is_due));
        let (tick, mut out) = (self.tick, Vec::new());
        for (id, peer) in &mut self.known {
            let is_due = std::mem::take(&mut peer.is_due);
            if now < peer.silent_until {
                peer.beats.clear();
            } else if is_due || !peer.beats.is_empty() {
                let tick = if is_due { tick } else { 0 };
                out.push((*id, peer.next_beat(life, tick, self.max_resigned)));
            }
        }
        self.forget_strangers();
        out
    }

    /// `from` has sent `beat`. Returns its life, if that is news: it is alive, or has been started
    /// again.
    pub(crate) fn receive(&mut self, caller: u64, from: u64, beat: &NodeBeat) -> Option<u64> {
        self.advance(caller);
        let (now, own) = (self.now, self.life);
        // Of a node that shares no group nothing is kept.
        let peer = self.known.get_mut(&from)?;
        peer.heard_at = now;
        if peer.seen.0 == beat.life {
            peer.seen.1 = peer.seen.1.max(beat.tick);
        } else {
            peer.seen = (beat.life, beat.tick);
        }
        if beat.seen_life == own {
            let heard = |resigned: &Resigned| (1..=beat.seen_tick).contains(&resigned.told_at);
            peer.resigned.retain(|resigned| !heard(resigned));
        }
        (peer.groups > 0 && peer.life.replace(beat.life) != Some(beat.life)).then_some(beat.life)
    }
}

impl Peer {
    /// `tick` is 0 between two ticks. At a tick the message names the first `max_resigned` ended
    /// leaderships.
    fn next_beat(&mut self, life: u64, tick: u64, max_resigned: usize) -> NodeBeat {
        let (seen_life, seen_tick) = self.seen;
        let mut beat = NodeBeat {
            life,
            tick,
            seen_life,
            seen_tick,
            resigned: Vec::new(),
            beats: std::mem::take(&mut self.beats),
        };
        if tick > 0 {
            for resigned in self.resigned.iter_mut().take(max_resigned) {
                if resigned.told_at == 0 {
                    resigned.told_at = tick;
                }
                beat.resigned.push((resigned.group, resigned.term));
            }
        }
        beat
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::NODE_GROUP;
    use crate::message::{Heartbeat, Message};

    const MS: u64 = 1_000_000;

    /// Two nodes that share a group, and know each other to be alive.
    fn pair() -> (Peers, Peers) {
        let mut one = Peers::new(11, 50 * MS, 300 * MS, 0);
        let mut two = Peers::new(22, 50 * MS, 300 * MS, 0);
        assert_eq!((one.link(2), two.link(1)), (None, None));
        one.tick(0);
        two.tick(0);
        assert_eq!(deliver(0, &mut one, &mut two), Some(11));
        assert_eq!(deliver(0, &mut two, &mut one), Some(22));
        (one, two)
    }

    /// What the one sends, the other hears; returns its life where that is news.
    fn deliver(now: u64, from: &mut Peers, to: &mut Peers) -> Option<u64> {
        let id = if from.life().is_multiple_of(11) { from.life() / 11 } else { 1 };
        let sent = from.flush();
        sent.iter().find_map(|(_, beat)| to.receive(now, id, beat))
    }

    #[test]
    fn a_peer_that_is_silent_is_suspected_once_and_not_before_its_time() {
        let (mut one, mut two) = pair();
        for at in (50..=300).step_by(50) {
            assert!(one.tick(at * MS).is_empty(), "{at} ms");
        }
        assert_eq!(one.tick(350 * MS), [2]);
        assert!(one.tick(400 * MS).is_empty(), "once");
        assert_eq!(one.lives().collect::<Vec<_>>(), [(2, None)]);
        two.tick(400 * MS);
        assert_eq!(deliver(400 * MS, &mut two, &mut one), Some(22), "and is back");
    }

    #[test]
    fn a_pause_of_this_node_is_no_silence_of_its_peers() {
        let (mut one, _) = pair();
        assert!(one.tick(3_600_000 * MS).is_empty(), "it stood still for an hour");
        assert!(one.tick(7_200_000 * MS).is_empty(), "the clock jumped");
        assert!(one.tick(0).is_empty(), "and back");
        let suspected = (1..10).find(|n| !one.tick(n * 50 * MS).is_empty());
        assert!(suspected.is_some_and(|n| n <= 6), "silence still counts: {suspected:?}");
    }

    #[test]
    fn a_peer_that_was_started_again_is_news_without_any_silence() {
        let (mut one, _) = pair();
        let mut again = Peers::new(23, 50 * MS, 300 * MS, 0);
        again.link(1);
        again.tick(0);
        let (_, beat) = again.flush().remove(0);
        assert_eq!(one.receive(10 * MS, 2, &beat), Some(23));
        assert_eq!(one.receive(10 * MS, 2, &beat), None, "the same life is no news");
    }

    #[test]
    fn an_ended_leadership_is_told_until_it_was_heard() {
        let (mut one, mut two) = pair();
        one.resign(7, 3, &[2]);
        for _ in 0..3 {
            one.tick(0);
            let lost = one.flush();
            assert_eq!(lost[0].1.resigned, [(7, 3)]);
        }
        // An answer to what was sent before the leadership ended acknowledges nothing.
        two.tick(0);
        assert_eq!(deliver(0, &mut two, &mut one), None);
        one.tick(0);
        let (_, heard) = one.flush().remove(0);
        assert_eq!(heard.resigned, [(7, 3)]);
        assert_eq!(two.receive(0, 1, &heard), None);
        two.tick(0);
        deliver(0, &mut two, &mut one);
        one.tick(0);
        assert!(one.flush()[0].1.resigned.is_empty(), "it has been heard");
    }

    #[test]
    fn a_peer_that_was_forgotten_in_between_does_not_acknowledge_what_it_never_heard() {
        let (mut one, mut two) = pair();
        for _ in 0..20 {
            one.tick(0);
            deliver(0, &mut one, &mut two);
        }
        // The last group that they share goes, and another one comes.
        one.unlink(2);
        one.tick(0);
        one.flush();
        one.link(2);
        one.resign(7, 3, &[2]);
        assert_eq!(one.flush()[0].1.resigned, [(7, 3)], "lost on its way");
        two.tick(0);
        deliver(0, &mut two, &mut one);
        one.tick(0);
        assert_eq!(one.flush()[0].1.resigned, [(7, 3)], "it has not heard of it");
    }

    #[test]
    fn too_many_ended_leaderships_are_told_by_silence() {
        let (mut one, _) = pair();
        for group in 0..=MAX_RESIGNED as u64 {
            one.known.get_mut(&2).unwrap().resigned.push_back(Resigned {
                group,
                term: 1,
                told_at: 0,
            });
        }
        one.resign(u64::MAX - 1, 1, &[2]);
        assert!(one.known[&2].resigned.is_empty());
        let silent = (1..).take_while(|n| {
            one.tick(n * 50 * MS);
            one.flush().is_empty()
        });
        assert!(silent.count() * 50 > 600, "longer than anybody waits");
    }

    #[test]
    fn heartbeats_of_many_groups_go_in_one_message() {
        let (mut one, _) = pair();
        let beat = GroupBeat::Heartbeat(Heartbeat { term: 1, round: 1, commit: 1 });
        for group in 0..MAX_BEATS as u64 - 1 {
            assert_eq!(one.push(2, group, beat), None);
        }
        let full = one.push(2, 5000, beat).expect("now it is full");
        assert_eq!((full.beats.len(), full.tick), (MAX_BEATS, 0));
        assert_eq!(one.push(2, 5001, beat), None);
        let sent = one.flush();
        assert_eq!((sent.len(), sent[0].1.beats.len(), sent[0].1.tick), (1, 1, 0));
        assert!(one.flush().is_empty());
        // A stranger is answered, and nothing is kept of it.
        one.push(9, 1, beat);
        assert_eq!(one.flush().len(), 1);
        assert_eq!(one.known.len(), 1);
    }

    #[test]
    fn no_message_is_longer_than_the_transport_carries() {
        let (one, mut two) = pair();
        let mut one = one.with_messages_of(1 << 10);
        let heartbeat = GroupBeat::Heartbeat(Heartbeat { term: 1, round: 1, commit: 1 });
        for group in 0..100 {
            one.resign(group, 1, &[2]);
        }
        let (mut beats, mut resigned) = (BTreeSet::new(), BTreeSet::new());
        for tick in 1..=10 {
            one.tick(tick * 50 * MS);
            let full = (0..100).filter_map(|group| one.push(2, group, heartbeat));
            let full: Vec<_> = full.map(|beat| (2, beat)).collect();
            for (_, beat) in full.into_iter().chain(one.flush()) {
                two.receive(tick * 50 * MS, 1, &beat);
                beats.extend(beat.beats.iter().map(|(group, _)| (tick, *group)));
                resigned.extend(beat.resigned.iter().map(|(group, _)| *group));
                let message = Message::Node(Box::new(beat));
                let length = codec::encode(NODE_GROUP, &message).into_bytes().len();
                assert!(length <= 1 << 10, "{length} bytes");
            }
            two.tick(tick * 50 * MS);
            deliver(tick * 50 * MS, &mut two, &mut one);
        }
        assert_eq!((beats.len(), resigned.len()), (1000, 100));
        assert!(one.known[&2].resigned.is_empty(), "each has been heard");
    }
}

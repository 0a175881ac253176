//! What a leader at work can do without: answers that change nothing, and heartbeats beside
//! entries.
//!
//! A node of a thousand busy groups takes a turn of a group for each thing that happens in it. Most
//! of what happens while entries flow only has to be noted by and by.

use super::leader::Leader;
use super::peer::{Flow, Peer};
use super::{Core, RoleState};
use crate::message::AppendAck;

/// The most heartbeats that entries take the place of, one after the other: their round trips are
/// to be known all the same.
const MAX_UNSAID: u32 = 3;

/// Inputs that would lead to nothing now, so that it is enough to step them with the next one. None
/// may wait longer than until the next deadline. The default: nothing may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Completed writes of this node.
    pub(crate) own_writes: bool,
    /// The same, where they were acknowledged in this term and session.
    pub(crate) acknowledged_in: Option<(u64, u64)>,
    /// Acknowledgements of less than this index.
    pub(crate) acks_below: u64,
    /// The node's common tick.
    pub(crate) beats: bool,
    /// Proposals: said by the shell alone.
    pub(crate) proposals: bool,
}

impl Patience {
    /// Whether the completion of a write may wait, of which the leader was told so.
    pub(crate) fn bears_write(&self, ack: Option<&AppendAck>) -> bool {
        let is_acknowledged =
            |ack: &AppendAck| self.acknowledged_in == Some((ack.term, ack.session));
        self.own_writes || ack.is_some_and(is_acknowledged)
    }
}

impl Core {
    /// What would lead to nothing if it was the next input.
    pub(crate) fn sleeps_through(&self) -> Patience {
        let RoleState::Leader(leader) = &self.role else {
            let acknowledged_in = self.sent_ack_is_enough();
            return Patience { acknowledged_in, ..Patience::default() };
        };
        let has_duties = leader.change.is_some() || leader.transfer.is_some();
        if has_duties || self.halted.is_some() || self.quiescence.quiesced {
            return Patience::default();
        }
        // What the others hold decides first, and then there may be room for more writes.
        let by_others =
            self.roster.reached(u64::MAX, |place| leader.of(place, |peer| peer.matched));
        let last = self.log.last();
        let has_all =
            |peer: &Peer| matches!(peer.flow, Flow::Replicate) && peer.next > last && !peer.lost;
        let is_all_sent = leader.peers.iter().all(has_all);
        Patience {
            own_writes: by_others <= self.commit
                && self.storage.writes() < self.config.max_persists,
            acknowledged_in: None,
            acks_below: if is_all_sent { self.commit + 1 } else { 0 },
            beats: self.entries_beat(leader),
            proposals: false,
        }
    }

    /// Whether this node leads, and holds entries that are not committed, or with `and_applied`
    /// not reported as applied.
    pub(crate) fn is_round_under_way(&self, and_applied: bool) -> bool {
        let done = if and_applied { self.applied } else { self.commit };
        matches!(self.role, RoleState::Leader(_)) && done < self.log.last()
    }

    /// Whether the entries that flow to every follower, and the answers, tell it and this leader
    /// what a heartbeat would.
    pub(super) fn entries_beat(&self, leader: &Leader) -> bool {
        // The leader may sleep through the next tick too, and then wakes by its own time for a
        // heartbeat, half an interval later. By then three quarters of the time have passed at most
        // after which a follower doubts its leader.
        let (doubt, heartbeat) = (self.timing.min_election, self.timing.heartbeat);
        let lately = (doubt / 4 * 3).saturating_sub(heartbeat.saturating_add(heartbeat / 2));
        let since = |at: u64| self.now.saturating_sub(at) < lately;
        leader.unsaid < MAX_UNSAID
            // These count rounds.
            && self.timing.lease.is_none()
            && leader.reads.is_empty()
            && !leader.peers.is_empty()
            && leader.peers.iter().all(|peer| {
                matches!(peer.flow, Flow::Replicate) && since(peer.sent_at) && since(peer.heard)
            })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use bytes::Bytes;

    use super::*;
    use crate::config::Config;
    use crate::core::{Input, Output, Restored};
    use crate::message::{AppendHead, Message};
    use crate::store::Room;
    use crate::types::{Entry, EntryKind};

    const MS: u64 = 1_000_000;
    const NO_ROOM: Room = Room { bytes: 0, max_bytes: 4 << 30, share: 64 << 10 };
    const LITTLE: Room = Room { bytes: 1 << 20, ..NO_ROOM };

    /// Three cores, and what is on its way to each of them.
    struct World {
        cores: Vec<Core>,
        inputs: Vec<VecDeque<Input>>,
        /// What goes to whom when a write is complete, by place and write.
        acks: BTreeMap<(usize, u64), (u64, AppendAck)>,
        now: u64,
        random: u64,
    }

    impl World {
        fn led_by_first(random: u64) -> Self {
            Self::tuned(random, |_| ())
        }

        fn tuned(random: u64, tune: impl Fn(&mut Config)) -> Self {
            let core = |id| {
                let mut config = Config::new(id, [1, 2, 3]);
                config.seed = Some(random * 3 + id);
                (config.max_persists, config.max_inflight_appends) = (3, 4);
                tune(&mut config);
                Core::new(config, Restored::empty(), 0).unwrap()
            };
            let inputs = vec![VecDeque::new(); 3];
            let cores = (1..=3).map(core).collect();
            let mut world = Self { cores, inputs, acks: BTreeMap::new(), now: 0, random };
            world.inputs[0].push_back(Input::Campaign);
            while world.cores[0].commit == 0 {
                (0..3).for_each(|at| _ = world.next_of(at));
            }
            world
        }

        fn draw(&mut self, below: u64) -> u64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.random >> 33) % below
        }

        /// Steps the next input of a core. Returns how much came of it.
        fn next_of(&mut self, at: usize) -> usize {
            let Some(input) = self.inputs[at].pop_front() else { return 0 };
            if let Some((to, ack)) = self.ack_of(at, &input) {
                self.cores[at].acknowledged(&ack);
                let message = Message::AppendAck(ack);
                self.inputs[to as usize - 1]
                    .push_back(Input::Message { from: at as u64 + 1, message });
            }
            self.step(at, input)
        }

        /// What is said with the completion of a write, and to whom.
        fn ack_of(&self, at: usize, input: &Input) -> Option<(u64, AppendAck)> {
            let Input::Persisted { id } = input else { return None };
            self.acks.get(&(at, *id)).copied()
        }

        fn step(&mut self, at: usize, input: Input) -> usize {
            self.cores[at].step(self.now, input);
            let mut outputs = 0;
            while let Some(output) = self.cores[at].poll_output() {
                outputs += 1;
                let from = at as u64 + 1;
                let (to, input) = match output {
                    Output::Send { to, message } => (to, Input::Message { from, message }),
                    Output::Replicate { to, head, range } => {
                        let entries = self.cores[at].entries(range).unwrap().cloned().collect();
                        (to, Input::Message { from, message: Message::Append { head, entries } })
                    }
                    Output::Persist(persist) => {
                        let ack = self.cores[at].ack_with(&persist);
                        self.acks.extend(ack.map(|ack| ((at, persist.id), ack)));
                        (from, Input::Persisted { id: persist.id })
                    }
                    Output::Apply { range } => (from, Input::Applied { index: range.end - 1 }),
                    _ => continue,
                };
                self.inputs[to as usize - 1].push_back(input);
            }
            outputs
        }
    }

    /// Which of the kinds an input is, if the node would sleep through it.
    fn waits(world: &World, at: usize, input: &Input) -> Option<usize> {
        let patience = world.cores[at].sleeps_through();
        let ack = world.ack_of(at, input).map(|(_, ack)| ack);
        match input {
            Input::Persisted { .. } if patience.own_writes => Some(0),
            Input::Persisted { .. } if patience.bears_write(ack.as_ref()) => Some(3),
            Input::Message { message: Message::AppendAck(ack), .. }
                if ack.matched < patience.acks_below =>
            {
                Some(1)
            }
            Input::Beat if patience.beats => Some(2),
            _ => None,
        }
    }

    #[test]
    fn nothing_comes_of_what_a_node_sleeps_through() {
        let mut slept = [0; 4];
        for seed in 1..=40 {
            let mut world = World::led_by_first(seed);
            for turn in 0..600 {
                world.now += world.draw(3) * MS / 4;
                match world.draw(8) {
                    0 => {
                        let data = Bytes::from_static(b"command");
                        world.inputs[0].push_back(Input::Propose { token: turn, data });
                    }
                    1 if world.draw(8) == 0 => world.inputs[0].push_back(Input::Beat),
                    // What is on its way to a follower is lost.
                    2 if world.draw(8) == 0 => drop(world.inputs[1].pop_front()),
                    _ => {}
                }
                let at = world.draw(3) as usize;
                let waits = world.inputs[at].front().and_then(|it| waits(&world, at, it));
                let outputs = world.next_of(at);
                if let Some(kind) = waits {
                    assert_eq!(outputs, 0, "seed {seed}, turn {turn}: kind {kind}");
                    assert_eq!(at == 0, kind < 3, "seed {seed}, turn {turn}: kind {kind}");
                    slept[kind] += 1;
                }
                assert!(world.cores[0].role() == crate::Role::Leader, "seed {seed}");
            }
        }
        assert!(slept.iter().all(|count| *count >= 50), "too few situations: {slept:?}");
    }

    /// A world in which node 2 is writing an entry; returns the end of that write too.
    fn writing(random: u64) -> (World, Input) {
        let mut world = World::led_by_first(random);
        while (0..3).any(|at| !world.inputs[at].is_empty()) {
            (0..3).for_each(|at| _ = world.next_of(at));
        }
        world.step(0, Input::Propose { token: 1, data: Bytes::from_static(b"x") });
        world.next_of(1);
        let written = |input: &Input| matches!(input, Input::Persisted { .. });
        let written = world.inputs[1].iter().find(|input| written(input)).cloned();
        world.inputs.iter_mut().for_each(VecDeque::clear);
        (world, written.expect("the entry is being written"))
    }

    /// The leader takes no notice of it, and waits for another one.
    #[test]
    fn an_acknowledgement_of_an_ended_session_is_said_again() {
        let (mut world, written) = writing(3);
        assert_eq!(waits(&world, 1, &written), Some(3));
        world.step(0, Input::Unreachable { peer: 2 });
        world.next_of(1);
        assert_eq!(waits(&world, 1, &written), None);
        world.inputs[1].push_front(written);
        assert_eq!(world.next_of(1), 1);
        let session = |input: &Input| match input {
            Input::Message { message: Message::AppendAck(ack), .. } => Some(ack.session),
            _ => None,
        };
        let sessions: Vec<u64> = world.inputs[0].iter().filter_map(session).collect();
        assert!(matches!(sessions[..], [.., old, new] if old < new), "{sessions:?}");
    }

    /// Whoever elects the next leader without an entry must not count as one who has it.
    #[test]
    fn a_vote_forgets_no_entry_that_its_write_may_acknowledge() {
        for (acked, keeps) in [(None, true), (Some(true), true), (Some(false), false)] {
            let (mut world, _) = writing(5);
            let last = world.cores[1].status().last;
            assert!(!world.cores[1].must_take_acks_back(), "there is room");
            world.step(1, Input::Room { room: NO_ROOM });
            assert!(world.cores[1].must_take_acks_back());
            if let Some(is_acked) = acked {
                world.cores[1].acks_taken_back(if is_acked { last } else { 0 });
                assert_eq!(world.cores[1].must_take_acks_back(), is_acked);
            }
            let term = world.cores[1].hard_state().term;
            world.step(1, Input::Message { from: 1, message: Message::TimeoutNow { term } });
            assert_eq!(world.cores[1].hard_state().term, term + 1);
            assert_eq!(world.cores[1].status().last, if keeps { last } else { last - 1 });
        }
    }

    /// What was acknowledged of an earlier leader's entries says nothing of those in their place.
    #[test]
    fn an_entry_in_the_place_of_an_acknowledged_one_is_forgotten_too() {
        let (mut world, written) = writing(8);
        let last = world.cores[1].status().last;
        world.step(1, written);
        world.inputs.iter_mut().for_each(VecDeque::clear);
        let (term, prev_term) = (world.cores[1].hard_state().term + 1, 1);
        world.step(1, Input::Room { room: NO_ROOM });
        let head = AppendHead {
            term,
            session: 1,
            prev_index: last - 1,
            prev_term,
            commit: 0,
            probe: false,
        };
        let entry =
            Entry { term, index: last, kind: EntryKind::Command, data: Bytes::from_static(b"z") };
        let message = Message::Append { head, entries: vec![entry] };
        world.step(1, Input::Message { from: 3, message });
        // The term becomes durable; the entry waits for room.
        while let Some(written) = world.inputs[1].pop_front() {
            world.step(1, written);
        }
        assert_eq!(world.cores[1].log.term_at(last), Some(term), "it has taken its place");
        // The completion had acknowledged the first one.
        world.cores[1].acks_taken_back(last);
        world.step(1, Input::Message { from: 3, message: Message::TimeoutNow { term } });
        assert_eq!(world.cores[1].status().last, last - 1);
    }

    #[test]
    fn no_write_is_entrusted_with_an_acknowledgement_where_room_is_short() {
        for (room, entrusts) in [(Room { bytes: 1 << 30, ..NO_ROOM }, true), (LITTLE, false)] {
            let (mut world, written) = writing(6);
            world.step(1, written);
            world.step(1, Input::Room { room });
            world.step(0, Input::Propose { token: 2, data: Bytes::from_static(b"y") });
            world.acks.clear();
            world.inputs[1].drain(..).collect::<Vec<_>>().into_iter().for_each(|input| {
                world.cores[1].step(0, input);
            });
            let mut writes = 0;
            while let Some(output) = world.cores[1].poll_output() {
                let Output::Persist(persist) = output else { continue };
                writes += persist.range.end - persist.range.start;
                assert_eq!(world.cores[1].ack_with(&persist).is_some(), entrusts);
            }
            assert_eq!(writes, 1, "there is room for it");
        }
    }

    #[test]
    fn a_follower_of_a_later_term_hears_at_once_what_it_has_written() {
        let (mut world, written) = writing(4);
        let (term, last) = (world.cores[0].hard_state().term, world.cores[0].status().last);
        let (to, ack) = world.ack_of(1, &written).expect("it is said with the write");
        assert_eq!((to, ack.term, ack.matched, ack.received), (1, term, last, last));
        let (prev_index, prev_term, commit, probe) = (last - 1, term, 0, false);
        let head = AppendHead { term: term + 1, session: 1, prev_index, prev_term, commit, probe };
        let message = Message::Append { head, entries: Vec::new() };
        world.step(1, Input::Message { from: 3, message });
        assert_eq!(waits(&world, 1, &written), None, "its new term is not durable");
    }

    /// It holds them, and they may not be what the later one has.
    #[test]
    fn what_an_earlier_leader_sent_is_not_acknowledged_to_a_later_one() {
        let mut config = Config::new(2, [1, 2, 3]);
        (config.max_persists, config.max_persist_bytes) = (3, 1);
        let mut core = Core::new(config, Restored::empty(), 0).unwrap();
        let mut step = |input| {
            core.step(0, input);
            let outputs = std::iter::from_fn(|| core.poll_output());
            let writes = outputs.filter_map(|output| match output {
                Output::Persist(persist) => Some(persist),
                _ => None,
            });
            let writes: Vec<_> = writes.collect();
            let acks = writes.iter().map(|persist| core.ack_with(persist));
            writes.iter().map(|persist| persist.range.end - 1).zip(acks).collect::<Vec<_>>()
        };
        let append = |term, session, entries| {
            let (prev_index, prev_term, commit, probe) = (0, 0, 0, false);
            let head = AppendHead { term, session, prev_index, prev_term, commit, probe };
            let from = 2 * term - 1;
            Input::Message { from, message: Message::Append { head, entries } }
        };
        let entry = |index| Entry { term: 1, index, kind: EntryKind::Command, data: Bytes::new() };
        step(append(1, 1, (1..=8).map(entry).collect()));
        step(append(2, 7, Vec::new()));
        let last = step(Input::Persisted { id: 3 });
        assert_eq!(last.iter().map(|(last, _)| *last).collect::<Vec<_>>(), [4, 5, 6]);
        assert!(last.iter().all(|(_, ack)| ack.is_none()), "the new term is not durable: {last:?}");
        let rest = step(Input::Persisted { id: 6 });
        assert_eq!(rest, [(7, None), (8, None)], "nothing is known to be equal");
    }

    #[test]
    fn entries_take_the_place_of_heartbeats_but_not_of_all() {
        let mut world = World::led_by_first(7);
        let mut rounds = Vec::new();
        for token in 0..40 {
            world.step(0, Input::Propose { token, data: Bytes::from_static(b"x") });
            for _ in 0..8 {
                (0..3).for_each(|at| _ = world.next_of(at));
            }
            world.now += 50 * MS;
            let before = world.inputs[1].len();
            world.step(0, Input::Beat);
            rounds.push(world.inputs[1].len() - before);
        }
        assert_eq!(rounds.iter().sum::<usize>(), 10, "every fourth: {rounds:?}");
        world.now += 50 * MS;
        assert_eq!(world.step(0, Input::Beat), 2, "nothing was said for a whole interval");
    }

    #[test]
    fn heartbeats_are_sent_beside_entries_that_nobody_acknowledges() {
        let mut world = World::led_by_first(9);
        for token in 0..4 {
            world.step(0, Input::Propose { token, data: Bytes::from_static(b"x") });
            // Node 3 hears nothing.
            world.inputs[2].clear();
            for _ in 0..8 {
                (0..2).for_each(|at| _ = world.next_of(at));
            }
            world.now += 50 * MS;
            let beats = world.step(0, Input::Beat);
            assert!(token < 2 || beats == 2, "{token}: node 3 may be alive");
        }
    }

    /// Whatever the leader leaves out, and sleeps through.
    #[test]
    fn a_leader_is_never_silent_until_its_followers_doubt_it() {
        let mut left_out = 0;
        for (heartbeat, doubt) in [(100, 200), (60, 150), (50, 200), (20, 200), (10, 1000)] {
            let timing = |config: &mut Config| {
                config.heartbeat_interval = std::time::Duration::from_millis(heartbeat);
                config.min_election_timeout = std::time::Duration::from_millis(doubt);
                config.max_election_timeout = std::time::Duration::from_millis(2 * doubt);
                config.disk_stall = std::time::Duration::from_secs(2);
            };
            for tick in (0..doubt).step_by(5) {
                let mut world = World::tuned(5, timing);
                world.step(0, Input::Beat);
                world.now += heartbeat * MS;
                world.step(0, Input::Propose { token: 1, data: Bytes::from_static(b"x") });
                let said_at = world.now;
                (0..8).for_each(|_| (0..3).for_each(|at| _ = world.next_of(at)));
                world.step(0, Input::Beat);
                world.now += tick * MS;
                let is_due = world.cores[0].next_deadline().is_some_and(|at| at <= world.now);
                if !is_due && world.step(0, Input::Beat) == 0 {
                    left_out += 1;
                    let silent = world.cores[0].next_deadline().unwrap() - said_at;
                    let limit = doubt * MS / 4 * 3;
                    assert!(silent <= limit, "{heartbeat}, {doubt}, {tick}: {silent} ns");
                }
            }
        }
        assert!(left_out >= 10, "too few situations: {left_out}");
    }

    /// Its machine was suspended: what the others said before waits in the sockets.
    #[test]
    fn a_leader_that_stood_still_does_not_count_as_fresh() {
        let mut world = World::led_by_first(11);
        world.now += 200 * MS;
        let round = |world: &mut World| {
            world.now += 50 * MS;
            world.step(0, Input::Beat);
            (0..8).for_each(|_| (1..3).for_each(|at| _ = world.next_of(at)));
            world.now
        };
        round(&mut world);
        (0..8).for_each(|_| _ = world.next_of(0));
        let sent_at = round(&mut world);
        assert_eq!(world.cores[0].led_at(), Some(sent_at - 50 * MS), "the last is not answered");
        world.now += 30_000 * MS;
        world.cores[0].bear_silence(world.now);
        world.step(0, Input::Tick);
        (0..8).for_each(|_| _ = world.next_of(0));
        assert_eq!(world.cores[0].role(), crate::Role::Leader, "it bears the silence");
        assert_eq!(world.cores[0].led_at(), Some(sent_at), "these answers are old");
        let sent_at = round(&mut world);
        (0..8).for_each(|_| _ = world.next_of(0));
        assert_eq!(world.cores[0].led_at(), Some(sent_at));
    }
}

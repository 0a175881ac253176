//! Acknowledgements that completions send by themselves, while the room comes and goes and terms
//! end: nothing that was committed is lost.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use voussoir_sim::{Rng, Situations};

use super::{Core, Input, Output, Restored};
use crate::config::Config;
use crate::message::{AppendAck, Message};
use crate::store::Room;
use crate::types::Role;

static SITUATIONS: [&str; 4] = [
    "a write acknowledged before its node heard of it",
    "acknowledgements taken back after some were sent",
    "acknowledgements taken back that were still to be sent",
    "a new term forgot entries",
];

struct Node {
    core: Core,
    inputs: VecDeque<Input>,
    /// Writes that are not durable, each with what its completion acknowledges.
    writes: VecDeque<(u64, Option<(u64, AppendAck)>)>,
    /// Up to where completions have acknowledged.
    acked: u64,
}

struct World<'a> {
    nodes: Vec<Node>,
    now: u64,
    rng: Rng,
    /// The term of each index that is committed somewhere.
    committed: BTreeMap<u64, u64>,
    counts: &'a Situations,
}

impl<'a> World<'a> {
    fn new(seed: u64, counts: &'a Situations) -> Self {
        let node = |id| {
            let mut config = Config::new(id, [1, 2, 3]);
            config.seed = Some(seed * 3 + id);
            (config.max_persists, config.max_inflight_appends) = (3, 4);
            let core = Core::new(config, Restored::empty(), 0).unwrap();
            Node { core, inputs: VecDeque::new(), writes: VecDeque::new(), acked: 0 }
        };
        let nodes = (1..=3).map(node).collect();
        Self { nodes, now: 0, rng: Rng::new(seed), committed: BTreeMap::new(), counts }
    }

    /// The oldest write of a node becomes durable, and says so to whom it was told to.
    fn complete(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some((id, ack)) = node.writes.pop_front() else { return };
        node.inputs.push_back(Input::Persisted { id });
        if let Some((to, ack)) = ack {
            node.acked = node.acked.max(ack.matched);
            let early = ack.matched > node.core.storage.durable();
            self.counts.add("a write acknowledged before its node heard of it", early.into());
            self.tell(to, at as u64 + 1, Message::AppendAck(ack));
        }
    }

    fn tell(&mut self, to: u64, from: u64, message: Message) {
        self.nodes[to as usize - 1].inputs.push_back(Input::Message { from, message });
    }

    /// As the driver does before it steps anything.
    fn take_acks_back(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if !node.core.must_take_acks_back() {
            return;
        }
        let sent = node.acked > node.core.storage.durable();
        self.counts.add("acknowledgements taken back after some were sent", sent.into());
        let open = node.writes.iter().any(|(_, ack)| ack.is_some());
        self.counts.add("acknowledgements taken back that were still to be sent", open.into());
        node.core.acks_taken_back(node.acked);
        node.writes.iter_mut().for_each(|(_, ack)| *ack = None);
    }

    fn step(&mut self, at: usize) {
        self.take_acks_back(at);
        let Some(input) = self.nodes[at].inputs.pop_front() else { return };
        let core = &mut self.nodes[at].core;
        let (term, last) = (core.hard_state().term, core.status().last);
        core.step(self.now, input);
        let is_shorter = core.hard_state().term > term && core.status().last < last;
        self.counts.add("a new term forgot entries", is_shorter.into());
        let from = at as u64 + 1;
        while let Some(output) = self.nodes[at].core.poll_output() {
            let node = &mut self.nodes[at];
            match output {
                Output::Send { to, message } => self.tell(to, from, message),
                Output::Replicate { to, head, range } => {
                    let entries = node.core.entries(range).unwrap().cloned().collect();
                    self.tell(to, from, Message::Append { head, entries });
                }
                Output::Persist(persist) => {
                    let ack = node.core.ack_with(&persist);
                    node.writes.push_back((persist.id, ack));
                }
                Output::Apply { range } => {
                    node.inputs.push_back(Input::Applied { index: range.end - 1 });
                }
                Output::Halted { reason } => panic!("node {from} halts: {reason}"),
                _ => {}
            }
        }
        let core = &self.nodes[at].core;
        for index in 1..=core.commit {
            let term = core.log.term_at(index).expect("no snapshot is taken");
            let first = *self.committed.entry(index).or_insert(term);
            assert_eq!(first, term, "node {from} has another entry {index} than was committed");
        }
    }

    fn act(&mut self) {
        let at = self.rng.below(3) as usize;
        self.now += self.rng.below(1_000_000);
        match self.rng.below(40) {
            0..=19 => self.step(at),
            20..=29 => self.complete(at),
            30..=33 => {
                if self.nodes[at].core.role() == Role::Leader {
                    let data = Bytes::from_static(b"command");
                    self.nodes[at].inputs.push_back(Input::Propose { token: 1, data });
                }
            }
            34 | 35 => {
                let bytes = if self.rng.chance(500_000) { 0 } else { 1 << 30 };
                let room = Room { bytes, max_bytes: 4 << 30, share: 1 << 29 };
                self.nodes[at].inputs.push_back(Input::Room { room });
            }
            36 => {
                // Lost.
                let is_message = |input: &Input| matches!(input, Input::Message { .. });
                if self.nodes[at].inputs.front().is_some_and(is_message) {
                    self.nodes[at].inputs.pop_front();
                }
            }
            37 if self.rng.chance(300_000) => {
                let term = self.nodes[at].core.hard_state().term;
                let from = (at as u64 + 1) % 3 + 1;
                // Before what is on its way, as when it came by another connection.
                let message = Message::TimeoutNow { term };
                self.nodes[at].inputs.push_front(Input::Message { from, message });
            }
            38 if self.nodes.iter().all(|node| node.core.role() != Role::Leader) => {
                self.nodes[at].inputs.push_back(Input::Campaign);
            }
            _ => self.nodes[at].inputs.push_back(Input::Tick),
        }
    }
}

#[test]
fn nothing_committed_is_lost_while_the_room_comes_and_goes() {
    let counts = Situations::new(&SITUATIONS);
    for seed in 0..1_000 {
        let mut world = World::new(seed, &counts);
        for _ in 0..3_000 {
            world.act();
        }
    }
    counts.assert_all_reached();
}

//! Two of three whose leader is gone, and whose disks have no room.

use std::collections::VecDeque;

use super::{Core, Input, Output, Restored};
use crate::config::Config;
use crate::message::{AppendHead, Heartbeat, Message};
use crate::store::Room;
use crate::types::{Entry, EntryKind, Role};

const MS: u64 = 1_000_000;

struct Full {
    core: Core,
    inputs: VecDeque<Input>,
    /// Writes that wait for room: their ids and first entries.
    waiting: Vec<(u64, u64)>,
    has_room: bool,
}

impl Full {
    /// As the store does: what has entries with data waits, and all behind it, but for what
    /// cuts all that wait.
    fn step(&mut self, now: u64, input: Input) -> Vec<(u64, Message)> {
        let mut sent = Vec::new();
        self.core.step(now, input);
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { to, message } => sent.push((to, message)),
                Output::Replicate { to, head, range } => {
                    let entries = self.core.entries(range).unwrap().cloned().collect();
                    sent.push((to, Message::Append { head, entries }));
                }
                Output::Persist(p) => {
                    let cuts = |from| p.truncate_from.is_some_and(|at| at <= from);
                    if self.waiting.iter().all(|(_, from)| cuts(*from)) {
                        self.waiting.clear();
                    }
                    let mut entries = self.core.entries(p.range.clone()).unwrap();
                    let is_large = entries.any(|entry| !entry.data.is_empty());
                    if !self.waiting.is_empty() || is_large && !self.has_room {
                        self.waiting.push((p.id, p.range.start));
                    } else {
                        self.inputs.push_back(Input::Persisted { id: p.id });
                    }
                }
                Output::Apply { range } => {
                    self.inputs.push_back(Input::Applied { index: range.end - 1 });
                }
                _ => {}
            }
        }
        sent
    }
}

/// The leader is gone after `alive_ms`, and what it sent waits for room at `waits`, which know that
/// their room is short when it comes, or hear of it later. Returns whether somebody leads within a
/// minute.
fn elects_without_room(waits: &[u64], knows: bool, alive_ms: u64) -> bool {
    let append = |prev_index, prev_term, entries: Vec<Entry>| {
        let head =
            AppendHead { term: 1, session: 1, prev_index, prev_term, commit: 0, probe: false };
        Input::Message { from: 1, message: Message::Append { head, entries } }
    };
    let entry =
        |index| Entry { term: 1, index, kind: EntryKind::Command, data: vec![7; 100].into() };
    let mut nodes: Vec<Full> = (2..=3)
        .map(|id| {
            let mut config = Config::new(id, [1, 2, 3]);
            config.seed = Some(id);
            let core = Core::new(config, Restored::empty(), 0).unwrap();
            Full { core, inputs: VecDeque::new(), waiting: Vec::new(), has_room: true }
        })
        .collect();
    for (id, node) in (2..).zip(&mut nodes) {
        node.step(MS, append(0, 0, vec![entry(1), entry(2)]));
        while let Some(input) = node.inputs.pop_front() {
            node.step(MS, input);
        }
        assert_eq!(node.core.storage.durable(), 2);
        let room = |bytes| Room { bytes, max_bytes: 4 << 30, share: 1 << 29 };
        node.step(2 * MS, Input::Room { room: room(1 << 30) });
        if waits.contains(&id) {
            node.has_room = false;
            if knows {
                node.step(3 * MS, Input::Room { room: room(0) });
            }
            // Else others took it since the node looked.
            node.step(3 * MS, append(2, 1, vec![entry(3), entry(4)]));
            assert_eq!(node.waiting.len(), usize::from(!knows));
            node.step(103 * MS, Input::Room { room: room(0) });
            assert!(node.core.is_short_of_room());
        }
    }
    let mut now = 104 * MS;
    while now < 60_000 * MS {
        now += 5 * MS;
        if now < alive_ms * MS {
            for node in &mut nodes {
                let beat = Heartbeat { term: 1, round: now / MS, commit: 0 };
                let message = Message::Heartbeat(beat);
                node.inputs.push_back(Input::Message { from: 1, message });
            }
        }
        for at in 0..2 {
            let mut inputs = std::mem::take(&mut nodes[at].inputs);
            inputs.push_back(Input::Tick);
            for input in inputs {
                for (to, message) in nodes[at].step(now, input) {
                    if to != 1 {
                        let input = Input::Message { from: at as u64 + 2, message };
                        nodes[to as usize - 2].inputs.push_back(input);
                    }
                }
            }
        }
    }
    nodes.iter().any(|node| node.core.role() == Role::Leader && node.core.commit > 0)
}

#[test]
fn without_room_a_leader_is_elected() {
    for (waits, knows, alive_ms) in [
        (&[][..], false, 0),
        (&[2, 3], false, 0),
        (&[2], false, 0),
        (&[2, 3], true, 0),
        (&[2], false, 2_000),
        (&[2], true, 2_000),
    ] {
        let leads = elects_without_room(waits, knows, alive_ms);
        assert!(leads, "{waits:?} wait, knowing it: {knows}, led for {alive_ms} ms");
    }
}

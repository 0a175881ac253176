//! A laboratory: cores of one group, with every message, every write and the time in the hands of
//! the test.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod live;
pub(crate) mod scenarios;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use voussoir_raft::Restored;
use voussoir_raft::core::{Core, FetchError, Input, Output, Persist};
use voussoir_raft::{Config, Entry, EntryKind, HardState, Message, Role, SnapshotMeta, Status};

pub(crate) const MS: u64 = 1_000_000;

/// A message on its way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Letter {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) message: Message,
}

/// What a node has on disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) base: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) voters: Option<Vec<u64>>,
    /// How far the log once reached, and the last term in it, while entries are lost.
    pub(crate) lost: Option<(u64, u64)>,
}

impl Disk {
    fn apply(&mut self, write: &Persist, entries: &[Entry]) {
        if let Some(meta) = write.snapshot.as_deref() {
            self.snapshot = Some(meta.clone());
        }
        if let Some(from) = write.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        if let Some(first) = write.release {
            self.entries.retain(|entry| entry.index >= first);
            self.base = self.base.max(first - 1);
        }
        self.entries.extend_from_slice(entries);
        if let Some(hard) = write.hard_state {
            self.hard = hard;
        }
        self.voters = write.voters.clone().or(self.voters.take());
        self.lost = self.lost.filter(|_| !write.repaired);
    }

    fn restored(&self) -> Restored {
        let mut restored = Restored::new(self.hard, self.snapshot.clone(), self.base + 1);
        for entry in &self.entries {
            restored.push(entry.clone()).unwrap();
        }
        if let Some(voters) = &self.voters {
            restored.set_voters(voters.clone());
        }
        if let Some((until, term)) = self.lost {
            restored.set_lost(until, term);
        }
        restored
    }
}

pub(crate) struct Node {
    pub(crate) core: Option<Core>,
    pub(crate) disk: Disk,
    /// Writes that are not durable yet.
    pub(crate) writes: VecDeque<(Persist, Vec<Entry>)>,
    /// Whether writes complete at once.
    pub(crate) fast_disk: bool,
    /// Whether the machine applies only when it is told to.
    pub(crate) slow_machine: bool,
    /// What the slow machine has taken and not applied, by its last index.
    applying: VecDeque<u64>,
    /// Commands in the order of application.
    pub(crate) applied: Vec<(u64, Bytes)>,
    /// Everything that came out and is not for a peer, the disk or the machine.
    pub(crate) seen: Vec<Output>,
    lives: u64,
}

pub(crate) struct Lab {
    pub(crate) now: u64,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) wire: Vec<Letter>,
    pub(crate) cut: BTreeSet<(u64, u64)>,
    tweak: Box<dyn Fn(&mut Config)>,
}

pub(crate) fn entry(index: u64, term: u64, data: &str) -> Entry {
    let data = Bytes::copy_from_slice(data.as_bytes());
    Entry { term, index, kind: EntryKind::Command, data }
}

impl Lab {
    /// `count` nodes with empty disks, fast ones.
    pub(crate) fn new(count: u64) -> Self {
        Self::with(count, |_| {})
    }

    pub(crate) fn with(count: u64, tweak: impl Fn(&mut Config) + 'static) -> Self {
        Self::with_disks(count, tweak, |_| Disk::default())
    }

    /// Voters, and behind them nodes that are to join.
    pub(crate) fn growing(voters: u64, joiners: u64) -> Self {
        Self::with(voters + joiners, move |config| {
            config.dynamic = true;
            config.voters.retain(|id| *id <= voters);
            if config.id > voters {
                config.voters.clear();
            }
        })
    }

    /// Nodes whose logs have entries of these terms, and which know of these terms.
    pub(crate) fn with_logs(logs: &[(u64, &[u64])]) -> Self {
        let logs: Vec<(u64, Vec<u64>)> =
            logs.iter().map(|(term, terms)| (*term, terms.to_vec())).collect();
        Self::with_disks(
            logs.len() as u64,
            |_| {},
            move |id| {
                let (term, terms) = &logs[id as usize - 1];
                let entries = (1..).zip(terms).map(|(index, term)| entry(index, *term, "old"));
                let hard = HardState { term: *term, vote: None };
                Disk { hard, entries: entries.collect(), ..Disk::default() }
            },
        )
    }

    pub(crate) fn with_disks(
        count: u64,
        tweak: impl Fn(&mut Config) + 'static,
        disk: impl Fn(u64) -> Disk,
    ) -> Self {
        let node = |id| Node {
            core: None,
            disk: disk(id),
            writes: VecDeque::new(),
            fast_disk: true,
            slow_machine: false,
            applying: VecDeque::new(),
            applied: Vec::new(),
            seen: Vec::new(),
            lives: 0,
        };
        let nodes = (1..=count).map(|id| (id, node(id))).collect();
        let tweak = Box::new(tweak);
        let mut lab = Self { now: 0, nodes, wire: Vec::new(), cut: BTreeSet::new(), tweak };
        for id in 1..=count {
            lab.restart(id);
        }
        lab
    }

    /// The node dies; writes that were not durable are lost.
    pub(crate) fn crash(&mut self, id: u64) {
        let node = self.node_mut(id);
        node.core = None;
        node.writes.clear();
        node.applied.clear();
    }

    /// The node dies, and the entry `from` of its log is lost. Its store cannot give back what is
    /// behind that either.
    pub(crate) fn lose(&mut self, id: u64, from: u64) {
        self.crash(id);
        let disk = &mut self.node_mut(id).disk;
        let last = disk.entries.last().expect("there is something to lose");
        disk.lost = disk.lost.or(Some((last.index, last.term)));
        disk.entries.retain(|entry| entry.index < from);
    }

    pub(crate) fn restart(&mut self, id: u64) {
        self.crash(id);
        let mut config = Config::new(id, self.nodes.keys().copied().collect::<Vec<_>>());
        (self.tweak)(&mut config);
        let now = self.now;
        let node = self.node_mut(id);
        node.lives += 1;
        // A tweak may set a seed for the whole run.
        let seed = config.seed.unwrap_or(0);
        config.seed = Some(seed * 1_000_000 + node.lives * 1000 + id);
        node.core = Some(Core::new(config, node.disk.restored(), now).unwrap());
        self.drain(id);
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    pub(crate) fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub(crate) fn core(&self, id: u64) -> &Core {
        self.node(id).core.as_ref().unwrap()
    }

    pub(crate) fn status(&self, id: u64) -> Status {
        self.core(id).status()
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// The terms of the log of a node, from its first entry on.
    pub(crate) fn terms(&self, id: u64) -> Vec<u64> {
        let status = self.status(id);
        (status.first..=status.last).map(|at| self.core(id).term_at(at).unwrap()).collect()
    }

    /// The commands that a node has applied.
    pub(crate) fn commands(&self, id: u64) -> Vec<String> {
        let text = |data: &Bytes| String::from_utf8(data.to_vec()).unwrap();
        self.node(id).applied.iter().map(|(_, data)| text(data)).collect()
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let up = self.nodes.iter().filter(|(_, node)| node.core.is_some());
        let leads = |id: &u64| self.status(*id).role == Role::Leader;
        up.map(|(id, _)| *id).filter(leads).max_by_key(|id| self.status(*id).term)
    }

    /// Steps a node and collects what comes out. Nodes that are down hear nothing.
    pub(crate) fn step(&mut self, id: u64, input: Input) {
        let now = self.now;
        if let Some(core) = &mut self.node_mut(id).core {
            core.step(now, input);
            self.drain(id);
        }
    }

    pub(crate) fn send(&mut self, from: u64, to: u64, message: Message) {
        self.step(to, Input::Message { from, message });
    }

    fn drain(&mut self, id: u64) {
        let mut inputs = Vec::new();
        let (now, node) = (self.now, self.nodes.get_mut(&id).unwrap());
        loop {
            let core = node.core.as_mut().unwrap();
            let Some(output) = core.poll_output() else {
                if inputs.is_empty() {
                    return;
                }
                inputs.drain(..).for_each(|input| core.step(now, input));
                continue;
            };
            // As strict as the shell: what is written or sent has to be lent.
            let lent = |range| -> Vec<Entry> { core.entries(range).unwrap().cloned().collect() };
            match output {
                Output::Persist(write) => {
                    let entries = lent(write.range.clone());
                    node.writes.push_back((write, entries));
                    if node.fast_disk {
                        inputs.extend(complete(node));
                    }
                }
                Output::Send { to, message } => {
                    self.wire.push(Letter { from: id, to, message });
                }
                Output::Replicate { to, head, range } => {
                    let message = Message::Append { head, entries: lent(range) };
                    self.wire.push(Letter { from: id, to, message });
                }
                Output::Apply { range } => {
                    let entries: Vec<Entry> = match core.entries(range.clone()) {
                        Ok(lent) => lent.cloned().collect(),
                        Err(_) => {
                            let stored = node.disk.entries.iter();
                            stored.filter(|entry| range.contains(&entry.index)).cloned().collect()
                        }
                    };
                    let count = (range.end - range.start) as usize;
                    assert_eq!(entries.len(), count, "{range:?} is neither lent nor stored");
                    let commands = entries.into_iter().filter(|e| e.kind == EntryKind::Command);
                    node.applied.extend(commands.map(|entry| (entry.index, entry.data)));
                    if node.slow_machine {
                        node.applying.push_back(range.end - 1);
                    } else {
                        inputs.push(Input::Applied { index: range.end - 1 });
                    }
                }
                Output::Restore { meta } => {
                    inputs.push(Input::Applied { index: meta.index });
                    node.seen.push(Output::Restore { meta });
                }
                other => node.seen.push(other),
            }
            let cut = &self.cut;
            self.wire.retain(|letter| !cut.contains(&(letter.from, letter.to)));
        }
    }

    /// Everything that a node has handed to its disk becomes durable.
    pub(crate) fn sync(&mut self, id: u64) {
        while let Some(input) = complete(self.node_mut(id)) {
            self.step(id, input);
        }
    }

    /// The slow machine of a node applies the oldest range that it was handed.
    pub(crate) fn machine_catches_up(&mut self, id: u64) {
        if let Some(index) = self.node_mut(id).applying.pop_front() {
            self.step(id, Input::Applied { index });
        }
    }

    /// The oldest write of a node becomes durable.
    pub(crate) fn sync_one(&mut self, id: u64) {
        if let Some(input) = complete(self.node_mut(id)) {
            self.step(id, input);
        }
    }

    /// Hands over the letters that `wanted` picks, in order; returns how many.
    pub(crate) fn deliver(&mut self, mut wanted: impl FnMut(&Letter) -> bool) -> usize {
        let (now, later) = std::mem::take(&mut self.wire).into_iter().partition(&mut wanted);
        self.wire = later;
        let letters: Vec<Letter> = now;
        let count = letters.len();
        for Letter { from, to, message } in letters {
            self.send(from, to, message);
        }
        count
    }

    /// Takes letters off the wire.
    pub(crate) fn take(&mut self, wanted: impl FnMut(&Letter) -> bool) -> Vec<Letter> {
        let (taken, kept) = std::mem::take(&mut self.wire).into_iter().partition(wanted);
        self.wire = kept;
        taken
    }

    /// Delivers until nothing is under way.
    pub(crate) fn settle(&mut self) {
        for _ in 0..1000 {
            if self.deliver(|_| true) == 0 {
                return;
            }
        }
        panic!("the nodes never stop talking");
    }

    /// Delivers until nothing is under way but letters that `kept` keeps on the wire.
    pub(crate) fn settle_without(&mut self, kept: impl Fn(&Letter) -> bool) {
        for _ in 0..1000 {
            if self.deliver(|letter| !kept(letter)) == 0 {
                return;
            }
        }
        panic!("the nodes never stop talking");
    }

    /// Lets time pass, with ticks when they are due, and delivers everything.
    pub(crate) fn run(&mut self, ns: u64) {
        self.run_without(ns, |_| false);
    }

    /// The same, but letters that `kept` picks stay on the wire.
    pub(crate) fn run_without(&mut self, ns: u64, kept: impl Fn(&Letter) -> bool) {
        let end = self.now + ns;
        loop {
            self.settle_without(&kept);
            let deadline = |(id, node): (&u64, &Node)| {
                Some((node.core.as_ref()?.next_deadline()?.max(self.now), *id))
            };
            match self.nodes.iter().filter_map(deadline).min() {
                Some((at, id)) if at <= end => {
                    self.now = at;
                    self.step(id, Input::Tick);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// Lets a node run out of patience. Nobody else does.
    pub(crate) fn time_out(&mut self, id: u64) {
        let due = self.core(id).next_deadline().unwrap_or(0);
        self.now = due.max(self.now + 401 * MS);
        self.step(id, Input::Tick);
    }

    /// Makes a node the leader.
    pub(crate) fn elect(&mut self, id: u64) {
        self.elect_without(id, |_| false);
    }

    /// The same, but some letters stay on the wire and are lost.
    pub(crate) fn elect_without(&mut self, id: u64, kept: impl Fn(&Letter) -> bool) {
        // More than once where it first has to learn the others' term.
        for _ in 0..3 {
            self.time_out(id);
            self.settle_without(&kept);
            self.wire.clear();
            if self.status(id).role == Role::Leader {
                return;
            }
        }
        panic!("not elected: {:?}", self.status(id));
    }

    pub(crate) fn propose(&mut self, id: u64, token: u64, data: &str) {
        let data = Bytes::copy_from_slice(data.as_bytes());
        self.step(id, Input::Propose { token, data });
    }

    /// Cuts a node off from all others.
    pub(crate) fn isolate(&mut self, id: u64) {
        for other in self.ids() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
        self.wire.retain(|letter| letter.from != id && letter.to != id);
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// What came out of a node for its clients, the latest life only.
    pub(crate) fn seen(&self, id: u64, wanted: impl Fn(&Output) -> bool) -> Vec<Output> {
        self.node(id).seen.iter().filter(|output| wanted(output)).cloned().collect()
    }

    /// Answers a `Fetch` from the disk.
    pub(crate) fn fetched(&mut self, id: u64) {
        let place = |output: &Output| matches!(output, Output::Fetch { .. });
        let Some(at) = self.node(id).seen.iter().position(place) else { return };
        if let Output::Fetch { id: read, range, .. } = self.node_mut(id).seen.remove(at) {
            let on_disk = &self.node(id).disk.entries;
            let entries: Vec<Entry> =
                on_disk.iter().filter(|entry| range.contains(&entry.index)).cloned().collect();
            let result = if entries.is_empty() { Err(FetchError::Released) } else { Ok(entries) };
            self.step(id, Input::Fetched { id: read, result });
        }
    }
}

fn complete(node: &mut Node) -> Option<Input> {
    let (write, entries) = node.writes.pop_front()?;
    node.disk.apply(&write, &entries);
    Some(Input::Persisted { id: write.id })
}

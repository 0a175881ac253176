//! Faults of a network and of clocks, drawn from a seed.

use std::collections::BTreeMap;

use voussoir_sim::{Rng, Situations};

pub(super) const MS: u64 = 1_000_000;
/// How far a clock jumps at most, in ns.
pub(super) const JUMP: u64 = 10_000 * MS;
/// Faults end at this time, in ns.
pub(super) const CALM: u64 = 30_000 * MS;

pub(super) struct Faults {
    pub(super) rng: Rng,
    pub(super) now: u64,
    /// Until when messages from one node to another are lost, in ns.
    cuts: BTreeMap<(u64, u64), u64>,
    /// How far the wall clock of each node is off, in ns, and what the node last read. A node reads
    /// a clock that does not go back: after a jump back it stands still.
    clocks: BTreeMap<u64, (i64, u64)>,
    /// Chance of a message to be lost, repeated or slow, in millionths each.
    chance: u32,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let chance = *rng.pick(&[0, 10_000, 60_000, 150_000]).unwrap();
        Self { rng, now: 0, cuts: BTreeMap::new(), clocks: BTreeMap::new(), chance }
    }

    pub(super) fn is_calm(&self) -> bool {
        self.now >= CALM
    }

    /// After which delays a message arrives: none if it is lost, two if it is repeated.
    pub(super) fn fate(
        &mut self,
        (from, to): (u64, u64),
        once: bool,
        counts: &Situations,
    ) -> Vec<u64> {
        let chance = if self.is_calm() { 0 } else { self.chance };
        let is_cut = self.cuts.get(&(from, to)).is_some_and(|until| self.now < *until);
        counts.add("a link was cut", is_cut.into());
        if is_cut || self.rng.chance(chance) {
            counts.reached("a message was lost");
            return Vec::new();
        }
        let mut delays = vec![self.delay(chance, counts)];
        if !once && self.rng.chance(chance) {
            counts.reached("a message came twice");
            delays.push(self.delay(chance, counts));
        }
        delays
    }

    fn delay(&mut self, chance: u32, counts: &Situations) -> u64 {
        let is_slow = self.rng.chance(chance);
        counts.add("a message came late", is_slow.into());
        1 + self.rng.below(if is_slow { 400 * MS } else { 3 * MS })
    }

    /// What the node reads from its clock.
    pub(super) fn clock(&mut self, node: u64) -> u64 {
        let now = self.now;
        let (offset, last) = self.clocks.entry(node).or_default();
        *last = now.saturating_add_signed(*offset).max(*last);
        *last
    }

    /// How long the node takes until its clock shows `at`.
    pub(super) fn until(&self, node: u64, at: u64) -> u64 {
        let offset = self.clocks.get(&node).map_or(0, |(offset, _)| *offset);
        at.saturating_sub(self.now.saturating_add_signed(offset)).max(1)
    }

    /// Cuts links, or lets the clock of a client jump.
    pub(super) fn disturb(&mut self, servers: u64, clients: u64, counts: &Situations) {
        if self.is_calm() {
            return;
        }
        let node = self.rng.below(servers);
        let peer = servers + self.rng.below(clients);
        let until = self.now + self.rng.below(2_000 * MS);
        match self.rng.below(5) {
            0 => {
                counts.reached("a server was cut off");
                for client in servers..servers + clients {
                    self.cuts.extend([((node, client), until), ((client, node), until)]);
                }
            }
            1 => {
                counts.reached("only answers were lost");
                self.cuts.insert((node, peer), until);
            }
            2 => {
                self.cuts.insert((peer, node), until);
            }
            _ => {
                // The clock of a client: those of servers are not read.
                let jump = self.rng.between(MS, JUMP).cast_signed();
                let (offset, _) = self.clocks.entry(peer).or_default();
                let is_back = *offset > 0 || (*offset == 0 && self.rng.chance(500_000));
                *offset = if is_back { (*offset - jump).max(-JUMP.cast_signed()) } else { jump };
                counts.reached(if is_back { "a clock went back" } else { "a clock went ahead" });
            }
        }
    }
}

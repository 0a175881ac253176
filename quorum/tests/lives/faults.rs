//! One life of a cluster: its events in the order of their times, and the faults of its network and
//! its clocks between them, drawn from a seed.

use std::collections::BTreeMap;

use voussoir_sim::{Rng, Situations};

pub(super) const MS: u64 = 1_000_000;
/// How far a clock jumps at most, in ns.
pub(super) const JUMP: u64 = 10_000 * MS;
/// Faults end at this time, in ns.
pub(super) const CALM: u64 = 30_000 * MS;

/// Nothing of the faults is left at this time, in ns: no link is cut, no clock stands still after a
/// jump back from the farthest ahead to the farthest behind, and lost disks are rebuilt.
pub(super) const SETTLED: u64 = CALM + 2 * JUMP + 3_000 * MS;

/// What befalls a cluster between two events, beside its network.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// A server crashes.
    Crash,
    /// The process of a client is killed.
    Kill,
    /// A link is cut, or a clock jumps: [`Life::disturb`].
    Disturb,
}

/// The events `E` of one life, and its faults.
pub(super) struct Life<E> {
    pub(super) rng: Rng,
    pub(super) now: u64,
    /// By time in ns, and then in the order in which they were scheduled.
    events: BTreeMap<(u64, u64), E>,
    next_event: u64,
    /// Until when messages from one node to another are lost, in ns.
    cuts: BTreeMap<(u64, u64), u64>,
    /// How far the wall clock of each node is off, in ns, and what the node last read. A node reads
    /// a clock that does not go back: after a jump back it stands still.
    clocks: BTreeMap<u64, (i64, u64)>,
    /// Chance of a message to be lost, repeated or slow, in millionths each.
    chance: u32,
}

impl<E> Life<E> {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let chance = *rng.pick(&[0, 10_000, 60_000, 150_000]).unwrap();
        let (events, cuts, clocks) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { rng, now: 0, events, next_event: 0, cuts, clocks, chance }
    }

    /// The event happens in `delay` ns, at least 1.
    pub(super) fn schedule(&mut self, delay: u64, event: E) {
        self.next_event += 1;
        self.events.insert((self.now + delay.max(1), self.next_event), event);
    }

    /// Goes on to the next event. None: nothing happens any more.
    pub(super) fn next_event(&mut self) -> Option<E> {
        let ((at, _), event) = self.events.pop_first()?;
        self.now = at;
        Some(event)
    }

    /// How long a session waits before it begins its next operation: until 1 s after the faults it
    /// does so at once, and then once more when nothing is left of them. None: it begins no more.
    pub(super) fn wait_to_begin(&self) -> Option<u64> {
        if self.now < CALM + 1_000 * MS { Some(0) } else { SETTLED.checked_sub(self.now) }
    }

    /// Two lives of one seed have the same.
    pub(super) fn trace(&mut self) -> (u64, u64, u64) {
        (self.now, self.next_event, self.rng.next_u64())
    }

    /// What happens beside the event: nothing in most cases, and when the faults have ended.
    pub(super) fn fault(&mut self) -> Option<Fault> {
        if self.is_calm() || !self.rng.chance(4_000) {
            return None;
        }
        Some(match self.rng.below(4) {
            0 | 1 => Fault::Crash,
            2 => Fault::Kill,
            _ => Fault::Disturb,
        })
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

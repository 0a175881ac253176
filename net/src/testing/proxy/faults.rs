//! Faults of a proxy at exact places, and flipped bits.

use std::num::NonZeroU64;
use std::sync::atomic::Ordering;

use fastrand::Rng;

use super::{Direction, Shared};

/// A fault of a [`Rule`]. It happens to the connection whose byte is the next to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// One bit of the next byte passes flipped.
    FlipBit,
    /// The connection is reset, on both sides. What the proxy holds of it is lost.
    Reset,
    /// Nothing more passes on this connection in this direction, not even its end, until it is
    /// reset. Other connections, and the other direction, go on.
    Stall,
}

/// A fault at an exact place in the bytes that pass one direction of a proxy. It happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// How many bytes pass before the fault happens, over all connections of the proxy, from when
    /// the rule was set.
    pub after_bytes: u64,
    /// The fault.
    pub fault: Fault,
}

impl Shared {
    /// How many of `bytes` may pass before the rule of the direction is met; else its fault.
    pub(super) fn until_rule(&self, direction: Direction, bytes: usize) -> Result<usize, Fault> {
        let mut rule = self.rules[direction as usize].lock();
        match *rule {
            None => Ok(bytes),
            Some(Rule { after_bytes: 0, fault }) => {
                *rule = None;
                self.rules_met.fetch_add(1, Ordering::Relaxed);
                Err(fault)
            }
            Some(Rule { after_bytes, .. }) => {
                Ok(bytes.min(usize::try_from(after_bytes).unwrap_or(usize::MAX)))
            }
        }
    }

    /// Counts bytes that have passed. Another connection's may have been counted since
    /// [`Shared::until_rule`], and the fault then comes by so many bytes late.
    pub(super) fn passed(&self, direction: Direction, bytes: usize) {
        self.bytes[direction as usize].fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(rule) = self.rules[direction as usize].lock().as_mut() {
            rule.after_bytes = rule.after_bytes.saturating_sub(bytes as u64);
        }
    }
}

/// Chooses the bytes of one direction of one connection of which a bit is flipped.
#[derive(Debug)]
pub(super) struct Flips {
    random: Rng,
    /// The rate that was asked for last, and how many bytes pass before the next flip.
    next: Option<(NonZeroU64, u64)>,
}

impl Flips {
    /// The places depend on the number of the connection and on the direction.
    pub(super) fn new(number: u64, direction: Direction) -> Self {
        Self { random: Rng::with_seed(number << 1 | direction as u64), next: None }
    }

    /// Flips bits of the bytes that follow. Returns how many bytes were changed.
    pub(super) fn apply(&mut self, one_in: Option<NonZeroU64>, bytes: &mut [u8]) -> u64 {
        let Some(one_in) = one_in else {
            self.next = None;
            return 0;
        };
        let mut left = match self.next {
            Some((rate, left)) if rate == one_in => left,
            _ => self.draw(one_in),
        };
        let mut flipped = 0;
        // Ends: each turn steps over at least one byte.
        while let Some(byte) = usize::try_from(left).ok().and_then(|at| bytes.get_mut(at)) {
            *byte ^= 1 << self.random.u8(..8);
            flipped += 1;
            left += 1 + self.draw(one_in);
        }
        self.next = Some((one_in, left - bytes.len() as u64));
        flipped
    }

    /// How many bytes pass before the next flip: from 0 to `2 * (one_in - 1)`, each as likely.
    fn draw(&mut self, one_in: NonZeroU64) -> u64 {
        // Far beyond what a connection passes; so sums do not overflow.
        let most = (one_in.get() - 1).min(u64::MAX >> 4);
        self.random.u64(..=2 * most)
    }
}

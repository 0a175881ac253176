//! Acknowledgements that go where a write completes, without a turn of the group.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::shared::{Shared, count};
use crate::message::AppendAck;
use crate::node::hub::Seat;

/// In the place of an index: nothing more is acknowledged.
const TAKEN_BACK: u64 = u64::MAX;

/// The right of completions to acknowledge entries, which the driver can take back.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// Up to where completions have acknowledged, or [`TAKEN_BACK`]. Those that were entrusted
    /// later have another one.
    acked: Arc<AtomicU64>,
}

impl Acks {
    /// Entrusts a completion with `ack`.
    pub(crate) fn entrust(&self, seat: &Arc<Seat>, to: u64, ack: AppendAck) -> Acknowledge {
        Acknowledge { acked: Arc::clone(&self.acked), seat: Arc::clone(seat), to, ack }
    }

    /// From now on the completions that were entrusted before acknowledge nothing. Returns up to
    /// where they, and those before them, have done so.
    pub(crate) fn take_back(&mut self) -> u64 {
        let acked = self.acked.swap(TAKEN_BACK, Ordering::AcqRel);
        self.acked = Arc::new(AtomicU64::new(acked));
        acked
    }
}

/// An acknowledgement that goes when what it speaks of is durable.
pub(crate) struct Acknowledge {
    acked: Arc<AtomicU64>,
    seat: Arc<Seat>,
    to: u64,
    ack: AppendAck,
}

impl Acknowledge {
    /// Sends and returns it, unless it was taken back.
    pub(crate) fn send(self, shared: &Shared) -> Option<AppendAck> {
        let note = |upto: u64| (upto != TAKEN_BACK).then(|| upto.max(self.ack.matched));
        self.acked.fetch_update(Ordering::AcqRel, Ordering::Acquire, note).ok()?;
        count(&shared.counters.messages_sent, 1);
        self.seat.acknowledge(self.to, self.ack);
        Some(self.ack)
    }
}

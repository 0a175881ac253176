//! The lock service as a state machine: no clock, thread, socket or file.
//!
//! [`Table`] is what all replicas agree on: sessions, who holds and who waits, the counter of
//! fencing tokens. It changes by [`Command`]s in the order of a log, and by nothing else; time is
//! in it as commands of a leader only. [`Leases`] is what one leader remembers of time: when
//! sessions end, and which commands follow from that.

pub(crate) mod codec;
mod command;
mod leases;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;

pub use command::{Answer, Command, Event, Malformed, Mode, Rejection};
pub use leases::{Leases, Renewal};
pub use snapshot::Restore;
pub use table::{Hold, LockView, Table};

/// The longest name of a lock, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;
/// The longest value of a lock, in bytes.
pub const MAX_VALUE_BYTES: usize = 4096;
/// Sessions at a time.
pub const MAX_SESSIONS: usize = 100_000;
/// Of one session: what it holds, what it waits for, and requests that ended but may be retried.
pub const MAX_REQUESTS: usize = 10_000;
/// Those that wait for one lock.
pub const MAX_WAITERS: usize = 10_000;
/// Locks that exist: they are held, waited for, in their delay, or have a value.
pub const MAX_LOCKS: usize = 1_000_000;
/// The shortest time to live of a session, in ms.
pub const MIN_TTL_MS: u64 = 100;
/// The longest time to live of a session, in ms: 1 h.
pub const MAX_TTL_MS: u64 = 3_600_000;
/// The longest lock-delay, in ms: 1 minute, as in Chubby.
pub const MAX_LOCK_DELAY_MS: u64 = 60_000;

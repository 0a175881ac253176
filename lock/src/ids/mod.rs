//! Ids that no clock step, restart or paused process repeats.
//!
//! A [`Snowflake`] id holds a time, the number of the worker that made it, and a sequence number.
//! Two ids are different as long as no two workers use one number for the same times. Leases alone
//! cannot ensure that: a process that was paused does not know that its lease has ended. So a
//! worker number comes with a **ceiling**, a time that is durable where numbers are leased from
//! ([`WorkerNumbers`]; [`LockNumbers`] are those of a lock service): ids have times below the
//! ceiling only, and the next holder of the number begins at it. The ceiling is raised ahead of the
//! clock, in the background ([`WorkerLease`]).

mod error;
mod lease;
mod lock_numbers;
mod memory;
mod numbers;
mod short_code;
mod snowflake;
mod uuid;
mod window;

pub use error::IdError;
pub use lease::{LeaseError, WorkerLease};
pub use lock_numbers::LockNumbers;
pub use memory::MemoryNumbers;
pub use numbers::{WorkerError, WorkerGrant, WorkerNumbers};
pub use short_code::ShortCodes;
pub use snowflake::{Snowflake, SnowflakeConfig, SnowflakeParts};
pub use uuid::{UuidV7, UuidV7Config};
pub use window::WorkerWindow;

/// Nanoseconds of a millisecond, the unit of time in ids.
pub(crate) const NS_PER_MS: u64 = 1_000_000;

/// Times of ids are below this, in ms since the UNIX epoch: the 48 bits of a UUIDv7.
pub(crate) const MAX_TIME_MS: u64 = 1 << 48;

//! What can go wrong, surface by surface.

use thiserror::Error;

use crate::error::ConfigError;

/// The outbox or inbox was not opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tables were created with another number of lanes. Another number would deliver the
    /// messages of one key by two relays.
    #[error("the outbox has {found} lanes, and `lanes` is {configured}")]
    Lanes {
        /// Lanes of the tables.
        found: i64,
        /// [`OutboxConfig::lanes`](super::OutboxConfig::lanes).
        configured: u32,
    },
    /// The database cannot be asked.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
}

/// No message was put. The caller's transaction is failed, except by what is wrong with a message.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PutError {
    /// A topic has 1 to 200 bytes and a key 1 to 1,000, without zero byte.
    #[error("the {part} of message {index} has {bytes} bytes or a zero byte, and at most {max}")]
    Name {
        /// Which of the messages, from 0 on.
        index: usize,
        /// `topic` or `key`.
        part: &'static str,
        /// Its length.
        bytes: usize,
        /// The longest.
        max: usize,
    },
    /// A body is longer than [`OutboxConfig::max_body_bytes`](super::OutboxConfig::max_body_bytes).
    #[error("the body of message {index} has {bytes} bytes, and at most {max}")]
    Body {
        /// Which of the messages, from 0 on.
        index: usize,
        /// Its length.
        bytes: usize,
        /// The longest.
        max: usize,
    },
    /// The messages of one call have too many keys, each of which is a lock of the server: put them
    /// by several transactions.
    #[error("the messages have {keys} keys, and at most {max}")]
    Keys {
        /// Different keys.
        keys: usize,
        /// The most.
        max: usize,
    },
    /// What the database says.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
}

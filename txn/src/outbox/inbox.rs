//! Ids of messages that had their effect, in the database of the effect.

use std::time::Duration;

use tokio_postgres::{Error, GenericClient};

use super::error::OutboxError;
use crate::postgres::{Connect, check_schema, install, quoted};

const TABLE: &str = "voussoir_inbox";

/// Whether a message had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a message that was seen must not have its effect again"]
pub enum Seen {
    /// It comes for the first time: have its effect in this transaction.
    Never,
    /// It had its effect, in a transaction that committed.
    Before,
}

/// Recognises messages that are delivered again. Clones are the same inbox.
#[derive(Clone, Debug)]
pub struct Inbox {
    table: String,
}

impl Inbox {
    /// Creates the table `voussoir_inbox` in `schema`, and the schema, unless they exist.
    ///
    /// # Errors
    /// [`OutboxError`].
    ///
    /// # Cancel safety
    /// Dropped, it may have created the schema and the table.
    pub async fn open(connect: impl Connect, schema: &str) -> Result<Self, OutboxError> {
        check_schema(schema)?;
        let client = connect.connect().await?;
        let create = "(consumer TEXT, id TEXT, \
                       seen TIMESTAMPTZ NOT NULL DEFAULT pg_catalog.clock_timestamp(), \
                       PRIMARY KEY (consumer, id))";
        install(&client, schema, TABLE, create).await?;
        Ok(Self { table: format!("{}.{TABLE}", quoted(schema)) })
    }

    /// Notes that `consumer` sees the message `id`, in the transaction of its effect: both commit,
    /// or neither. Of two that note the same message at once, the second waits for the first to
    /// end.
    ///
    /// # Errors
    /// What the database says; the transaction is failed.
    ///
    /// # Cancel safety
    /// Dropped, the message may be noted: roll the transaction back.
    pub async fn note<C: GenericClient + Sync>(
        &self,
        transaction: &C,
        consumer: &str,
        id: &str,
    ) -> Result<Seen, Error> {
        let insert = format!(
            "INSERT INTO {} (consumer, id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            self.table
        );
        let inserted = transaction.execute(&insert, &[&consumer, &id]).await?;
        Ok(if inserted == 1 { Seen::Never } else { Seen::Before })
    }

    /// Forgets at most `max` messages that were seen longer ago than `age`, and returns how many.
    /// A message that is delivered after that has its effect again: `age` is longer than the
    /// longest time for which a message is tried again.
    ///
    /// # Errors
    /// What the database says.
    ///
    /// # Cancel safety
    /// Dropped, they are forgotten or not.
    pub async fn forget_older<C: GenericClient + Sync>(
        &self,
        client: &C,
        age: Duration,
        max: u32,
    ) -> Result<u64, Error> {
        let delete = format!(
            "DELETE FROM {0} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {0} WHERE seen < \
             pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1) LIMIT $2))",
            self.table
        );
        client.execute(&delete, &[&age.as_secs_f64(), &i64::from(max)]).await
    }
}

//! The table of messages: putting, reading and deleting them.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, GenericClient};

use super::config::OutboxConfig;
use super::error::{OutboxError, PutError};
use super::lanes;
use crate::postgres::{Connect, install, quoted};

const TABLE: &str = "voussoir_outbox";
pub(super) const CHANNEL: &str = "voussoir_outbox";
const MAX_TOPIC_BYTES: usize = 200;
const MAX_KEY_BYTES: usize = 1000;
/// Keys of one call. The server has room for some thousand locks, of all transactions together.
const MAX_KEYS: usize = 1000;

/// A message that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewMessage {
    /// Where it goes: 1 to 200 bytes.
    pub topic: String,
    /// Messages of one key are delivered in order: 1 to 1,000 bytes.
    pub key: String,
    /// What it says.
    pub body: Bytes,
}

impl NewMessage {
    /// A message.
    pub fn new(topic: &str, key: &str, body: impl Into<Bytes>) -> Self {
        Self { topic: topic.to_owned(), key: key.to_owned(), body: body.into() }
    }
}

/// Messages in a PostgreSQL database that wait for a [`Relay`](super::Relay). Clones are the same
/// outbox.
#[derive(Clone)]
pub struct Outbox {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) connect: Arc<dyn Connect>,
    pub(super) config: OutboxConfig,
    /// The tables, with their schema, as they stand in a statement.
    pub(super) table: String,
    pub(super) lanes: String,
    insert: String,
    insert_one: String,
    /// Wakes the relays of this process.
    pub(super) local: Arc<Notify>,
    /// Wakes the task that notifies those of other processes.
    announce: Notify,
}

impl Outbox {
    /// Creates the tables `voussoir_outbox` and `voussoir_outbox_lanes` unless they exist.
    ///
    /// # Errors
    /// [`OutboxError`].
    ///
    /// # Cancel safety
    /// Dropped, it may have created the schema and the tables.
    pub async fn open(connect: impl Connect, config: OutboxConfig) -> Result<Self, OutboxError> {
        config.validate()?;
        let mut client = connect.connect().await?;
        let create = "(lane INT, id BIGINT GENERATED ALWAYS AS IDENTITY, \
                       message_id TEXT NOT NULL DEFAULT pg_catalog.gen_random_uuid(), \
                       topic TEXT NOT NULL, key TEXT COLLATE pg_catalog.\"C\" NOT NULL, \
                       body BYTEA NOT NULL, PRIMARY KEY (lane, id), UNIQUE (lane, key, id))";
        install(&client, &config.schema, TABLE, create).await?;
        lanes::create(&mut client, &config).await?;
        let table = format!("{}.{TABLE}", quoted(&config.schema));
        // The lock comes first, and the number after it. The server plans each statement anew, and
        // this one, which is by far the most frequent, in a fraction of the other's time.
        let insert_one = format!(
            "INSERT INTO {table} (lane, topic, key, body) SELECT $2, $3, $4, $5 \
             FROM (SELECT pg_catalog.pg_advisory_xact_lock($1) OFFSET 0) AS locked"
        );
        // The locks come first, in one order, and the numbers after them.
        let insert = format!(
            "WITH locked AS MATERIALIZED (SELECT pg_catalog.count(\
             pg_catalog.pg_advisory_xact_lock(one.lock)) FROM (SELECT DISTINCT lock \
             FROM pg_catalog.unnest($1::BIGINT[]) AS all_locks (lock) ORDER BY lock OFFSET 0) one) \
             INSERT INTO {table} (lane, topic, key, body) \
             SELECT new.lane, new.topic, new.key, new.body FROM locked, ROWS FROM (\
             pg_catalog.unnest($2::INT[]), pg_catalog.unnest($3::TEXT[]), \
             pg_catalog.unnest($4::TEXT[]), pg_catalog.unnest($5::BYTEA[])) \
             WITH ORDINALITY AS new (lane, topic, key, body, place) ORDER BY new.place"
        );
        let shared = Arc::new(Shared {
            connect: Arc::new(connect),
            table,
            lanes: lanes::table(&config.schema),
            config,
            insert,
            insert_one,
            local: Arc::default(),
            announce: Notify::new(),
        });
        tokio::spawn(announce(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Puts messages, in order, in the caller's transaction: they are sent if it commits. From here
    /// to its end the transaction holds a lock on each key, of which one call has at most 1,000.
    /// The server has room for `max_locks_per_transaction` times its connections, for all
    /// transactions together.
    ///
    /// # Errors
    /// [`PutError`].
    ///
    /// # Cancel safety
    /// Dropped, messages may be put: roll the transaction back.
    pub async fn put<C: GenericClient + Sync>(
        &self,
        transaction: &C,
        messages: &[NewMessage],
    ) -> Result<(), PutError> {
        for (index, message) in messages.iter().enumerate() {
            let names =
                [("topic", &message.topic, MAX_TOPIC_BYTES), ("key", &message.key, MAX_KEY_BYTES)];
            for (part, name, max) in names {
                let bytes = name.len();
                if !(1..=max).contains(&bytes) || name.contains('\0') {
                    return Err(PutError::Name { index, part, bytes, max });
                }
            }
            let (bytes, max) = (message.body.len(), self.shared.config.max_body_bytes);
            if bytes > max {
                return Err(PutError::Body { index, bytes, max });
            }
        }
        if messages.is_empty() {
            return Ok(());
        }
        let salt = lanes::hash(&self.shared.table, 0);
        let lock = |message: &NewMessage| lanes::hash(&message.key, salt).cast_signed();
        let count = u64::from(self.shared.config.lanes);
        let lane = |message: &NewMessage| (lanes::hash(&message.key, 0) % count) as i32;
        // One round trip, which a statement that is given as text and not typed would double.
        if let [one] = messages {
            let (lock, lane, body) = (lock(one), lane(one), &*one.body);
            let params: [(&(dyn ToSql + Sync), Type); 5] = [
                (&lock, Type::INT8),
                (&lane, Type::INT4),
                (&one.topic, Type::TEXT),
                (&one.key, Type::TEXT),
                (&body, Type::BYTEA),
            ];
            transaction.query_typed(&self.shared.insert_one, &params).await?;
            return Ok(());
        }
        let distinct: HashSet<&str> = messages.iter().map(|one| &*one.key).collect();
        if distinct.len() > MAX_KEYS {
            return Err(PutError::Keys { keys: distinct.len(), max: MAX_KEYS });
        }
        let locks: Vec<i64> = messages.iter().map(lock).collect();
        let lanes: Vec<i32> = messages.iter().map(lane).collect();
        let topics: Vec<&str> = messages.iter().map(|one| &*one.topic).collect();
        let keys: Vec<&str> = messages.iter().map(|one| &*one.key).collect();
        let bodies: Vec<&[u8]> = messages.iter().map(|one| &*one.body).collect();
        let params: [(&(dyn ToSql + Sync), Type); 5] = [
            (&locks, Type::INT8_ARRAY),
            (&lanes, Type::INT4_ARRAY),
            (&topics, Type::TEXT_ARRAY),
            (&keys, Type::TEXT_ARRAY),
            (&bodies, Type::BYTEA_ARRAY),
        ];
        transaction.query_typed(&self.shared.insert, &params).await?;
        Ok(())
    }

    /// Wakes relays, here and in other processes, after a transaction that put messages has
    /// committed. Does not wait.
    pub fn wake(&self) {
        self.shared.local.notify_one();
        self.shared.announce.notify_one();
    }

    /// Messages that wait, those of transactions that have not ended left out.
    ///
    /// # Errors
    /// What the database says.
    ///
    /// # Cancel safety
    /// Reads only.
    pub async fn waiting<C: GenericClient + Sync>(&self, client: &C) -> Result<u64, Error> {
        let count = format!("SELECT pg_catalog.count(*) FROM {}", self.shared.table);
        Ok(client.query_one(&count, &[]).await?.get::<_, i64>(0).cast_unsigned())
    }

    /// Deletes a message that no sink takes, so that its key goes on. Returns whether it was there.
    ///
    /// # Errors
    /// What the database says.
    ///
    /// # Cancel safety
    /// Dropped, it is deleted or not.
    pub async fn discard<C: GenericClient + Sync>(
        &self,
        client: &C,
        message_id: &str,
    ) -> Result<bool, Error> {
        let delete = format!("DELETE FROM {} WHERE message_id = $1", self.shared.table);
        Ok(client.execute(&delete, &[&message_id]).await? > 0)
    }
}

/// Notifies the relays of other processes, once for all messages of `ANNOUNCE_EVERY`: the server
/// commits one transaction that notifies after the other. A notification that is lost costs them
/// the time until they look by themselves.
async fn announce(shared: Weak<Shared>) {
    let mut client: Option<Client> = None;
    // Ends: when the last handle of the outbox is gone, at the next look.
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let woken = tokio::time::timeout(LOOK, strong.announce.notified()).await.is_ok();
        if !woken {
            continue;
        }
        let sent = async {
            let connected = match client.take().filter(|client| !client.is_closed()) {
                Some(connected) => connected,
                None => strong.connect.connect().await?,
            };
            // What it speaks of is durable already.
            let notify =
                format!("BEGIN; SET LOCAL synchronous_commit = off; NOTIFY {CHANNEL}; COMMIT");
            connected.batch_execute(&notify).await?;
            Ok::<_, Error>(connected)
        };
        client = timed(sent).await;
        drop(strong);
        tokio::time::sleep(ANNOUNCE_EVERY).await;
    }
}

const LOOK: Duration = Duration::from_secs(1);
/// The shortest time between two notifications.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(5);

async fn timed(sent: impl Future<Output = Result<Client, Error>>) -> Option<Client> {
    tokio::time::timeout(5 * LOOK, sent).await.ok()?.ok()
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("table", &self.shared.table).finish_non_exhaustive()
    }
}

//! Outbox and inbox on PostgreSQL: a message is sent if and only if the transaction of the change
//! that it tells of commits, and has its effect once.
//!
//! ```no_run
//! use std::sync::Arc;
//! use voussoir_txn::outbox::*;
//! # struct Broker;
//! # #[voussoir_txn::async_trait]
//! # impl Sink for Broker {
//! #     async fn deliver(&self, _: &[Message]) -> Result<(), SinkError> { Ok(()) }
//! # }
//! # async fn run(config: tokio_postgres::Config, client: &mut tokio_postgres::Client)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let outbox = Outbox::open(config, OutboxConfig::default()).await?;
//! // In each process that has a way to the broker; one at a time has each lane.
//! let relay = Relay::start(&outbox, Arc::new(Broker), RelayConfig::default())?;
//!
//! let transaction = client.transaction().await?;
//! transaction.execute("UPDATE orders SET paid = true WHERE id = 7", &[]).await?;
//! outbox.put(&transaction, &[NewMessage::new("orders", "7", "paid")]).await?;
//! transaction.commit().await?;
//! outbox.wake(); // outside of the transaction; forgotten, it costs `RelayConfig::poll`
//! # relay.stop().await; Ok(())
//! # }
//! ```
//!
//! # Order and loss
//!
//! A row's number is given before its transaction commits, so a reader that remembers the last
//! number it has seen skips the row that commits late. Here nobody remembers a number: a row stays
//! until the sink has taken it, and is deleted then.
//!
//! Messages of one key are delivered in the order in which their transactions commit.
//! [`Outbox::put`] takes a lock on the key that the transaction holds to its end; numbers of a key
//! are thus given in that order, and all smaller ones are visible. The alternative, to read only
//! what lies below the oldest open transaction of the server (`pg_snapshot_xmin`), has no lock, and
//! stalls all messages for as long as any transaction of any database of the server is open or
//! prepared; two-phase commit makes such. The price of the lock: transactions that put a message of
//! the same key run one after the other from there on. Put messages last. Two transactions that put
//! two keys each in opposite order, by two calls, may meet in a deadlock, which PostgreSQL ends by
//! failing one of them; the messages of one call are locked in one order.
//!
//! # Notifications
//!
//! `NOTIFY` inside of the business transaction would serialise all commits of the database, so that
//! [`Outbox::wake`] sends it by a connection of its own. It may be lost or forgotten: a relay looks
//! by itself every [`RelayConfig::poll`].

mod config;
mod error;
mod inbox;
mod lanes;
#[cfg(feature = "queue")]
mod queue;
mod relay;
mod sink;
mod table;

pub use config::{OutboxConfig, RelayConfig};
pub use error::{OutboxError, PutError};
pub use inbox::{Inbox, Seen};
#[cfg(feature = "queue")]
#[cfg_attr(docsrs, doc(cfg(feature = "queue")))]
pub use queue::{MESSAGE_ID_HEADER, QueueSink};
pub use relay::{Blocked, Relay, RelayStats};
pub use sink::{Message, Sink, SinkError};
pub use table::{NewMessage, Outbox};

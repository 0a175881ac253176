//! Choreography: participants that react to events, without anybody who knows the whole.
//!
//! Each [`Participant`] has rules: on an event of this kind, or when events of these kinds with one
//! key have come, do that, and publish what has happened. What it does and what it has read are
//! durable together (consume, transform, produce in one transaction of the bus); an effect outside
//! of the bus is told by [`EventCx::key`] when a reaction runs twice.
//!
//! ```
//! use std::sync::Arc;
//! use voussoir_txn::choreography::*;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = Arc::new(MemoryBus::new(1_000_000)); // or a QueueBus, feature `queue`
//! let stock = Participant::new("stock", [
//!     Rule::on("order.placed", "reserve", |cx: EventCx| async move {
//!         // Note `cx.key` in the transaction of the effect.
//!         Ok(vec![NewEvent::new("stock.reserved", cx.body().clone())])
//!     }),
//!     // The undo of `reserve`: with both events, in whatever order they come.
//!     Rule::on("order.placed", "release", |_cx| async { Ok(vec![]) }).and("payment.refused"),
//! ])?;
//! let payment = Participant::new("payment", [Rule::on("stock.reserved", "charge", |_cx| async {
//!     Ok(vec![NewEvent::new("payment.refused", "no money")])
//! })])?;
//! let config = ChoreographyConfig::default();
//! let running = [
//!     Running::start(bus.clone(), &stock, config.clone())?,
//!     Running::start(bus.clone(), &payment, config)?,
//! ];
//! bus.publish(&[Event::first("order-1/placed", "order.placed", "order-1", "2 books")]).await?;
//!
//! // Who waits for what, from the events alone.
//! let mut watcher = Watcher::new([&stock, &payment], WatcherConfig::default());
//! let mut tail = bus.tail().await?;
//! // Placed, reserved, refused, and that `release` is done.
//! while watcher.saga("order-1").is_none_or(|saga| saga.events < 4) {
//!     let observed = tail.next(std::time::Duration::from_secs(10)).await?;
//!     assert!(!observed.is_empty(), "nothing happens for 10 s");
//!     observed.iter().for_each(|observed| watcher.observe(0, observed));
//! }
//! assert!(watcher.saga("order-1").is_some_and(|saga| saga.is_quiet()));
//! # drop(running); Ok(())
//! # }
//! ```
//!
//! # Rules of the house
//! - **Joins** are by the key that an event is published with. An event that comes before what it
//!   is to be joined with is parked; the parked ones are bounded, and the oldest becomes a
//!   [`DeadLetter`].
//! - **Loops** end: each event counts the reactions behind it, and the one beyond
//!   [`max_hops`](ChoreographyConfig::max_hops) becomes a dead letter.
//! - **Deadlines**: of the whole ([`Event::deadline`], [`Rule::late`]), of a join
//!   ([`Rule::within`], [`Rule::on_timeout`]), of an attempt ([`Rule::timeout`]).
//! - **Order**: reactions of one participant to events of one key run one after the other, in the
//!   order in which they were due. A reaction that fails holds up its key; once
//!   [`max_due`](ChoreographyConfig::max_due) reactions of its partition wait, the partition too.
//! - A reaction that brings its process down each time it runs is tried for ever: only attempts
//!   that end are counted.

mod bus;
mod config;
mod core;
mod event;
mod memory;
mod participant;
#[cfg(feature = "queue")]
mod queue;
mod runner;
mod watcher;

pub use bus::{Bus, BusError, Commit, Delivery, Observed, Subscription, Tail};
pub use config::ChoreographyConfig;
pub use core::Waiting;
pub use event::{DeadLetter, DeadReason, Event, NewEvent};
pub use memory::MemoryBus;
pub use participant::{EventCx, Participant, ParticipantError, ReactError, Rule};
#[cfg(feature = "queue")]
#[cfg_attr(docsrs, doc(cfg(feature = "queue")))]
pub use queue::{QueueBus, QueueBusConfig};
pub use runner::{Running, RunningStats};
pub use watcher::{Awaited, SagaView, Watcher, WatcherConfig};

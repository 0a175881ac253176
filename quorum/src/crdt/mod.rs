//! Conflict-free replicated data types, as delta-state: pure values, no I/O.
//!
//! Every change returns a **delta**: a small value of the same type that carries only this change.
//! Deltas and full states are merged by the same [`Crdt::merge`], which is commutative, associative
//! and idempotent. Deltas may be lost, repeated and reordered: replicas that have merged the same
//! changes are equal, and a full state makes up for every lost delta. No type needs ordered or
//! causal delivery.
//!
//! | type | value | concurrent changes |
//! |---|---|---|
//! | [`GCounter`] | a sum that only grows | all count |
//! | [`PnCounter`] | a sum | all count |
//! | [`LwwRegister`] | one value | the greater timestamp wins, the other write is **lost** |
//! | [`MvRegister`] | values that no write has replaced | all are kept |
//! | [`OrSet`] | elements | an add wins over a remove that has not seen it |
//! | [`EnableWinsFlag`] | on or off | an enable wins; read inverted, a disable wins |
//! | [`OrMap`] | keys to [`Set`], [`Values`], [`Flag`] or another [`Map`] | removing a key resets what the remover has seen under it |
//!
//! The last four are a [`Causal`] around a [`DotStore`], which nest in a [`Map`].
//!
//! # Rules for actors
//! A change is made by an [`Actor`](crate::version::Actor): a node and the incarnation of its
//! store. An actor's own changes must be durable before their deltas are sent. A node whose store
//! was lost, restored or damaged goes on under a new incarnation: an old actor that has forgotten
//! its changes would issue their names again (riak_kv #679, scylladb #2169). An actor's entries are
//! never removed, so the number of actors grows with the number of lost stores.
//!
//! # Cost
//! Merging visits every entry of both sides; a change costs what it touches.

mod causal;
pub mod codec;
mod context;
mod counter;
mod register;
mod stores;

pub use causal::{Causal, Change, DotStore, EnableWinsFlag, MvRegister, OrMap, OrSet};
pub use context::DotContext;
pub use counter::{CounterError, GCounter, PnCounter};
pub use register::LwwRegister;
pub use stores::{Flag, Map, Set, Values};

/// A value that replicas change independently and merge.
pub trait Crdt {
    /// Adds what `other`, a full state or a delta, knows. Commutative, associative, idempotent.
    fn merge(&mut self, other: &Self);
}

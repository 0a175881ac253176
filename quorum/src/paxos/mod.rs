//! Linearizable registers without a log: Paxos over one value that changes (CASPaxos, Rystsov
//! 2018), as pure state machines with the roles of *Paxos Made Simple* (Lamport 2001).
//!
//! | role | what it does | Paxos Made Simple |
//! |---|---|---|
//! | [`Proposer`] | runs one change: phase 1 (prepare, promise) and phase 2 (accept, accepted) | §2.2, §2.4 |
//! | [`Acceptor`] | promises and accepts; its record is durable before it answers | §2.2, P1a, P2b |
//! | [`Learner`] | notices that a quorum of acceptors has accepted one ballot | §2.3 |
//!
//! Classic Paxos chooses one value for ever: the value that phase 1 finds is proposed again
//! unchanged. CASPaxos proposes what the **change** makes of it, so the register goes from state
//! to state by compare-and-set, each with a [`State::version`] of its own. Everything else is the
//! same, and so is the proof: two quorums intersect, and a higher ballot has seen what a lower one
//! chose.
//!
//! - A change whose condition is not met, and a read, still run phase 2 with the state that they
//!   found: otherwise a value that a failed writer left on one acceptor could be seen and then
//!   vanish (CASSANDRA-12126).
//! - A change that ends without an answer is [`Outcome::Unknown`] with a [`Token`];
//!   [`Change::Resolve`] turns it into a definite answer, which stays true: what it found not
//!   applied never will be.
//! - After a change, the proposer holds the promises for its next ballot: its next change takes one
//!   round trip.
//! - Acceptor state never expires by time. An acceptor whose record was lost answers
//!   [`Reply::NotWhole`] and counts in no quorum.
//!
//! # Message flow
//! ```text
//! proposer                      acceptors (a majority answers)
//!    │ Prepare { ballot }   ──────▶│ promised = ballot, durable
//!    │◀────── Promise { accepted } │
//!    │ change the state of the highest accepted ballot
//!    │ Accept { ballot, state } ──▶│ accepted = (ballot, state), durable
//!    │◀──────────────── Accepted   │
//! ```
//! `cargo run -p voussoir-quorum --example paxos` prints it, and a duel of two proposers.

mod acceptor;
mod config;
mod learner;
mod proposer;
mod types;

pub use acceptor::{Acceptor, AcceptorInput, AcceptorOutput, Record};
pub use config::ProposerConfig;
pub use learner::Learner;
pub(crate) use learner::chosen;
pub use proposer::{ProposeRejected, Proposer, ProposerInput, ProposerOutput};
pub use types::{Ballot, Change, Outcome, Reply, Request, State, Token};

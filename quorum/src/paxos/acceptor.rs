//! The acceptor: promises and accepts, durably.

use std::collections::VecDeque;

use super::{Ballot, Reply, Request, State};

/// What an acceptor keeps of one register, on disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Nothing below it is accepted. Invariant: not below the accepted ballot.
    pub promised: Ballot,
    /// The highest ballot that was accepted, and its state.
    pub accepted: Option<(Ballot, State)>,
}

impl Record {
    /// Of a register that no proposer has asked for.
    pub const EMPTY: Self = Self { promised: Ballot::ZERO, accepted: None };

    /// Adds the record of another acceptor of the register: the higher promise, and the state of
    /// the higher acceptance. An acceptor whose record was lost goes on with the records of
    /// N - Q + 1 others merged, if Q of N are a quorum and no change is left that began before the
    /// loss: each promise that a quorum gave, and each state that one accepted, is among them.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let ballot = |record: &Self| record.accepted.as_ref().map(|(ballot, _)| *ballot);
        let promised = self.promised.max(other.promised);
        let is_newer = ballot(&other) > ballot(&self);
        let accepted = if is_newer { other.accepted } else { self.accepted };
        Self { promised, accepted }
    }
}

/// What happens to an [`Acceptor`].
#[derive(Clone, Debug)]
pub enum AcceptorInput {
    /// A request of a proposer arrived.
    Request {
        /// The node to answer to.
        from: u64,
        /// The request.
        request: Request,
    },
    /// Every record up to this [`AcceptorOutput::Persist`] is durable.
    Persisted {
        /// The id of the record.
        id: u64,
    },
}

/// What an [`Acceptor`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptorOutput {
    /// Write the record and sync it, then report [`AcceptorInput::Persisted`]. A later record
    /// replaces an earlier one.
    Persist {
        /// Rises by one with each record.
        id: u64,
        /// The whole record.
        record: Record,
    },
    /// Send the reply.
    Reply {
        /// The node that asked.
        to: u64,
        /// The answer.
        reply: Reply,
    },
}

/// The acceptor of one register. A promise or an acceptance is answered when the record that holds
/// it is durable, and not before. A failed write of the record stops the acceptor: drop it.
///
/// After a restart it goes on with the durable record. If that record was lost, restored from a
/// backup or damaged, begin with [`Acceptor::not_whole`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor {
    /// As it will be when every write has ended. None: not whole.
    record: Option<Record>,
    /// The id of the latest record.
    latest: u64,
    /// Every record up to this one is durable. Invariant: at most `latest`.
    durable: u64,
    to_persist: bool,
    /// Replies, each with the record that must be durable first, in ascending order of records.
    gated: VecDeque<(u64, u64, Reply)>,
}

impl Acceptor {
    /// Replies that may wait for the disk. A request beyond is discarded, as if it had been lost.
    pub const MAX_WAITING: usize = 1_024;

    /// An acceptor that goes on with the record of its disk.
    pub fn new(record: Record) -> Self {
        let (latest, durable, to_persist) = (0, 0, false);
        Self { record: Some(record), latest, durable, to_persist, gated: VecDeque::new() }
    }

    /// An acceptor whose record was lost, restored or damaged. It answers
    /// [`Reply::NotWhole`] to everything.
    pub fn not_whole() -> Self {
        Self { record: None, ..Self::new(Record::EMPTY) }
    }

    /// The record as it will be when every write has ended. None: not whole.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Whether as many replies wait for the disk as may: the next request would be discarded.
    pub fn is_full(&self) -> bool {
        self.gated.len() >= Self::MAX_WAITING
    }

    /// Takes an input. Requests that are not valid ([`Request::is_valid`]) are discarded.
    pub fn step(&mut self, input: AcceptorInput) {
        match input {
            AcceptorInput::Persisted { id } => {
                self.durable = self.durable.max(id.min(self.latest));
            }
            AcceptorInput::Request { from, request } => {
                if request.is_valid() && !self.is_full() {
                    let reply = self.answer(request);
                    self.gated.push_back((self.latest, from, reply));
                }
            }
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<AcceptorOutput> {
        if std::mem::take(&mut self.to_persist) {
            let record = self.record.clone()?;
            return Some(AcceptorOutput::Persist { id: self.latest, record });
        }
        if self.gated.front()?.0 > self.durable {
            return None;
        }
        let (_, to, reply) = self.gated.pop_front()?;
        Some(AcceptorOutput::Reply { to, reply })
    }

    fn answer(&mut self, request: Request) -> Reply {
        let (Request::Prepare { ballot } | Request::Accept { ballot, .. }) = request;
        let Some(record) = &mut self.record else { return Reply::NotWhole { ballot } };
        let accepted = record.accepted.as_ref().map(|(ballot, _)| *ballot);
        if let Request::Accept { next, .. } = &request
            && accepted == Some(ballot)
            && record.promised == *next
        {
            // The answer to the first one was lost. After a higher promise it is not given again:
            // a rebuilt acceptor has not accepted everything that its record says.
            return Reply::Accepted { ballot };
        }
        if ballot < record.promised {
            return Reply::Rejected { ballot, promised: record.promised };
        }
        // An equal ballot is a repeated prepare, or phase 2 of the attempt that was promised.
        let before = record.promised;
        let reply = match request {
            Request::Prepare { .. } => {
                record.promised = ballot;
                Reply::Promise { ballot, accepted: record.accepted.clone() }
            }
            Request::Accept { state, next, .. } => {
                (record.promised, record.accepted) = (next, Some((ballot, state)));
                Reply::Accepted { ballot }
            }
        };
        if record.promised != before {
            self.latest += 1;
            self.to_persist = true;
        }
        reply
    }
}

//! The acceptors of a node: those that are needed now.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::paxos::{Acceptor, AcceptorInput, AcceptorOutput, Record, Reply, Request};

/// What the acceptors want done.
pub(super) enum Output {
    /// Read the record of a register and report it by [`Acceptors::loaded`].
    Load { key: Bytes },
    /// Write the record and report it by [`Acceptors::persisted`].
    Persist { key: Bytes, id: u64, record: Record },
    /// Answer a request.
    Reply { id: u64, reply: Reply },
}

/// The acceptors of the registers that were asked for and whose records are not all durable.
#[derive(Default)]
pub(super) struct Acceptors {
    ready: BTreeMap<Bytes, Held>,
    loading: BTreeMap<Bytes, Vec<(u64, Request)>>,
    /// Those that may have outputs.
    touched: BTreeSet<Bytes>,
    to_load: Vec<Bytes>,
}

struct Held {
    acceptor: Acceptor,
    /// The latest record that was written, and the latest that is durable.
    latest: u64,
    durable: u64,
}

impl Acceptors {
    /// Returns false if as many requests of the register wait as may.
    pub(super) fn request(&mut self, id: u64, key: Bytes, request: Request) -> bool {
        if let Some(held) = self.ready.get_mut(&key) {
            if held.acceptor.is_full() {
                return false;
            }
            held.acceptor.step(AcceptorInput::Request { from: id, request });
            self.touched.insert(key);
        } else if let Some(requests) = self.loading.get_mut(&key) {
            if requests.len() >= Acceptor::MAX_WAITING {
                return false;
            }
            requests.push((id, request));
        } else {
            self.to_load.push(key.clone());
            self.loading.insert(key, vec![(id, request)]);
        }
        true
    }

    /// The record of a register; none: no proposer has asked for it yet.
    pub(super) fn loaded(&mut self, key: Bytes, record: Option<Record>) {
        let Some(requests) = self.loading.remove(&key) else { return };
        let mut acceptor = Acceptor::new(record.unwrap_or(Record::EMPTY));
        for (from, request) in requests {
            acceptor.step(AcceptorInput::Request { from, request });
        }
        self.ready.insert(key.clone(), Held { acceptor, latest: 0, durable: 0 });
        self.touched.insert(key);
    }

    pub(super) fn persisted(&mut self, key: Bytes, id: u64) {
        if let Some(held) = self.ready.get_mut(&key) {
            held.durable = held.durable.max(id);
            held.acceptor.step(AcceptorInput::Persisted { id });
            self.touched.insert(key);
        }
    }

    /// Hands the outputs to `take`, and forgets the acceptors that the store holds.
    pub(super) fn drain(&mut self, mut take: impl FnMut(Output)) {
        for key in self.to_load.drain(..) {
            take(Output::Load { key });
        }
        for key in std::mem::take(&mut self.touched) {
            let Some(held) = self.ready.get_mut(&key) else { continue };
            while let Some(output) = held.acceptor.poll_output() {
                take(match output {
                    AcceptorOutput::Persist { id, record } => {
                        held.latest = id;
                        Output::Persist { key: key.clone(), id, record }
                    }
                    AcceptorOutput::Reply { to, reply } => Output::Reply { id: to, reply },
                });
            }
            if held.latest == held.durable {
                self.ready.remove(&key);
            }
        }
    }
}

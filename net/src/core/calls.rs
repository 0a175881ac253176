//! The calls of this node that wait for an answer.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::CallError;

pub(crate) type Answer = Result<Bytes, CallError>;

/// A call under way.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// The place of the request in the outbox.
    pub(crate) place: u64,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// By id. An id is never used twice on a connection.
#[derive(Debug)]
pub(crate) struct Calls {
    waiting: HashMap<u64, Waiting>,
    max: usize,
}

impl Calls {
    pub(crate) fn new(max: usize) -> Self {
        Self { waiting: HashMap::new(), max }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= self.max
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.waiting.contains_key(&id)
    }

    pub(crate) fn insert(&mut self, id: u64, waiting: Waiting) {
        debug_assert!(!self.is_full(), "the limit is checked before a place is taken");
        let before = self.waiting.insert(id, waiting);
        debug_assert!(before.is_none(), "an id names one call");
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Waiting> {
        self.waiting.remove(&id)
    }

    /// Takes the call whose request has this place in the outbox.
    pub(crate) fn remove_at(&mut self, place: u64) -> Option<Waiting> {
        let id = *self.waiting.iter().find(|(_, waiting)| waiting.place == place)?.0;
        self.remove(id)
    }

    /// Takes the calls whose request has a place that fits, in no order.
    pub(crate) fn take_if(&mut self, fits: impl Fn(u64) -> bool) -> Vec<Waiting> {
        self.waiting.extract_if(|_, waiting| fits(waiting.place)).map(|(_, call)| call).collect()
    }

    /// All of them, in no order.
    pub(crate) fn drain(&mut self) -> Vec<Waiting> {
        self.waiting.drain().map(|(_, waiting)| waiting).collect()
    }
}

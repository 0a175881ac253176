//! The last request of each client, so that one that is sent again is applied once.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::kv::Answer;

/// Clients that a shard remembers, at most. Beyond it the client that has been silent for longest
/// is forgotten; a request that it sends again then counts as new.
pub const MAX_CLIENTS: usize = 4096;
/// Length of a client in [`Clients::encode`]: client, request and index of 8 bytes, and the answer.
const ENCODED: usize = 8 + 8 + 8 + ANSWER;
/// Length of an encoded answer.
const ANSWER: usize = 9;

/// A request's number: each client counts its own from 1, and has one under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    pub client: u64,
    pub number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    number: u64,
    answer: Answer,
    index: u64,
}

/// What is known of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    New,
    /// It was applied, and answered so.
    Answered(Answer),
    /// A later one of the client was applied, so the client waits for this one no more.
    Old,
}

/// The last request of each client that this shard, or the one it was split from, has applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clients {
    last: BTreeMap<u64, Last>,
    /// Each client by the index of its last request. Invariant: the same clients as in `last`.
    by_index: BTreeMap<u64, u64>,
}

impl Clients {
    pub fn find(&self, id: RequestId) -> Known {
        match self.last.get(&id.client) {
            Some(last) if last.number == id.number => Known::Answered(last.answer),
            Some(last) if last.number > id.number => Known::Old,
            _ => Known::New,
        }
    }

    /// Records an answer; `index` is above that of every earlier one.
    pub fn record(&mut self, id: RequestId, answer: Answer, index: u64) {
        let last = Last { number: id.number, answer, index };
        if let Some(before) = self.last.insert(id.client, last) {
            self.by_index.remove(&before.index);
        }
        self.by_index.insert(index, id.client);
        if self.last.len() > MAX_CLIENTS
            && let Some((_, silent)) = self.by_index.pop_first()
        {
            self.last.remove(&silent);
        }
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.last.len() * ENCODED);
        for (client, Last { number, answer, index }) in &self.last {
            out.put_u64_le(*client);
            out.put_u64_le(*number);
            out.put_u64_le(*index);
            out.put_slice(&answer.encode());
        }
        out.freeze()
    }

    /// The clients in `bytes`; `None` where they are not such bytes.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(ENCODED) || bytes.len() / ENCODED > MAX_CLIENTS {
            return None;
        }
        let mut clients = Self::default();
        while bytes.has_remaining() {
            let (client, number) = (bytes.get_u64_le(), bytes.get_u64_le());
            let index = bytes.get_u64_le();
            let (answer, rest) = bytes.split_at(ANSWER);
            let answer = Answer::decode(answer).ok()?;
            bytes = rest;
            let is_new = clients.last.insert(client, Last { number, answer, index }).is_none();
            if !is_new || clients.by_index.insert(index, client).is_some() {
                return None;
            }
        }
        Some(clients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(client: u64, number: u64) -> RequestId {
        RequestId { client, number }
    }

    #[test]
    fn the_last_request_of_a_client_is_known_and_earlier_ones_are_old() {
        let mut clients = Clients::default();
        assert_eq!(clients.find(id(7, 1)), Known::New);
        let answer = Answer::Conflict { version: Some(3) };
        clients.record(id(7, 2), answer, 10);
        assert_eq!(clients.find(id(7, 2)), Known::Answered(answer));
        assert_eq!(clients.find(id(7, 1)), Known::Old);
        assert_eq!(clients.find(id(7, 3)), Known::New);
        let again = Clients::decode(&clients.encode()).unwrap();
        assert_eq!(again, clients);
        assert_eq!(Clients::decode(&clients.encode()[1..]), None);
    }

    #[test]
    fn the_client_that_was_silent_for_longest_is_forgotten() {
        let mut clients = Clients::default();
        for client in 0..MAX_CLIENTS as u64 {
            clients.record(id(client, 1), Answer::Absent, client + 1);
        }
        clients.record(id(0, 2), Answer::Absent, 9000);
        clients.record(id(9999, 1), Answer::Absent, 9001);
        assert_eq!(clients.last.len(), MAX_CLIENTS);
        assert_eq!(clients.find(id(1, 1)), Known::New);
        assert_eq!(clients.find(id(0, 2)), Known::Answered(Answer::Absent));
        assert_eq!(Clients::decode(&clients.encode()), Some(clients));
    }
}

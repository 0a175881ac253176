//! The state of one shard: its pairs, the range that it owns, and what it gives away in a split.
//!
//! Whether a request belongs here is decided where it is applied, in the order of the log, so it
//! does not matter which map a client or a node has seen: a write that comes after the seal of a
//! split is refused by every replica.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use voussoir_raft::MAX_CHUNK_BYTES;

use super::clients::{Clients, Known, RequestId};
use super::command::{Command, Malformed, Reply, Step};
use super::place::MAX_PLACE_BYTES;
use crate::kv::{self, Kv, MAX_VALUE_BYTES, Versioned};

/// A pair is in a chunk by itself if it is that long; each chunk has a byte for its kind.
const _: () = assert!(MAX_PLACE_BYTES + MAX_VALUE_BYTES + 26 <= MAX_CHUNK_BYTES);

/// The places that a shard owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub start: String,
    pub end: Option<String>,
}

impl Span {
    fn contains(&self, place: &[u8]) -> bool {
        place >= self.start.as_bytes() && self.end.as_ref().is_none_or(|end| place < end.as_bytes())
    }
}

/// What goes to another shard. It never changes: nobody owns it until that shard opens.
#[derive(Debug, Clone)]
pub struct Parting {
    pub to: u64,
    pub span: Span,
    pub kv: Kv,
    pub clients: Clients,
}

/// The state of a shard.
#[derive(Debug, Clone, Default)]
pub struct Shard {
    kv: Kv,
    clients: Clients,
    /// What it owns; `None` until it is opened.
    span: Option<Span>,
    epoch: u64,
    /// Added to the index of a command to give a version. A shard that was split off begins its log
    /// at 1, but its versions go on above those that came with its pairs.
    base: u64,
    parting: Option<Parting>,
    /// Nothing is sealed for shards up to this number: their splits were taken back.
    barred: u64,
}

/// The answer to a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Value(Option<Versioned>),
    /// The key is not here, as in [`Reply`].
    Elsewhere(Reply),
}

impl Shard {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn span(&self) -> Option<&Span> {
        self.span.as_ref()
    }

    pub fn pairs(&self) -> &Kv {
        &self.kv
    }

    /// Bytes of all pairs, those that it has sealed for another shard among them.
    pub fn stored_bytes(&self) -> u64 {
        let parting = self.parting.as_ref().map_or(0, |parting| parting.kv.stored_bytes());
        self.kv.stored_bytes() + parting
    }

    pub fn parting(&self) -> Option<&Parting> {
        self.parting.as_ref()
    }

    pub fn barred(&self) -> u64 {
        self.barred
    }

    /// Whether it is open, and the place in its range.
    pub fn owns(&self, place: &str) -> bool {
        self.span.as_ref().is_some_and(|span| span.contains(place.as_bytes()))
    }

    /// Looks a key up by its place.
    pub fn get(&self, place: &str, epoch: u64) -> Found {
        match self.elsewhere(place.as_bytes(), epoch) {
            Some(reply) => Found::Elsewhere(reply),
            None => Found::Value(self.kv.get(place.as_bytes()).cloned()),
        }
    }

    /// Why a request for this place under this epoch is not for this shard.
    fn elsewhere(&self, place: &[u8], epoch: u64) -> Option<Reply> {
        let Some(span) = &self.span else { return Some(Reply::Closed) };
        if !span.contains(place)
            && let Some(parting) = self.parting.as_ref().filter(|it| it.span.contains(place))
        {
            return Some(Reply::Moved { to: parting.to });
        }
        let is_here = span.contains(place) && epoch == self.epoch;
        (!is_here).then_some(Reply::Stale { epoch: self.epoch })
    }

    /// Applies one command; `index` is its place in the log.
    pub fn apply(&mut self, index: u64, command: Command) -> Reply {
        match command {
            Command::Write { epoch, id, write } => self.write(index, epoch, id, write),
            Command::Pairs(_) | Command::Clients(_) if self.span.is_some() => Reply::Refused,
            Command::Pairs(chunk) => match self.kv.decode_chunk(chunk) {
                Ok(()) => Reply::Done,
                Err(_) => Reply::Refused,
            },
            Command::Clients(bytes) => match Clients::decode(&bytes) {
                Some(clients) => {
                    self.clients = clients;
                    Reply::Done
                }
                None => Reply::Refused,
            },
            Command::Step(Step::Seal { at, to }) => self.seal(index, at, to),
            Command::Step(Step::Open { epoch, start, end, count }) => {
                if self.span.is_some() {
                    return Reply::Done;
                }
                if self.kv.count() as u64 != count {
                    return Reply::Refused;
                }
                self.base = self.kv.applied();
                (self.span, self.epoch) = (Some(Span { start, end }), epoch);
                Reply::Done
            }
            Command::Step(Step::Forget { to }) => {
                self.parting.take_if(|parting| parting.to == to);
                Reply::Done
            }
            Command::Step(Step::Bar { to }) => {
                if self.parting.as_ref().is_some_and(|parting| parting.to == to) {
                    return Reply::Refused;
                }
                self.barred = self.barred.max(to);
                Reply::Done
            }
        }
    }

    fn write(
        &mut self,
        index: u64,
        epoch: u64,
        id: Option<RequestId>,
        write: kv::Command,
    ) -> Reply {
        if let Some(reply) = self.elsewhere(write.key(), epoch) {
            return reply;
        }
        match id.map(|id| self.clients.find(id)) {
            Some(Known::Answered(answer)) => return Reply::Written(answer),
            Some(Known::Old) => return Reply::Old,
            Some(Known::New) | None => {}
        }
        let version = self.base + index;
        let answer = self.kv.apply(version, write);
        if let Some(id) = id {
            self.clients.record(id, answer, version);
        }
        Reply::Written(answer)
    }

    fn seal(&mut self, index: u64, at: String, to: u64) -> Reply {
        match &self.parting {
            Some(parting) if parting.to == to => return Reply::Done,
            Some(_) => return Reply::Refused,
            None if to <= self.barred => return Reply::Refused,
            None => {}
        }
        let Some(span) = self.span.as_mut() else { return Reply::Refused };
        if !span.contains(at.as_bytes()) || at == span.start {
            return Reply::Refused;
        }
        let kv = self.kv.split_off(self.base + index, at.as_bytes());
        let end = span.end.replace(at.clone());
        let span = Span { start: at, end };
        self.parting = Some(Parting { to, span, kv, clients: self.clients.clone() });
        self.epoch += 1;
        Reply::Done
    }
}

/// The first chunk of a snapshot, as JSON: all but pairs and clients.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Head {
    span: Option<Span>,
    epoch: u64,
    base: u64,
    parting: Option<(u64, Span)>,
    barred: u64,
}

/// Kinds of chunks, the first byte of each.
const HEAD: u8 = 1;
const CLIENTS: u8 = 2;
const PAIRS: u8 = 3;
const PARTING_CLIENTS: u8 = 4;
const PARTING_PAIRS: u8 = 5;

/// Where a snapshot stands: the kind of the next chunk, and the last key of the kind before it.
#[derive(Debug, Clone)]
pub struct Cut {
    shard: Shard,
    next: u8,
    after: Option<Bytes>,
}

impl Cut {
    pub fn new(shard: Shard) -> Self {
        Self { shard, next: HEAD, after: None }
    }

    /// The next chunk; `None` after the last.
    pub fn next_chunk(&mut self) -> Option<Bytes> {
        let parting = self.shard.parting.as_ref();
        let kind = self.next;
        let body = match kind {
            HEAD => {
                let head = Head {
                    span: self.shard.span.clone(),
                    epoch: self.shard.epoch,
                    base: self.shard.base,
                    parting: parting.map(|parting| (parting.to, parting.span.clone())),
                    barred: self.shard.barred,
                };
                serde_json::to_vec(&head).unwrap_or_default().into()
            }
            CLIENTS => self.shard.clients.encode(),
            PARTING_CLIENTS => parting?.clients.encode(),
            PAIRS | PARTING_PAIRS => {
                let kv = if kind == PAIRS { &self.shard.kv } else { &parting?.kv };
                let (last, chunk) = kv.encode_chunk(self.after.as_ref());
                self.after = last;
                chunk
            }
            _ => return None,
        };
        // Pairs end with a chunk that has none: it carries the last version all the same.
        if self.after.is_none() {
            self.next += 1;
        }
        let mut out = BytesMut::with_capacity(1 + body.len());
        out.put_u8(kind);
        out.put_slice(&body);
        Some(out.freeze())
    }
}

impl Shard {
    /// Adds one chunk of a snapshot.
    ///
    /// # Errors
    /// [`Malformed`] where the bytes are no chunk of this version.
    pub fn decode_chunk(&mut self, mut chunk: Bytes) -> Result<(), Malformed> {
        let malformed = || Malformed("snapshot");
        if chunk.is_empty() {
            return Err(malformed());
        }
        let kind = chunk.split_to(1)[0];
        match kind {
            HEAD => {
                let head: Head = serde_json::from_slice(&chunk).map_err(|_| malformed())?;
                (self.span, self.epoch, self.base) = (head.span, head.epoch, head.base);
                self.barred = head.barred;
                self.parting = head.parting.map(|(to, span)| Parting {
                    to,
                    span,
                    kv: Kv::default(),
                    clients: Clients::default(),
                });
            }
            CLIENTS => self.clients = Clients::decode(&chunk).ok_or_else(malformed)?,
            PAIRS => self.kv.decode_chunk(chunk).map_err(|_| malformed())?,
            PARTING_CLIENTS | PARTING_PAIRS => {
                let parting = self.parting.as_mut().ok_or_else(malformed)?;
                if kind == PARTING_CLIENTS {
                    parting.clients = Clients::decode(&chunk).ok_or_else(malformed)?;
                } else {
                    parting.kv.decode_chunk(chunk).map_err(|_| malformed())?;
                }
            }
            _ => return Err(malformed()),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;

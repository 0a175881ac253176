//! The state record.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use voussoir_journal::Log;

use super::{Current, Identity, OpenError};
use crate::types::{HardState, MAX_VOTERS};

/// Written where a group has always had one log: earlier versions of this crate know that.
const FIRST_VERSION: u8 = 1;
const VERSION: u8 = 2;
/// Bytes before the list of voters, in the first version.
const BYTES: usize = 112;
/// And from the second on.
const BYTES_2: usize = 120;
const HAS_VOTE: u8 = 1;
const HAS_SNAPSHOT: u8 = 2;
const CONDEMNED: u8 = 4;
const BEGUN: u8 = 8;
const REPAIRING: u8 = 16;

/// What the last state record says, or will say.
#[expect(clippy::struct_field_names, reason = "`hard_state` is Raft's own word")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) identity: Identity,
    pub(super) hard_state: HardState,
    pub(super) snapshot: Option<Current>,
    /// The last index that was known to be committed, lazily.
    pub(super) commit: u64,
    /// Under which the log was begun, none for a node that joined; `None` until the first hard
    /// state.
    pub(super) voters: Option<Vec<u64>>,
    /// The log lost entries or holds others than were committed. Never cleared.
    pub(super) condemned: bool,
    /// The number of the log of entries; see [`Logs`](super::Logs).
    pub(super) log: u64,
    /// That log has lost entries, none of a later term than this one, and the log with the next
    /// number is to take its place.
    pub(super) repairing: Option<u64>,
}

impl State {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            hard_state: HardState::default(),
            snapshot: None,
            commit: 0,
            voters: None,
            condemned: false,
            log: 0,
            repairing: None,
        }
    }

    /// The number of the log that entries are written to.
    pub(super) fn written_log(&self) -> u64 {
        self.log + u64::from(self.repairing.is_some())
    }

    pub(super) fn encode(&self) -> Bytes {
        let HardState { term, vote } = self.hard_state;
        let vote_bit = if vote.is_some() { HAS_VOTE } else { 0 };
        let snapshot_bit = if self.snapshot.is_some() { HAS_SNAPSHOT } else { 0 };
        let none = Current { index: 0, term: 0, identity: 0, number: 0, chunks: 0 };
        let current = self.snapshot.unwrap_or(none);
        let voters = self.voters.as_deref().unwrap_or_default();
        let first = self.written_log() == 0;
        let head = if first { BYTES } else { BYTES_2 };
        let mut out = BytesMut::with_capacity(head + 8 * voters.len());
        out.put_u8(if first { FIRST_VERSION } else { VERSION });
        let repairing_bit = if self.repairing.is_some() { REPAIRING } else { 0 };
        let condemned_bit = if self.condemned { CONDEMNED } else { 0 };
        let begun_bit = if self.voters.is_some() { BEGUN } else { 0 };
        out.put_u8(vote_bit | snapshot_bit | condemned_bit | begun_bit | repairing_bit);
        out.put_u16_le(head as u16);
        out.put_u32_le(voters.len() as u32);
        out.put_u128_le(self.identity.cluster);
        out.put_u64_le(self.identity.node);
        out.put_u64_le(self.identity.group);
        out.put_u64_le(term);
        out.put_u64_le(vote.unwrap_or(0));
        out.put_u64_le(current.index);
        out.put_u64_le(current.term);
        out.put_u64_le(current.identity);
        out.put_u64_le(current.number);
        out.put_u64_le(current.chunks);
        out.put_u64_le(self.commit);
        out.put_u64_le(self.log);
        if !first {
            out.put_u64_le(self.repairing.unwrap_or(0));
        }
        debug_assert_eq!(out.len(), head, "as specified");
        for voter in voters {
            out.put_u64_le(*voter);
        }
        out.freeze()
    }

    /// `Err(Some(version))`: of a newer version. `Err(None)`: no state record.
    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, Option<u8>> {
        let version = match bytes.first() {
            Some(version) if *version > VERSION => return Err(Some(*version)),
            Some(version) if bytes.len() >= BYTES => *version,
            _ => return Err(None),
        };
        bytes.advance(1);
        let bits = bytes.get_u8();
        let head = usize::from(bytes.get_u16_le());
        let count = bytes.get_u32_le() as usize;
        let listed = bytes.get(head.wrapping_sub(8)..).unwrap_or_default();
        let least = if version == FIRST_VERSION { BYTES } else { BYTES_2 };
        let is_cut = head < least || bytes.len() + 8 < least;
        if is_cut || count > MAX_VOTERS || listed.len() != 8 * count {
            return Err(None);
        }
        let voters = listed.as_chunks::<8>().0.iter().map(|id| u64::from_le_bytes(*id)).collect();
        // Records that were written before there was the bit list the voters all the same.
        let voters = (bits & BEGUN != 0 || count > 0).then_some(voters);
        let identity = Identity {
            cluster: bytes.get_u128_le(),
            node: bytes.get_u64_le(),
            group: bytes.get_u64_le(),
        };
        let (term, vote) = (bytes.get_u64_le(), bytes.get_u64_le());
        let vote = (bits & HAS_VOTE != 0).then_some(vote);
        let current = Current {
            index: bytes.get_u64_le(),
            term: bytes.get_u64_le(),
            identity: bytes.get_u64_le(),
            number: bytes.get_u64_le(),
            chunks: bytes.get_u64_le(),
        };
        let snapshot = (bits & HAS_SNAPSHOT != 0).then_some(current);
        let commit = bytes.get_u64_le();
        let condemned = bits & CONDEMNED != 0;
        // The first version has it reserved.
        let log = bytes.get_u64_le();
        let (log, lost_term) = match version {
            FIRST_VERSION => (0, None),
            _ => (log, (bits & REPAIRING != 0).then(|| bytes.get_u64_le())),
        };
        if log == u64::MAX {
            return Err(None);
        }
        Ok(Self {
            identity,
            hard_state: HardState { term, vote },
            snapshot,
            commit,
            voters,
            condemned,
            log,
            repairing: lost_term,
        })
    }
}

/// The state that the log holds; `None` when it is damaged.
pub(super) fn read(log: &Log, wanted: Identity) -> Result<Option<State>, OpenError> {
    let bounds = log.bounds();
    if bounds.is_empty() {
        return Ok(None);
    }
    let record = match log.read(bounds.end - 1) {
        Ok(record) => record,
        Err(error @ voussoir_journal::ReadError::Io(_)) => return Err(error.into()),
        Err(_) => return Ok(None),
    };
    match State::decode(record) {
        Ok(state) if state.identity != wanted => {
            Err(OpenError::WrongNode { found: state.identity, wanted })
        }
        Ok(state) => Ok(Some(state)),
        Err(Some(found)) => Err(OpenError::NewerFormat { found, supported: VERSION }),
        Err(None) => Ok(None),
    }
}

//! Commands of a replicated partition and their answers, version 1. All integers are little-endian.
//!
//! A command: version (1 byte), position that the log must end at (8), bytes that the log may hold
//! (8), flags (1: a release, 2: a snapshot), position before which batches go (8, with flag 1),
//! length of the snapshot (4) and the snapshot (with flag 2), number of batches (4), and of each
//! its length (4) and its bytes. An answer: a verdict (1), and the position at which the log ends
//! (8).

use std::ops::RangeInclusive;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::store::{BATCH_OVERHEAD_BYTES, Write};

const VERSION: u8 = 1;
/// The first bytes of commands of later versions. What begins otherwise is no command.
const LATER_VERSIONS: RangeInclusive<u8> = 2..=15;
/// What a command has besides the bytes of its batches and snapshot, and 4 for each of them.
pub(super) const FIXED_BYTES: usize = 38;
const HAS_RELEASE: u8 = 1;
const HAS_SNAPSHOT: u8 = 2;

// The store's contract allows it this much for each batch and snapshot.
const _: () = assert!(BATCH_OVERHEAD_BYTES > 4);

/// A write, and what must hold where it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PutBatches {
    /// Position at which the log ends for the node that proposed it. Only a log that ends there
    /// takes the write: offsets and sequences were decided against what is before it.
    pub(super) position: u64,
    /// The most bytes of batches that the log may hold with the write. Part of the command, so that
    /// all nodes decide alike.
    pub(super) max_bytes: u64,
    pub(super) release: Option<u64>,
    pub(super) snapshot: Option<Bytes>,
    pub(super) batches: Vec<Bytes>,
}

impl PutBatches {
    pub(super) fn new(position: u64, max_bytes: u64, write: Write) -> Self {
        let Write { batches, release, snapshot, .. } = write;
        Self { position, max_bytes, release, snapshot, batches }
    }

    /// A command for where no log ends: it changes nothing, wherever it is applied.
    pub(super) fn nowhere() -> Self {
        Self::new(u64::MAX, 0, Write::default())
    }

    pub(super) fn encode(&self) -> Bytes {
        let pieces = self.batches.iter().chain(&self.snapshot);
        let bytes: usize = pieces.map(|piece| piece.len() + 4).sum();
        let mut out = BytesMut::with_capacity(FIXED_BYTES + bytes);
        out.put_u8(VERSION);
        out.put_u64_le(self.position);
        out.put_u64_le(self.max_bytes);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let has_release = flag(self.release.is_some(), HAS_RELEASE);
        out.put_u8(has_release | flag(self.snapshot.is_some(), HAS_SNAPSHOT));
        if let Some(release) = self.release {
            out.put_u64_le(release);
        }
        if let Some(snapshot) = &self.snapshot {
            put_piece(&mut out, snapshot);
        }
        out.put_u32_le(self.batches.len() as u32);
        for batch in &self.batches {
            put_piece(&mut out, batch);
        }
        out.freeze()
    }

    /// Whether a later version wrote the command. What it does is not known to this one.
    pub(super) fn is_later(bytes: &Bytes) -> bool {
        bytes.first().is_some_and(|version| LATER_VERSIONS.contains(version))
    }

    /// `None` for what no version 1 wrote.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (position, max_bytes) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
        let flags = bytes.try_get_u8().ok()?;
        if flags & !(HAS_RELEASE | HAS_SNAPSHOT) != 0 {
            return None;
        }
        let release = match flags & HAS_RELEASE {
            0 => None,
            _ => Some(bytes.try_get_u64_le().ok()?),
        };
        let snapshot = match flags & HAS_SNAPSHOT {
            0 => None,
            _ => Some(take_piece(&mut bytes)?),
        };
        let count = bytes.try_get_u32_le().ok()?;
        // Not reserved for: the number comes from outside, and each batch takes some bytes.
        let mut batches = Vec::new();
        for _ in 0..count {
            batches.push(take_piece(&mut bytes)?);
        }
        let command = Self { position, max_bytes, release, snapshot, batches };
        bytes.is_empty().then_some(command)
    }
}

pub(super) fn put_piece(out: &mut BytesMut, piece: &[u8]) {
    out.put_u32_le(piece.len() as u32);
    out.put_slice(piece);
}

/// A length and so many bytes; `None` when there are fewer.
pub(super) fn take_piece(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.try_get_u32_le().ok()? as usize;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

/// What became of a command that was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was done.
    Done,
    /// The log does not end where the command says: another leader has written.
    Superseded,
    /// The log would hold more bytes than the command allows.
    Full,
    /// It is no command, or has what is no batch.
    Unknown,
}

/// A verdict, and where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    pub(super) end: u64,
}

impl Answer {
    pub(super) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(match self.verdict {
            Verdict::Done => 0,
            Verdict::Superseded => 1,
            Verdict::Full => 2,
            Verdict::Unknown => 3,
        });
        out.put_u64_le(self.end);
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let verdict = match bytes.try_get_u8().ok()? {
            0 => Verdict::Done,
            1 => Verdict::Superseded,
            2 => Verdict::Full,
            3 => Verdict::Unknown,
            _ => return None,
        };
        Some(Self { verdict, end: bytes.try_get_u64_le().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> PutBatches {
        PutBatches {
            position: 7,
            max_bytes: 1 << 20,
            release: Some(3),
            snapshot: Some(Bytes::from_static(b"snapshot")),
            batches: vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"three")],
        }
    }

    #[test]
    fn a_command_comes_back_and_none_that_is_cut_does() {
        let command = command();
        let bytes = command.encode();
        let pieces = b"snapshot".len() + 4 + b"one".len() + b"three".len() + 3 * 4;
        assert!(bytes.len() <= FIXED_BYTES + pieces);
        assert_eq!(PutBatches::decode(bytes.clone()).as_ref(), Some(&command));
        let bare = PutBatches { release: None, snapshot: None, ..command };
        assert_eq!(PutBatches::decode(bare.encode()), Some(bare));
        for end in 0..bytes.len() {
            assert_eq!(PutBatches::decode(bytes.slice(..end)), None, "cut at {end}");
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_reserve() {
        let bytes = command().encode();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = bytes.to_vec();
                damaged[at] = value;
                let _ = PutBatches::decode(damaged.clone().into());
                let _ = Answer::decode(damaged.into());
            }
        }
        // A count and lengths that nothing stands behind.
        let mut huge = BytesMut::from(&bytes[..17]);
        huge.put_u8(0);
        huge.put_u32_le(u32::MAX);
        assert_eq!(PutBatches::decode(huge.freeze()), None);
        let version_2 = [&[2][..], &bytes[1..]].concat();
        let version_2 = Bytes::from(version_2);
        assert!(PutBatches::is_later(&version_2) && !PutBatches::is_later(&bytes));
        assert_eq!(PutBatches::decode(version_2), None);
        assert!(!PutBatches::is_later(&Bytes::from_static(b"no command")));
    }
}

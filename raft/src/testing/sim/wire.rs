//! What simulated nodes send: messages of the core in their real encoding, and snapshots.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec;
use crate::types::SnapshotMeta;

const RAFT: u8 = 0;
const SNAPSHOT: u8 = 1;
const TAKEN: u8 = 2;

/// One message between simulated nodes.
pub(super) enum Packet {
    Raft(Bytes),
    Snapshot { id: u64, term: u64, meta: SnapshotMeta, data: Bytes },
    Taken { id: u64 },
}

impl Packet {
    pub(super) fn encode(self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Raft(bytes) => {
                out.put_u8(RAFT);
                out.put(bytes);
            }
            Self::Snapshot { id, term, meta, data } => {
                let meta = codec::encode_snapshot(&meta);
                out.put_u8(SNAPSHOT);
                out.put_u64_le(id);
                out.put_u64_le(term);
                out.put_u32_le(meta.len() as u32);
                out.put(meta);
                out.put(data);
            }
            Self::Taken { id } => {
                out.put_u8(TAKEN);
                out.put_u64_le(id);
            }
        }
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        match bytes.try_get_u8().ok()? {
            RAFT => Some(Self::Raft(bytes)),
            SNAPSHOT => {
                let id = bytes.try_get_u64_le().ok()?;
                let term = bytes.try_get_u64_le().ok()?;
                let len = bytes.try_get_u32_le().ok()? as usize;
                if len > bytes.len() {
                    return None;
                }
                let meta = codec::decode_snapshot(bytes.split_to(len)).ok()?;
                Some(Self::Snapshot { id, term, meta, data: bytes })
            }
            TAKEN => Some(Self::Taken { id: bytes.try_get_u64_le().ok()? }),
            _ => None,
        }
    }
}

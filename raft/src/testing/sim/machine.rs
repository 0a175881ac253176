//! A key-value state machine with a specified encoding.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use voussoir_sim::{KvOp, KvRet};

/// What a node answers to a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It took effect, with this result.
    Ok(KvRet<u64>),
    /// It did not and will not take effect; perhaps that node would do better.
    NotApplied {
        /// Who leads, as far as known.
        leader: Option<u64>,
    },
    /// Nobody here can say.
    Unknown,
}

/// Keys and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    values: BTreeMap<u64, u64>,
}

const PUT: u8 = 1;
const CAS: u8 = 2;
const DELETE: u8 = 3;

impl Machine {
    /// The command for an operation that writes; `None` for one that reads.
    pub fn encode(op: &KvOp<u64, u64>) -> Option<Bytes> {
        let mut out = BytesMut::with_capacity(26);
        match op {
            KvOp::Put { key, value } => {
                out.put_u8(PUT);
                out.put_u64_le(*key);
                out.put_u64_le(*value);
            }
            KvOp::Cas { key, expect, value } => {
                out.put_u8(CAS);
                out.put_u64_le(*key);
                out.put_u64_le(*value);
                out.put_u8(u8::from(expect.is_some()));
                out.put_u64_le(expect.unwrap_or(0));
            }
            KvOp::Delete { key } => {
                out.put_u8(DELETE);
                out.put_u64_le(*key);
            }
            _ => return None,
        }
        Some(out.freeze())
    }

    /// Applies a command; `None` when it is none.
    pub fn apply(&mut self, mut command: Bytes) -> Option<KvRet<u64>> {
        let kind = command.try_get_u8().ok()?;
        let key = command.try_get_u64_le().ok()?;
        if kind == DELETE {
            self.values.remove(&key);
            return Some(KvRet::Done);
        }
        let value = command.try_get_u64_le().ok()?;
        if kind == PUT {
            self.values.insert(key, value);
            return Some(KvRet::Done);
        }
        let has = command.try_get_u8().ok()? == 1;
        let expect = has.then_some(command.try_get_u64_le().ok()?);
        let applies = self.values.get(&key).copied() == expect;
        if applies {
            self.values.insert(key, value);
        }
        Some(KvRet::Applied(applies))
    }

    /// Reads a key.
    pub fn get(&self, key: u64) -> Option<u64> {
        self.values.get(&key).copied()
    }

    /// The whole state.
    pub fn snapshot(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.values.len() * 16);
        for (key, value) in &self.values {
            out.put_u64_le(*key);
            out.put_u64_le(*value);
        }
        out.freeze()
    }

    /// The machine that a snapshot holds.
    pub fn restore(mut data: Bytes) -> Self {
        let mut values = BTreeMap::new();
        while data.len() >= 16 {
            values.insert(data.get_u64_le(), data.get_u64_le());
        }
        Self { values }
    }
}

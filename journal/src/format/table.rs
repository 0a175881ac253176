//! The table of all logs, with which every segment begins.

use super::{NAMESPACE_BYTES_MAX, padded, u16_at, u32_at, u64_at};
use crate::core::bounds::LogBounds;

const HEAD: usize = 8;
const ENTRY: usize = 64;
const FLAG_DAMAGED: u16 = 1;
const FLAG_NAMES_MISSING: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Table {
    /// Set when damage may have swallowed the creation of logs.
    pub(crate) names_missing: bool,
    pub(crate) logs: Vec<TableEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableEntry {
    pub(crate) number: u64,
    pub(crate) namespace: String,
    pub(crate) id: u64,
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) last: u64,
    pub(crate) damage: Option<(u64, u64)>,
}

/// Bytes that a log of this namespace takes in the table.
pub(crate) fn entry_bytes(namespace: &str) -> u64 {
    ENTRY as u64 + padded(namespace.len() as u64)
}

/// Bytes of the frame of a table without logs.
pub(crate) const FRAME_BYTES: u64 = HEAD as u64 + 128;

/// Bytes of the frame of a table of logs in these namespaces.
pub(crate) fn bytes<'a>(namespaces: impl Iterator<Item = &'a str>) -> u64 {
    FRAME_BYTES + namespaces.map(entry_bytes).sum::<u64>()
}

/// The most that a table may take of a segment.
pub(crate) fn bytes_max(segment_bytes: u64) -> u64 {
    segment_bytes / 4
}

/// Builds the payload of a table log by log, without a copy of any name.
#[derive(Debug)]
pub(crate) struct Encoder {
    out: Vec<u8>,
    count: usize,
}

impl Encoder {
    pub(crate) fn new(names_missing: bool) -> Self {
        let flags = if names_missing { FLAG_NAMES_MISSING } else { 0 };
        let mut out = flags.to_le_bytes().to_vec();
        out.extend_from_slice(&[0; 4]);
        Self { out, count: 0 }
    }

    pub(crate) fn push(&mut self, namespace: &str, id: u64, bounds: &LogBounds, last: u64) {
        let out = &mut self.out;
        let (from, until) = bounds.damage.unwrap_or((0, 0));
        for number in [bounds.number, bounds.first, bounds.end, last, id, from, until] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let flags = if bounds.damage.is_some() { FLAG_DAMAGED } else { 0 };
        out.extend_from_slice(&(namespace.len() as u16).to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(namespace.as_bytes());
        out.resize(padded(out.len() as u64) as usize, 0);
        self.count += 1;
    }

    /// The payload, and how many logs it has.
    pub(crate) fn finish(self) -> (Vec<u8>, usize) {
        (self.out, self.count)
    }
}

impl Table {
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(self.names_missing);
        for log in &self.logs {
            let TableEntry { number, first, end, last, damage, .. } = *log;
            let bounds = LogBounds { number, first, end, damage };
            encoder.push(&log.namespace, log.id, &bounds, last);
        }
        encoder.finish().0
    }

    /// `None` when the bytes, whose checksum held, are no table.
    pub(crate) fn decode(bytes: &[u8], count: u32) -> Option<Self> {
        let names_missing = u32_at(bytes, 0)? & FLAG_NAMES_MISSING != 0;
        let mut rest = bytes.get(HEAD..)?;
        // The count is believed only as far as the bytes go.
        let mut logs = Vec::with_capacity((count as usize).min(rest.len() / ENTRY));
        for _ in 0..count {
            let namespace_bytes = u16_at(rest, 56)? as usize;
            if namespace_bytes > NAMESPACE_BYTES_MAX {
                return None;
            }
            let namespace = rest.get(ENTRY..ENTRY + namespace_bytes)?;
            let damaged = u16_at(rest, 58)? & FLAG_DAMAGED != 0;
            let log = TableEntry {
                number: u64_at(rest, 0)?,
                first: u64_at(rest, 8)?,
                end: u64_at(rest, 16)?,
                last: u64_at(rest, 24)?,
                id: u64_at(rest, 32)?,
                damage: damaged.then_some((u64_at(rest, 40)?, u64_at(rest, 48)?)),
                namespace: str::from_utf8(namespace).ok()?.to_owned(),
            };
            if log.first > log.end {
                return None;
            }
            rest = rest.get(ENTRY + padded(namespace_bytes as u64) as usize..)?;
            logs.push(log);
        }
        Some(Self { names_missing, logs })
    }
}

//! Which server of a cluster keeps a key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redis::Value;
use redis::cluster_async::ClusterConnection;

/// Slots of a cluster.
const SLOTS: usize = 16_384;

/// The map is read again when it is this old, and a take comes by.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// How long a reading may take.
const READ_MAX: Duration = Duration::from_secs(2);

/// The slots' servers as the cluster last said. Numbers of servers are hashes of their addresses.
#[derive(Debug)]
pub(super) struct Slots {
    servers: RwLock<Option<Box<[u64]>>>,
    epoch: Instant,
    /// When the last reading began, ns since `epoch`. 0: never.
    read_at: AtomicU64,
    reading: AtomicBool,
}

impl Slots {
    pub(super) fn new() -> Self {
        let servers = RwLock::new(None);
        let (read_at, reading) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { servers, epoch: Instant::now(), read_at, reading }
    }

    /// The number of the server that keeps a Redis key; as long as the map is not known, that of
    /// the key's slot.
    pub(super) fn server_of(&self, key: &[u8]) -> u64 {
        let slot = slot_of(key);
        self.servers.read().as_ref().map_or(slot as u64, |servers| servers[slot])
    }

    /// Begins to read the map in the background if it is old.
    pub(super) fn refresh(self: &Arc<Self>, connection: &ClusterConnection) {
        let now = self.epoch.elapsed().as_nanos() as u64;
        let read_at = self.read_at.load(Ordering::Relaxed);
        let is_old = read_at == 0 || now.saturating_sub(read_at) >= READ_AGAIN.as_nanos() as u64;
        if !is_old || self.reading.swap(true, Ordering::AcqRel) {
            return;
        }
        self.read_at.store(now.max(1), Ordering::Relaxed);
        let (slots, mut connection) = (Reading(Arc::clone(self)), connection.clone());
        tokio::spawn(async move {
            let mut command = redis::cmd("CLUSTER");
            command.arg("SLOTS");
            let answer = command.query_async::<Value>(&mut connection);
            // Without an answer the old map stays, and is read again later.
            if let Ok(Ok(answer)) = tokio::time::timeout(READ_MAX, answer).await
                && let Some(servers) = parse(&answer)
            {
                *slots.0.servers.write() = Some(servers);
            }
        });
    }
}

/// A reading in progress. Dropped with its task, also if the runtime ends.
struct Reading(Arc<Slots>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.reading.store(false, Ordering::Release);
    }
}

/// The servers in an answer to `CLUSTER SLOTS`: entries of first slot, last slot, and the primary's
/// address and port, followed by others.
fn parse(answer: &Value) -> Option<Box<[u64]>> {
    let mut servers: Box<[u64]> = (0..SLOTS as u64).collect();
    let Value::Array(ranges) = answer else { return None };
    for range in ranges {
        let Value::Array(range) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &range[..] else {
            return None;
        };
        let [host, Value::Int(port), ..] = &primary[..] else { return None };
        let host: &[u8] = match host {
            Value::BulkString(host) => host,
            Value::SimpleString(host) => host.as_bytes(),
            _ => &[],
        };
        let server = fnv1a(host.iter().copied().chain(port.to_le_bytes()));
        let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
        servers.get_mut(first..=last.min(SLOTS - 1))?.fill(server);
    }
    Some(servers)
}

/// Above all numbers of slots.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.fold(0xcbf2_9ce4_8422_2325, mix) | 1 << 63
}

/// The slot of a key: CRC16 (XMODEM) of its hash tag. Source: Redis cluster specification.
fn slot_of(key: &[u8]) -> usize {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let after = &key[open + 1..];
        let close = after.iter().position(|byte| *byte == b'}')?;
        (close > 0).then_some(&after[..close])
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            crc << 1 ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
        })
    });
    usize::from(crc) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures of the cluster specification, and of a server's `CLUSTER KEYSLOT`.
    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot_of(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"limit:{foo}:g1"), slot_of(b"foo"));
        // An empty tag is no tag.
        assert_ne!(slot_of(b"limit:{}:g1"), slot_of(b""));
        assert_eq!(slot_of(b"{a{b}c}"), slot_of(b"a{b"));
    }

    #[test]
    fn an_answer_that_is_no_map_is_not_believed() {
        let node =
            |port| Value::Array(vec![Value::BulkString(b"10.0.0.1".into()), Value::Int(port)]);
        let range =
            |first, last, port| Value::Array(vec![Value::Int(first), Value::Int(last), node(port)]);
        let map = parse(&Value::Array(vec![range(0, 99, 1), range(100, 16_383, 2)])).unwrap();
        assert_eq!((map[0], map[100]), (map[99], map[16_383]));
        assert_ne!(map[99], map[100]);
        for answer in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![range(-1, 5, 1)]),
            Value::Array(vec![range(9, 5, 1)]),
            Value::Array(vec![range(99_999, 99_999, 1)]),
        ] {
            assert_eq!(parse(&answer), None, "{answer:?}");
        }
        // A range that ends beyond the last slot is cut there.
        assert!(parse(&Value::Array(vec![range(0, i64::MAX, 1)])).is_some());
    }
}

//! Which partition a record goes to.

use crate::format::Record;

/// Chooses the partition of a record that names none.
pub trait Partitioner: Send + Sync + 'static {
    /// A partition below `partitions`, which is at least 1. `None` leaves it to the producer, which
    /// stays with one partition for a batch and takes the next one for the next batch.
    ///
    /// Is called by the task that sends, without a lock of ours.
    fn partition(&self, topic: &str, record: &Record, partitions: u32) -> Option<u32>;
}

/// As Kafka's clients in Java do it: records of one key go to the partition that the murmur2 hash
/// of the key says; records without a key go to one partition for a batch, and to the next
/// one for the next batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Murmur2;

impl Partitioner for Murmur2 {
    fn partition(&self, _topic: &str, record: &Record, partitions: u32) -> Option<u32> {
        let key = record.key.as_deref()?;
        Some((murmur2(key) & 0x7fff_ffff) % partitions)
    }
}

/// Kafka's `Utils.murmur2`: MurmurHash2 for 32 bits with a seed of its own.
fn murmur2(bytes: &[u8]) -> u32 {
    const MIX: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MIX);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MIX) ^ mixed.wrapping_mul(MIX);
    }
    if !tail.is_empty() {
        for (at, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Kafka's `UtilsTest.testMurmur2`.
    #[test]
    fn the_hash_is_the_one_of_kafka() {
        for (key, hash) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            ("abc", 479470107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
        let record = Record::new("v").key("foobar");
        let positive = (-790332482_i32).cast_unsigned() & 0x7fff_ffff;
        assert_eq!(Murmur2.partition("t", &record, 7), Some(positive % 7));
        assert_eq!(Murmur2.partition("t", &Record::new("v"), 7), None);
    }
}

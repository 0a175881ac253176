//! Kafka: the partition that the Java client's default partitioner gives a keyed record.

use std::num::NonZeroU32;

use crate::hash::murmur2;

/// The partition of a key among `partitions`: Murmur2 without its sign bit, modulo the number.
///
/// # Example
/// ```
/// use std::num::NonZeroU32;
/// use voussoir_ring::compat::kafka::partition;
/// assert_eq!(partition(b"kafka", NonZeroU32::new(12).unwrap()), 4);
/// ```
pub fn partition(key: &[u8], partitions: NonZeroU32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

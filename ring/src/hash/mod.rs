//! The hash functions, each fixed for good: a placement is only as stable as its hash.
//!
//! | used by | function |
//! |---|---|
//! | every key of ring, jump, rendezvous, Maglev, Memento, modulo | [`key`]: XXH3-64, seed 0 |
//! | points of the ring | XXH3-64 of node id and point number, 8 little-endian bytes each |
//! | pairs of key and node or attempt | [`mix`]: the SplitMix64 finaliser |
//! | ketama | [`md5`] (RFC 1321) |
//! | nginx `hash ... consistent` | [`crc32`] (IEEE 802.3, reflected) |
//! | Cassandra | [`murmur3_cassandra`]: Murmur3 x64-128, first half, tail bytes sign-extended |
//! | Redis Cluster | [`crc16`] (XMODEM) |
//! | Kafka | [`murmur2`] (32 bits, Kafka's seed) |

#[cfg(feature = "compat")]
mod crc;
#[cfg(feature = "compat")]
mod md5;
#[cfg(feature = "compat")]
mod murmur;

#[cfg(feature = "compat")]
pub(crate) use self::crc::crc32_begun;
#[cfg(feature = "compat")]
pub use self::crc::{crc16, crc32};
#[cfg(feature = "compat")]
pub use self::md5::md5;
#[cfg(feature = "compat")]
pub use self::murmur::{murmur2, murmur3_cassandra};

/// The position of a key: XXH3-64 with seed 0.
///
/// # Example
/// ```
/// assert_eq!(voussoir_ring::hash::key(b""), 0x2d06800538d394c2); // the xxHash specification
/// ```
#[inline]
pub fn key(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// A bijection of 64 bits that flips each output bit with probability one half for each flipped
/// input bit.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (the finaliser of
/// SplitMix64, Stafford's variant 13).
#[inline]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The hash of two numbers, as 16 little-endian bytes.
#[inline]
pub(crate) fn pair(first: u64, second: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes());
    key(&bytes)
}

/// Scales a hash to `0..bound` by its leading bits.
#[inline]
pub(crate) const fn scale(hash: u64, bound: u64) -> u64 {
    ((hash as u128 * bound as u128) >> 64) as u64
}

/// The `attempt`-th independent hash derived from one.
#[inline]
pub(crate) const fn retry(hash: u64, attempt: u64) -> u64 {
    mix(hash.wrapping_add(attempt.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

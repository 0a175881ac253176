//! The Murmur hashes of Kafka and Cassandra. By hand: both differ from the originals that crates
//! offer, Kafka's by its seed and its 32 bits, Cassandra's by signed tail bytes.

/// Kafka's Murmur2 (32 bits, seed 0x9747b28c), as in its `Utils.murmur2`.
///
/// # Example
/// ```
/// assert_eq!(voussoir_ring::hash::murmur2(b"21"), -973_932_308_i32 as u32); // Kafka, UtilsTest
/// ```
pub fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !tail.is_empty() {
        for (nth, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * nth);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

const C1: u64 = 0x87c3_7b91_1142_53d5;
const C2: u64 = 0x4cf5_ad43_2745_937f;

const fn finish(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

const fn blend_low(k: u64) -> u64 {
    k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2)
}

const fn blend_high(k: u64) -> u64 {
    k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1)
}

/// The first 64 bits of Murmur3 x64-128 with seed 0 as Cassandra computes it: the bytes after the
/// last full block of 16 are taken as signed, as Java's are, so the answer differs from the
/// original for such bytes above 0x7f.
pub fn murmur3_cassandra(bytes: &[u8]) -> i64 {
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let (blocks, tail) = bytes.as_chunks::<16>();
    for block in blocks {
        let (low, high) = block.split_at(8);
        h1 = (h1 ^ blend_low(little_endian(low))).rotate_left(27).wrapping_add(h2);
        h1 = h1.wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 = (h2 ^ blend_high(little_endian(high))).rotate_left(31).wrapping_add(h1);
        h2 = h2.wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let (low, high) = tail.split_at(tail.len().min(8));
    if !high.is_empty() {
        h2 ^= blend_high(signed_tail(high));
    }
    if !low.is_empty() {
        h1 ^= blend_low(signed_tail(low));
    }
    h1 ^= bytes.len() as u64;
    h2 ^= bytes.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    (h1, h2) = (finish(h1), finish(h2));
    h1.wrapping_add(h2).cast_signed()
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte))
}

fn signed_tail(bytes: &[u8]) -> u64 {
    bytes.iter().enumerate().fold(0, |word, (nth, &byte)| {
        word ^ (i64::from(byte.cast_signed()).cast_unsigned() << (8 * nth))
    })
}

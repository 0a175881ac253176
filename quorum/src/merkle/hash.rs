//! SipHash-2-4 with 128 bits of output (Aumasson, Bernstein 2012).

/// The key of a table's digests, the same at all replicas. Whoever does not know it cannot make two
/// values of one digest, or keys that fall into one bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey([u64; 2]);

impl HashKey {
    /// The key of these 16 bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        let all = u128::from_le_bytes(bytes);
        Self([all as u64, (all >> 64) as u64])
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0[1]) << 64 | u128::from(self.0[0])).to_le_bytes()
    }

    /// The digest of a state: 128 bits over its canonical bytes, for
    /// [`MerkleTree::set`](super::MerkleTree::set).
    pub fn digest(&self, bytes: &[u8]) -> u128 {
        self.hash(&[bytes])
    }

    /// Hashes the parts as one sequence of bytes.
    pub(super) fn hash(&self, parts: &[&[u8]]) -> u128 {
        let mut state = State::new(self.0);
        let (mut word, mut filled, mut len) = (0_u64, 0, 0_u64);
        for part in parts {
            // Whole words, as long as no part before it has ended within one.
            let (words, rest) = if filled == 0 { part.as_chunks::<8>() } else { (&[][..], *part) };
            for word in words {
                state.absorb(u64::from_le_bytes(*word));
            }
            len += 8 * words.len() as u64;
            for byte in rest {
                word |= u64::from(*byte) << (8 * filled);
                (filled, len) = (filled + 1, len + 1);
                if filled == 8 {
                    state.absorb(word);
                    (word, filled) = (0, 0);
                }
            }
        }
        state.absorb(word | len << 56);
        state.finish()
    }
}

/// Does not show the key.
impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey")
    }
}

struct State([u64; 4]);

impl State {
    fn new([k0, k1]: [u64; 2]) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.rounds(2);
        self.0[0] ^= word;
    }

    fn finish(mut self) -> u128 {
        self.0[2] ^= 0xee;
        self.rounds(4);
        let low = self.fold();
        self.0[1] ^= 0xdd;
        self.rounds(4);
        u128::from(self.fold()) << 64 | u128::from(low)
    }

    fn fold(&self) -> u64 {
        self.0.iter().fold(0, |all, word| all ^ word)
    }

    fn rounds(&mut self, count: usize) {
        let [mut a, mut b, mut c, mut d] = self.0;
        for _ in 0..count {
            a = a.wrapping_add(b);
            b = b.rotate_left(13) ^ a;
            a = a.rotate_left(32);
            c = c.wrapping_add(d);
            d = d.rotate_left(16) ^ c;
            a = a.wrapping_add(d);
            d = d.rotate_left(21) ^ a;
            c = c.wrapping_add(b);
            b = b.rotate_left(17) ^ c;
            c = c.rotate_left(32);
        }
        self.0 = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::HashKey;

    /// Vectors of the reference implementation: key 00 01 .. 0f, input 00 01 ..
    #[test]
    fn the_reference_vectors_hold() {
        let key = HashKey::new(std::array::from_fn(|at| at as u8));
        assert_eq!(
            key.digest(&[]),
            u128::from_be_bytes(
                *b"\x93\x02\x55\xc7\x14\x72\xf6\x6d\xe6\xa8\x25\xba\x04\x7f\x81\xa3"
            )
        );
        assert_eq!(
            key.digest(&[0]),
            u128::from_be_bytes(
                *b"\x45\xfc\x22\x9b\x11\x59\x76\x34\x44\xaf\x99\x6b\xd8\xc1\x87\xda"
            )
        );
        let bytes: [u8; 15] = std::array::from_fn(|at| at as u8);
        assert_eq!(key.hash(&[&bytes[..7], &[], &bytes[7..]]), key.digest(&bytes));
    }
}

//! Short codes that do not show the order in which they were made.

use crate::error::ConfigError;

/// Maps the numbers 0, 1, 2, ... one to one onto codes of a fixed length that look unordered, for
/// links and vouchers: number the things, and show the code.
///
/// The mapping is a permutation (a Feistel network with cycle walking), so codes never collide and
/// can be turned back. It hides the order from a reader, not from an attacker: it is not a cipher.
///
/// # Example
/// ```
/// use voussoir_lock::ids::ShortCodes;
///
/// let codes = ShortCodes::new(6, 0x5eed)?;
/// let code = codes.encode(17).expect("17 is below 62^6");
/// assert_eq!(code.len(), 6);
/// assert_eq!(codes.decode(&code), Some(17));
/// # Ok::<(), voussoir_lock::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ShortCodes {
    length: usize,
    /// How many codes there are: 62 to the power of `length`.
    count: u64,
    /// Bits of one half of the network. Invariant: 2^(2 * half_bits) >= count.
    half_bits: u32,
    keys: [u64; ROUNDS],
}

/// Rounds of the network. Four make it a strong pseudorandom permutation if the round function is
/// one (Luby and Rackoff); two more are cheap.
const ROUNDS: usize = 6;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl ShortCodes {
    /// Codes of `length` characters, 1 to 10. The same `length` and `key` give the same codes in
    /// every version of this crate.
    ///
    /// # Errors
    /// [`ConfigError`] if the length is out of range.
    pub fn new(length: usize, key: u64) -> Result<Self, ConfigError> {
        let is_valid = (1..=10).contains(&length);
        ConfigError::first_of(&[("length", is_valid, "must be from 1 to 10")])?;
        let count = 62_u64.pow(length as u32);
        let bits = u64::BITS - (count - 1).leading_zeros();
        let mut state = key;
        let keys = [(); ROUNDS].map(|()| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        });
        Ok(Self { length, count, half_bits: bits.div_ceil(2), keys })
    }

    /// How many codes there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The code of `number`, or `None` if there is none: it is not below [`count`](Self::count).
    pub fn encode(&self, number: u64) -> Option<String> {
        if number >= self.count {
            return None;
        }
        let mut permuted = number;
        // Ends: a permutation of a finite set comes back to a number below `count`, at the latest
        // to `number` itself. On average it takes less than four steps.
        loop {
            permuted = self.permute(permuted);
            if permuted < self.count {
                break;
            }
        }
        let mut code = vec![b'0'; self.length];
        for place in code.iter_mut().rev() {
            *place = ALPHABET[(permuted % 62) as usize];
            permuted /= 62;
        }
        String::from_utf8(code).ok()
    }

    /// The number of a code, or `None` if the text is not a code of this length.
    pub fn decode(&self, code: &str) -> Option<u64> {
        if code.len() != self.length {
            return None;
        }
        let digit = |byte| ALPHABET.iter().position(|known| *known == byte);
        let mut number = 0;
        for byte in code.bytes() {
            // Invariant: `number` is below 62^10, which fits.
            number = number * 62 + digit(byte)? as u64;
        }
        // Ends for the same reason as in `encode`.
        loop {
            number = self.unpermute(number);
            if number < self.count {
                return Some(number);
            }
        }
    }

    fn permute(&self, number: u64) -> u64 {
        let (mut left, mut right) = self.halves(number);
        for key in self.keys {
            (left, right) = (right, left ^ self.round(right, key));
        }
        left << self.half_bits | right
    }

    fn unpermute(&self, number: u64) -> u64 {
        let (mut left, mut right) = self.halves(number);
        for key in self.keys.into_iter().rev() {
            (left, right) = (right ^ self.round(left, key), left);
        }
        left << self.half_bits | right
    }

    fn halves(&self, number: u64) -> (u64, u64) {
        (number >> self.half_bits, number & ((1 << self.half_bits) - 1))
    }

    fn round(&self, half: u64, key: u64) -> u64 {
        mix(half ^ key) & ((1 << self.half_bits) - 1)
    }
}

/// The finaliser of SplitMix64.
fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

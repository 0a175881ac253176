//! Ids that follow from other ids.

/// The same text for the same parts, in every process: FNV-1a of 128 bits.
pub(crate) fn digest<P: AsRef<[u8]>>(parts: &[P]) -> String {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for part in parts {
        let part = part.as_ref();
        // The length keeps `a`, `bc` and `ab`, `c` apart.
        for byte in (part.len() as u64).to_le_bytes().into_iter().chain(part.iter().copied()) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_same_in_every_process() {
        assert_eq!(digest::<&str>(&[]), "6c62272e07bb014262b821756295c58d");
        assert_ne!(digest(&["a", "bc"]), digest(&["ab", "c"]));
    }
}

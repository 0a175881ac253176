//! Records that tell their number and can be checked byte by byte.

use fastrand::Rng;

/// The record of this number, always the same: the number, and up to 3,000 bytes drawn from it.
pub(crate) fn make(number: u64) -> Vec<u8> {
    let mut random = Rng::with_seed(number ^ 0x9e37_79b9_7f4a_7c15);
    let mut record = number.to_le_bytes().to_vec();
    let length = random.usize(..3000);
    record.extend(std::iter::repeat_with(|| random.u8(..)).take(length));
    record
}

/// The number of a record, or `None` if it is not one that was ever made.
pub(crate) fn number(record: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(record.get(..8)?.try_into().ok()?);
    (make(number) == record).then_some(number)
}

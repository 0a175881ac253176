//! Zigzag varints, as in Protocol Buffers: at most 5 bytes for 32 bits and 10 for 64.

use bytes::{BufMut, BytesMut};

/// Appends a varint. 32-bit values have the same encoding as 64-bit ones.
pub(crate) fn put(out: &mut BytesMut, value: i64) {
    let mut rest = zigzag(value);
    // Ends: `rest` loses 7 bits in each round.
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Bytes that [`put`] appends.
pub(crate) fn size(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// As [`put`], for a length.
pub(crate) fn put_len(out: &mut BytesMut, len: usize) {
    put(out, i64::try_from(len).unwrap_or(i64::MAX));
}

/// As [`size`], for a length.
pub(crate) fn size_of_len(len: usize) -> usize {
    size(i64::try_from(len).unwrap_or(i64::MAX))
}

/// Takes a varint of at most 64 bits off `input`. `None` when it is cut off or too long.
pub(crate) fn take_long(input: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for (at, byte) in input.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if at == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            *input = &input[at + 1..];
            return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    None
}

/// Takes a varint of 32 bits off `input`.
pub(crate) fn take(input: &mut &[u8]) -> Option<i32> {
    i32::try_from(take_long(input)?).ok()
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_one_encoding_and_comes_back() {
        let mut values = vec![0, -1, 1, i64::MIN, i64::MAX, i64::from(i32::MIN)];
        for shift in 0..63 {
            values.extend([(1 << shift) - 1, 1 << shift, -(1 << shift)]);
        }
        for value in values {
            let mut out = BytesMut::new();
            put(&mut out, value);
            assert_eq!(out.len(), size(value), "{value}");
            let mut input = &out[..];
            assert_eq!(take_long(&mut input), Some(value));
            assert!(input.is_empty());
            assert_eq!(take_long(&mut &out[..out.len() - 1]), None, "{value} cut off");
        }
        assert_eq!(out_of(300), [0xd8, 0x04]);
        assert_eq!(out_of(-1), [0x01]);
    }

    #[test]
    fn what_does_not_fit_is_rejected() {
        assert_eq!(take(&mut &out_of(i64::from(i32::MAX) + 1)[..]), None);
        assert_eq!(take(&mut &out_of(i64::from(i32::MIN))[..]), Some(i32::MIN));
        assert_eq!(take_long(&mut &[0xff; 11][..]), None);
        let mut ten = [0xff; 10];
        ten[9] = 2;
        assert_eq!(take_long(&mut &ten[..]), None, "a 65th bit");
        ten[9] = 1;
        assert_eq!(take_long(&mut &ten[..]), Some(i64::MIN));
    }

    fn out_of(value: i64) -> Vec<u8> {
        let mut out = BytesMut::new();
        put(&mut out, value);
        out.to_vec()
    }
}

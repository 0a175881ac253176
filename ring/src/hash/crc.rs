//! The CRCs of Redis Cluster and nginx, from the catalogue of the crate `crc`.

use crc::{CRC_16_XMODEM, CRC_32_ISO_HDLC, Crc, Digest, Table};

static CRC16: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&CRC_16_XMODEM);
static CRC32: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISO_HDLC);

/// CRC-16/XMODEM: polynomial 0x1021, nothing reflected, initial value 0.
///
/// # Example
/// ```
/// assert_eq!(voussoir_ring::hash::crc16(b"123456789"), 0x31C3); // the catalogue's check value
/// ```
pub fn crc16(bytes: &[u8]) -> u16 {
    CRC16.checksum(bytes)
}

/// CRC-32 as in IEEE 802.3: polynomial 0x04C11DB7, reflected, initial value and final XOR all ones.
///
/// # Example
/// ```
/// assert_eq!(voussoir_ring::hash::crc32(b"123456789"), 0xCBF4_3926); // check value
/// ```
pub fn crc32(bytes: &[u8]) -> u32 {
    CRC32.checksum(bytes)
}

/// The CRC-32 of these bytes with more to follow.
pub(crate) fn crc32_begun(bytes: &[u8]) -> Digest<'static, u32, Table<1>> {
    let mut digest = CRC32.digest();
    digest.update(bytes);
    digest
}

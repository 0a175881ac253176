const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xedb8_8320 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

static CRC16: [u16; 256] = crc16_table();
static CRC32: [u32; 256] = crc32_table();

/// CRC-16/XMODEM: polynomial 0x1021, nothing reflected, initial value 0.
///
/// # Example
/// ```
/// assert_eq!(voussoir_ring::hash::crc16(b"123456789"), 0x31C3); // the catalogue's check value
/// ```
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

/// CRC-32 as in IEEE 802.3: polynomial 0x04C11DB7, reflected, initial value and final XOR all ones.
///
/// # Example
/// ```
/// assert_eq!(voussoir_ring::hash::crc32(b"123456789"), 0xCBF4_3926); // the catalogue's check value
/// ```
pub fn crc32(bytes: &[u8]) -> u32 {
    !crc32_unfinished(bytes)
}

/// The CRC-32 of these bytes before the final XOR, for more bytes to follow.
pub(crate) fn crc32_unfinished(bytes: &[u8]) -> u32 {
    crc32_step(u32::MAX, bytes)
}

pub(crate) fn crc32_step(state: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(state, |crc, &byte| (crc >> 8) ^ CRC32[usize::from(crc as u8 ^ byte)])
}

//! MD5, for the points of ketama.

use md5::{Digest, Md5};

/// The MD5 digest, for ketama's points only: it protects nothing.
///
/// Source: RFC 1321.
///
/// # Example
/// ```
/// let digest = voussoir_ring::hash::md5(b"abc");
/// assert_eq!(digest[..4], [0x90, 0x01, 0x50, 0x98]); // RFC 1321, appendix A.5
/// ```
pub fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

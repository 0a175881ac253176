//! Ranges of IP addresses, such as `10.0.0.0/8`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// All addresses that begin with the same bits.
///
/// An IPv4 address that is mapped to IPv6 counts as the IPv4 address.
///
/// # Example
/// ```
/// use voussoir_lb::l4::AddressRange;
/// let range: AddressRange = "10.1.0.0/16".parse()?;
/// assert!(range.contains("10.1.2.3".parse().unwrap()));
/// assert!(!range.contains("10.2.0.0".parse().unwrap()));
/// # Ok::<(), voussoir_lb::l4::AddressRangeError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    address: IpAddr,
    /// Invariant: at most 32 for IPv4, 128 for IPv6.
    bits: u8,
}

/// A text is not a range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no range of addresses: expected an address, or an address/bits")]
pub struct AddressRangeError {
    text: String,
}

impl AddressRange {
    /// The addresses whose first `bits` bits are those of `address`. `None` if `address` has fewer.
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let max = if address.is_ipv4() { 32 } else { 128 };
        (bits <= max).then_some(Self { address, bits })
    }

    /// Whether `address` belongs to the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(own), other) => {
                let other = match other {
                    IpAddr::V4(other) => other.to_ipv6_mapped(),
                    IpAddr::V6(other) => other,
                };
                let differing = own.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        }
    }
}

impl From<IpAddr> for AddressRange {
    fn from(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = match text.split_once('/') {
            None => text.parse::<IpAddr>().ok().map(Self::from),
            Some((address, bits)) => {
                let is_number = bits.bytes().all(|byte| byte.is_ascii_digit());
                let bits = bits.parse().ok().filter(|_| is_number);
                address.parse().ok().zip(bits).and_then(|(address, bits)| Self::new(address, bits))
            }
        };
        range.ok_or_else(|| AddressRangeError { text: text.to_owned() })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_the_addresses_of_its_bits_and_no_other() {
        let cases = [
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.2", false),
            ("0.0.0.0/0", "255.1.1.1", true),
            ("0.0.0.0/0", "::1", false),
            ("10.128.0.0/9", "10.127.255.255", false),
            ("10.128.0.0/9", "10.255.255.255", true),
            ("10.0.0.0/8", "::ffff:10.9.9.9", true),
            ("::/0", "10.0.0.1", true),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fc00::1", false),
            ("::1/128", "::1", true),
            ("::1/128", "::2", false),
        ];
        for (range, address, expected) in cases {
            let found = range.parse::<AddressRange>().expect(range);
            assert_eq!(found.contains(address.parse().expect("ip")), expected, "{range} {address}");
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0.0/+8", "10.0.0/8", "a/8", "10.0.0.0/"] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
    }
}

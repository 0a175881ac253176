//! The bytes of a value in the second level.

/// Magic, version, flags, key's hash, version, source's version, position.
pub(crate) const HEAD_BYTES: usize = 36;
const MAGIC: [u8; 2] = *b"vC";
const VERSION: u8 = 1;
const HAS_SOURCE_VERSION: u8 = 1;
const HAS_POSITION: u8 = 2;

/// A value in the second level, version 1:
///
/// ```text
/// 0   "vC"                     2
/// 2   version = 1              1
/// 3   flags                    1   bit 0: has a source version, bit 1: has a position
/// 4   hash of the key          8   little-endian, FNV-1a 64 of the encoded key
/// 12  version of the load      8   little-endian
/// 20  source version           8   big-endian: compared as text where it is stored
/// 28  position                 8   big-endian
/// 36  number of tags           2   little-endian; for each: length (2) and text
///     value                        to the end
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// When the load began, in the order of the second level's operations.
    pub(crate) version: u64,
    pub(crate) source_version: Option<u64>,
    pub(crate) position: Option<u64>,
    pub(crate) tags: Vec<String>,
    pub(crate) value: Vec<u8>,
}

/// FNV-1a, 64 bits: the same in every process and version.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl Envelope {
    /// `None` if the tags are too many or too long for the form: at most 65,535 of as many bytes.
    pub(crate) fn encode(&self, key: &[u8]) -> Option<Vec<u8>> {
        let flags = if self.source_version.is_some() { HAS_SOURCE_VERSION } else { 0 }
            | if self.position.is_some() { HAS_POSITION } else { 0 };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + 2 + self.value.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, flags]);
        bytes.extend_from_slice(&key_hash(key).to_le_bytes());
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.source_version.unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(&self.position.unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(self.tags.len()).ok()?.to_le_bytes());
        for tag in &self.tags {
            bytes.extend_from_slice(&u16::try_from(tag.len()).ok()?.to_le_bytes());
            bytes.extend_from_slice(tag.as_bytes());
        }
        bytes.extend_from_slice(&self.value);
        Some(bytes)
    }

    /// The envelope of these bytes, if they are one of this key.
    pub(crate) fn decode(key: &[u8], bytes: &[u8]) -> Option<Self> {
        let (head, mut rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let [b'v', b'C', VERSION, flags, numbers @ ..] = head else { return None };
        let number = |at: usize| <[u8; 8]>::try_from(numbers.get(at..at + 8)?).ok();
        if u64::from_le_bytes(number(0)?) != key_hash(key) {
            return None;
        }
        let source_version = u64::from_be_bytes(number(16)?);
        let position = u64::from_be_bytes(number(24)?);
        let count = take_length(&mut rest)?;
        let mut tags = Vec::new();
        for _ in 0..count {
            let length = take_length(&mut rest)?;
            let (tag, after) = rest.split_at_checked(length)?;
            tags.push(std::str::from_utf8(tag).ok()?.to_owned());
            rest = after;
        }
        Some(Self {
            version: u64::from_le_bytes(number(8)?),
            source_version: (flags & HAS_SOURCE_VERSION != 0).then_some(source_version),
            position: (flags & HAS_POSITION != 0).then_some(position),
            tags,
            value: rest.to_vec(),
        })
    }
}

fn take_length(rest: &mut &[u8]) -> Option<usize> {
    let (length, after) = rest.split_first_chunk::<2>()?;
    *rest = after;
    Some(usize::from(u16::from_le_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_envelope_has_these_bytes() {
        let envelope = Envelope {
            version: 0x0102,
            source_version: Some(3),
            position: None,
            tags: vec!["t1".into(), String::new()],
            value: b"value".to_vec(),
        };
        let bytes = envelope.encode(b"a").unwrap();
        let expected = b"vC\x01\x01\x8c\xec\x01\x86\x4c\xdc\x63\xaf\x02\x01\0\0\0\0\0\0\
            \0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\x02\0\x02\0t1\0\0value";
        assert_eq!(bytes, expected);
        assert_eq!(Envelope::decode(b"a", &bytes), Some(envelope));
        assert_eq!(Envelope::decode(b"b", &bytes), None, "another key's");
        let mut newer = bytes;
        newer[2] = 2;
        assert_eq!(Envelope::decode(b"a", &newer), None, "a later version");
    }

    proptest! {
        #[test]
        fn envelopes_come_back_and_damaged_ones_do_no_harm(
            key in prop::collection::vec(any::<u8>(), 0..20),
            numbers in (any::<u64>(), any::<Option<u64>>(), any::<Option<u64>>()),
            tags in prop::collection::vec(".{0,8}", 0..4),
            value in prop::collection::vec(any::<u8>(), 0..50),
            damage in (any::<prop::sample::Index>(), any::<u8>()),
        ) {
            let (version, source_version, position) = numbers;
            let envelope = Envelope { version, source_version, position, tags, value };
            let mut bytes = envelope.encode(&key).unwrap();
            let decoded = Envelope::decode(&key, &bytes);
            prop_assert_eq!(decoded.as_ref(), Some(&envelope));
            for end in 0..HEAD_BYTES {
                prop_assert_eq!(Envelope::decode(&key, &bytes[..end]), None);
            }
            let at = damage.0.index(bytes.len());
            bytes[at] = damage.1;
            let _ = Envelope::decode(&key, &bytes);
        }
    }
}

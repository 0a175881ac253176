//! How keys and values become bytes where they leave the process: the journal, a second level.

use std::sync::Arc;

use thiserror::Error;

/// Bytes that are no key or value. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not a {what}: {reason}")]
#[non_exhaustive]
pub struct CodecError {
    /// What was expected: `"key"` or `"value"`.
    pub what: &'static str,
    /// Why the bytes are none.
    pub reason: String,
}

impl CodecError {
    /// Bytes that are no key.
    pub fn key(reason: impl Into<String>) -> Self {
        Self { what: "key", reason: reason.into() }
    }

    /// Bytes that are no value.
    pub fn value(reason: impl Into<String>) -> Self {
        Self { what: "value", reason: reason.into() }
    }
}

/// Encodes keys and values, and decodes what another process, or an older version of this one,
/// encoded: put a version into the bytes if the types may change. Runs without any lock held.
pub trait Codec<K, V>: Send + Sync + 'static {
    /// Appends a key's bytes. Equal keys have equal bytes.
    fn encode_key(&self, key: &K, out: &mut Vec<u8>);
    /// Appends a value's bytes.
    fn encode_value(&self, value: &V, out: &mut Vec<u8>);
    /// The key of these bytes.
    ///
    /// # Errors
    /// [`CodecError`] if they are none.
    fn decode_key(&self, bytes: &[u8]) -> Result<K, CodecError>;
    /// The value of these bytes.
    ///
    /// # Errors
    /// [`CodecError`] if they are none.
    fn decode_value(&self, bytes: &[u8]) -> Result<V, CodecError>;
}

/// A type with one obvious form in bytes: integers little-endian, text as UTF-8.
pub trait Plain: Sized {
    /// Appends the bytes.
    fn write(&self, out: &mut Vec<u8>);
    /// The value of these bytes, if they are one.
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! plain_integers {
    ($($integer:ty),*) => {$(
        impl Plain for $integer {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_le_bytes)
            }
        }
    )*};
}

plain_integers!(u32, i32, u64, i64, u128, i128);

macro_rules! plain_text {
    ($($text:ty),*) => {$(
        impl Plain for $text {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.as_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                std::str::from_utf8(bytes).ok().map(Into::into)
            }
        }
    )*};
}

plain_text!(String, Arc<str>, Box<str>);

macro_rules! plain_bytes {
    ($($bytes:ty),*) => {$(
        impl Plain for $bytes {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self);
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                Some(bytes.into())
            }
        }
    )*};
}

plain_bytes!(Vec<u8>, Arc<[u8]>, Box<[u8]>);

/// The codec of keys and values that are [`Plain`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainCodec;

impl<K: Plain, V: Plain> Codec<K, V> for PlainCodec {
    fn encode_key(&self, key: &K, out: &mut Vec<u8>) {
        key.write(out);
    }

    fn encode_value(&self, value: &V, out: &mut Vec<u8>) {
        value.write(out);
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<K, CodecError> {
        K::read(bytes).ok_or_else(|| CodecError::key(format!("{} bytes", bytes.len())))
    }

    fn decode_value(&self, bytes: &[u8]) -> Result<V, CodecError> {
        V::read(bytes).ok_or_else(|| CodecError::value(format!("{} bytes", bytes.len())))
    }
}

//! What a session has seen, in a form that travels through the client.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::version::VersionVector;
use crate::version::codec::{self, DecodeError, Limits};
use crate::wire::MAX_KEY_BYTES;

/// The first byte of a token of quorum: tokens of other crates and of other kinds begin with
/// another.
const KIND: u8 = b'v';
/// The version of the token's form.
const VERSION: u8 = 1;

/// The versions of each key that a session has seen. It travels with the client, as a cookie or a
/// header, from process to process: who reads with it sees no less, see
/// [`Session::add_token`](crate::Session::add_token).
///
/// # Bytes
/// `[b'v', 1, 0, 0, keys as u32]`, and for each key `[length as u16, key, length as u32, context]`,
/// strictly ascending by key. The context has the form of
/// [`encode_context`](crate::version::codec::encode_context); all integers are little-endian.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionToken {
    /// Invariant: at most [`SessionToken::MAX_KEYS`] keys of at most [`MAX_KEY_BYTES`].
    seen: BTreeMap<Bytes, VersionVector>,
}

/// Bytes that are no token of this crate, or more than a token holds. Treat the session as one that
/// has seen nothing, or reject the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The first byte is that of another kind of token, or there is none.
    #[error("not a token of quorum")]
    Kind,
    /// A version of the token that this one does not know.
    #[error("token version {0}, this process knows 1")]
    Version(u8),
    /// It begins as a token, and what follows is none.
    #[error("malformed token: {0}")]
    Malformed(#[from] DecodeError),
    /// It would hold more than [`SessionToken::MAX_KEYS`] keys.
    #[error("a token holds at most {max} keys", max = SessionToken::MAX_KEYS)]
    Full,
}

impl SessionToken {
    /// How many keys a token may hold.
    pub const MAX_KEYS: usize = 100_000;

    /// The token of a session that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the session has seen nothing.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// The number of keys of which the session has seen a version.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// The context of what the session has seen of a key.
    pub fn seen(&self, key: &[u8]) -> VersionVector {
        self.seen.get(key).cloned().unwrap_or_default()
    }

    /// Adds what another token has seen.
    ///
    /// # Errors
    /// [`TokenError::Full`]: the token is as it was. A part of the keys is not added, because the
    /// session's guarantees would not hold for the others, and nobody would know.
    pub fn merge(&mut self, other: &Self) -> Result<(), TokenError> {
        if self.len_with(other) > Self::MAX_KEYS {
            return Err(TokenError::Full);
        }
        self.add_all(other);
        Ok(())
    }

    /// The token's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(&[KIND, VERSION, 0, 0]);
        // At most `MAX_KEYS`.
        out.put_u32_le(self.seen.len() as u32);
        for (key, seen) in &self.seen {
            out.put_u16_le(key.len() as u16);
            out.put_slice(key);
            let seen = codec::encode_context(seen);
            out.put_u32_le(seen.len() as u32);
            out.put_slice(&seen);
        }
        out.freeze()
    }

    /// The token of these bytes.
    ///
    /// # Errors
    /// [`TokenError`] if they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, TokenError> {
        let mut rest = match bytes {
            [KIND, VERSION, 0, 0, rest @ ..] => rest,
            [KIND, VERSION, _, _, ..] => return Err(DecodeError::Invalid("reserved field").into()),
            [KIND] | [KIND, VERSION, ..] => return Err(DecodeError::Truncated.into()),
            [KIND, version, ..] => return Err(TokenError::Version(*version)),
            _ => return Err(TokenError::Kind),
        };
        let count = rest.try_get_u32_le().map_err(|_| DecodeError::Truncated)?;
        if count as usize > Self::MAX_KEYS {
            return Err(TokenError::Full);
        }
        let mut seen = BTreeMap::<Bytes, VersionVector>::new();
        for _ in 0..count {
            let len = rest.try_get_u16_le().map_err(|_| DecodeError::Truncated)?;
            let key = take(&mut rest, usize::from(len))?;
            if key.len() > MAX_KEY_BYTES {
                return Err(DecodeError::AboveLimit("length of a key").into());
            }
            let len = rest.try_get_u32_le().map_err(|_| DecodeError::Truncated)?;
            let context = Bytes::copy_from_slice(take(&mut rest, len as usize)?);
            let context = codec::decode_context(context, &Limits::default())?;
            if seen.last_key_value().is_some_and(|(last, _)| &last[..] >= key) {
                return Err(DecodeError::Invalid("order of the keys").into());
            }
            seen.insert(Bytes::copy_from_slice(key), context);
        }
        if rest.is_empty() { Ok(Self { seen }) } else { Err(DecodeError::Trailing.into()) }
    }

    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.seen.contains_key(key)
    }

    /// The number of keys of which this token or the other one has seen a version.
    pub(super) fn len_with(&self, other: &Self) -> usize {
        self.len() + other.seen.keys().filter(|key| !self.has(key)).count()
    }

    /// Adds a version of a key. The caller has checked that there is room for the key.
    pub(super) fn add(&mut self, key: Bytes, seen: &VersionVector) {
        self.seen.entry(key).or_default().merge(seen);
    }

    /// Adds what another token has seen. The caller has checked that there is room for its keys.
    pub(super) fn add_all(&mut self, other: &Self) {
        for (key, seen) in &other.seen {
            self.add(key.clone(), seen);
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.seen.remove(key);
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, after) = rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
    *rest = after;
    Ok(taken)
}

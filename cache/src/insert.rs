//! What a value has beside itself that was inserted or written.

use std::sync::Arc;
use std::time::Duration;

use crate::source::Loaded;

/// What an inserted value has beside itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Insert {
    /// A lifetime of its own, which goes before the configured one.
    pub ttl: Option<Duration>,
    /// Tags by which it can be invalidated.
    pub tags: Vec<String>,
    /// A version of the source's own, which only grows for one key: a stored value of a larger
    /// version is not overwritten while it is fresh.
    pub version: Option<u64>,
    /// The source's position at which the value was read or written, see
    /// [`Loaded::as_of`](crate::Loaded::as_of).
    pub position: Option<u64>,
}

/// What the cache keeps of a write; `None`: no entry, and the next reader loads the value.
pub(crate) type Keep = Option<Arc<Kept>>;

/// What is known of a value that is kept in the cache after its write.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// `None`: the writer has not said, and the tags that the source would give are not known.
    pub(crate) with: Option<Insert>,
    /// The version of the source's own that the cache had when the write began: the written one is
    /// larger.
    pub(crate) above: Option<u64>,
}

impl Kept {
    pub(crate) fn loaded<V>(&self, value: V) -> Loaded<V> {
        let Insert { ttl, tags, version, position } = self.with.clone().unwrap_or_default();
        Loaded::Value { value, ttl, tags, version, position }
    }

    /// What it takes beside the value, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let tags = self.with.as_ref().map_or(&[][..], |with| &with.tags);
        tags.iter().map(|tag| tag.len() as u64).sum()
    }
}

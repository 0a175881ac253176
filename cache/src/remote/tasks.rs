//! The tasks that send and hear, and what they do to the cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Remote, listener, publisher};
use crate::codec::CodecError;
use crate::core::peers::Invalidation;
use crate::error::ConfigError;
use crate::load::{Key, Value};
use crate::lookup::Inner;
use crate::stats::count;
use crate::store::Probe;

/// Starts the tasks.
pub(crate) fn spawn<K: Key, V: Value>(inner: &Arc<Inner<K, V>>) -> Result<(), ConfigError> {
    let Some(remote) = &inner.remote else { return Ok(()) };
    let rule = "must be built inside a tokio runtime";
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|_| ConfigError { field: "bus or second_level", rule })?;
    // Drawn by the system: the seed of a configuration may be that of another process too.
    let origin = fastrand::Rng::new().u64(1..);
    runtime.spawn(publisher::Publisher::new(inner, remote, origin).run());
    if let Some(bus) = &remote.bus {
        let listener = listener::Listener::new(inner, remote, Arc::clone(bus), origin);
        runtime.spawn(listener.run());
    }
    Ok(())
}

impl<K: Key, V: Value> Inner<K, V> {
    /// Applies an invalidation that came from outside, or once more one of this cache.
    pub(super) fn apply(&self, remote: &Remote<K, V>, invalidation: &Invalidation) {
        match invalidation {
            Invalidation::Key(bytes) => {
                // Foreign code: the codec, and the key's hash and comparison.
                let applied = catch_unwind(AssertUnwindSafe(|| {
                    let key = remote.codec.decode_key(bytes)?;
                    let is = |other: &K| *other == key;
                    self.invalidate(&Probe { hash: self.hash(&key), is: &is });
                    Ok::<(), CodecError>(())
                }));
                if !matches!(applied, Ok(Ok(()))) {
                    let why = "a key from outside cannot be decoded: everything is dropped";
                    tracing::warn!(target: "voussoir::cache", "{why}");
                    self.clear();
                }
            }
            Invalidation::Tag(tag) => self.invalidate_tag(tag),
            Invalidation::All => self.clear(),
        }
    }

    /// The bus works from now on, or does not: what was stored before may be stale either way.
    pub(super) fn set_bus(&self, remote: &Remote<K, V>, is_up: bool) {
        let outage = crate::config::nanos(remote.bus_config.outage_ttl);
        let longest = if is_up { u64::MAX } else { outage };
        if remote.max_ttl.swap(longest, Ordering::AcqRel) != longest {
            tracing::info!(target: "voussoir::cache", is_up, "bus");
        }
        count(&remote.counters.bus_gaps);
        self.clear();
    }
}

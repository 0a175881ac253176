//! Keeps a hot word away from its neighbours.

use std::ops::Deref;

/// A value alone on its pair of cache lines: prefetchers fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

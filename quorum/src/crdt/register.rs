//! The register that loses concurrent writes.

use super::Crdt;
use crate::version::Timestamp;

/// One value: that of the greatest timestamp. **A concurrent write with a smaller timestamp is
/// lost without notice**, however little it was earlier; take [`MvRegister`](super::MvRegister)
/// where that is not acceptable.
///
/// Timestamps come from an [`Hlc`](crate::version::Hlc), one for each operation, the same in all of
/// its attempts. Two different values must never have one timestamp.
///
/// # Example
/// ```
/// use voussoir_quorum::crdt::{Crdt, LwwRegister};
/// use voussoir_quorum::version::{Actor, Timestamp};
/// let at = |physical, node| Timestamp { physical, logical: 0, actor: Actor::new(node, 1) };
/// let mut left = LwwRegister::new();
/// assert!(left.write(at(10, 1), "older").is_some());
/// let mut right = LwwRegister::new();
/// let delta = right.write(at(11, 2), "newer").unwrap();
/// left.merge(&delta);
/// assert_eq!(left.get(), Some(&"newer"));
/// assert!(left.write(at(9, 1), "late").is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LwwRegister<V> {
    pub(super) value: Option<(Timestamp, V)>,
}

impl<V> Default for LwwRegister<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> LwwRegister<V> {
    /// A register that was never written.
    pub const fn new() -> Self {
        Self { value: None }
    }

    /// The value.
    pub fn get(&self) -> Option<&V> {
        self.value.as_ref().map(|(_, value)| value)
    }

    /// When the value was written.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.value.as_ref().map(|(timestamp, _)| *timestamp)
    }
}

impl<V: Clone> LwwRegister<V> {
    /// Writes the value and returns the delta. None, without a change: a write with the same or a
    /// greater timestamp is there.
    pub fn write(&mut self, timestamp: Timestamp, value: V) -> Option<Self> {
        let delta = Self { value: Some((timestamp, value)) };
        let is_newer = self.timestamp() < Some(timestamp);
        is_newer.then(|| {
            self.merge(&delta);
            delta
        })
    }
}

impl<V: Clone> Crdt for LwwRegister<V> {
    fn merge(&mut self, other: &Self) {
        if self.timestamp() < other.timestamp() {
            self.value.clone_from(&other.value);
        }
    }
}

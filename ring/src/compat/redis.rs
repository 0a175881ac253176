//! Redis Cluster: 16,384 slots and hash tags.

use crate::error::BuildError;
use crate::hash::crc16;
use crate::owners::{Degraded, Owners};
use crate::partitioner::Partitioner;

/// How many slots a cluster has.
pub const SLOTS: u16 = 16_384;

/// The part of a key that decides its slot: what stands between the first `{` and the first `}`
/// after it, or the whole key when that is empty or missing.
///
/// # Example
/// ```
/// use voussoir_ring::compat::redis::hash_tag;
/// assert_eq!(hash_tag(b"{user1000}.following"), b"user1000");
/// assert_eq!(hash_tag(b"foo{}{bar}"), b"foo{}{bar}");
/// ```
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let tagged = || {
        let open = key.iter().position(|&byte| byte == b'{')?;
        let inside = &key[open + 1..];
        let close = inside.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &inside[..close])
    };
    tagged().unwrap_or(key)
}

/// The slot of a key as `CLUSTER KEYSLOT` answers it.
///
/// # Example
/// ```
/// assert_eq!(voussoir_ring::compat::redis::slot(b"foo"), 12182);
/// ```
pub fn slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) % SLOTS
}

/// The slots of a cluster and the nodes that serve them.
#[derive(Clone, Debug)]
pub struct SlotMap {
    /// Number of the list of each slot.
    slots: Box<[u16]>,
    lists: Vec<Owners>,
}

impl SlotMap {
    /// From ranges of slots, both ends included, each with its primary first and then its replicas,
    /// as `CLUSTER SLOTS` lists them.
    ///
    /// # Errors
    /// [`BuildError::OutOfRange`] for a range that is backwards or beyond the last slot,
    /// [`BuildError::Duplicate`] for a slot listed twice or a node twice in one range,
    /// [`BuildError::NoNodes`] for a range without nodes, and [`BuildError::Unassigned`] for a slot
    /// in no range.
    pub fn new<'n>(
        ranges: impl IntoIterator<Item = (u16, u16, &'n [u64])>,
    ) -> Result<Self, BuildError> {
        let mut slots = vec![u16::MAX; SLOTS.into()];
        let mut lists = Vec::new();
        for (first, last, nodes) in ranges {
            if first > last || last >= SLOTS {
                let (value, max) = (last.into(), (SLOTS - 1).into());
                return Err(BuildError::OutOfRange {
                    field: "slot",
                    value,
                    min: first.into(),
                    max,
                });
            }
            if nodes.is_empty() {
                return Err(BuildError::NoNodes);
            }
            let list = Owners::of(nodes)
                .ok_or_else(|| BuildError::Duplicate(format!("a node of slots {first}-{last}")))?;
            for slot in first..=last {
                if slots[usize::from(slot)] != u16::MAX {
                    return Err(BuildError::Duplicate(format!("slot {slot}")));
                }
                slots[usize::from(slot)] = lists.len() as u16;
            }
            lists.push(list);
        }
        match slots.iter().position(|&list| list == u16::MAX) {
            Some(slot) => Err(BuildError::Unassigned(slot as u32)),
            None => Ok(Self { slots: slots.into(), lists }),
        }
    }

    fn list(&self, key: &[u8]) -> &Owners {
        &self.lists[usize::from(self.slots[usize::from(slot(key))])]
    }
}

impl Partitioner for SlotMap {
    fn owner(&self, key: &[u8]) -> u64 {
        self.list(key).first().copied().unwrap_or_default()
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        let mut owners = Owners::empty();
        for &id in self.list(key).iter().take(n) {
            owners.push(id);
        }
        if owners.len() < n {
            owners.warn(Degraded::FewerNodes { wanted: n, found: owners.len() });
        }
        owners
    }
}

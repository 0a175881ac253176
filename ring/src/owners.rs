//! The answer of a lookup: a preference list without allocation, and what it could not keep.

use std::fmt;
use std::ops::Deref;

/// The most replicas that one lookup returns.
pub const MAX_REPLICAS: usize = 16;

/// The nodes that hold a key, the preferred one first; at most [`MAX_REPLICAS`], held inline.
///
/// Dereferences to a slice of node ids. [`degraded`](Owners::degraded) says when the list is not
/// all that was asked for.
#[derive(Clone, Copy)]
pub struct Owners {
    ids: [u64; MAX_REPLICAS],
    len: u8,
    degraded: Option<Degraded>,
}

/// Why a preference list is weaker than what was asked for. The list is still the best that the
/// topology allows: this is a warning to report, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Degraded {
    /// There are fewer nodes than wanted replicas (or more than [`MAX_REPLICAS`] were wanted).
    FewerNodes {
        /// How many replicas were asked for.
        wanted: usize,
        /// How many the list has.
        found: usize,
    },
    /// Two replicas share a zone and a rack: losing the rack loses both.
    SharedRack {
        /// Replicas in the list.
        replicas: usize,
        /// Different racks among them.
        racks: usize,
    },
    /// Two replicas share a zone, in different racks where racks are named.
    SharedZone {
        /// Replicas in the list.
        replicas: usize,
        /// Different zones among them.
        zones: usize,
    },
    /// Some replicas lie outside the region that was asked for.
    OutsideRegion {
        /// Replicas inside the region.
        inside: usize,
        /// Replicas in fallback regions.
        outside: usize,
    },
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewerNodes { wanted, found } => write!(f, "{found} of {wanted} replicas"),
            Self::SharedRack { replicas, racks } => {
                write!(f, "{replicas} replicas on {racks} racks")
            }
            Self::SharedZone { replicas, zones } => {
                write!(f, "{replicas} replicas in {zones} zones")
            }
            Self::OutsideRegion { inside, outside } => {
                write!(f, "{outside} of {} replicas outside the region", inside + outside)
            }
        }
    }
}

impl Owners {
    /// No owner.
    pub const fn empty() -> Self {
        Self { ids: [0; MAX_REPLICAS], len: 0, degraded: None }
    }

    /// The list of these ids, in this order.
    ///
    /// # Example
    /// ```
    /// use voussoir_ring::Owners;
    /// assert_eq!(&*Owners::of(&[3, 1]).unwrap(), &[3, 1]);
    /// assert!(Owners::of(&[3, 3]).is_none(), "an owner is named once");
    /// assert!(Owners::of(&[0; 17]).is_none(), "too many");
    /// ```
    pub fn of(ids: &[u64]) -> Option<Self> {
        let mut owners = Self::empty();
        for &id in ids {
            if owners.len() == MAX_REPLICAS || owners.contains(&id) {
                return None;
            }
            owners.push(id);
        }
        Some(owners)
    }

    /// The worst constraint that the list does not meet, or `None` when it meets all.
    pub fn degraded(&self) -> Option<Degraded> {
        self.degraded
    }

    /// Appends an id; ignored when the list is full.
    #[inline]
    pub(crate) fn push(&mut self, id: u64) {
        if let Some(place) = self.ids.get_mut(usize::from(self.len)) {
            *place = id;
            self.len += 1;
        }
    }

    #[inline]
    pub(crate) fn warn(&mut self, degraded: Degraded) {
        self.degraded.get_or_insert(degraded);
    }

    /// The same list with `id` first, if it is in the list.
    pub(crate) fn preferring(mut self, id: Option<u64>) -> Self {
        let len = self.len();
        if let Some(at) = id.and_then(|id| self.iter().position(|&held| held == id)) {
            self.ids[..len].swap(0, at);
        }
        self
    }

    pub(crate) fn remove(&mut self, id: u64) {
        if let Some(at) = self.iter().position(|&held| held == id) {
            let len = self.len();
            self.ids.copy_within(at + 1..len, at);
            self.len -= 1;
        }
    }

    /// Whether both lists name the same nodes, in whatever order.
    pub fn same_set(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|id| other.contains(id))
    }
}

impl Default for Owners {
    fn default() -> Self {
        Self::empty()
    }
}

impl Deref for Owners {
    type Target = [u64];

    #[inline]
    fn deref(&self) -> &[u64] {
        &self.ids[..usize::from(self.len).min(MAX_REPLICAS)]
    }
}

impl<'a> IntoIterator for &'a Owners {
    type Item = &'a u64;
    type IntoIter = std::slice::Iter<'a, u64>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Owners {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Owners {}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()?;
        self.degraded.map_or(Ok(()), |degraded| write!(f, " ({degraded})"))
    }
}

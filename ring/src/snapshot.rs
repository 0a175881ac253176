//! Swapping partitioners under readers that never wait.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::error::StaleEpoch;

struct Versioned<P> {
    epoch: u64,
    value: P,
}

/// The partitioner in use, replaced as a whole; readers never lock and never see half a change.
///
/// A thread that looks up often keeps a [`Reader`], for which a lookup costs one atomic load more.
///
/// # Example
/// ```
/// use voussoir_ring::{HashRing, Node, Partitioner, Published, Topology};
/// let first = Topology::new(1, [Node::new(1)])?;
/// let published = Published::new(1, HashRing::new(&first)?);
/// let mut reader = published.reader();
/// let second = first.with(Node::new(2))?;
/// published.publish(second.epoch(), HashRing::new(&second)?)?;
/// assert_eq!(reader.get().topology().len(), 2);
/// assert!(published.publish(1, HashRing::new(&first)?).is_err(), "never back to an old epoch");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Published<P> {
    current: Arc<ArcSwap<Versioned<P>>>,
}

impl<P> Published<P> {
    /// Starts with this value.
    pub fn new(epoch: u64, value: P) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(Versioned { epoch, value })) }
    }

    /// Replaces the value by one of a newer epoch.
    ///
    /// # Errors
    /// [`StaleEpoch`] when the current one is as new or newer, also when another thread has just
    /// published it: the newest epoch always wins.
    pub fn publish(&self, epoch: u64, value: P) -> Result<(), StaleEpoch> {
        let offered = Arc::new(Versioned { epoch, value });
        let mut seen = self.current.load_full();
        // Ends: a failed exchange means that another thread has published a larger epoch than the
        // one seen, and there are finitely many below `epoch`.
        while seen.epoch < epoch {
            let before = self.current.compare_and_swap(&seen, offered.clone());
            if Arc::ptr_eq(&before, &seen) {
                return Ok(());
            }
            seen = Arc::clone(&before);
        }
        Err(StaleEpoch { current: seen.epoch, offered: epoch })
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.current.load().epoch
    }

    /// Looks at the current value once.
    pub fn with<R>(&self, look: impl FnOnce(&P) -> R) -> R {
        look(&self.current.load().value)
    }

    /// A handle for one thread that looks often.
    pub fn reader(&self) -> Reader<P> {
        Reader { cache: Cache::new(self.current.clone()) }
    }
}

impl<P> Clone for Published<P> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone() }
    }
}

impl<P> fmt::Debug for Published<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}

/// One thread's view of a [`Published`] value.
pub struct Reader<P> {
    cache: Cache<Arc<ArcSwap<Versioned<P>>>, Arc<Versioned<P>>>,
}

impl<P> Reader<P> {
    /// The current value; it stays the same for as long as the reference is held.
    #[inline]
    pub fn get(&mut self) -> &P {
        &self.cache.load().value
    }

    /// The current value's epoch.
    pub fn epoch(&mut self) -> u64 {
        self.cache.load().epoch
    }
}

impl<P> Clone for Reader<P> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone() }
    }
}

impl<P> fmt::Debug for Reader<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

//! The check of a fencing token at the resource.

/// A token of a grant: greater than that of every earlier grant of the same lock, for ever.
///
/// Only back ends that can promise this make one. Redis cannot: it forgets its counter with its
/// data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token of a grant, such as [`Answer::Granted`](crate::core::Answer::Granted). The caller
    /// promises that it grows with each grant, across deletion, restart and failover.
    pub fn new(token: u64) -> Self {
        Self(token)
    }

    /// Its number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A resource that is reached with a fencing token only, and refuses tokens that are older than
/// the latest it has seen. It is for exclusive locks: of those that share a lock, it would refuse
/// all but the latest.
///
/// A new holder enters before it reads: older ones are shut out from then on. A resource that
/// outlives the process stores the token in the same atomic write as the effect.
///
/// # Example
/// ```
/// use voussoir_lock::{Fence, FencingToken};
///
/// let mut ledger = Fence::new(Vec::new());
/// let (old, new) = (FencingToken::new(33), FencingToken::new(34));
/// ledger.enter(old)?.push("by 33");
/// ledger.enter(new)?.push("by 34");
/// // The first holder was paused, and wakes up.
/// assert!(ledger.enter(old).is_err());
/// # Ok::<(), voussoir_lock::StaleToken>(())
/// ```
#[derive(Clone, Debug)]
pub struct Fence<R> {
    /// The greatest token that has entered. It never falls.
    latest: u64,
    resource: R,
}

/// The token is older than one that has entered: its holder has lost the lock. Final for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fencing token {token} is older than {latest}")]
#[non_exhaustive]
pub struct StaleToken {
    /// The token that was refused.
    pub token: u64,
    /// The latest token that has entered.
    pub latest: u64,
}

impl<R> Fence<R> {
    /// A resource that no token has entered.
    pub fn new(resource: R) -> Self {
        Self { latest: 0, resource }
    }

    /// A resource whose latest token is known, from where it is stored.
    pub fn restored(resource: R, latest: u64) -> Self {
        Self { latest, resource }
    }

    /// The resource, for the holder of the latest token or a newer one.
    ///
    /// # Errors
    /// [`StaleToken`].
    pub fn enter(&mut self, token: FencingToken) -> Result<&mut R, StaleToken> {
        if token.0 < self.latest {
            return Err(StaleToken { token: token.0, latest: self.latest });
        }
        self.latest = token.0;
        Ok(&mut self.resource)
    }

    /// The latest token that has entered; 0 before the first.
    pub fn latest(&self) -> u64 {
        self.latest
    }
}

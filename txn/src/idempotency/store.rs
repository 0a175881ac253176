//! The seam to where keys are.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::StoreError;

/// What a request asks of a store of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewKey {
    /// Scope and key, as one text that no other pair has.
    pub key: String,
    /// What makes the request what it is.
    pub fingerprint: Bytes,
    /// Names this attempt and no other.
    pub owner: u128,
    /// How long the owner may take.
    pub lease: Duration,
    /// How long the key is remembered, from its last change on. Not below `lease`.
    pub keep: Duration,
    /// Whether the key becomes the new owner's when it is abandoned. If not, it stays as it is: its
    /// owner may still end it.
    pub takes_abandoned: bool,
}

/// What a store found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// The key was not there, or no longer remembered: it is the new owner's, durably.
    Vacant,
    /// The lease of an earlier owner of the same request is over: the key is the new owner's,
    /// durably, if that [takes](NewKey::takes_abandoned) it.
    Abandoned,
    /// Another owner has it, for this long.
    InProgress(Duration),
    /// The request was done, with this result.
    Done(Bytes),
    /// The key was used with another fingerprint.
    Mismatch,
}

/// How a claim ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The request was done, with this result.
    Done(Bytes),
    /// Nothing was done: the key is free.
    Free,
    /// The lease is over now: what an owner did is unknown.
    Abandoned,
}

/// Where keys are. Called without any lock held.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// Takes a key, or says who has it: one step that no other claim of the key comes between.
    ///
    /// # Errors
    /// [`StoreError`]: the key may be the new owner's, until the lease is over.
    ///
    /// # Cancel safety
    /// Dropped, the key may be the new owner's, until the lease is over.
    async fn claim(&self, new: &NewKey) -> Result<Found, StoreError>;

    /// Ends a claim, durably. Returns false, and changes nothing, if the key is not that owner's
    /// any more.
    ///
    /// # Errors
    /// [`StoreError`]: it may be recorded.
    ///
    /// # Cancel safety
    /// Dropped, it is recorded or not.
    async fn settle(
        &self,
        key: &str,
        owner: u128,
        end: Settlement,
        keep: Duration,
    ) -> Result<bool, StoreError>;
}

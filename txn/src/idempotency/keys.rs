//! Claiming keys, and ending claims.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::store::{Found, KeyStore, NewKey, Settlement};
use crate::config::DURATION_MAX;
use crate::error::{ConfigError, StoreError};

/// The longest scope and the longest key, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// How long keys live. Start from [`Default`] and change fields; checked by [`Keys::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeysConfig {
    /// How long the owner of a key may take; after it the key is
    /// [`Abandoned`](Begun::Abandoned). 1 ms to 100 years. Default 60 s.
    pub lease: Duration,
    /// How long a key is remembered, from its last change on: longer than its request is sent
    /// again. `lease` to 100 years. Default 24 h.
    pub keep: Duration,
    /// The longest fingerprint: up to 64 KiB. Default 1 KiB.
    pub max_fingerprint_bytes: usize,
    /// The longest result: up to 16 MiB. Default 256 KiB. A journal takes no more than its largest
    /// commit, a quarter of its `segment_bytes`: a longer result is an error of the store.
    pub max_result_bytes: usize,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            keep: Duration::from_secs(24 * 3600),
            max_fingerprint_bytes: 1 << 10,
            max_result_bytes: 256 << 10,
        }
    }
}

impl KeysConfig {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let lease = (Duration::from_millis(1)..=DURATION_MAX).contains(&self.lease);
        let rules = [
            ("lease", lease, "must be from 1 ms to 100 years"),
            (
                "keep",
                (self.lease..=DURATION_MAX).contains(&self.keep),
                "must be from `lease` to 100 years",
            ),
            (
                "max_fingerprint_bytes",
                self.max_fingerprint_bytes <= 64 << 10,
                "must be at most 64 KiB",
            ),
            ("max_result_bytes", self.max_result_bytes <= 16 << 20, "must be at most 16 MiB"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// Whether a request may run.
#[derive(Debug)]
#[must_use = "a claim that is dropped keeps its key until the lease is over"]
pub enum Begun {
    /// It comes for the first time, and may run.
    New(Claim),
    /// An earlier attempt did not end within its lease: its effect may be there. Look before it is
    /// made again.
    Abandoned(Claim),
    /// Another attempt runs, for at most this long.
    InProgress {
        /// What is left of its lease.
        left: Duration,
    },
    /// It was done, with this result.
    Done(Bytes),
    /// The key was used for another request.
    Mismatch,
}

/// A key was not claimed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BeginKeyError {
    /// The scope or the key is empty, longer than 255 bytes, or has a control character.
    #[error("a scope and a key have 1 to 255 bytes, without control characters")]
    Name,
    /// The fingerprint is longer than [`KeysConfig::max_fingerprint_bytes`].
    #[error("a fingerprint has at most {0} bytes: take a digest")]
    Fingerprint(usize),
    /// The store failed. Where [`StoreError::is_retryable`] says so nothing was claimed; otherwise
    /// the key may be claimed until the lease is over.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The result of a claim was not recorded.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FinishError {
    /// The lease was over, and another attempt has the key: it may have had the effect again.
    #[error("the claim was lost to another attempt")]
    Lost,
    /// The result is longer than [`KeysConfig::max_result_bytes`]. The key stays claimed until the
    /// lease is over.
    #[error("a result has at most {0} bytes")]
    TooLong(usize),
    /// The store failed; the result may be recorded.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Idempotency keys over a store. Clones share it.
#[derive(Clone)]
pub struct Keys {
    store: Arc<dyn KeyStore>,
    config: KeysConfig,
}

impl Keys {
    /// Keys in `store`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(store: impl KeyStore, config: KeysConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { store: Arc::new(store), config })
    }

    /// What it was made with.
    pub fn config(&self) -> &KeysConfig {
        &self.config
    }

    /// Claims a key for a request, or says what became of it. `scope` keeps callers apart: a
    /// tenant, an operation. `fingerprint` is what makes the request what it is, such as method,
    /// path and a digest of the body.
    ///
    /// # Errors
    /// [`BeginKeyError`].
    ///
    /// # Cancel safety
    /// Dropped, the key may be claimed: it is abandoned when the lease is over.
    pub async fn begin(
        &self,
        scope: &str,
        key: &str,
        fingerprint: &[u8],
    ) -> Result<Begun, BeginKeyError> {
        let (found, claim) = self.claim(scope, key, fingerprint, true).await?;
        Ok(match found {
            Found::Vacant => Begun::New(claim),
            Found::Abandoned => Begun::Abandoned(claim),
            Found::InProgress(left) => Begun::InProgress { left },
            Found::Done(result) => Begun::Done(result),
            Found::Mismatch => Begun::Mismatch,
        })
    }

    /// What [`begin`](Self::begin) does. The claim is one if the key was vacant, or abandoned and
    /// taken.
    pub(super) async fn claim(
        &self,
        scope: &str,
        key: &str,
        fingerprint: &[u8],
        takes_abandoned: bool,
    ) -> Result<(Found, Claim), BeginKeyError> {
        let fits = |name: &str| {
            (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control)
        };
        if !fits(scope) || !fits(key) {
            return Err(BeginKeyError::Name);
        }
        if fingerprint.len() > self.config.max_fingerprint_bytes {
            return Err(BeginKeyError::Fingerprint(self.config.max_fingerprint_bytes));
        }
        let new = NewKey {
            // The length keeps `a` + `bc` and `ab` + `c` apart.
            key: format!("{}:{scope}:{key}", scope.len()),
            fingerprint: Bytes::copy_from_slice(fingerprint),
            owner: fastrand::u128(..),
            lease: self.config.lease,
            keep: self.config.keep,
            takes_abandoned,
        };
        let found = self.store.claim(&new).await?;
        let is_in_doubt = found == Found::Abandoned;
        let claim = Claim { keys: self.clone(), key: new.key, owner: new.owner, is_in_doubt };
        Ok((found, claim))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A key that this attempt has. Dropped, it stays claimed until its lease is over, and is abandoned
/// then: what the attempt did is unknown.
#[must_use = "a claim that is dropped keeps its key until the lease is over"]
pub struct Claim {
    keys: Keys,
    key: String,
    owner: u128,
    /// What an earlier owner did is unknown.
    is_in_doubt: bool,
}

impl Claim {
    /// Records the result: from now on the request is answered with it.
    ///
    /// # Errors
    /// [`FinishError`].
    ///
    /// # Cancel safety
    /// Dropped, the result is recorded or not.
    pub async fn finish(self, result: Bytes) -> Result<(), FinishError> {
        if result.len() > self.keys.config.max_result_bytes {
            return Err(FinishError::TooLong(self.keys.config.max_result_bytes));
        }
        self.settle(Settlement::Done(result)).await
    }

    /// Frees the key: the attempt failed and changed nothing, so the request may run again at once.
    /// The claim of a key that was [`Abandoned`](Begun::Abandoned) leaves it abandoned: what this
    /// attempt did not do, the earlier one may have done.
    ///
    /// # Errors
    /// [`FinishError`].
    ///
    /// # Cancel safety
    /// Dropped, the key is freed or not.
    pub async fn release(self) -> Result<(), FinishError> {
        let in_doubt = self.is_in_doubt;
        self.settle(if in_doubt { Settlement::Abandoned } else { Settlement::Free }).await
    }

    async fn settle(self, end: Settlement) -> Result<(), FinishError> {
        let keep = self.keys.config.keep;
        if self.keys.store.settle(&self.key, self.owner, end, keep).await? {
            Ok(())
        } else {
            Err(FinishError::Lost)
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("key", &self.key).finish_non_exhaustive()
    }
}

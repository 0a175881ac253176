//! A namespace that one user of the journal has for itself.

use std::fmt;
use std::sync::Arc;

use crate::engine::Engine;
use crate::error::Error;

/// The right to a namespace, from [`Journal::lease`](crate::Journal::lease), until it is dropped.
///
/// It is advice among those who ask for it: handles to the logs of a namespace are given to
/// everybody. The directory is locked to one process, so a lease need not be known to others.
#[must_use = "the lease ends when it is dropped"]
pub struct Lease {
    engine: Arc<Engine>,
    namespace: Box<str>,
}

impl Lease {
    pub(crate) fn take(engine: &Arc<Engine>, namespace: &str) -> Result<Self, Error> {
        if !engine.leases.lock().insert(namespace.into()) {
            return Err(Error::Leased { namespace: namespace.to_owned() });
        }
        Ok(Self { engine: Arc::clone(engine), namespace: namespace.into() })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.engine.leases.lock().remove(&self.namespace);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

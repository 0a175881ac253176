//! What can go wrong, surface by surface.

/// A field of a configuration is out of its range. Nothing was built or changed; mend the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the field.
    pub field: &'static str,
    /// What must hold for it.
    pub rule: &'static str,
}

impl ConfigError {
    pub(crate) const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }
}

/// A new set of endpoints was not accepted. The balancer keeps the old set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The set is empty. A balancer keeps its last set; remove endpoints by draining them.
    #[error("the new set has no endpoint; the old set stays")]
    Empty,
    /// The set has more endpoints than the balancer accepts.
    #[error("the new set has {count} endpoints, at most {max} are allowed; the old set stays")]
    TooMany {
        /// Endpoints in the new set.
        count: usize,
        /// The limit, [`MAX_ENDPOINTS`](crate::MAX_ENDPOINTS).
        max: usize,
    },
    /// Two endpoints of the set have one name.
    #[error("the endpoint `{name}` is listed twice; the old set stays")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// The weight of an endpoint is out of its range.
    #[error("the endpoint `{name}` has weight {weight}, which must be between 1 and 65535")]
    Weight {
        /// The name.
        name: String,
        /// The weight that was given.
        weight: u32,
    },
}

/// Whether a connection failed for want of what this machine has too little of: descriptors, ports,
/// memory. Says nothing of the endpoint.
#[cfg(any(feature = "l4", feature = "probes"))]
pub(crate) fn is_local(error: &std::io::Error) -> bool {
    /// `EMFILE`, `ENFILE` and `ENOBUFS` of Linux.
    #[cfg(target_os = "linux")]
    const LOCAL: [i32; 3] = [24, 23, 105];
    #[cfg(not(target_os = "linux"))]
    const LOCAL: [i32; 0] = [];
    matches!(error.kind(), std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::OutOfMemory)
        || error.raw_os_error().is_some_and(|code| LOCAL.contains(&code))
}

//! The error that every configuration of this crate is refused with.

/// A field of a configuration has a value that its type or the other fields do not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field, as it is written in the source.
    pub field: &'static str,
    /// What must hold for it.
    pub rule: &'static str,
}

//! Errors of this crate's set-up surface.

/// A [`Config`](crate::Config) that no plan can be made from.
///
/// The author of the configuration is at fault; nothing has happened, and a retry fails the same
/// way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the field.
    pub field: &'static str,
    /// What must hold for the field.
    pub rule: &'static str,
}

//! The error of a configuration.

/// A field of a configuration breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What must hold.
    pub rule: &'static str,
}

impl ConfigError {
    /// The first rule of `(field, holds, rule)` that does not hold.
    pub(crate) fn first_of(rules: &[(&'static str, bool, &'static str)]) -> Result<(), Self> {
        match rules.iter().find(|(_, holds, _)| !holds) {
            Some(&(field, _, rule)) => Err(Self { field, rule }),
            None => Ok(()),
        }
    }
}

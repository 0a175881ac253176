//! Errors of this crate's set-up surface.

use std::error::Error;
use std::fmt;

/// A [`Profile`](crate::Profile) that no plan can be made from.
///
/// The author of the profile is at fault; nothing has happened, and trying again will not help.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A range runs from a higher to a lower value.
    EmptyRange {
        /// The field of the profile.
        field: &'static str,
    },
    /// A value lies outside what the field allows.
    OutOfRange {
        /// The field of the profile.
        field: &'static str,
        /// The least value allowed.
        min: u64,
        /// The greatest value allowed.
        max: u64,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyRange { field } => write!(f, "`{field}` runs from high to low"),
            Self::OutOfRange { field, min, max } => {
                write!(f, "`{field}` must be between {min} and {max}")
            }
        }
    }
}

impl Error for ConfigError {}

//! Names of branches, as participants know them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest name of a coordinator, in bytes. With it a [`Gid`] has at most 199 bytes, which is
/// what PostgreSQL takes.
pub const MAX_COORDINATOR_BYTES: usize = 100;

/// A transaction: unique among those of its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId {
    /// The epoch of the coordinator that began it.
    pub epoch: u64,
    /// Counted from 0 in each epoch.
    pub number: u64,
}

/// The global id of a branch: `vs1:<coordinator>:<epoch>:<transaction>:<branch>`. At most 199
/// bytes, without quotes and control characters, so that it can stand in a statement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid {
    coordinator: Arc<str>,
    txn: TxnId,
    branch: u32,
}

/// A text that is no [`Gid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no id of a branch: vs1:<coordinator>:<epoch>:<transaction>:<branch>")]
pub struct GidError;

/// Whether a coordinator may have this name: 1 to [`MAX_COORDINATOR_BYTES`] letters, digits, `-`,
/// `_` and `.` of ASCII.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=MAX_COORDINATOR_BYTES).contains(&name.len()) && name.bytes().all(fits)
}

impl Gid {
    pub(crate) fn new(coordinator: &Arc<str>, txn: TxnId, branch: u32) -> Self {
        Self { coordinator: Arc::clone(coordinator), txn, branch }
    }

    /// Name of the coordinator that decides.
    pub fn coordinator(&self) -> &str {
        &self.coordinator
    }

    /// The transaction that it is a branch of.
    pub fn txn(&self) -> TxnId {
        self.txn
    }

    /// Counted from 0 in each transaction.
    pub fn branch(&self) -> u32 {
        self.branch
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TxnId { epoch, number } = self.txn;
        write!(f, "vs1:{}:{epoch}:{number}:{}", self.coordinator, self.branch)
    }
}

impl FromStr for Gid {
    type Err = GidError;

    fn from_str(text: &str) -> Result<Self, GidError> {
        /// Only the spelling of [`fmt::Display`], so that one branch has one name.
        fn number<T: FromStr + ToString>(text: Option<&str>) -> Result<T, GidError> {
            let text = text.ok_or(GidError)?;
            let number: T = text.parse().map_err(|_| GidError)?;
            if number.to_string() == text { Ok(number) } else { Err(GidError) }
        }
        let mut parts = text.split(':');
        let (version, coordinator) = (parts.next(), parts.next().ok_or(GidError)?);
        if version != Some("vs1") || !is_name(coordinator) {
            return Err(GidError);
        }
        let txn = TxnId { epoch: number(parts.next())?, number: number(parts.next())? };
        let branch = number(parts.next())?;
        if parts.next().is_some() {
            return Err(GidError);
        }
        Ok(Self { coordinator: coordinator.into(), txn, branch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_is_read_back_and_nothing_else_is_one() {
        let name: Arc<str> = "a".repeat(MAX_COORDINATOR_BYTES).into();
        let txn = TxnId { epoch: u64::MAX, number: u64::MAX };
        let gid = Gid::new(&name, txn, u32::MAX);
        let text = gid.to_string();
        assert!(text.len() <= 199, "{}", text.len());
        assert_eq!(text.parse(), Ok(gid));
        for text in [
            "",
            "vs1:a:1:2",
            "vs1:a:1:2:3:4",
            "vs2:a:1:2:3",
            "vs1::1:2:3",
            "vs1:a'b:1:2:3",
            "vs1:a:01:2:3",
            "vs1:a:+1:2:3",
            "vs1:a:1:2:4294967296",
        ] {
            assert_eq!(text.parse::<Gid>(), Err(GidError), "{text}");
        }
    }
}

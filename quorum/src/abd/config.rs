//! What can be tuned of the registers.

use std::time::Duration;

use crate::ConfigError;

/// Configuration of a [`Coordinator`](super::Coordinator).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AbdConfig {
    /// The replicas' node ids: 1 to 31, each once, the same at all coordinators.
    pub replicas: Vec<u64>,
    /// How long an operation takes at most. From 1 ms to 1 hour. Default 1 s.
    pub timeout: Duration,
    /// A request is sent again to replicas that have not answered for so long, and for twice as
    /// long each further time, up to 16 times. From 1 ms to 1 hour. Default 100 ms.
    pub resend_after: Duration,
    /// Operations under way. One beyond is rejected. From 1 to 1,000,000. Default 10,000.
    pub max_operations: usize,
}

impl Default for AbdConfig {
    fn default() -> Self {
        Self {
            replicas: Vec::new(),
            timeout: Duration::from_secs(1),
            resend_after: Duration::from_millis(100),
            max_operations: 10_000,
        }
    }
}

impl AbdConfig {
    /// The default with these replicas.
    pub fn with_replicas(replicas: impl IntoIterator<Item = u64>) -> Self {
        Self { replicas: replicas.into_iter().collect(), ..Self::default() }
    }

    /// How many replicas are a majority.
    pub fn majority(&self) -> usize {
        self.replicas.len() / 2 + 1
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ids = &self.replicas;
        let is_repeated = (1..ids.len()).any(|at| ids[..at].contains(&ids[at]));
        let times = Duration::from_millis(1)..=Duration::from_secs(3_600);
        let rules = [
            (
                "replicas",
                (1..=31).contains(&ids.len()) && !is_repeated,
                "must be 1 to 31 ids, each once",
            ),
            ("timeout", times.contains(&self.timeout), "must be from 1 ms to 1 hour"),
            ("resend_after", times.contains(&self.resend_after), "must be from 1 ms to 1 hour"),
            (
                "max_operations",
                (1..=1_000_000).contains(&self.max_operations),
                "must be from 1 to 1,000,000",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

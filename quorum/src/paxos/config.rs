//! What can be tuned of a proposer.

use std::time::Duration;

use crate::ConfigError;

/// Configuration of a [`Proposer`](super::Proposer).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProposerConfig {
    /// The acceptors' node ids: 1 to 31, each once. [`Registers`](crate::Registers) ask these nodes
    /// who the acceptors are before their first change: any list does that names one that knows,
    /// and no majority is ever one of this list alone.
    pub acceptors: Vec<u64>,
    /// A request is sent again to acceptors that have not answered for so long, and for twice as
    /// long each further time, up to 16 times. [`Registers`](crate::Registers) do so where the call
    /// has failed: one that is under way is given half of their `timeout`. From 1 ms to 1 minute.
    /// Default 100 ms.
    pub resend_after: Duration,
    /// After a rejection the proposer waits for a random time up to this before its next attempt,
    /// twice as long after each further one, up to 64 times. From 1 ms to 1 minute. Default 10 ms.
    pub backoff: Duration,
    /// How many changes a state remembers for [`Change::Resolve`](super::Change::Resolve), 24 bytes
    /// each. From 1 to 1,024, the same at all proposers of a register. Default 16.
    pub max_tokens: usize,
    /// Of the backoff. None: drawn from the system.
    pub seed: Option<u64>,
}

impl Default for ProposerConfig {
    fn default() -> Self {
        Self {
            acceptors: Vec::new(),
            resend_after: Duration::from_millis(100),
            backoff: Duration::from_millis(10),
            max_tokens: 16,
            seed: None,
        }
    }
}

impl ProposerConfig {
    /// The default with these acceptors.
    pub fn with_acceptors(acceptors: impl IntoIterator<Item = u64>) -> Self {
        Self { acceptors: acceptors.into_iter().collect(), ..Self::default() }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ids = &self.acceptors;
        let is_repeated = (1..ids.len()).any(|at| ids[..at].contains(&ids[at]));
        let times = Duration::from_millis(1)..=Duration::from_secs(60);
        let rules = [
            (
                "acceptors",
                (1..=31).contains(&ids.len()) && !is_repeated,
                "must be 1 to 31 ids, each once",
            ),
            ("resend_after", times.contains(&self.resend_after), "must be from 1 ms to 1 minute"),
            ("backoff", times.contains(&self.backoff), "must be from 1 ms to 1 minute"),
            ("max_tokens", (1..=1_024).contains(&self.max_tokens), "must be from 1 to 1,024"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

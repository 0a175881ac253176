//! How a node of many groups is set up.

use std::time::Duration;

use crate::config::nanos;
use crate::error::ConfigError;

/// How a [`Node`](crate::Node) is set up. Start from [`NodeConfig::default`] and change fields. The
/// same on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeConfig {
    /// Between two ticks, in which the heartbeats of all groups go out; that of every group must
    /// be the same ([`Config::heartbeat_interval`](crate::Config::heartbeat_interval)). Default
    /// 50 ms; at least 1 ms.
    pub heartbeat_interval: Duration,
    /// The silence after which another node is no longer taken to be alive: groups that have
    /// quiesced under a leader there then wait for an election timeout, and elect another one.
    /// Default 500 ms; at least three heartbeat intervals, at most 1 h.
    pub suspect_after: Duration,
    /// Groups at once. Default 65,536.
    pub max_groups: usize,
    /// Groups of this node that campaign at the same time; others whose election is due wait for
    /// their turn. Default 128.
    pub max_elections: usize,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(50),
            suspect_after: Duration::from_millis(500),
            max_groups: 65_536,
            max_elections: 128,
        }
    }
}

impl NodeConfig {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that no node can run with.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let longest = Duration::from_secs(3600);
        let (interval, suspect) = (self.heartbeat_interval, self.suspect_after);
        let broken = |field, rule| Err(ConfigError { field, rule });
        if interval < Duration::from_millis(1) || interval > longest {
            return broken("heartbeat_interval", "must be between 1 ms and 1 h");
        }
        if suspect < interval.saturating_mul(3) || suspect > longest {
            return broken("suspect_after", "must be three heartbeat intervals to 1 h");
        }
        if self.max_groups == 0 {
            return broken("max_groups", "must be at least 1");
        }
        if self.max_elections == 0 {
            return broken("max_elections", "must be at least 1");
        }
        Ok(())
    }

    pub(super) fn interval_ns(&self) -> u64 {
        nanos(self.heartbeat_interval)
    }

    pub(super) fn suspect_after_ns(&self) -> u64 {
        nanos(self.suspect_after)
    }
}

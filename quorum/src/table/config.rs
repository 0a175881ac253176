//! How a table is replicated, and what that guarantees.

use std::time::Duration;

use crate::ConfigError;
use crate::membership::Lineage;

/// How many replicas an operation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// One replica.
    One,
    /// Two replicas.
    Two,
    /// More than half of the replicas. Where there are several [regions](crate::region), a table's
    /// replicas are those of the own one: LOCAL_QUORUM, and EACH_QUORUM with
    /// [`Reach::EachQuorum`](crate::region::Reach::EachQuorum).
    Quorum,
    /// All replicas.
    All,
}

impl Level {
    /// The number of replicas out of `n`. [`Level::Two`] of one replica is more than there are.
    pub fn count(self, n: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Quorum => n / 2 + 1,
            Self::All => n,
        }
    }
}

/// What a read does about replicas that are behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReadRepair {
    /// Nothing.
    Off,
    /// Merges the result into those that answered with less, after the read was answered. Its
    /// failure fails nothing.
    Background,
    /// Answers the read when as many replicas as a write waits for hold the result.
    Blocking,
}

/// What a table guarantees to its readers, each on top of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Guarantee {
    /// Replicas that hear of each other agree in the end. A read may miss any write.
    Eventual,
    /// A read sees every write to its key that was acknowledged before the read began: R + W > N.
    /// It may also see a write that failed, and a later read may miss that one again.
    Intersecting,
    /// A read also sees all that an earlier read of its key has seen, by whatever client:
    /// R + W > N and [`ReadRepair::Blocking`] (Attiya, Bar-Noy, Dolev 1995).
    Monotonic,
}

/// Configuration of a table, the same at all of its coordinators.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableConfig {
    /// The replicas' node ids: N of them, 1 to 31, each once. A [`Table`](crate::Table) asks these
    /// nodes who the replicas are before its first operation: any list does that names one that
    /// knows, and no majority is ever one of this list alone.
    pub replicas: Vec<u64>,
    /// The cluster whose table this is; nodes of another one are not heard. Default
    /// [`Lineage::UNNAMED`]: that of the node that answers first.
    pub lineage: Lineage,
    /// The replica that is asked first: the nearest. None: the quick ones take turns.
    pub local: Option<u64>,
    /// R: how many replicas a read waits for. Default [`Level::Quorum`].
    pub read: Level,
    /// W: how many replicas a write waits for. Default [`Level::Quorum`].
    pub write: Level,
    /// Default [`ReadRepair::Blocking`].
    pub read_repair: ReadRepair,
    /// What the table must guarantee; refused if the levels cannot give it. Default
    /// [`Guarantee::Monotonic`].
    pub require: Guarantee,
    /// How long an operation takes at most, and how long it is tried: replicas whose calls have
    /// failed are asked again. The first one of a table also waits so long for who the replicas
    /// are. From 1 ms to 1 hour. Default 1 s.
    pub timeout: Duration,
    /// A read that waits longer than this asks one more replica, each time. From 1 ms to 1 hour.
    /// Default 50 ms.
    pub hedge_after: Duration,
    /// How many reads may do so, in percent of all reads; ten in a row are always allowed. A read
    /// that has waited for half of `timeout` asks all replicas. From 0 to 100. Default 5.
    pub max_hedge_percent: u32,
    /// Of the replicas that a read waits for, the first sends its state. The others send a digest
    /// if their state has so many bytes or more, and the state itself if it has fewer: it is asked
    /// for then only where the digests differ. Any number of bytes; 0: always a digest. Default
    /// 1,024.
    pub min_digest_bytes: u32,
    /// Operations under way, with those that were answered and still spread their result, and with
    /// those of a [`Table`](crate::Table) that wait to be begun: it begins as many at once as are
    /// answered in time, 64 at first, and rejects one that has waited for half of `timeout`. In
    /// time is within a quarter of `timeout`; where the replicas are farther away than that, within
    /// half as much again as their quickest answers take, and never more than half. One beyond is
    /// rejected at once. From 1 to 1,000,000. Default 10,000.
    pub max_operations: usize,
    /// Of the pauses before a replica is asked again. None: drawn from the system.
    pub seed: Option<u64>,
}

impl Default for TableConfig {
    fn default() -> Self {
        Self {
            replicas: Vec::new(),
            lineage: Lineage::UNNAMED,
            local: None,
            read: Level::Quorum,
            write: Level::Quorum,
            read_repair: ReadRepair::Blocking,
            require: Guarantee::Monotonic,
            timeout: Duration::from_secs(1),
            hedge_after: Duration::from_millis(50),
            max_hedge_percent: 5,
            min_digest_bytes: 1_024,
            max_operations: 10_000,
            seed: None,
        }
    }
}

impl TableConfig {
    /// The default with these replicas.
    pub fn with_replicas(replicas: impl IntoIterator<Item = u64>) -> Self {
        Self { replicas: replicas.into_iter().collect(), ..Self::default() }
    }

    /// What reads at the level `read` and writes at the level `write` of this table guarantee
    /// together.
    pub fn guarantee_at(&self, read: Level, write: Level) -> Guarantee {
        self.guarantee_of(self.replicas.len(), read, write)
    }

    /// The same for `n` replicas.
    pub(super) fn guarantee_of(&self, n: usize, read: Level, write: Level) -> Guarantee {
        if read.count(n) + write.count(n) <= n {
            Guarantee::Eventual
        } else if self.read_repair == ReadRepair::Blocking {
            Guarantee::Monotonic
        } else {
            Guarantee::Intersecting
        }
    }

    /// What the table guarantees.
    pub fn guarantee(&self) -> Guarantee {
        self.guarantee_at(self.read, self.write)
    }

    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ids = &self.replicas;
        let is_repeated = (1..ids.len()).any(|at| ids[..at].contains(&ids[at]));
        let times = Duration::from_millis(1)..=Duration::from_secs(3_600);
        let exists = |level: Level| level.count(ids.len()) <= ids.len();
        let rules = [
            (
                "replicas",
                (1..=31).contains(&ids.len()) && !is_repeated,
                "must be 1 to 31 ids, each once",
            ),
            ("local", self.local.is_none_or(|id| ids.contains(&id)), "must be one of `replicas`"),
            ("read", exists(self.read), "must not ask for more than all `replicas`"),
            ("write", exists(self.write), "must not ask for more than all `replicas`"),
            (
                "require",
                self.guarantee() >= self.require,
                "cannot be given: it takes R + W > N, and `Monotonic` blocking read repair",
            ),
            ("timeout", times.contains(&self.timeout), "must be from 1 ms to 1 hour"),
            ("hedge_after", times.contains(&self.hedge_after), "must be from 1 ms to 1 hour"),
            ("max_hedge_percent", self.max_hedge_percent <= 100, "must be at most 100"),
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

//! Redis as the store: one atomic script a key, at the server's clock.

mod ask;
mod call;
mod cluster;
mod link;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::{Client, RedisResult, Script};

use super::counter::{Counter, StoreError, Take, Taken};
use crate::error::ConfigError;
use crate::quota::Quota;
use ask::{Answer, Failure, SCRIPT, ask, understood};
use call::{Call, Figures};
use cluster::Cluster;
use link::Links;

/// State that is assumed for a key whose state is missing on the server or unreadable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenLost {
    /// The key counts as drained: a missing key as drained at the start of the server, so that a
    /// server that lost its data never admits a burst or a window twice; an unreadable key as
    /// drained now. Keys that were idle start with the units that have flowed back since. Keys
    /// whose count in the current fixed window was lost admit nothing until the next window.
    ///
    /// Needs the server's `INFO`: see [`RedisCounter::verify`].
    #[default]
    Drained,
    /// The key counts as never used: a restart without data may admit one burst or one window more.
    Fresh,
}

/// Counters of a [`RedisCounter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisStats {
    /// States found that could not be read, and were replaced as [`WhenLost`] says.
    pub unreadable: u64,
}

/// A [`Counter`] over Redis of version 6 or later, or over whatever speaks its protocol.
///
/// Each key is one string, touched by one script call, so that all that a decision needs is in one
/// slot of a cluster. A batch of takes is one round trip to each server that keeps
/// some of its keys. A key expires when it is as good as new.
///
/// A user of an ACL needs `+evalsha +eval +time +get +set`, with [`WhenLost::Drained`] `+info`, on
/// a cluster `+cluster|slots`, and the keys `~<prefix>*`.
///
/// # Format
/// `<prefix>{<key>}:g1` for quotas by rate and `<prefix>{<key>}:w1` for fixed windows; a later
/// version of the format would have another name, so a change of algorithm or version starts a key
/// anew. The value is `A:B` in decimal figures: by rate the theoretical arrival time, in
/// microsecond A since 1970 and B nanoseconds; for a window its beginning A and its units B. All
/// that begins with the prefix belongs to the limiter: what is found there and is not of this
/// format is replaced, and counted in [`RedisStats::unreadable`].
///
/// # Rounding
/// Times are whole nanoseconds while the burst is worth less than 52 days, else whole microseconds;
/// windows are whole microseconds. What rounding would make slower by more than 0.1 % is refused
/// when the limiter is built.
///
/// Replication of Redis is asynchronous: a fail-over may forget the last takes.
#[derive(Debug)]
pub struct RedisCounter {
    servers: Servers,
    prefix: String,
    when_lost: WhenLost,
    script: Script,
    unreadable: AtomicU64,
}

#[derive(Debug)]
enum Servers {
    Single(Links),
    Cluster(Arc<Cluster>),
}

impl RedisCounter {
    /// A store on one server whose keys begin with `prefix`. Connects with the first take.
    pub fn new(client: Client, prefix: impl Into<String>, when_lost: WhenLost) -> Self {
        Self::on(Servers::Single(Links::new(client)), prefix.into(), when_lost)
    }

    /// A store on a cluster whose keys begin with `prefix`, found by any of the `clients`, to which
    /// all servers are alike but for their addresses. Connects with the first take.
    ///
    /// Each server has a connection of its own, and the map of slots is read in the background: a
    /// server that is away holds up its own keys only.
    ///
    /// # Errors
    /// [`ConfigError`] without any client.
    pub fn cluster(
        clients: impl IntoIterator<Item = Client>,
        prefix: impl Into<String>,
        when_lost: WhenLost,
    ) -> Result<Self, ConfigError> {
        let cluster = Cluster::new(clients.into_iter().collect());
        let cluster = cluster.ok_or(ConfigError::new("clients", "must be at least one"))?;
        Ok(Self::on(Servers::Cluster(cluster), prefix.into(), when_lost))
    }

    fn on(servers: Servers, prefix: String, when_lost: WhenLost) -> Self {
        let (script, unreadable) = (Script::new(SCRIPT), AtomicU64::new(0));
        Self { servers, prefix, when_lost, script, unreadable }
    }

    /// Makes sure that the server can be reached and permits all that takes need, by a take of a
    /// key `verify` and by `INFO` where [`WhenLost::Drained`] needs it. To be called at the start
    /// of a service; of a cluster it asks the server of that key.
    ///
    /// # Errors
    /// [`StoreError::NotPermitted`] says which command the user lacks, and what to grant.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn verify(&self) -> Result<(), StoreError> {
        let quota = Quota::gcra(1000, Duration::from_secs(1)).burst(1000);
        let take = Take { key: "verify", quota, least: 1, most: 1 };
        let answer = self.take(&[take]).await;
        answer.into_iter().collect::<Result<Vec<_>, _>>()?;
        if let (WhenLost::Drained, Servers::Single(links)) = (self.when_lost, &self.servers) {
            let link = links.get().await?;
            let mut command = redis::cmd("INFO");
            command.arg("server");
            let answer: RedisResult<redis::Value> =
                command.query_async(&mut link.connection.clone()).await;
            answer.map_err(|error| understood(&error))?;
        }
        Ok(())
    }

    /// Counters.
    pub fn stats(&self) -> RedisStats {
        RedisStats { unreadable: self.unreadable.load(Ordering::Relaxed) }
    }

    async fn ask(&self, calls: Vec<Call>) -> Vec<Result<Answer, StoreError>> {
        let hash = self.script.get_hash();
        match &self.servers {
            Servers::Single(links) => {
                let store_error = |failure| match failure {
                    Failure::Store(error) => error,
                    Failure::Redirected(redirect) => StoreError::Unreachable(format!(
                        "a server of a cluster, which redirects to {}: see `RedisCounter::cluster`",
                        redirect.address
                    )),
                };
                let answers = ask(links, hash, &calls, false).await.into_iter();
                answers.map(|answer| answer.map_err(store_error)).collect()
            }
            Servers::Cluster(cluster) => cluster.ask(hash, calls).await,
        }
    }

    fn parse(
        &self,
        (granted, remaining, wait, reset, unreadable): Answer,
    ) -> Result<Taken, StoreError> {
        let natural = |n: i64| {
            u64::try_from(n).map_err(|_| StoreError::Invalid(format!("a negative figure: {n}")))
        };
        self.unreadable.fetch_add(u64::from(unreadable != 0), Ordering::Relaxed);
        Ok(Taken {
            granted: natural(granted)?,
            remaining: natural(remaining)?,
            retry_after: if wait < 0 { None } else { Some(Duration::from_micros(natural(wait)?)) },
            reset_after: Duration::from_micros(natural(reset)?),
        })
    }
}

#[async_trait]
impl Counter for RedisCounter {
    fn accepts(&self, quota: &Quota) -> Result<(), ConfigError> {
        Figures::of(&quota.rules()?).map(|_| ())
    }

    fn server_of(&self, key: &str) -> u64 {
        match &self.servers {
            Servers::Single(_) => 0,
            Servers::Cluster(cluster) => {
                cluster.server_of(format!("{}{{{key}}}", self.prefix).as_bytes())
            }
        }
    }

    async fn take(&self, takes: &[Take<'_>]) -> Vec<Result<Taken, StoreError>> {
        let mut calls = Vec::with_capacity(takes.len());
        let mut refusals = Vec::with_capacity(takes.len());
        for take in takes {
            let call = Call::new(self, take).map_err(|e| StoreError::Refused(e.to_string()));
            refusals.push(call.map(|call| calls.push(call)));
        }
        let mut answers = self.ask(calls).await.into_iter();
        let missing = || Err(StoreError::Invalid("an answer is missing".into()));
        let mut answer =
            |()| answers.next().unwrap_or_else(missing).and_then(|one| self.parse(one));
        refusals.into_iter().map(|asked| asked.and_then(&mut answer)).collect()
    }
}

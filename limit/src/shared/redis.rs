//! Redis as the store: one atomic script a key, at the server's clock.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind,
};

use super::counter::{Counter, StoreError, Take, Taken};
use crate::core::Kind;
use crate::quota::{Algorithm, Quota};

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// How long an answer may take if the limiter waits longer than this.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What keys start with that the server does not know, in the first period after its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterRestart {
    /// As if drained when the server started: a server that lost its data never gives a burst or a
    /// window twice. Keys that were idle start with what has flowed back since; a fixed window
    /// that was running is over for everybody whose count was lost.
    #[default]
    Drained,
    /// Fresh: a restart without data may admit one burst or one window more.
    Fresh,
}

/// A [`Counter`] over Redis of version 6 or later, or over whatever speaks its protocol.
///
/// Each key is one string `<prefix>{<key>}`, touched by one script call, so that all that a
/// decision needs is in one slot of a cluster. A batch of takes is one round trip to a single
/// server; in a cluster one round trip a take. Figures are whole microseconds, a unit's time
/// rounded up. A key expires when it is as good as new.
///
/// Replication of Redis is asynchronous: a fail-over may forget the last takes.
#[derive(Debug)]
pub struct RedisCounter {
    servers: Servers,
    prefix: String,
    after_restart: AfterRestart,
    script: Script,
    link: tokio::sync::Mutex<Option<Link>>,
}

#[cfg_attr(feature = "redis-cluster", expect(clippy::large_enum_variant, reason = "one a counter"))]
enum Servers {
    Single(Client),
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster::ClusterClient),
}

#[derive(Clone)]
enum Link {
    Single(MultiplexedConnection),
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Servers")
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

/// Granted, remaining, wait, reset.
type Figures = (i64, i64, i64, i64);

impl RedisCounter {
    /// A store on one server whose keys begin with `prefix`. Connects with the first take.
    pub fn new(client: Client, prefix: impl Into<String>, after_restart: AfterRestart) -> Self {
        Self::on(Servers::Single(client), prefix.into(), after_restart)
    }

    /// A store on a cluster whose keys begin with `prefix`. Connects with the first take.
    ///
    /// Needs the feature `redis-cluster`. The client's own retries and time limits hold; set them
    /// below [`OutageConfig::timeout`](super::OutageConfig::timeout).
    #[cfg(feature = "redis-cluster")]
    pub fn cluster(
        client: redis::cluster::ClusterClient,
        prefix: impl Into<String>,
        after_restart: AfterRestart,
    ) -> Self {
        Self::on(Servers::Cluster(client), prefix.into(), after_restart)
    }

    fn on(servers: Servers, prefix: String, after_restart: AfterRestart) -> Self {
        let script = Script::new(include_str!("take.lua"));
        Self { servers, prefix, after_restart, script, link: tokio::sync::Mutex::new(None) }
    }

    async fn link(&self) -> Result<Link, StoreError> {
        let mut slot = self.link.lock().await;
        if let Some(link) = &*slot {
            return Ok(link.clone());
        }
        let link = self.connect().await.map_err(|e| StoreError::Unreachable(e.to_string()))?;
        *slot = Some(link.clone());
        Ok(link)
    }

    async fn connect(&self) -> Result<Link, RedisError> {
        match &self.servers {
            Servers::Single(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT_MAX))
                    .set_response_timeout(Some(ANSWER_MAX));
                let connection = client.get_multiplexed_async_connection_with_config(&config);
                connection.await.map(Link::Single)
            }
            #[cfg(feature = "redis-cluster")]
            Servers::Cluster(client) => client.get_async_connection().await.map(Link::Cluster),
        }
    }

    async fn ask(&self, takes: &[Take<'_>]) -> Result<Vec<Figures>, StoreError> {
        let mut calls = Vec::with_capacity(takes.len());
        for take in takes {
            calls.push(self.call(take)?);
        }
        let answers = match &mut self.link().await? {
            Link::Single(connection) => self.ask_at_once(connection, &calls).await,
            #[cfg(feature = "redis-cluster")]
            Link::Cluster(connection) => self.ask_one_by_one(connection, &calls).await,
        };
        match answers {
            Ok(answers) => Ok(answers),
            Err(error) => Err(self.failed(error, takes.len() == 1).await),
        }
    }

    /// The script's call for a take, without the script.
    fn call(&self, take: &Take<'_>) -> Result<Cmd, StoreError> {
        let rules = take.quota.rules().map_err(|e| StoreError::Refused(e.to_string()))?;
        let after_restart = match self.after_restart {
            AfterRestart::Drained => "drained",
            AfterRestart::Fresh => "fresh",
        };
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.script.get_hash())
            .arg(1)
            .arg(format!("{}{{{}}}", self.prefix, take.key))
            .arg(if rules.kind == Kind::Gcra { "gcra" } else { "window" })
            .arg(rules.limit)
            .arg(rules.interval.div_ceil(1000))
            .arg(rules.per.div_ceil(1000))
            .arg(take.least)
            .arg(take.most)
            .arg(after_restart);
        Ok(call)
    }

    /// One round trip, and another if the server does not know the script yet.
    async fn ask_at_once(
        &self,
        connection: &mut MultiplexedConnection,
        calls: &[Cmd],
    ) -> Result<Vec<Figures>, RedisError> {
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for call in calls {
            pipe.add_command(call.clone());
        }
        let mut answers: Vec<RedisResult<Figures>> = pipe.query_async(connection).await?;
        if answers.iter().any(|answer| answer.as_ref().is_err_and(unknown)) {
            self.script.load_async(connection).await?;
            for (answer, call) in answers.iter_mut().zip(calls) {
                if answer.as_ref().is_err_and(unknown) {
                    *answer = call.query_async(connection).await;
                }
            }
        }
        answers.into_iter().collect()
    }

    /// Each take goes to the node of its slot.
    #[cfg(feature = "redis-cluster")]
    async fn ask_one_by_one(
        &self,
        connection: &mut redis::cluster_async::ClusterConnection,
        calls: &[Cmd],
    ) -> Result<Vec<Figures>, RedisError> {
        let mut answers = Vec::with_capacity(calls.len());
        for call in calls {
            let mut answer = call.query_async(connection).await;
            if answer.as_ref().is_err_and(unknown) {
                self.script.load_async(connection).await?;
                answer = call.query_async(connection).await;
            }
            answers.push(answer?);
        }
        Ok(answers)
    }

    /// Drops the connection, unless it was the server that answered. Of a batch others may have
    /// been answered.
    async fn failed(&self, error: RedisError, alone: bool) -> StoreError {
        let text = error.to_string();
        if let ErrorKind::Server(kind) = error.kind() {
            return match kind {
                // It is starting, or not the one to ask: nothing was done.
                ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ReadOnly
                    if alone =>
                {
                    StoreError::Unreachable(text)
                }
                _ => StoreError::Refused(text),
            };
        }
        *self.link.lock().await = None;
        if error.is_connection_refusal() && alone {
            return StoreError::Unreachable(text);
        }
        StoreError::NoAnswer(text)
    }
}

/// Whether it says that the script is not loaded: then nothing was done.
fn unknown(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn parse((granted, remaining, wait, reset): Figures) -> Result<Taken, StoreError> {
    let natural = |n: i64| {
        u64::try_from(n).map_err(|_| StoreError::Refused(format!("a negative figure: {n}")))
    };
    Ok(Taken {
        granted: natural(granted)?,
        remaining: natural(remaining)?,
        retry_after: if wait < 0 { None } else { Some(Duration::from_micros(natural(wait)?)) },
        reset_after: Duration::from_micros(natural(reset)?),
    })
}

#[async_trait]
impl Counter for RedisCounter {
    fn offers(&self, algorithm: Algorithm) -> bool {
        matches!(algorithm, Algorithm::Gcra | Algorithm::LeakyBucket | Algorithm::FixedWindow)
    }

    async fn take(&self, takes: &[Take<'_>]) -> Result<Vec<Taken>, StoreError> {
        if takes.iter().any(|take: &Take<'_>| !fits(&take.quota)) {
            return Err(StoreError::Refused("the quota is too long for microseconds".into()));
        }
        self.ask(takes).await?.into_iter().map(parse).collect()
    }
}

/// The script counts in doubles: microseconds since 1970 and a quota's span must be exact in them.
fn fits(quota: &Quota) -> bool {
    quota.rules().is_ok_and(|rules| {
        let span = rules.interval.div_ceil(1000).saturating_mul(rules.limit);
        span.max(rules.per / 1000).max(rules.limit) < 1 << 52
    })
}

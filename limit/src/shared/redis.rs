//! Redis as the store: one atomic script a key, at the server's clock.

use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Script};

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

/// A [`Counter`] over one Redis server, of version 6 or later, or of whatever speaks its protocol.
///
/// Each key is one string `<prefix>{<key>}`, touched by one script call: in a cluster all that a
/// decision needs is in one slot. Figures are whole microseconds, a unit's time rounded up. A key
/// expires when it is as good as new.
///
/// Replication of Redis is asynchronous: a fail-over may forget the last takes.
#[derive(Debug)]
pub struct RedisCounter {
    client: Client,
    prefix: String,
    after_restart: AfterRestart,
    script: Script,
    link: tokio::sync::Mutex<Option<Link>>,
}

/// A connection does not outlive the server's process, so that its start holds for all of it.
#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    server_start_us: u64,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("server_start_us", &self.server_start_us).finish()
    }
}

impl RedisCounter {
    /// A store whose keys begin with `prefix`. Connects with the first take.
    pub fn new(client: Client, prefix: impl Into<String>, after_restart: AfterRestart) -> Self {
        Self {
            client,
            prefix: prefix.into(),
            after_restart,
            script: Script::new(include_str!("take.lua")),
            link: tokio::sync::Mutex::new(None),
        }
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
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(ANSWER_MAX));
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let (secs, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let up_secs = info
            .lines()
            .find_map(|line| line.strip_prefix("uptime_in_seconds:")?.trim().parse::<u64>().ok())
            .unwrap_or(0);
        // The server counts its uptime in whole seconds, and may be a second ahead.
        let start_secs = secs.saturating_sub(up_secs) + u64::from(up_secs > 0);
        let start_us = start_secs.saturating_mul(1_000_000).saturating_add(micros);
        let server_start_us = match self.after_restart {
            AfterRestart::Drained => start_us,
            AfterRestart::Fresh => 0,
        };
        Ok(Link { connection, server_start_us })
    }

    async fn take_one(&self, link: &mut Link, take: &Take<'_>) -> Result<Taken, StoreError> {
        let rules = take.quota.rules().map_err(|e| StoreError::Refused(e.to_string()))?;
        let key = format!("{}{{{}}}", self.prefix, take.key);
        let answer: Result<(i64, i64, i64, i64), RedisError> = self
            .script
            .key(key)
            .arg(if rules.kind == Kind::Gcra { "gcra" } else { "window" })
            .arg(rules.limit)
            .arg(rules.interval.div_ceil(1000))
            .arg(rules.per.div_ceil(1000))
            .arg(take.least)
            .arg(take.most)
            .arg(link.server_start_us)
            .invoke_async(&mut link.connection)
            .await;
        match answer {
            Ok(answer) => parse(answer),
            Err(error) => Err(self.failed(error).await),
        }
    }

    /// Drops the connection, unless it was the server that answered.
    async fn failed(&self, error: RedisError) -> StoreError {
        let text = error.to_string();
        if matches!(error.kind(), redis::ErrorKind::Server(_)) {
            return StoreError::Refused(text);
        }
        *self.link.lock().await = None;
        if error.is_connection_refusal() {
            return StoreError::Unreachable(text);
        }
        StoreError::NoAnswer(text)
    }
}

fn parse((granted, remaining, wait, reset): (i64, i64, i64, i64)) -> Result<Taken, StoreError> {
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
        let mut link = self.link().await?;
        let mut answers = Vec::with_capacity(takes.len());
        for take in takes {
            answers.push(self.take_one(&mut link, take).await?);
        }
        Ok(answers)
    }
}

/// The script counts in doubles: microseconds since 1970 and a quota's span must be exact in them.
fn fits(quota: &Quota) -> bool {
    quota.rules().is_ok_and(|rules| {
        let span = rules.interval.div_ceil(1000).saturating_mul(rules.limit);
        span.max(rules.per / 1000).max(rules.limit) < 1 << 52
    })
}

//! Redis as the store: one atomic script a key, at the server's clock.

mod call;
mod link;
#[cfg(feature = "redis-cluster")]
mod slots;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind};

use super::counter::{Counter, StoreError, Take, Taken};
use crate::error::ConfigError;
use crate::quota::Quota;
use call::{Call, Figures};
use link::{Connection, Link, Links, Servers};

/// What a key starts with whose state is not on the server or cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenLost {
    /// As if drained: one that is not there when the server started, so that a server that lost
    /// its data never gives a burst or a window twice; one that cannot be read now. Keys that were
    /// idle start with what has flowed back since; a fixed window that was running is over for
    /// all whose count was lost.
    ///
    /// Needs the server's `INFO`: see [`RedisCounter::verify`].
    #[default]
    Drained,
    /// As if never used: a restart without data may admit one burst or one window more.
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
/// slot of a cluster. A batch of takes is one round trip to a single server; in a cluster one round
/// trip a take. A key expires when it is as good as new.
///
/// A user of an ACL needs `+evalsha +eval +time +get +set`, with [`WhenLost::Drained`] `+info`, on a
/// cluster `+cluster|slots`, and the keys `~<prefix>*`.
///
/// # Format
/// `<prefix>{<key>}:g1` for quotas by rate and `<prefix>{<key>}:w1` for fixed windows; a later
/// version of the format would have another name, so a change of algorithm or version starts a key
/// anew. The value is `A:B` in decimal figures: by rate the theoretical arrival time, in
/// microsecond A since 1970 and B nanoseconds; for a window its beginning A and its units B. All that
/// begins with the prefix belongs to the limiter: what is found there and is not of this format is
/// replaced, and counted in [`RedisStats::unreadable`].
///
/// # Rounding
/// Times are whole nanoseconds while the burst is worth less than 52 days, else whole microseconds;
/// windows are whole microseconds. What rounding would make slower by more than 0.1 % is refused
/// when the limiter is built.
///
/// Replication of Redis is asynchronous: a fail-over may forget the last takes.
#[derive(Debug)]
pub struct RedisCounter {
    links: Links,
    prefix: String,
    when_lost: WhenLost,
    script: Script,
    unreadable: AtomicU64,
    #[cfg(feature = "redis-cluster")]
    slots: std::sync::Arc<slots::Slots>,
}

/// Granted, remaining, wait, reset, unreadable.
type Answer = (i64, i64, i64, i64, i64);

const SCRIPT: &str = include_str!("take.lua");

impl RedisCounter {
    /// A store on one server whose keys begin with `prefix`. Connects with the first take.
    pub fn new(client: Client, prefix: impl Into<String>, when_lost: WhenLost) -> Self {
        Self::on(Servers::Single(client), prefix.into(), when_lost)
    }

    /// A store on a cluster whose keys begin with `prefix`. Connects with the first take.
    ///
    /// Needs the feature `redis-cluster`. The client's own retries and time limits hold; set them
    /// below [`OutageConfig::timeout`](super::OutageConfig::timeout).
    #[cfg(feature = "redis-cluster")]
    pub fn cluster(
        client: redis::cluster::ClusterClient,
        prefix: impl Into<String>,
        when_lost: WhenLost,
    ) -> Self {
        Self::on(Servers::Cluster(client), prefix.into(), when_lost)
    }

    fn on(servers: Servers, prefix: String, when_lost: WhenLost) -> Self {
        Self {
            links: Links::new(servers),
            prefix,
            when_lost,
            script: Script::new(SCRIPT),
            unreadable: AtomicU64::new(0),
            #[cfg(feature = "redis-cluster")]
            slots: std::sync::Arc::new(slots::Slots::new()),
        }
    }

    /// Makes sure that the server can be reached and permits all that takes need, by a take of a
    /// key `verify` and by `INFO` where [`WhenLost::Drained`] needs it. To be called at the start of
    /// a service; in a cluster it asks one server.
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
        if self.when_lost == WhenLost::Drained {
            let link = self.links.get().await?;
            let mut command = redis::cmd("INFO");
            command.arg("server");
            let answer: RedisResult<redis::Value> = match link.connection {
                Connection::Single(mut connection) => command.query_async(&mut connection).await,
                #[cfg(feature = "redis-cluster")]
                Connection::Cluster(mut connection) => command.query_async(&mut connection).await,
            };
            answer.map_err(|error| understood(&error))?;
        }
        Ok(())
    }

    /// Counters.
    pub fn stats(&self) -> RedisStats {
        RedisStats { unreadable: self.unreadable.load(Ordering::Relaxed) }
    }

    /// One round trip, and another for the takes of a server that does not know the script yet.
    async fn ask_at_once(
        &self,
        connection: &mut MultiplexedConnection,
        calls: &[Call],
    ) -> Result<Vec<RedisResult<Answer>>, RedisError> {
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for call in calls {
            pipe.add_command(call.command("EVALSHA", self.script.get_hash()));
        }
        let mut answers: Vec<RedisResult<Answer>> = pipe.query_async(connection).await?;
        let unknown = |answer: &RedisResult<Answer>| answer.as_ref().is_err_and(is_unknown_script);
        if answers.iter().any(unknown) {
            let mut pipe = redis::pipe();
            pipe.ignore_errors();
            // The first brings the script along; the server runs the others after it.
            let (mut name, mut script) = ("EVAL", SCRIPT);
            for (call, _) in calls.iter().zip(&answers).filter(|(_, answer)| unknown(answer)) {
                pipe.add_command(call.command(name, script));
                (name, script) = ("EVALSHA", self.script.get_hash());
            }
            let again: Vec<RedisResult<Answer>> = pipe.query_async(connection).await?;
            let places = answers.iter_mut().filter(|answer| unknown(answer));
            places.zip(again).for_each(|(place, answer)| *place = answer);
        }
        Ok(answers)
    }

    /// The take goes to the server of its slot.
    #[cfg(feature = "redis-cluster")]
    async fn ask_cluster(
        &self,
        connection: &mut redis::cluster_async::ClusterConnection,
        call: &Call,
    ) -> RedisResult<Answer> {
        self.slots.refresh(connection);
        let answer = call.command("EVALSHA", self.script.get_hash()).query_async(connection).await;
        match answer {
            // Brings the script along to this server only: another may be away.
            Err(error) if is_unknown_script(&error) => {
                call.command("EVAL", SCRIPT).query_async(connection).await
            }
            answer => answer,
        }
    }

    async fn ask(&self, link: &Link, calls: &[Call]) -> Vec<Result<Answer, StoreError>> {
        let understand = |answer: RedisResult<Answer>| answer.map_err(|e| understood(&e));
        match link.connection.clone() {
            Connection::Single(mut connection) => {
                let sent = self.links.sent(link);
                let answers = self.ask_at_once(&mut connection, calls).await;
                let is_broken = match &answers {
                    Ok(answers) => {
                        sent.answered();
                        // Another server may be the primary now, under the same address.
                        answers.iter().filter_map(|answer| answer.as_ref().err()).any(is_elsewhere)
                    }
                    Err(error) => !matches!(error.kind(), ErrorKind::Server(_)),
                };
                if is_broken {
                    self.links.close(link);
                }
                match answers {
                    Ok(answers) => answers.into_iter().map(understand).collect(),
                    Err(error) => calls.iter().map(|_| Err(understood(&error))).collect(),
                }
            }
            #[cfg(feature = "redis-cluster")]
            Connection::Cluster(mut connection) => {
                let mut answers = Vec::with_capacity(calls.len());
                for call in calls {
                    answers.push(understand(self.ask_cluster(&mut connection, call).await));
                }
                answers
            }
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

/// Whether it says that the script is not loaded: then nothing was done.
fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether the server says that it is not the one to ask: a replica, or one that has lost its
/// primary.
fn is_elsewhere(error: &RedisError) -> bool {
    let kinds = [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown, ServerErrorKind::Moved];
    kinds.iter().any(|kind| error.kind() == ErrorKind::Server(*kind))
}

/// What an error of one take means. Each error of a server is from before the script's only write,
/// so nothing was taken.
fn understood(error: &RedisError) -> StoreError {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Server(kind) => match kind {
            // It is starting, or not the one to ask.
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ReadOnly => StoreError::Unreachable(text),
            ServerErrorKind::NoPerm => not_permitted(&text),
            _ => refused(text),
        },
        ErrorKind::Extension => refused(text),
        ErrorKind::ClusterConnectionNotFound => StoreError::Unreachable(text),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => StoreError::Invalid(text),
        _ if error.is_connection_refusal() => StoreError::Unreachable(text),
        _ => StoreError::NoAnswer(text),
    }
}

fn refused(text: String) -> StoreError {
    // What a script may not do is said in the script's error.
    if text.contains("ACL failure") || text.contains("no permissions") {
        return not_permitted(&text);
    }
    // Another script holds the whole server up.
    if text.contains("BUSY ") { StoreError::Unreachable(text) } else { StoreError::Refused(text) }
}

fn not_permitted(text: &str) -> StoreError {
    let command = text.split('\'').nth(1).unwrap_or_default().to_ascii_lowercase();
    let advice = match command.as_str() {
        "" => "grant the keys of the prefix (`~<prefix>*`)".to_owned(),
        "info" => {
            "grant it (`ACL SETUSER <user> +info`) or choose `WhenLost::Fresh`, which needs no INFO"
                .to_owned()
        }
        other => format!("grant it (`ACL SETUSER <user> +{other}`)"),
    };
    StoreError::NotPermitted(format!("{text}; {advice}"))
}

#[async_trait]
impl Counter for RedisCounter {
    fn accepts(&self, quota: &Quota) -> Result<(), ConfigError> {
        Figures::of(&quota.rules()?).map(|_| ())
    }

    #[cfg(feature = "redis-cluster")]
    fn server_of(&self, key: &str) -> u64 {
        if !self.links.is_cluster() {
            return 0;
        }
        self.slots.server_of(format!("{}{{{key}}}", self.prefix).as_bytes())
    }

    async fn take(&self, takes: &[Take<'_>]) -> Vec<Result<Taken, StoreError>> {
        let calls: Vec<Result<Call, StoreError>> = takes
            .iter()
            .map(|take| Call::new(self, take).map_err(|e| StoreError::Refused(e.to_string())))
            .collect();
        let link = match self.links.get().await {
            Ok(link) => link,
            Err(error) => return takes.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut refusals = Vec::with_capacity(calls.len());
        let mut asked = Vec::with_capacity(calls.len());
        for call in calls {
            refusals.push(call.map(|call| asked.push(call)));
        }
        let mut answers = self.ask(&link, &asked).await.into_iter();
        let missing = || Err(StoreError::Invalid("an answer is missing".into()));
        let mut answer =
            |()| answers.next().unwrap_or_else(missing).and_then(|one| self.parse(one));
        refusals.into_iter().map(|asked| asked.and_then(&mut answer)).collect()
    }
}

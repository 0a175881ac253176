//! The lock service in a PostgreSQL database.

mod connection;
mod fence;
mod waits;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

pub use self::connection::{Connect, Notified};
pub use self::fence::{FenceError, PostgresFence};

use self::connection::Link;
use self::waits::{Wait, Waits};
use crate::core::{
    Hold, LockView, MAX_LOCK_DELAY_MS, MAX_NAME_BYTES, MAX_TTL_MS, MAX_VALUE_BYTES, MIN_TTL_MS,
    Mode, Rejection,
};
use crate::error::ConfigError;
use crate::service::{Acquired, Acquisition, Fenced, LockService, NewValue, ServiceError};

/// How often what dead sessions have left is swept up where nobody waits for it.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Statements of one sweep.
const MAX_SWEEPS: usize = 100;
/// A wait for what ends by itself is looked at this much later, for its end to have passed.
const ROUNDING: Duration = Duration::from_millis(2);

/// How the service is kept in the database.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// The schema of its tables and functions, 1 to 63 bytes without `$` and `\`. It is made at the
    /// first use, unless it is there. Default: `voussoir_lock`.
    pub schema: String,
    /// How often those look again that wait, should a notification be lost: 10 ms to 1 min. All
    /// but the first in the queue look at their own row and the one before it only. Default: 1 s.
    pub poll_interval: Duration,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self { schema: "voussoir_lock".to_owned(), poll_interval: Duration::from_secs(1) }
    }
}

impl PostgresConfig {
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let schema = &self.schema;
        let is_name = (1..=63).contains(&schema.len()) && !schema.contains(['\0', '$', '\\']);
        let polls = Duration::from_millis(10)..=Duration::from_secs(60);
        ConfigError::first_of(&[
            ("schema", is_name, "must have 1 to 63 bytes, without zero byte, `$` and `\\`"),
            ("poll_interval", polls.contains(&self.poll_interval), "must be from 10 ms to 1 min"),
        ])
    }
}

/// A lock service in a PostgreSQL database: a row for each session, renewed in the database's
/// clock, and tokens of a sequence, which outlives the locks.
///
/// It does all that the service of this crate does: order, shared locks, semaphores, lock-delay,
/// values. Every call is one statement, so that no client that is paused keeps a row locked, and
/// nothing depends on which connection it goes by: also through a pooler in transaction mode, where
/// waits only poll. It has two connections of its own, one of them for renewals. One that answers
/// nothing for 1 s to a call whose time is over is replaced: a session with at least 4 s to live
/// survives a connection that a firewall has forgotten.
///
/// The database decides when a session ends, by its clock: one that is set forward ends sessions
/// early, which only the tokens make harmless. A failover to a replica that lacks commits repeats
/// tokens: replicate synchronously.
///
/// # Example
/// ```no_run
/// use std::sync::Arc;
/// use std::time::Duration;
/// use voussoir_lock::postgres::{PostgresConfig, PostgresLocks};
/// use voussoir_lock::{LeaseConfig, Session};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let database: tokio_postgres::Config = "postgres://app@db/app".parse()?;
/// let locks = PostgresLocks::start(Arc::new(database), PostgresConfig::default())?;
/// let second = Duration::from_secs(1);
/// let session = Session::open(locks, LeaseConfig::default(), 5 * second).await?;
/// let guard = session.lock("ledger").within(second).await?;
/// guard.release(second).await;
/// # Ok(())
/// # }
/// ```
pub struct PostgresLocks {
    inner: Arc<Inner>,
    sweeper: JoinHandle<()>,
}

struct Inner {
    /// The schema as it stands in statements.
    schema: String,
    poll_interval: Duration,
    /// Those that wait, by what a notification says.
    waits: Arc<Waits>,
    /// For everything but renewals.
    work: Link,
    /// For renewals, which wait for no lock.
    renewals: Link,
}

impl PostgresLocks {
    /// A client of the service. It connects at the first call, and again whenever a connection
    /// ends. Its task runs on the current tokio runtime.
    ///
    /// # Errors
    /// [`ConfigError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        connect: Arc<dyn Connect>,
        config: PostgresConfig,
    ) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        let waits = Arc::new(Waits::default());
        let work = Link::new(Arc::clone(&connect), &config.schema, Some(Arc::clone(&waits)));
        let renewals = Link::new(connect, &config.schema, None);
        let schema = connection::quoted(&config.schema);
        let poll_interval = config.poll_interval;
        let inner = Arc::new(Inner { schema, poll_interval, waits, work, renewals });
        let sweeper = tokio::spawn(sweep(Arc::clone(&inner)));
        Ok(Arc::new(Self { inner, sweeper }))
    }
}

impl Drop for PostgresLocks {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

/// Ends with the service.
async fn sweep(inner: Arc<Inner>) {
    // Ends: aborted with the service.
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        for _ in 0..MAX_SWEEPS {
            let by = Instant::now() + SWEEP_EVERY;
            let swept = inner.rows(&inner.work, "SELECT {}.sweep()", &[], by).await;
            let has_more = match &swept {
                Ok(rows) => rows.first().is_some_and(|row| row.try_get(0).unwrap_or(false)),
                Err(error) => {
                    tracing::debug!(target: "voussoir::lock", %error, "not swept");
                    false
                }
            };
            if !has_more {
                break;
            }
        }
    }
}

type Param<'a> = (&'a (dyn ToSql + Sync), Type);

impl Inner {
    /// Carries one statement out; `{}` in it stands for the schema. The statement is not prepared,
    /// so that it does not matter which connection of a pooler it goes by.
    async fn rows(
        &self,
        link: &Link,
        statement: &str,
        params: &[Param<'_>],
        deadline: Instant,
    ) -> Result<Vec<Row>, ServiceError> {
        let statement = statement.replace("{}", &self.schema);
        let connection = timeout_at(deadline, link.connection()).await;
        let connection =
            connection.map_err(|_| ServiceError::unavailable("it takes long to connect"))??;
        let asked_at = connection.silence.asked();
        match timeout_at(deadline, connection.client.query_typed(&statement, params)).await {
            Ok(rows) => {
                connection.silence.heard();
                rows.map_err(|error| failed(&error))
            }
            Err(_) => {
                connection.silence.missed(asked_at);
                Err(ServiceError::unknown("the database has not answered by the deadline"))
            }
        }
    }

    /// A function that answers `done`, or why not.
    async fn done(
        &self,
        link: &Link,
        statement: &str,
        params: &[Param<'_>],
        deadline: Instant,
    ) -> Result<(), ServiceError> {
        let rows = self.rows(link, statement, params, deadline).await?;
        let row = rows.first().ok_or_else(|| ServiceError::unknown("no row"))?;
        match row.try_get(0).map_err(ServiceError::unknown)? {
            "done" => Ok(()),
            status => Err(refusal(status)),
        }
    }

    /// Looks where an acquisition that is queued stands. It takes no lock on any row, and reads a
    /// few of them, however many wait.
    async fn look(
        &self,
        session: i64,
        request: i64,
        name: &[u8],
        deadline: Instant,
    ) -> Result<Turn, ServiceError> {
        let params: [Param<'_>; 3] =
            [(&session, Type::INT8), (&request, Type::INT8), (&name, Type::BYTEA)];
        let rows = self.rows(&self.work, LOOK, &params, deadline).await?;
        let Some(row) = rows.first() else { return Ok(Turn::Unknown) };
        let token = row.try_get::<_, Option<i64>>(0).map_err(ServiceError::unknown)?;
        let waits = row.try_get::<_, Option<bool>>(1).map_err(ServiceError::unknown)?;
        Ok(match (token, waits) {
            (Some(token), _) => Turn::Granted { token: token.max(0) as u64 },
            (None, Some(true)) => Turn::Waits,
            (None, _) => Turn::Unknown,
        })
    }

    /// The status, and the number, that `acquire` answers.
    async fn status(
        &self,
        statement: &str,
        params: &[Param<'_>],
        deadline: Instant,
    ) -> Result<(String, Option<u64>), ServiceError> {
        let rows = self.rows(&self.work, statement, params, deadline).await?;
        let row = rows.first().ok_or_else(|| ServiceError::unknown("no row"))?;
        let status = row.try_get(0).map_err(ServiceError::unknown)?;
        let number = row.try_get::<_, Option<i64>>(1).map_err(ServiceError::unknown)?;
        Ok((status, number.map(|number| number.max(0) as u64)))
    }
}

/// Where an acquisition that is queued stands, as far as a look that takes no row tells.
enum Turn {
    Granted {
        token: u64,
    },
    /// Another one that lives is before it.
    Waits,
    /// It is the first that waits, or it has ended: `acquire` says more.
    Unknown,
}

/// The token of an acquisition, and whether a live session waits before it. No row: it has ended,
/// or its session has.
const LOOK: &str = "\
    SELECT r.token, (
        SELECT true FROM {}.requests b JOIN {}.sessions x ON x.id = b.session
        WHERE b.name = r.name AND b.place < r.place AND b.token IS NULL AND {}.is_live(x)
        ORDER BY b.place DESC LIMIT 1
    )
    FROM {}.requests r JOIN {}.sessions s ON s.id = r.session
    WHERE r.session = $1 AND r.request = $2 AND r.name = $3 AND {}.is_live(s)";

/// What a failed statement says of its transaction. Each is one of its own.
fn failed(error: &tokio_postgres::Error) -> ServiceError {
    let reason = match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        None => error.to_string(),
    };
    match error.code().map(SqlState::code) {
        // The server ends: perhaps just after the commit.
        Some(code) if code.starts_with("57P") || code.starts_with("08") => {
            ServiceError::unknown(reason)
        }
        // It was rolled back.
        Some(_) => ServiceError::unavailable(reason),
        None => ServiceError::unknown(reason),
    }
}

/// A number of ours as one of PostgreSQL, which has no unsigned ones.
fn signed(number: u64) -> Result<i64, ServiceError> {
    number.try_into().map_err(|_| Rejection::OutOfRange.into())
}

/// The id of a session; one that cannot be is one that has ended.
fn session_id(session: u64) -> Result<i64, ServiceError> {
    session.try_into().map_err(|_| Rejection::NoSession.into())
}

fn refusal(status: &str) -> ServiceError {
    match status {
        "no session" => Rejection::NoSession.into(),
        "stale" => Rejection::StaleRequest.into(),
        "requests" => Rejection::TooManyRequests.into(),
        "queue" => Rejection::QueueFull.into(),
        "not held" => Rejection::NotHeld.into(),
        other => ServiceError::unknown(format!("`{other}` is no answer of this version")),
    }
}

fn check_name(name: &Bytes) -> Result<(), ServiceError> {
    if name.len() > MAX_NAME_BYTES { Err(Rejection::OutOfRange.into()) } else { Ok(()) }
}

/// Mode and slots as they stand in the table.
fn mode(mode: Mode) -> (i16, i64) {
    match mode {
        Mode::Exclusive => (0, 1),
        Mode::Shared => (1, i64::MAX),
        Mode::Slot { of } => (2, of.into()),
    }
}

#[async_trait]
impl LockService for PostgresLocks {
    type Grants = Fenced;

    async fn open_session(&self, ttl: Duration, deadline: Instant) -> Result<u64, ServiceError> {
        let ttl_ms = ttl.as_millis();
        if !(u128::from(MIN_TTL_MS)..=u128::from(MAX_TTL_MS)).contains(&ttl_ms) {
            return Err(Rejection::OutOfRange.into());
        }
        // Drawn, so that a database that is made anew repeats no id. One that is taken is an error
        // of the statement, and the next attempt draws another.
        let (id, ttl_ms) = (fastrand::i64(1 << 32..i64::MAX), ttl_ms as i64);
        let params: [Param<'_>; 2] = [(&id, Type::INT8), (&ttl_ms, Type::INT8)];
        let link = &self.inner.work;
        self.inner.done(link, "SELECT {}.open_session($1, $2)", &params, deadline).await?;
        Ok(id as u64)
    }

    async fn renew_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        let id = session_id(session)?;
        let (link, params): (_, [Param<'_>; 1]) = (&self.inner.renewals, [(&id, Type::INT8)]);
        self.inner.done(link, "SELECT {}.renew_session($1)", &params, deadline).await
    }

    async fn close_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        let Ok(id) = i64::try_from(session) else { return Ok(()) };
        // Committed first: what it asks for from now on is refused.
        let mark = "UPDATE {}.sessions SET is_ended = true, is_closed = true \
                    WHERE id = $1 AND NOT is_ended AND expires_at > clock_timestamp()";
        for statement in [mark, "SELECT {}.settle_session($1)"] {
            let params: [Param<'_>; 1] = [(&id, Type::INT8)];
            self.inner.rows(&self.inner.work, statement, &params, deadline).await?;
        }
        Ok(())
    }

    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        let Acquisition { session, request, floor, name, wait, lock_delay, .. } = acquisition;
        check_name(name)?;
        let delay_ms = lock_delay.as_millis();
        if delay_ms > u128::from(MAX_LOCK_DELAY_MS)
            || acquisition.mode == (Mode::Slot { of: 0 })
            || floor > request
        {
            return Err(Rejection::OutOfRange.into());
        }
        let session = session_id(*session)?;
        let (request, floor) = (signed(*request)?, signed(*floor)?);
        let (mode, slots) = mode(acquisition.mode);
        let (name, delay_ms) = (&name[..], delay_ms as i64);
        let params: [Param<'_>; 8] = [
            (&session, Type::INT8),
            (&request, Type::INT8),
            (&floor, Type::INT8),
            (&name, Type::BYTEA),
            (&mode, Type::INT2),
            (&slots, Type::INT8),
            (wait, Type::BOOL),
            (&delay_ms, Type::INT8),
        ];
        let statement = "SELECT * FROM {}.acquire($1, $2, $3, $4, $5, $6, $7, $8)";
        let waiting = self.inner.waits.wait(Wait::grant(session, request));
        let mut is_queued = false;
        // Ends: the deadline passes.
        loop {
            // Registered before the look, so that no notification is missed in between.
            let notified = waiting.notified();
            let turn = if is_queued {
                self.inner.look(session, request, name, deadline).await?
            } else {
                Turn::Unknown
            };
            let within = match turn {
                Turn::Granted { token } => return Ok(Acquired::Granted { token }),
                Turn::Waits => self.inner.poll_interval,
                Turn::Unknown => {
                    let asked = self.inner.status(statement, &params, deadline).await?;
                    match (&asked.0[..], asked.1) {
                        ("granted", Some(token)) => return Ok(Acquired::Granted { token }),
                        ("busy", _) => return Ok(Acquired::Busy),
                        ("queued", Some(ms)) => {
                            self.inner.poll_interval.min(Duration::from_millis(ms) + ROUNDING)
                        }
                        ("queued", None) => self.inner.poll_interval,
                        (status, _) => return Err(refusal(status)),
                    }
                }
            };
            is_queued = true;
            let until = deadline.min(Instant::now() + within);
            if timeout_at(until, notified).await.is_err() && Instant::now() >= deadline {
                return Ok(Acquired::Queued);
            }
        }
    }

    async fn release(
        &self,
        session: u64,
        request: u64,
        deadline: Instant,
    ) -> Result<(), ServiceError> {
        let (session, request) = (session_id(session)?, signed(request)?);
        let params: [Param<'_>; 2] = [(&session, Type::INT8), (&request, Type::INT8)];
        let link = &self.inner.work;
        let answer = self.inner.done(link, "SELECT {}.release($1, $2)", &params, deadline).await;
        self.inner.waits.ring(&Wait::grant(session, request));
        answer
    }

    async fn set_value(&self, value: &NewValue, deadline: Instant) -> Result<(), ServiceError> {
        check_name(&value.name)?;
        if value.value.len() > MAX_VALUE_BYTES {
            return Err(Rejection::OutOfRange.into());
        }
        let (session, number) = (session_id(value.session)?, signed(value.number)?);
        // A token that cannot be is held by nobody.
        let token = i64::try_from(value.token).unwrap_or(-1);
        let (name, bytes) = (&value.name[..], &value.value[..]);
        let params: [Param<'_>; 5] = [
            (&session, Type::INT8),
            (&token, Type::INT8),
            (&number, Type::INT8),
            (&name, Type::BYTEA),
            (&bytes, Type::BYTEA),
        ];
        let statement = "SELECT {}.set_value($1, $2, $3, $4, $5)";
        self.inner.done(&self.inner.work, statement, &params, deadline).await
    }

    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<LockView, ServiceError> {
        check_name(name)?;
        let bytes = &name[..];
        let waiting = self.inner.waits.wait(Wait::change(name));
        // Ends: the deadline passes.
        loop {
            let notified = waiting.notified();
            let params: [Param<'_>; 1] = [(&bytes, Type::BYTEA)];
            let statement = "SELECT * FROM {}.view($1)";
            let rows = self.inner.rows(&self.inner.work, statement, &params, deadline).await?;
            let view = seen(&rows).map_err(ServiceError::unknown)?;
            let until = deadline.min(Instant::now() + self.inner.poll_interval);
            if known != Some(view.version)
                || timeout_at(until, notified).await.is_err() && Instant::now() >= deadline
            {
                return Ok(view);
            }
        }
    }
}

/// The lock, of the rows of `view`: one for each holder, or one without a session when nobody holds
/// it; what is of the lock itself stands in each. No row: nobody uses it, as the default says.
fn seen(rows: &[Row]) -> Result<LockView, tokio_postgres::Error> {
    let mut view = LockView::default();
    for row in rows {
        view.waiters = row.try_get::<_, i64>(5)?.max(0) as usize;
        view.is_delayed = row.try_get(6)?;
        view.value = Bytes::copy_from_slice(row.try_get(7)?);
        view.version = row.try_get::<_, i64>(8)? as u64;
        let Some(session) = row.try_get::<_, Option<i64>>(0)? else { continue };
        let mode = match row.try_get::<_, i16>(3)? {
            0 => Mode::Exclusive,
            1 => Mode::Shared,
            _ => Mode::Slot { of: row.try_get::<_, i64>(4)?.try_into().unwrap_or(u32::MAX) },
        };
        let (request, token) = (row.try_get::<_, i64>(1)? as u64, row.try_get::<_, i64>(2)? as u64);
        view.holders.push(Hold { session: session as u64, request, token, mode });
    }
    Ok(view)
}

impl fmt::Debug for PostgresLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLocks").field("schema", &self.inner.schema).finish_non_exhaustive()
    }
}

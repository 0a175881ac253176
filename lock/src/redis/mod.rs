//! Advisory locks in Redis.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, RedisResult, Script, ScriptInvocation};
use tokio::time::{Instant, sleep, timeout_at};

use crate::core::{
    Hold, LockView, MAX_NAME_BYTES, MAX_TTL_MS, MAX_VALUE_BYTES, MIN_TTL_MS, Mode, Rejection,
};
use crate::error::ConfigError;
use crate::service::{Acquired, Acquisition, Advisory, LockService, NewValue, ServiceError};
use crate::silence::Silence;

/// How many locks a session may hold and wait for: a renewal, during which Redis does nothing else,
/// goes through all.
pub const MAX_HELD: usize = 1_000;

/// How the locks are kept in Redis.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RedisConfig {
    /// Before each key, at most 256 bytes. Default: `voussoir:lock:`.
    pub prefix: String,
    /// How often those look that wait, each time between the half of it and all: 1 ms to 1 min.
    /// Default: 50 ms.
    pub poll_interval: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        let poll_interval = Duration::from_millis(50);
        Self { prefix: "voussoir:lock:".to_owned(), poll_interval }
    }
}

impl RedisConfig {
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let polls = Duration::from_millis(1)..=Duration::from_secs(60);
        ConfigError::first_of(&[
            ("prefix", self.prefix.len() <= 256, "must have at most 256 bytes"),
            ("poll_interval", polls.contains(&self.poll_interval), "must be from 1 ms to 1 min"),
        ])
    }
}

/// Advisory locks in one Redis: for saving work, not for correctness.
///
/// Redis forgets what it has not yet written to its disk or its replicas, and with it who holds a
/// lock and every counter; so there are no fencing tokens, and [`Guard::token`] does not compile.
/// Each lock is a key that expires, deleted only by who holds it; one renewal prolongs all locks of
/// a session, and finds out which have vanished: then the session is lost.
///
/// Those that wait ask again and again, in no order. Shared locks, semaphores and lock-delays are
/// refused (`Unsupported`); a value ends with the grant by which it was set. The keys of a session
/// are not in one slot: this is for one server and its replicas, not for Redis Cluster.
///
/// [`Guard::token`]: crate::Guard::token
///
/// # Example
/// ```no_run
/// use std::time::Duration;
/// use voussoir_lock::redis::{RedisConfig, RedisLocks};
/// use voussoir_lock::{LeaseConfig, Session};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let client = redis::Client::open("redis://cache")?;
/// let locks = RedisLocks::new(client, RedisConfig::default())?;
/// let second = Duration::from_secs(1);
/// let session = Session::open(locks, LeaseConfig::default(), second).await?;
/// let guard = session.lock("nightly report").within(second).await?;
/// guard.run(async { /* saves the others the work */ }).await?;
/// # Ok(())
/// # }
/// ```
pub struct RedisLocks {
    client: Client,
    connection: Mutex<Arc<Connection>>,
    config: RedisConfig,
    scripts: Scripts,
}

/// A connection that is made anew when it has ended, until it answers nothing any more.
struct Connection {
    manager: ConnectionManager,
    silence: Silence,
}

impl Connection {
    fn new(client: Client) -> RedisResult<Arc<Self>> {
        // `Session` retries, and each call has its deadline.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(2)));
        let manager = ConnectionManager::new_lazy_with_config(client, config)?;
        Ok(Arc::new(Self { manager, silence: Silence::new() }))
    }
}

struct Scripts {
    acquire: Script,
    renew: Script,
    close: Script,
    release: Script,
    set_value: Script,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisLocksError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be used.
    #[error(transparent)]
    Redis(#[from] RedisError),
}

impl RedisLocks {
    /// A client of the locks in one Redis. It connects at the first call, and again whenever the
    /// connection ends, or has answered nothing for 1 s to a call whose time is over.
    ///
    /// # Errors
    /// [`RedisLocksError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(client: Client, config: RedisConfig) -> Result<Arc<Self>, RedisLocksError> {
        config.validate()?;
        let connection = Mutex::new(Connection::new(client.clone())?);
        let scripts = Scripts {
            acquire: Script::new(include_str!("acquire.lua")),
            renew: Script::new(include_str!("renew.lua")),
            close: Script::new(include_str!("close.lua")),
            release: Script::new(include_str!("release.lua")),
            set_value: Script::new(include_str!("set_value.lua")),
        };
        Ok(Arc::new(Self { client, connection, config, scripts }))
    }

    /// The connection for the next call.
    fn connection(&self) -> Result<Arc<Connection>, ServiceError> {
        // Nothing in the critical section panics.
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.silence.is_given_up() {
            // Calls that are under way on the old one keep it until their deadlines.
            *kept = Connection::new(self.client.clone()).map_err(ServiceError::unavailable)?;
        }
        Ok(Arc::clone(&kept))
    }

    /// Carries a call out, and notices that the connection answers nothing any more.
    async fn answer<T>(
        &self,
        call: impl AsyncFnOnce(ConnectionManager) -> RedisResult<T>,
        deadline: Instant,
    ) -> Result<T, ServiceError> {
        let connection = self.connection()?;
        let asked_at = connection.silence.asked();
        let answer = timeout_at(deadline, call(connection.manager.clone())).await;
        match &answer {
            Ok(Err(error)) if error.is_timeout() => connection.silence.missed(asked_at),
            Ok(_) => connection.silence.heard(),
            Err(_) => connection.silence.missed(asked_at),
        }
        answer.map_err(|_| silent())?.map_err(|error| failed(&error))
    }

    fn session_key(&self, session: u64) -> String {
        format!("{}session:{session:016x}", self.config.prefix)
    }

    fn lock_key(&self, name: &[u8]) -> Vec<u8> {
        [self.config.prefix.as_bytes(), b"lock:", name].concat()
    }

    /// The status, and the number, that a script answers.
    async fn ask(
        &self,
        script: &ScriptInvocation<'_>,
        deadline: Instant,
    ) -> Result<(String, String), ServiceError> {
        self.answer(
            async |mut manager: ConnectionManager| script.invoke_async(&mut manager).await,
            deadline,
        )
        .await
    }

    async fn view_now(&self, name: &[u8], deadline: Instant) -> Result<LockView, ServiceError> {
        let mut ask = redis::cmd("HMGET");
        ask.arg(self.lock_key(name)).arg(&["session", "request", "number", "written", "value"]);
        type Fields = (Option<u64>, Option<u64>, Option<u64>, Option<u64>, Option<Vec<u8>>);
        let ask =
            async |mut manager: ConnectionManager| ask.query_async::<Fields>(&mut manager).await;
        let fields = self.answer(ask, deadline).await?;
        let (Some(session), Some(request), Some(token), written, value) = fields else {
            return Ok(LockView::default());
        };
        Ok(LockView {
            holders: vec![Hold { session, request, token, mode: Mode::Exclusive }],
            value: value.unwrap_or_default().into(),
            // Grants have drawn numbers; the values of one grant are counted.
            version: token.wrapping_add(written.unwrap_or(0)).max(1),
            ..LockView::default()
        })
    }

    async fn pause(&self, deadline: Instant) {
        let pause = self.config.poll_interval.mul_f64(fastrand::f64().midpoint(1.0));
        sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}

fn silent() -> ServiceError {
    ServiceError::unknown("Redis has not answered by the deadline")
}

fn failed(error: &RedisError) -> ServiceError {
    if error.is_connection_refusal() {
        return ServiceError::unavailable(error);
    }
    ServiceError::unknown(error)
}

fn done(answer: (String, String)) -> Result<(), ServiceError> {
    if answer.0 == "done" { Ok(()) } else { Err(refusal(&answer.0)) }
}

fn refusal(status: &str) -> ServiceError {
    match status {
        "no session" => Rejection::NoSession.into(),
        "stale" => Rejection::StaleRequest.into(),
        "requests" => Rejection::TooManyRequests.into(),
        "not held" => Rejection::NotHeld.into(),
        other => ServiceError::unknown(format!("`{other}` is no answer of this version")),
    }
}

fn check_name(name: &Bytes) -> Result<(), ServiceError> {
    if name.len() > MAX_NAME_BYTES { Err(Rejection::OutOfRange.into()) } else { Ok(()) }
}

#[async_trait]
impl LockService for RedisLocks {
    type Grants = Advisory;

    async fn open_session(&self, ttl: Duration, deadline: Instant) -> Result<u64, ServiceError> {
        let ttl_ms = ttl.as_millis();
        if !(u128::from(MIN_TTL_MS)..=u128::from(MAX_TTL_MS)).contains(&ttl_ms) {
            return Err(Rejection::OutOfRange.into());
        }
        // Drawn: a counter would be forgotten with the data, and one that is taken is improbable.
        let session = fastrand::u64(1 << 32..1 << 63);
        let (key, ttl_ms) = (self.session_key(session), ttl_ms as u64);
        let mut open = redis::pipe();
        open.atomic();
        open.cmd("HSET").arg(&key).arg(&[("ttl", ttl_ms), ("floor", 1)]).ignore();
        open.cmd("PEXPIRE").arg(&key).arg(ttl_ms).ignore();
        self.answer(
            async |mut manager: ConnectionManager| open.query_async::<()>(&mut manager).await,
            deadline,
        )
        .await?;
        Ok(session)
    }

    async fn renew_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        let mut script = self.scripts.renew.key(self.session_key(session));
        done(self.ask(script.arg(session), deadline).await?)
    }

    async fn close_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        let mut script = self.scripts.close.key(self.session_key(session));
        done(self.ask(script.arg(session), deadline).await?)
    }

    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        let Acquisition { session, request, floor, name, wait, .. } = acquisition;
        check_name(name)?;
        if acquisition.mode != Mode::Exclusive || !acquisition.lock_delay.is_zero() {
            return Err(Rejection::Unsupported.into());
        }
        if floor > request || *request >= 1 << 53 {
            // Redis counts in floating point.
            return Err(Rejection::OutOfRange.into());
        }
        let mut script = self.scripts.acquire.key(self.session_key(*session));
        script.key(self.lock_key(name)).arg(session).arg(request).arg(floor).arg(u8::from(*wait));
        script.arg(fastrand::u64(1 << 32..1 << 62)).arg(MAX_HELD);
        // Ends: the deadline passes.
        loop {
            let (status, number) = self.ask(&script, deadline).await?;
            match &status[..] {
                "granted" => {
                    let token = number.parse().map_err(ServiceError::unknown)?;
                    return Ok(Acquired::Granted { token });
                }
                "busy" => return Ok(Acquired::Busy),
                "queued" => self.pause(deadline).await,
                status => return Err(refusal(status)),
            }
            if Instant::now() >= deadline {
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
        let mut script = self.scripts.release.key(self.session_key(session));
        done(self.ask(script.arg(session).arg(request), deadline).await?)
    }

    async fn set_value(&self, value: &NewValue, deadline: Instant) -> Result<(), ServiceError> {
        check_name(&value.name)?;
        if value.value.len() > MAX_VALUE_BYTES || value.number >= 1 << 53 {
            return Err(Rejection::OutOfRange.into());
        }
        let mut script = self.scripts.set_value.key(self.session_key(value.session));
        script.key(self.lock_key(&value.name)).arg(value.session).arg(value.token);
        done(self.ask(script.arg(value.number).arg(&value.value[..]), deadline).await?)
    }

    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<LockView, ServiceError> {
        check_name(name)?;
        // Ends: the deadline passes.
        loop {
            let view = self.view_now(name, deadline).await?;
            if known != Some(view.version) {
                return Ok(view);
            }
            self.pause(deadline).await;
            if Instant::now() >= deadline {
                return Ok(view);
            }
        }
    }
}

impl fmt::Debug for RedisLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLocks").field("config", &self.config).finish_non_exhaustive()
    }
}

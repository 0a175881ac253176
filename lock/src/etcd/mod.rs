//! The lock service in etcd.

mod api;
mod client;
mod keys;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes};
use tokio::time::Instant;

pub use tonic::transport::{Channel, Endpoint};

use self::api::{Compare, KeyValue, Op, RangeRequest, Txn, TxnAnswer};
use self::client::Etcd;
use self::keys::{Keys, parse_place};
use crate::core::{
    Hold, LockView, MAX_NAME_BYTES, MAX_TTL_MS, MAX_VALUE_BYTES, MIN_TTL_MS, Mode, Rejection,
};
use crate::error::ConfigError;
use crate::service::{Acquired, Acquisition, Fenced, LockService, NewValue, ServiceError};

/// How the service is kept in etcd.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// Before each key, at most 256 bytes. Default: `voussoir/lock/`.
    pub prefix: String,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self { prefix: "voussoir/lock/".to_owned() }
    }
}

impl EtcdConfig {
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fits = self.prefix.len() <= 256;
        ConfigError::first_of(&[("prefix", fits, "must have at most 256 bytes")])
    }
}

/// A lock service in etcd, from version 3.3: one lease for each session, and the revision at which
/// a place in the queue was created as its token.
///
/// A place is a key below the name of the lock; the one that was created first holds the lock, and
/// each of the others watches the one before it, so that a release wakes one. Whoever has no
/// session gets no place, in the same transaction (etcd's own recipe leaves that to its leases).
/// Shared locks, semaphores and lock-delays are refused (`Unsupported`).
///
/// Leases have whole seconds, rounded up, and at least about two. An etcd that is restored from a
/// backup repeats revisions, and with them tokens: bump its revision.
///
/// # Example
/// ```no_run
/// use std::time::Duration;
/// use voussoir_lock::etcd::{Channel, EtcdConfig, EtcdLocks};
/// use voussoir_lock::{LeaseConfig, Session};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let second = Duration::from_secs(1);
/// let endpoint = Channel::from_static("http://etcd:2379")
///     .http2_keep_alive_interval(second)
///     .keep_alive_timeout(second)
///     .keep_alive_while_idle(true);
/// let locks = EtcdLocks::new(endpoint.connect_lazy(), EtcdConfig::default())?;
/// let session = Session::open(locks, LeaseConfig::default(), 5 * second).await?;
/// let guard = session.lock("ledger").within(second).await?;
/// guard.release(second).await;
/// # Ok(())
/// # }
/// ```
pub struct EtcdLocks {
    etcd: Etcd,
    keys: Keys,
}

impl EtcdLocks {
    /// A client of the service, over a channel to one or several endpoints of etcd. Give each
    /// endpoint HTTP/2 keep-alives, as in the example: without them a connection on which nothing
    /// comes back any more is kept until the kernel gives it up, for longer than sessions live.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(channel: Channel, config: EtcdConfig) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        Ok(Arc::new(Self { etcd: Etcd::new(channel), keys: Keys::new(&config.prefix) }))
    }

    /// Takes a place, unless the acquisition has one or has ended; and then looks, see [`Looks`].
    fn placing(&self, acquisition: &Acquisition, session: i64) -> (Txn, Looks) {
        let Acquisition { request, floor, name, wait, .. } = acquisition;
        let (first, end) = self.keys.places(name);
        let session_key = self.keys.session(session);
        let request_key = self.keys.request(session, *request);
        let ended_key = self.keys.ended(session, *request);
        let place = self.keys.place(name, session, *request);
        let mut compare = vec![
            Compare::value_below(&session_key, &floor_text(request + 1)),
            Compare::created_at(&request_key, &[], 0),
            Compare::created_at(&ended_key, &[], 0),
        ];
        if !wait {
            compare.push(Compare::created_at(&first, &end, 0));
        }
        let ended_below = (self.keys.ended(session, 0), self.keys.ended(session, *floor));
        let raise = Txn {
            compare: vec![Compare::value_below(&session_key, &floor_text(*floor))],
            success: vec![
                Op::put(&session_key, floor_text(*floor), session),
                Op::delete(&ended_below.0, &ended_below.1),
            ],
            failure: Vec::new(),
        };
        // Also where no place is taken: tries that find the lock taken leave a key each.
        let raise = Op::txn(raise);
        let puts = [Op::put(&request_key, &name[..], session), Op::put(&place, "", session)];
        let looks = [
            Op::range(earliest(&first, &end)),
            Op::get(&place),
            Op::get(&request_key),
            Op::get(&ended_key),
            Op::get(&session_key),
        ];
        let failure: Vec<Op> = std::iter::once(raise).chain(looks).collect();
        let success = puts.iter().chain(&failure).cloned().collect();
        (
            Txn { compare, success, failure },
            Looks { after_success: puts.len() + 1, after_failure: 1 },
        )
    }

    /// Asks for a place, and says where the acquisition stands.
    async fn ask(
        &self,
        acquisition: &Acquisition,
        session: i64,
        deadline: Instant,
    ) -> Result<Place, ServiceError> {
        let (txn, looks) = self.placing(acquisition, session);
        let answer = self.etcd.txn(txn, deadline).await?;
        let at = if answer.succeeded { looks.after_success } else { looks.after_failure };
        let (earliest, own, known) = (answer.first(at), answer.first(at + 1), answer.first(at + 2));
        let (ended, floor) = (answer.first(at + 3), answer.first(at + 4));
        let Some(floor) = floor else { return Err(Rejection::NoSession.into()) };
        let is_below = floor.value[..] > *floor_text(acquisition.request).as_bytes();
        match (known, own, earliest) {
            (Some(known), Some(own), Some(earliest)) if known.value == acquisition.name => {
                let own = own.create_revision;
                let is_first = own == earliest.create_revision;
                if is_first { Ok(Place::Held(own)) } else { Ok(Place::Queued(own)) }
            }
            (Some(_), ..) => Err(Rejection::StaleRequest.into()),
            (None, ..) if ended.is_some() || is_below => Err(Rejection::StaleRequest.into()),
            (None, _, Some(_)) => Ok(Place::Busy),
            (None, _, None) => Err(ServiceError::unavailable("it has just come free")),
        }
    }

    /// The request is over: it is refused if it comes later. With `place` it holds or waits. False
    /// if another call was quicker.
    async fn end(
        &self,
        session: i64,
        request: u64,
        place: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<bool, ServiceError> {
        let request_key = self.keys.request(session, request);
        let session_key = self.keys.session(session);
        let mut success = vec![Op::put(&self.keys.ended(session, request), "", session)];
        let known = match place {
            Some(place) => {
                success.extend([Op::delete(&request_key, &[]), Op::delete(place, &[])]);
                Compare::exists(&request_key)
            }
            None => Compare::created_at(&request_key, &[], 0),
        };
        let compare = vec![known, Compare::exists(&session_key)];
        let failure = vec![Op::get(&session_key)];
        let answer = self.etcd.txn(Txn { compare, success, failure }, deadline).await?;
        if !answer.succeeded && answer.first(0).is_none() {
            return Err(Rejection::NoSession.into());
        }
        Ok(answer.succeeded)
    }

    /// Waits until the place before ours is gone, or may be, or ours is.
    async fn wait_for_turn(&self, acquisition: &Acquisition, session: i64, own: i64, by: Instant) {
        let Acquisition { name, request, .. } = acquisition;
        let (first, end) = self.keys.places(name);
        let before = RangeRequest {
            limit: 1,
            sort_order: 2,
            max_create_revision: own - 1,
            ..earliest(&first, &end)
        };
        let txn = Txn { success: vec![Op::range(before)], ..Txn::default() };
        let Ok(answer) = self.etcd.txn(txn, by).await else {
            // The next attempt says what is the matter.
            return tokio::time::sleep_until(by.min(Instant::now() + client::MAX_WATCH / 10)).await;
        };
        if let Some(before) = answer.first(0) {
            let place = self.keys.place(name, session, *request);
            let keys = [(before.key.to_vec(), before.mod_revision), (place, own)];
            self.wait_for_change(&keys, 1, answer.revision(), by).await;
        }
    }

    /// Waits until one of these keys is changed after this revision, at which they had these
    /// revisions of their latest change; 0 stands for a key that is not there. The first `watched`
    /// of them are watched. Should a watch be lost, a look at the keys alone says so: it writes
    /// nothing, and costs the same however many wait.
    async fn wait_for_change(
        &self,
        keys: &[(Vec<u8>, i64)],
        watched: usize,
        mut revision: i64,
        by: Instant,
    ) {
        let ranges = keys.iter().take(watched).map(|(key, _)| (key.clone(), Vec::new()));
        let ranges: Vec<_> = ranges.collect();
        // Ends: a key is changed, or the deadline passes.
        while !self.etcd.watch(ranges.clone(), revision + 1, by).await && Instant::now() < by {
            let looks = keys.iter().map(|(key, _)| Op::get(key)).collect();
            let txn = Txn { success: looks, ..Txn::default() };
            // After an error the caller's next attempt says what is the matter.
            let Ok(answer) = self.etcd.txn(txn, by).await else { return };
            let changed_at = |at| answer.first(at).map_or(0, |found| found.mod_revision);
            if keys.iter().enumerate().any(|(at, (_, known))| changed_at(at) != *known) {
                return;
            }
            revision = answer.revision();
        }
    }
}

/// Where an acquisition stands, with the revision at which its place was created.
enum Place {
    Held(i64),
    Queued(i64),
    /// A try that has found the lock taken.
    Busy,
}

/// Where in an answer the looks begin: the earliest place, the own one, the request while it lives,
/// the request once it has ended, the session.
struct Looks {
    /// If the transaction succeeded.
    after_success: usize,
    /// If it did not.
    after_failure: usize,
}

fn earliest(first: &[u8], end: &[u8]) -> RangeRequest {
    RangeRequest {
        key: first.into(),
        range_end: end.into(),
        limit: 1,
        sort_order: 1,
        sort_target: 2,
        ..RangeRequest::default()
    }
}

/// A floor as a text that compares as it does.
fn floor_text(floor: u64) -> String {
    format!("{floor:016x}")
}

/// A session's id as a lease's; one that cannot be is one that has ended.
fn lease_id(session: u64) -> Result<i64, ServiceError> {
    match i64::try_from(session) {
        Ok(id) if id > 0 => Ok(id),
        _ => Err(Rejection::NoSession.into()),
    }
}

fn check_name(name: &Bytes) -> Result<(), ServiceError> {
    if name.len() > MAX_NAME_BYTES { Err(Rejection::OutOfRange.into()) } else { Ok(()) }
}

/// What is stored as a value: the token and the number by which it was set, before it.
fn decode_value(mut stored: &[u8]) -> (u64, u64, Bytes) {
    let token = stored.try_get_u64_le().unwrap_or(0);
    let number = stored.try_get_u64_le().unwrap_or(0);
    (token, number, Bytes::copy_from_slice(stored))
}

#[async_trait]
impl LockService for EtcdLocks {
    type Grants = Fenced;

    async fn open_session(&self, ttl: Duration, deadline: Instant) -> Result<u64, ServiceError> {
        let ttl_ms = ttl.as_millis();
        if !(u128::from(MIN_TTL_MS)..=u128::from(MAX_TTL_MS)).contains(&ttl_ms) {
            return Err(Rejection::OutOfRange.into());
        }
        let id = fastrand::i64(1 << 32..i64::MAX);
        self.etcd.grant(id, ttl_ms.div_ceil(1000) as i64, deadline).await?;
        let session = Op::put(&self.keys.session(id), floor_text(1), id);
        self.etcd.txn(Txn { success: vec![session], ..Txn::default() }, deadline).await?;
        Ok(id as u64)
    }

    async fn renew_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        self.etcd.keep_alive(lease_id(session)?, deadline).await
    }

    async fn close_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        match lease_id(session) {
            Ok(id) => self.etcd.revoke(id, deadline).await,
            Err(_) => Ok(()),
        }
    }

    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        check_name(&acquisition.name)?;
        if acquisition.mode != Mode::Exclusive || !acquisition.lock_delay.is_zero() {
            return Err(Rejection::Unsupported.into());
        }
        if acquisition.floor > acquisition.request || acquisition.request >= u64::MAX / 2 {
            return Err(Rejection::OutOfRange.into());
        }
        let session = lease_id(acquisition.session)?;
        // Ends: the deadline passes.
        loop {
            let own = match self.ask(acquisition, session, deadline).await? {
                Place::Held(own) => return Ok(Acquired::Granted { token: own as u64 }),
                Place::Queued(own) => own,
                Place::Busy => {
                    if self.end(session, acquisition.request, None, deadline).await? {
                        return Ok(Acquired::Busy);
                    }
                    continue;
                }
            };
            if Instant::now() < deadline {
                self.wait_for_turn(acquisition, session, own, deadline).await;
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
        let session = lease_id(session)?;
        // Ends: a request that was not there is there the second time, and stays.
        loop {
            let looks = vec![
                Op::get(&self.keys.request(session, request)),
                Op::get(&self.keys.ended(session, request)),
            ];
            let answer = self.etcd.txn(Txn { success: looks, ..Txn::default() }, deadline).await?;
            let place = match (answer.first(0), answer.first(1)) {
                (Some(live), _) => Some(self.keys.place(&live.value, session, request)),
                (None, Some(_)) => return Ok(()),
                (None, None) => None,
            };
            if self.end(session, request, place.as_deref(), deadline).await? {
                return Ok(());
            }
        }
    }

    async fn set_value(&self, value: &NewValue, deadline: Instant) -> Result<(), ServiceError> {
        check_name(&value.name)?;
        if value.value.len() > MAX_VALUE_BYTES {
            return Err(Rejection::OutOfRange.into());
        }
        let session = lease_id(value.session)?;
        let (first, end) = self.keys.places(&value.name);
        let value_key = self.keys.value(&value.name);
        // Ends: the deadline passes; each turn but the last lost a race to another value.
        loop {
            let looks = vec![
                Op::range(earliest(&first, &end)),
                Op::get(&value_key),
                Op::get(&self.keys.session(session)),
            ];
            let answer = self.etcd.txn(Txn { success: looks, ..Txn::default() }, deadline).await?;
            if answer.first(2).is_none() {
                return Err(Rejection::NoSession.into());
            }
            let holder = answer.first(0).filter(|place| {
                parse_place(&place.key).is_some_and(|(session, _)| session == value.session)
                    && place.create_revision as u64 == value.token
            });
            let Some(holder) = holder else { return Err(Rejection::NotHeld.into()) };
            let stored = answer.first(1);
            let known = stored.as_ref().map(|stored| decode_value(&stored.value));
            if known.is_some_and(|(by, number, _)| by == value.token && number >= value.number) {
                return Ok(());
            }
            let mut bytes = Vec::with_capacity(16 + value.value.len());
            bytes.put_u64_le(value.token);
            bytes.put_u64_le(value.number);
            bytes.put_slice(&value.value);
            // An empty value is kept for its number, as long as the session.
            let lease = if value.value.is_empty() { session } else { 0 };
            let revision = stored.map_or(0, |stored| stored.mod_revision);
            let compare = vec![
                Compare::created_at(&holder.key, &[], holder.create_revision),
                Compare::changed_at(&value_key, revision),
            ];
            let success = vec![Op::put(&value_key, bytes, lease)];
            let txn = Txn { compare, success, failure: Vec::new() };
            if self.etcd.txn(txn, deadline).await?.succeeded {
                return Ok(());
            }
        }
    }

    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<LockView, ServiceError> {
        check_name(name)?;
        let (first, end) = self.keys.places(name);
        let value_key = self.keys.value(name);
        let count = RangeRequest {
            key: first.clone(),
            range_end: end.clone(),
            count_only: true,
            ..RangeRequest::default()
        };
        // Ends: the deadline passes.
        loop {
            let looks = vec![
                Op::range(earliest(&first, &end)),
                Op::get(&value_key),
                Op::range(count.clone()),
            ];
            let answer = self.etcd.txn(Txn { success: looks, ..Txn::default() }, deadline).await?;
            let view = seen(&answer);
            if known != Some(view.version) || Instant::now() >= deadline {
                return Ok(view);
            }
            let value =
                (value_key.clone(), answer.first(1).map_or(0, |stored| stored.mod_revision));
            if let Some(holder) = answer.first(0) {
                // Those that come to wait and leave do not matter.
                let keys = [(holder.key.to_vec(), holder.mod_revision), value];
                self.wait_for_change(&keys, 2, answer.revision(), deadline).await;
            } else {
                let ranges = vec![(first.clone(), end.clone()), (value.0, Vec::new())];
                self.etcd.watch(ranges, answer.revision() + 1, deadline).await;
            }
            if Instant::now() >= deadline {
                return Ok(view);
            }
        }
    }
}

/// The lock, of its earliest place, its value, and the count of its places.
fn seen(answer: &TxnAnswer) -> LockView {
    let holder = answer.first(0);
    let stored = answer.first(1);
    let value = stored.as_ref().map(|stored| decode_value(&stored.value).2).unwrap_or_default();
    let changed = stored.filter(|_| !value.is_empty()).map_or(0, |stored| stored.mod_revision);
    let granted = holder.as_ref().map_or(0, |place| place.create_revision);
    let hold = |place: KeyValue| {
        let (session, request) = parse_place(&place.key)?;
        let token = place.create_revision as u64;
        Some(Hold { session, request, token, mode: Mode::Exclusive })
    };
    LockView {
        holders: holder.and_then(hold).into_iter().collect(),
        waiters: answer.at(2).count.saturating_sub(1).max(0) as usize,
        is_delayed: false,
        value,
        // Of each pair of revisions another one, below 2^32 and in all likelihood above.
        version: (granted as u64).rotate_left(32) ^ changed as u64,
    }
}

impl fmt::Debug for EtcdLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLocks").field("keys", &self.keys).finish_non_exhaustive()
    }
}

//! The relay: has lanes by lease, reads their messages, has them delivered, and deletes them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use super::config::RelayConfig;
use super::lanes::Leases;
use super::sink::{Message, Sink, SinkError};
use super::table::{CHANNEL, Outbox};
use crate::error::ConfigError;
use crate::postgres::Wake;

/// Bytes of bodies that are read at once, but at least one message.
const MAX_READ_BYTES: i64 = 16 << 20;

/// The shortest time between two rounds that leave nothing behind: under load they share reads and
/// deletions, which otherwise took the server more time than the transactions that put.
const ROUND_EVERY: Duration = Duration::from_millis(4);

/// A key whose next message the sink does not take. Its other messages wait; other keys go on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Blocked {
    /// The key.
    pub key: String,
    /// The message that was not taken: for [`Outbox::discard`].
    pub message_id: String,
    /// Deliveries that failed, one after the other.
    pub attempts: u32,
    /// Why the last one did.
    pub why: String,
}

/// What a relay has done, and what it waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStats {
    /// Messages that the sink took and that were deleted.
    pub delivered: u64,
    /// Deliveries that failed, wholly or in part.
    pub failed: u64,
    /// Lanes that this relay has.
    pub lanes: usize,
    /// Keys that pause, ordered by key.
    pub blocked: Vec<Blocked>,
    /// What the database said last, if it could not be asked.
    pub error: Option<String>,
}

/// Takes messages from an outbox to a sink. Dropped, it stops without giving its lanes back: their
/// leases run out.
pub struct Relay {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
    stats: Arc<Mutex<RelayStats>>,
}

impl Relay {
    /// Starts the relay in a task of the current runtime. Several relays of one outbox share its
    /// lanes, in one process or in many.
    ///
    /// # Errors
    /// [`ConfigError`]. A database that cannot be reached is no error: the relay tries again, and
    /// [`RelayStats::error`] says so.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        outbox: &Outbox,
        sink: Arc<dyn Sink>,
        config: RelayConfig,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let (stop, stopped) = watch::channel(false);
        let stats: Arc<Mutex<RelayStats>> = Arc::default();
        let task = Task {
            outbox: outbox.clone(),
            sink,
            config,
            notify: Arc::default(),
            leases: Leases::new(),
            renew_at: Instant::now(),
            client: None,
            failures: 0,
            max_bytes: MAX_READ_BYTES,
            blocked: HashMap::new(),
            cut: String::new(),
            stats: Arc::clone(&stats),
        };
        let task = Some(tokio::spawn(task.run(stopped)));
        Ok(Self { stop, task, stats })
    }

    /// What it has done.
    pub fn stats(&self) -> RelayStats {
        self.stats.lock().clone()
    }

    /// Ends the deliveries under way, deletes what was delivered, and gives the lanes back.
    ///
    /// # Cancel safety
    /// Dropped, the relay stops at once, as if it were dropped.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = &mut self.task {
            // An error: the task has panicked, and its leases run out.
            let _ = task.await;
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("stats", &*self.stats.lock()).finish_non_exhaustive()
    }
}

/// What a round has read.
enum Found {
    Nothing,
    /// All that there was, and the sink took it.
    All,
    /// More may be there.
    Some,
}

/// What one read asks for.
struct Ask {
    /// Messages of each lane.
    each: i64,
    /// Lanes of which no key pauses.
    open: Vec<i32>,
    /// Lanes of which some do.
    mixed: Vec<i32>,
    /// Keys that are tried again, with their lanes, and since when they may be.
    due: Vec<(Instant, i32, String)>,
    /// Messages of each of `due`.
    of_due: i64,
}

struct Pause {
    lane: i32,
    retry_at: Instant,
    /// Messages of the next delivery: half as many after one of which nothing is known, so that a
    /// sink that is too slow for all of them in its time goes on.
    max_messages: usize,
    shown: Blocked,
}

struct Task {
    outbox: Outbox,
    sink: Arc<dyn Sink>,
    config: RelayConfig,
    /// Notifications of other processes.
    notify: Arc<Notify>,
    leases: Leases,
    renew_at: Instant,
    client: Option<Client>,
    /// Rounds that failed, one after the other.
    failures: u32,
    /// Bytes of bodies of the next read, from 1 to `MAX_READ_BYTES`: fewer after a slow one.
    max_bytes: i64,
    /// Invariant: at most `max_blocked_keys` and those of one round.
    blocked: HashMap<String, Pause>,
    /// Where the keys of lanes with keys that pause are cut: those from here on are read first.
    cut: String,
    stats: Arc<Mutex<RelayStats>>,
}

impl Task {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        // Ends when it is stopped; the database may come and go.
        while !*stopped.borrow() {
            let begun = Instant::now();
            let found = match self.round().await {
                Ok(found) => {
                    self.failures = 0;
                    self.stats.lock().error = None;
                    found
                }
                Err(why) => {
                    tracing::debug!(target: "voussoir::txn", %why, "an outbox cannot be read");
                    self.stats.lock().error = Some(why);
                    // With its transaction, if one is open.
                    self.client = None;
                    self.failures = self.failures.saturating_add(1);
                    let pause = self.pause_after(self.failures);
                    // Whatever is notified: a connection that ends notifies too.
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        _ = stopped.changed() => {}
                    }
                    continue;
                }
            };
            match found {
                Found::Nothing => self.wait(&mut stopped).await,
                Found::All => {
                    tokio::select! {
                        () = tokio::time::sleep_until(begun + ROUND_EVERY) => {}
                        _ = stopped.changed() => {}
                    }
                }
                Found::Some => {}
            }
        }
        if let Some(client) = &self.client {
            let release = self.leases.release(client, &self.outbox.shared);
            // Not given back, the leases run out.
            let _ = tokio::time::timeout(self.config.lease, release).await;
        }
    }

    async fn wait(&self, stopped: &mut watch::Receiver<bool>) {
        let next = self.blocked.values().map(|pause| pause.retry_at).min();
        let poll = Instant::now() + self.config.poll;
        let at = next.map_or(poll, |retry| retry.min(poll)).min(self.renew_at.max(Instant::now()));
        tokio::select! {
            () = tokio::time::sleep_until(at) => {}
            () = self.notify.notified() => {}
            () = self.outbox.shared.local.notified() => {}
            _ = stopped.changed() => {}
        }
    }

    /// Reads and delivers once.
    async fn round(&mut self) -> Result<Found, String> {
        let client = self.connect().await?;
        let read = self.read(&client).await;
        self.client = Some(client);
        let (rows, is_all) = read?;
        let count = rows.len();
        if count == 0 {
            return Ok(Found::Nothing);
        }
        let taken = self.deliver(rows).await;
        if let (Some(client), false) = (&self.client, taken.is_empty()) {
            self.within(delete(client, &self.outbox.shared.table, &taken)).await?;
            self.stats.lock().delivered += taken.len() as u64;
        }
        // Some failed: their keys pause now, and others may be behind them.
        Ok(if is_all && taken.len() == count { Found::All } else { Found::Some })
    }

    async fn connect(&mut self) -> Result<Client, String> {
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            return Ok(client);
        }
        let connect = &self.outbox.shared.connect;
        let connected = async {
            let client = connect.connect_notified(Wake::new(&self.notify)).await?;
            // A server that does not know yet how many messages a key has takes them for few, and
            // would sort them all by their number for the first ones.
            let begin = format!("SET enable_bitmapscan = off; LISTEN {CHANNEL}");
            client.batch_execute(&begin).await?;
            Ok(client)
        };
        self.within(connected).await
    }

    /// A call of the database that takes longer than the lease is given up, with its connection.
    async fn within<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
        match tokio::time::timeout(self.config.lease, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(describe(&error)),
            Err(_) => Err(format!("the database did not answer within {:?}", self.config.lease)),
        }
    }

    async fn renew_if_due(&mut self, client: &Client, now: Instant) -> Result<(), String> {
        if now >= self.renew_at || now >= self.leases.held().1 {
            let (lease, lanes) = (self.config.lease, self.config.max_lanes);
            let renew = self.leases.renew(client, &self.outbox.shared, lease, lanes);
            match tokio::time::timeout(lease, renew).await {
                Ok(renewed) => renewed.map_err(|error| describe(&error))?,
                Err(_) => return Err("the leases could not be renewed in time".to_owned()),
            }
            self.renew_at = now + self.config.lease / 3;
        }
        Ok(())
    }

    /// Messages that may be delivered, and whether they are all that there were.
    async fn read(&mut self, client: &Client) -> Result<(Vec<Message>, bool), String> {
        let now = Instant::now();
        self.renew_if_due(client, now).await?;
        let (held, _) = self.leases.held();
        self.stats.lock().lanes = held.len();
        if held.is_empty() {
            // The keys are another relay's: nobody has to be woken for them.
            self.blocked.clear();
            self.show_blocked();
            return Ok((Vec::new(), true));
        }
        // What pauses in a lane that is another relay's now is that one's.
        self.blocked.retain(|_, pause| held.contains_key(&pause.lane));
        let Some(ask) = self.ask(now) else { return Ok((Vec::new(), true)) };
        let max_bytes = self.max_bytes;
        let started = Instant::now();
        let read = self.query(client, &ask).await;
        let is_slow = started.elapsed() > self.config.lease / 4;
        self.max_bytes =
            if is_slow { max_bytes / 2 } else { max_bytes * 2 }.clamp(1, MAX_READ_BYTES);
        let rows = read?;
        let messages = rows.iter().map(|row| {
            let lane: i32 = row.get(0);
            Message {
                id: row.get(2),
                number: row.get::<_, i64>(1).cast_unsigned(),
                topic: row.get(3),
                key: row.get(4),
                body: Bytes::copy_from_slice(row.get(5)),
                lane: lane.cast_unsigned(),
                epoch: held.get(&lane).map_or(0, |epoch| epoch.cast_unsigned()),
            }
        });
        let messages: Vec<Message> = messages.collect();
        // Asked for, and its message is gone: nobody has to be woken for it.
        let read: HashSet<&str> = messages.iter().map(|message| &*message.key).collect();
        for (_, _, key) in ask.due.iter().filter(|(_, _, key)| !read.contains(&**key)) {
            self.blocked.remove(key);
        }
        self.show_blocked();
        // Any of them: the next read of lanes with keys that pause begins behind it.
        self.cut = fastrand::choice(&messages).map_or_else(String::new, |any| after(&any.key));
        let is_all = is_below_limits(&messages, ask.each, max_bytes);
        Ok((messages, is_all))
    }

    /// What to ask for. `None`: keys that pause are all that may be read, and none is due.
    fn ask(&self, now: Instant) -> Option<Ask> {
        let (held, _) = self.leases.held();
        let only_due = self.blocked.len() >= self.config.max_blocked_keys;
        let due = self.blocked.iter().filter(|(_, pause)| pause.retry_at <= now);
        let mut due: Vec<_> = due.map(|(key, one)| (one.retry_at, one.lane, key.clone())).collect();
        if only_due && due.is_empty() {
            return None;
        }
        let is_shared = !due.is_empty() && !only_due;
        let rows = if is_shared { self.config.max_rows / 2 } else { self.config.max_rows }.max(1);
        // Those first that have waited the longest; the others follow in the next round.
        due.sort_unstable();
        due.truncate(rows as usize);
        let have_paused: HashSet<i32> = self.blocked.values().map(|pause| pause.lane).collect();
        let read = held.keys().copied().filter(|_| !only_due);
        let (mixed, open) = read.partition(|lane| have_paused.contains(lane));
        let each = i64::from(rows / held.len().max(1) as u32).max(1);
        let of_due = i64::from(rows / due.len().max(1) as u32);
        Some(Ask { each, open, mixed, due, of_due })
    }

    async fn query(&self, client: &Client, ask: &Ask) -> Result<Vec<Row>, String> {
        let paused = self.blocked.iter().map(|(key, pause)| (pause.lane, &**key));
        let (lanes, keys): (Vec<i32>, Vec<&str>) = paused.unzip();
        let due = ask.due.iter().map(|(_, lane, key)| (*lane, &**key));
        let (due_lanes, due_keys): (Vec<i32>, Vec<&str>) = due.unzip();
        // Typed, and so one round trip. It is planned each time, for the rows that are there: a
        // plan that was made for an empty table would read a full one once for each lane.
        let params: [(&(dyn ToSql + Sync), Type); 10] = [
            (&self.max_bytes, Type::INT8),
            (&ask.open, Type::INT4_ARRAY),
            (&ask.each, Type::INT8),
            (&ask.mixed, Type::INT4_ARRAY),
            (&lanes, Type::INT4_ARRAY),
            (&keys, Type::TEXT_ARRAY),
            (&self.cut, Type::TEXT),
            (&due_lanes, Type::INT4_ARRAY),
            (&due_keys, Type::TEXT_ARRAY),
            (&ask.of_due, Type::INT8),
        ];
        let has_paused = !keys.is_empty();
        let select = select(&self.outbox.shared.table, has_paused);
        let params = if has_paused { &params[..] } else { &params[..3] };
        self.within(client.query_typed(&select, params)).await
    }

    /// Delivers each key's messages in a task of its own, and returns those that the sink took.
    async fn deliver(&mut self, messages: Vec<Message>) -> Vec<(i32, i64)> {
        let mut keys: Vec<Vec<Message>> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for message in messages {
            let place = *places.entry(message.key.clone()).or_insert(keys.len());
            if place == keys.len() {
                keys.push(Vec::new());
            }
            let max = self.blocked.get(&message.key).map_or(usize::MAX, |one| one.max_messages);
            if keys[place].len() < max {
                keys[place].push(message);
            }
        }
        // Each delivery has its whole time, and ends before the lease does.
        let limit = self.config.deliver_timeout;
        let (begun, lease_end) = (Instant::now(), self.leases.held().1);
        let may_begin = |now: Instant| now < begun + limit && now + limit <= lease_end;
        let mut waiting = keys.into_iter();
        let mut running = JoinSet::new();
        let mut taken = Vec::new();
        // Ends: each turn begins a delivery or ends one, and each ends within its time.
        loop {
            while running.len() < self.config.max_parallel
                && may_begin(Instant::now())
                && let Some(messages) = waiting.next()
            {
                running.spawn(deliver_key(Arc::clone(&self.sink), messages, limit));
            }
            let Some(done) = running.join_next().await else { break };
            let Ok((messages, result)) = done else { continue };
            let count = match &result {
                Ok(()) => messages.len(),
                Err(error) => error.delivered.min(messages.len()),
            };
            let number =
                |message: &Message| (message.lane.cast_signed(), message.number.cast_signed());
            taken.extend(messages[..count].iter().map(number));
            match (result, messages.get(count)) {
                (Err(error), Some(message)) => self.pause(message, &messages, count, error.why),
                _ => drop(self.blocked.remove(&messages[0].key)),
            }
        }
        self.show_blocked();
        taken
    }

    /// Longer each time.
    fn pause_after(&self, failures: u32) -> Duration {
        let doubled = self.config.pause.saturating_mul(1 << failures.saturating_sub(1).min(30));
        doubled.min(self.config.max_pause)
    }

    /// A key whose message was not taken waits, longer each time; others go on.
    fn pause(&mut self, message: &Message, given: &[Message], delivered: usize, why: String) {
        self.stats.lock().failed += 1;
        let before = self.blocked.get(&message.key).map_or(0, |pause| pause.shown.attempts);
        let attempts = if delivered > 0 { 1 } else { before.saturating_add(1) };
        if attempts == 1 {
            tracing::debug!(
                target: "voussoir::txn", key = %message.key, id = %message.id, %why,
                "a message was not taken"
            );
        }
        let (key, message_id) = (message.key.clone(), message.id.clone());
        let pause = Pause {
            lane: message.lane.cast_signed(),
            retry_at: Instant::now() + self.pause_after(attempts),
            max_messages: if delivered > 0 { usize::MAX } else { (given.len() / 2).max(1) },
            shown: Blocked { key: key.clone(), message_id, attempts, why },
        };
        self.blocked.insert(key, pause);
    }

    fn show_blocked(&self) {
        let mut blocked: Vec<Blocked> =
            self.blocked.values().map(|pause| pause.shown.clone()).collect();
        blocked.sort_by(|a, b| a.key.cmp(&b.key));
        self.stats.lock().blocked = blocked;
    }
}

/// The statement that reads messages. Its parameters are the bytes of bodies, the lanes of which no
/// key pauses, and the messages of each lane; with keys that pause, the lanes that have some, the
/// lanes and names of all of them, the key that comes first, and the lanes, names and messages of
/// those that are tried again.
///
/// No message of a key that pauses is visited but by name, however many wait: between two such keys
/// the others are read in the order of the index of lane, key and number. The rows of each key are
/// its oldest.
fn select(table: &str, with_paused: bool) -> String {
    let rows = format!("SELECT lane, id, message_id, topic, key, body FROM {table} WHERE lane =");
    // In the order of bytes, whatever the order of the database is.
    let key = "key COLLATE pg_catalog.\"C\"";
    let mut parts = vec![format!(
        "SELECT one.* FROM pg_catalog.unnest($2) AS held (lane), \
         LATERAL ({rows} held.lane ORDER BY id LIMIT $3) one"
    )];
    if with_paused {
        let ends = format!(
            "SELECT since, coalesce(pg_catalog.lead(key) OVER (ORDER BY {key}), \
             (SELECT pg_catalog.max({key}) || pg_catalog.chr(1) FROM {table} \
             WHERE lane = held.lane)) AS until \
             FROM (SELECT key, key || pg_catalog.chr(1) AS since FROM ROWS FROM (\
             pg_catalog.unnest($5), pg_catalog.unnest($6)) AS paused (lane, key) \
             WHERE paused.lane = held.lane UNION ALL VALUES ('', ''), ($7, $7)) AS ends"
        );
        parts.push(format!(
            "SELECT one.* FROM pg_catalog.unnest($4) AS held (lane), LATERAL (\
             SELECT one.* FROM ({ends}) gap, LATERAL ({rows} held.lane \
             AND {key} >= gap.since AND {key} < gap.until ORDER BY {key}, id LIMIT $3) one \
             ORDER BY one.{key} < $7, one.{key}, one.id LIMIT $3) one"
        ));
        parts.push(format!(
            "SELECT one.* FROM ROWS FROM (\
             pg_catalog.unnest($8), pg_catalog.unnest($9)) AS due (lane, key), \
             LATERAL ({rows} due.lane AND {key} = due.key ORDER BY id LIMIT $10) one"
        ));
    }
    let all = parts.join(" UNION ALL ");
    // `upto`: bytes of the bodies up to this row; the first row is read whatever it has.
    format!(
        "SELECT lane, id, message_id, topic, key, body FROM (SELECT new.*, pg_catalog.sum(\
         pg_catalog.octet_length(body)) OVER (ORDER BY id) AS upto, \
         pg_catalog.row_number() OVER (ORDER BY id) AS place FROM ({all}) new) bounded \
         WHERE upto <= $1 OR place = 1 ORDER BY id"
    )
}

/// The first text behind a key, as keys have no zero byte.
fn after(key: &str) -> String {
    format!("{key}\u{1}")
}

/// Whether no limit has kept a message from being read.
fn is_below_limits(messages: &[Message], of_each_lane: i64, max_bytes: i64) -> bool {
    let (mut of_lanes, mut bytes): (HashMap<u32, i64>, usize) = (HashMap::new(), 0);
    for message in messages {
        *of_lanes.entry(message.lane).or_default() += 1;
        bytes += message.body.len();
    }
    i64::try_from(bytes).unwrap_or(i64::MAX) < max_bytes / 2
        && of_lanes.values().all(|count| *count < of_each_lane)
}

async fn deliver_key(
    sink: Arc<dyn Sink>,
    messages: Vec<Message>,
    limit: Duration,
) -> (Vec<Message>, Result<(), SinkError>) {
    let messages = Arc::new(messages);
    // In a task of its own: it may panic.
    let mut call = JoinSet::new();
    let given = Arc::clone(&messages);
    call.spawn(async move { sink.deliver(&given).await });
    let result = match tokio::time::timeout(limit, call.join_next()).await {
        Ok(Some(Ok(result))) => result,
        Ok(_) => Err(SinkError::new(0, "the sink panicked")),
        Err(_) => Err(SinkError::new(0, "the sink did not answer in time")),
    };
    drop(call);
    (Arc::unwrap_or_clone(messages), result)
}

/// Deletes what a sink has taken. Also right when another relay has the lane meanwhile.
async fn delete(client: &Client, table: &str, taken: &[(i32, i64)]) -> Result<(), Error> {
    let taken: Vec<String> = taken.iter().map(|(lane, id)| format!("({lane},{id})")).collect();
    // Numbers only, and so one round trip without parameters.
    let delete = format!(
        "DELETE FROM {table} AS old USING (VALUES {}) AS done (lane, id) \
         WHERE old.lane = done.lane AND old.id = done.id",
        taken.join(",")
    );
    client.batch_execute(&delete).await
}

fn describe(error: &Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |own| own.message().to_owned())
}

impl RelayStats {
    /// Whether the relay has lanes and could ask the database at its last look.
    pub fn is_healthy(&self) -> bool {
        self.lanes > 0 && self.error.is_none()
    }
}

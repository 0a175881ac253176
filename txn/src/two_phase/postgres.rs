//! A PostgreSQL database as a participant, by `PREPARE TRANSACTION`.
//!
//! Each branch that writes also inserts its id into the table `voussoir_txn_branches` of its own
//! database. An id that the server does not hold prepared is committed if the row is there, and was
//! rolled back or lost if not: the server's answer alone ("does not exist") cannot tell.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::{Client, Error};

use super::core::{Decision, Heuristic};
use super::gid::Gid;
use super::participant::{Applied, InDoubt, Participant, ParticipantError, PrepareError, Vote};
use crate::error::ConfigError;
use crate::postgres::{Connect, check_schema, install, quoted};

const TABLE: &str = "voussoir_txn_branches";
/// How long rows wait for others before they are deleted together.
const FORGET_AFTER: Duration = Duration::from_millis(20);
/// Rows that wait to be deleted. Those beyond stay in the table, which costs room.
const MAX_FORGOTTEN: usize = 10_000;
/// The longest time-out that PostgreSQL takes.
const MAX_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// How a database takes part. Start from [`Default`] and change fields; checked by
/// [`PostgresParticipant::open`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// Branches that are open or prepared at once. The server needs at least as many
    /// `max_prepared_transactions`, and two connections more, which is all that a participant
    /// opens. 1 to 100,000. Default 16.
    pub max_branches: usize,
    /// The schema of the table `voussoir_txn_branches`, created if it does not exist. 1 to 63
    /// bytes. Default `public`.
    pub schema: String,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self { max_branches: 16, schema: "public".to_owned() }
    }
}

impl PostgresConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=100_000).contains(&self.max_branches) {
            let rule = "must be from 1 to 100,000";
            return Err(ConfigError { field: "max_branches", rule });
        }
        check_schema(&self.schema)
    }
}

/// The database cannot take part. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server's `max_prepared_transactions` is below the number of branches that may be
    /// prepared. Set it to at least the sum of those of all participants of the server.
    #[error(
        "the server's max_prepared_transactions is {found}, and `max_branches` is {needed}: raise \
         the one in postgresql.conf and restart the server, or lower the other"
    )]
    Slots {
        /// The server's setting.
        found: i64,
        /// [`PostgresConfig::max_branches`].
        needed: usize,
    },
    /// The database cannot be asked.
    #[error(transparent)]
    Postgres(#[from] Error),
}

/// A branch was not begun. Its transaction will abort.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BranchError {
    /// For the whole limit [`PostgresConfig::max_branches`] branches were open or prepared, or the
    /// server did not answer.
    #[error("no branch could be begun within {0:?}")]
    TimedOut(Duration),
    /// A branch with this id is open or prepared. It was not changed.
    #[error("the branch {0} was begun before")]
    Begun(Gid),
    /// The database refused.
    #[error(transparent)]
    Postgres(#[from] Error),
}

/// A PostgreSQL database. Clones are the same participant.
///
/// The user may create tables in the database when it is opened for the first time. A branch is
/// finished by the user who prepared it, or by a superuser: use one user.
#[derive(Clone)]
pub struct PostgresParticipant {
    shared: Arc<Shared>,
}

struct Shared {
    connect: Box<dyn Connect>,
    /// The table of branches, with its schema, as it stands in a statement.
    table: String,
    /// One permit for each connection in use: one for each branch, and two for other calls. More
    /// calls than that, as after an outage, wait.
    connections: Arc<Semaphore>,
    /// One permit for each branch that is open or prepared.
    permits: Arc<Semaphore>,
    /// The places of branches, until they are finished or need no decision.
    held: Mutex<HashMap<Gid, Place>>,
    /// Connections that wait for work.
    idle: Mutex<Vec<Client>>,
    /// Branches that are not prepared.
    open: Mutex<HashMap<Gid, Arc<Connection>>>,
    forgotten: Mutex<Forgotten>,
}

/// Branches whose rows may go. The call that finds none before its own deletes all that have come
/// when `FORGET_AFTER` is over.
struct Forgotten {
    gids: Vec<Gid>,
    /// That call was dropped if it has not taken them by then, and another one deletes them.
    overdue: Instant,
}

/// The place of a branch among [`PostgresConfig::max_branches`].
struct Place {
    _permit: OwnedSemaphorePermit,
    /// Its vote said so: once a list does not show it, somebody has finished it.
    is_prepared: bool,
}

/// A connection in use. Dropped, it is closed.
struct Connection {
    client: Client,
    _permit: OwnedSemaphorePermit,
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// In the error of a vote: a statement has ended the transaction of the branch.
const ENDED: &str = "voussoir: ended";
/// In the error of a vote: the branch wrote nothing.
const READ_ONLY: &str = "voussoir: read only";

/// For a connection that the caller still holds: what the caller sends from now on fails.
const SHUT: &str = "ROLLBACK; BEGIN READ ONLY";

/// A branch on which the caller works: statements run inside its transaction.
///
/// Drop it, and all its clones, before the transaction commits: a branch that is still held is
/// refused, because a statement behind the vote would be outside of the transaction. The same is
/// true when a statement ends the transaction.
#[derive(Clone)]
pub struct PostgresBranch {
    working: Arc<Connection>,
}

impl Deref for PostgresBranch {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.working
    }
}

impl fmt::Debug for PostgresBranch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBranch").finish_non_exhaustive()
    }
}

impl PostgresParticipant {
    /// Connects, checks what the server is configured with, and creates the table of branches if
    /// it does not exist.
    ///
    /// # Errors
    /// [`PostgresError`].
    ///
    /// # Cancel safety
    /// Dropped, it may have created the schema and the table.
    pub async fn open(
        connect: impl Connect,
        config: PostgresConfig,
    ) -> Result<Self, PostgresError> {
        config.validate()?;
        let client = connect.connect().await?;
        let setting = "SELECT pg_catalog.current_setting('max_prepared_transactions')::BIGINT";
        let found: i64 = client.query_one(setting, &[]).await?.get(0);
        if usize::try_from(found).is_ok_and(|found| found < config.max_branches) {
            return Err(PostgresError::Slots { found, needed: config.max_branches });
        }
        install(&client, &config.schema, TABLE, "(gid TEXT PRIMARY KEY)").await?;
        let shared = Shared {
            connect: Box::new(connect),
            table: format!("{}.{TABLE}", quoted(&config.schema)),
            connections: Arc::new(Semaphore::new(config.max_branches + 2)),
            permits: Arc::new(Semaphore::new(config.max_branches)),
            held: Mutex::default(),
            idle: Mutex::new(vec![client]),
            open: Mutex::default(),
            forgotten: Mutex::new(Forgotten { gids: Vec::new(), overdue: Instant::now() }),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Begins a branch, and waits while [`PostgresConfig::max_branches`] are open or prepared.
    ///
    /// `limit` is the time that the transaction has left:
    /// [`Txn::time_left`](super::Txn::time_left). `begin` takes no longer; what is left then is the
    /// longest time that a statement of the branch may run or wait for a lock, and that the branch
    /// may be idle. So two transactions that wait for each other in two databases, which neither
    /// server sees, end.
    ///
    /// # Errors
    /// [`BranchError`].
    ///
    /// # Cancel safety
    /// Dropped, no branch was begun.
    pub async fn begin(&self, gid: &Gid, limit: Duration) -> Result<PostgresBranch, BranchError> {
        let deadline = Instant::now() + limit.min(MAX_TIMEOUT);
        self.shared.sweep();
        if self.shared.held.lock().contains_key(gid) {
            return Err(BranchError::Begun(gid.clone()));
        }
        let begun = tokio::time::timeout_at(deadline, async {
            let permits = Arc::clone(&self.shared.permits);
            let Ok(permit) = permits.acquire_owned().await else {
                unreachable!("the semaphore is never closed")
            };
            let connection = self.shared.connection().await?;
            // 0 would be no limit. The time of a statement includes its waits for locks.
            let left = deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
            let begin = format!(
                "BEGIN; SET LOCAL statement_timeout = {left}; \
                 SET LOCAL idle_in_transaction_session_timeout = {left}"
            );
            connection.batch_execute(&begin).await?;
            Ok::<_, Error>((connection, permit))
        });
        let (connection, permit) = begun.await.map_err(|_| BranchError::TimedOut(limit))??;
        let working = Arc::new(connection);
        match self.shared.held.lock().entry(gid.clone()) {
            // Another call was faster. The connection is closed, and its transaction with it.
            Entry::Occupied(_) => return Err(BranchError::Begun(gid.clone())),
            Entry::Vacant(place) => {
                place.insert(Place { _permit: permit, is_prepared: false });
            }
        }
        self.shared.open.lock().insert(gid.clone(), Arc::clone(&working));
        Ok(PostgresBranch { working })
    }

    /// The prepared branches of a coordinator with this name that nobody has finished.
    async fn list(&self, coordinator: &str, max: usize) -> Result<Vec<InDoubt>, Error> {
        let connection = self.shared.connection().await?;
        let prefix = format!("vs1:{coordinator}:");
        // Before the list is taken: what is prepared later is not concluded from.
        let before = self.shared.prepared_here(coordinator);
        let is_whole = |rows: usize| rows < max;
        let limit = i64::try_from(max).unwrap_or(i64::MAX);
        let rows = connection
            .query(
                "SELECT gid, extract(epoch FROM pg_catalog.now() - prepared)::FLOAT8 \
                 FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() \
                 AND pg_catalog.starts_with(gid, $1) ORDER BY prepared LIMIT $2",
                &[&prefix, &limit],
            )
            .await?;
        self.shared.keep(connection);
        let list = rows.iter().filter_map(|row| {
            // What another program prepared under a similar name is none of ours.
            let gid = row.get::<_, &str>(0).parse().ok()?;
            let age = Duration::try_from_secs_f64(row.get::<_, f64>(1)).unwrap_or_default();
            Some(InDoubt::new(gid, age))
        });
        let list: Vec<InDoubt> = list.collect();
        if is_whole(rows.len()) {
            self.shared.release_finished(before, &list);
        }
        Ok(list)
    }

    /// The vote of a branch that was open.
    async fn vote(&self, gid: &Gid, working: Arc<Connection>) -> Result<Vote, PrepareError> {
        // Dropped on the way, the connection is closed with its answer unread.
        let client = &**working;
        // One: this one. Nobody else has it, and nobody can make another.
        if Arc::strong_count(&working) > 1 {
            client.batch_execute(SHUT).await.map_err(not_prepared)?;
            let why = "its `PostgresBranch` is still held".to_owned();
            return Err(PrepareError::Refused(why));
        }
        // One round trip. All or nothing: an error rolls the transaction back, and nothing behind
        // it in the message is executed.
        //
        // Inside a transaction `now()` is the time of its first statement, the `BEGIN`. As one
        // message of the simple protocol, a statement outside of any has one time for both. A
        // transaction that wrote nothing has no number yet. The cast of a word fails, and its
        // error says which.
        let prepare = format!(
            "INSERT INTO {} SELECT '{gid}' WHERE (CASE \
             WHEN pg_catalog.now() = pg_catalog.statement_timestamp() THEN '{ENDED}' \
             WHEN pg_catalog.pg_current_xact_id_if_assigned() IS NULL THEN '{READ_ONLY}' \
             ELSE '1' END)::INT4 = 1; PREPARE TRANSACTION '{gid}'",
            self.shared.table
        );
        match client.batch_execute(&prepare).await {
            Ok(()) => {}
            Err(error) if says(&error, READ_ONLY) => {
                client.batch_execute("ROLLBACK").await.map_err(not_prepared)?;
                self.shared.give_back(working);
                return Ok(Vote::ReadOnly);
            }
            Err(error) if says(&error, ENDED) => {
                let why = "a statement ended the transaction".to_owned();
                return Err(PrepareError::Refused(why));
            }
            Err(error) => return Err(may_be_prepared(error)),
        }
        self.shared.give_back(working);
        Ok(Vote::Prepared)
    }
}

impl Shared {
    /// Forgets open branches whose sessions the server has ended, and frees their places: they were
    /// rolled back, and a vote on one is refused.
    fn sweep(&self) {
        let mut ended = Vec::new();
        self.open.lock().retain(|gid, working| {
            let is_open = !working.is_closed();
            if !is_open {
                ended.push(gid.clone());
            }
            is_open
        });
        let mut held = self.held.lock();
        for gid in ended {
            held.remove(&gid);
        }
    }

    /// Branches that this process has prepared and not seen finished.
    fn prepared_here(&self, coordinator: &str) -> Vec<Gid> {
        let held = self.held.lock();
        let prepared = held
            .iter()
            .filter(|(gid, place)| place.is_prepared && gid.coordinator() == coordinator);
        prepared.map(|(gid, _)| gid.clone()).collect()
    }

    /// Frees the places of branches that were prepared before a list was taken and are not in it:
    /// a coordinator of another process, or an operator, has finished them.
    fn release_finished(&self, before: Vec<Gid>, list: &[InDoubt]) {
        let prepared: HashSet<&Gid> = list.iter().map(|branch| &branch.gid).collect();
        let mut held = self.held.lock();
        for gid in before.iter().filter(|gid| !prepared.contains(gid)) {
            held.remove(gid);
        }
    }

    /// A connection outside of any transaction. Waits while all are in use.
    async fn connection(&self) -> Result<Connection, Error> {
        let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        // Ends: each turn takes one away. None is opened while one is idle, so there are no more of
        // both kinds than permits.
        loop {
            let idle = self.idle.lock().pop();
            let client = match idle {
                Some(client) if client.is_closed() => continue,
                Some(client) => client,
                None => self.connect.connect().await?,
            };
            return Ok(Connection { client, _permit: permit });
        }
    }

    /// Keeps a connection that is outside of any transaction.
    fn keep(&self, connection: Connection) {
        // Before its permit is given back.
        self.idle.lock().push(connection.client);
    }

    /// Keeps a connection that is outside of any transaction, without what the caller has set in
    /// its session. One that the caller still holds ends with the caller. Does not wait: the
    /// connection counts as in use until the session is clean.
    fn give_back(self: &Arc<Self>, working: Arc<Connection>) {
        let Some(connection) = Arc::into_inner(working) else { return };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            if connection.batch_execute("DISCARD ALL").await.is_ok() {
                shared.keep(connection);
            }
        });
    }

    /// The vote of a branch that is not open: an earlier one, of another process too, may have
    /// prepared it.
    async fn voted_before(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        let asked = async {
            let connection = self.connection().await?;
            let prepared = "SELECT 1 FROM pg_catalog.pg_prepared_xacts WHERE gid = $1";
            let found = connection.query_opt(prepared, &[&gid.to_string()]).await?;
            self.keep(connection);
            Ok::<_, Error>(found.is_some())
        };
        match asked.await {
            Ok(true) => Ok(Vote::Prepared),
            Ok(false) if self.held.lock().contains_key(gid) => {
                Err(PrepareError::Unknown("another vote of the branch is under way".into()))
            }
            Ok(false) => Err(PrepareError::Refused("no work was begun under this id".into())),
            Err(error) => Err(PrepareError::Unknown(describe(&error))),
        }
    }

    async fn finish_prepared(&self, gid: &Gid, decision: Decision) -> Result<Applied, Error> {
        let connection = self.connection().await?;
        let statement = match decision {
            Decision::Commit => format!("COMMIT PREPARED '{gid}'"),
            Decision::Abort => format!("ROLLBACK PREPARED '{gid}'"),
        };
        let applied = match connection.batch_execute(&statement).await {
            Ok(()) => Applied::Done,
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
                // The server's word alone proves nothing: the row says whether it was committed.
                let row = format!("SELECT 1 FROM {} WHERE gid = $1", self.table);
                let is_committed = connection.query_opt(&row, &[&gid.to_string()]).await?.is_some();
                match (decision, is_committed) {
                    (Decision::Commit, true) | (Decision::Abort, false) => Applied::Done,
                    (Decision::Commit, false) => Applied::Heuristic(Heuristic::RolledBack),
                    (Decision::Abort, true) => Applied::Heuristic(Heuristic::Committed),
                }
            }
            Err(error) => return Err(error),
        };
        self.keep(connection);
        Ok(applied)
    }
}

#[async_trait]
impl Participant for PostgresParticipant {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        let Some(working) = self.shared.open.lock().remove(gid) else {
            return self.shared.voted_before(gid).await;
        };
        let vote = self.vote(gid, working).await;
        match vote {
            Ok(Vote::Prepared) => {
                if let Some(place) = self.shared.held.lock().get_mut(gid) {
                    place.is_prepared = true;
                }
            }
            Err(PrepareError::Unknown(_)) => {}
            // It needs no decision.
            _ => drop(self.shared.held.lock().remove(gid)),
        }
        vote
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        let failed = |error: Error| ParticipantError(error.to_string());
        let open = self.shared.open.lock().remove(gid);
        if let Some(working) = open {
            // It was never prepared. If the roll-back fails, the connection ends and it with it.
            let is_held = Arc::strong_count(&working) > 1;
            let end = if is_held { SHUT } else { "ROLLBACK" };
            if working.batch_execute(end).await.is_ok() {
                self.shared.give_back(working);
            }
        }
        let applied = self.shared.finish_prepared(gid, decision).await.map_err(failed)?;
        self.shared.held.lock().remove(gid);
        Ok(applied)
    }

    async fn in_doubt(
        &self,
        coordinator: &str,
        max: usize,
    ) -> Result<Vec<InDoubt>, ParticipantError> {
        self.list(coordinator, max).await.map_err(|error| ParticipantError(error.to_string()))
    }

    async fn forget(&self, gids: &[Gid]) {
        {
            let mut forgotten = self.shared.forgotten.lock();
            let now = Instant::now();
            if !forgotten.gids.is_empty() && now < forgotten.overdue {
                let room = MAX_FORGOTTEN.saturating_sub(forgotten.gids.len());
                return forgotten.gids.extend(gids.iter().take(room).cloned());
            }
            forgotten.gids.extend_from_slice(gids);
            forgotten.overdue = now + 10 * FORGET_AFTER;
        }
        tokio::time::sleep(FORGET_AFTER).await;
        let gids = std::mem::take(&mut self.shared.forgotten.lock().gids);
        if gids.is_empty() {
            return;
        }
        let gids: Vec<String> = gids.iter().map(|gid| format!("'{gid}'")).collect();
        // A row that stays costs room, and nothing else: no sync, and errors are left.
        let delete = format!(
            "BEGIN; SET LOCAL synchronous_commit = off; DELETE FROM {} WHERE gid IN ({}); COMMIT",
            self.shared.table,
            gids.join(", ")
        );
        if let Ok(connection) = self.shared.connection().await
            && connection.batch_execute(&delete).await.is_ok()
        {
            self.shared.keep(connection);
        }
    }
}

/// The server answered, or the statement was one that prepares nothing.
fn not_prepared(error: Error) -> PrepareError {
    PrepareError::Refused(describe(&error))
}

/// An error rolls the transaction back. What ends the session may come when it is prepared: while
/// it waits for a standby, or from a proxy.
fn may_be_prepared(error: Error) -> PrepareError {
    let severity = error.as_db_error().and_then(DbError::parsed_severity);
    match severity {
        Some(Severity::Error) => PrepareError::Refused(describe(&error)),
        _ => PrepareError::Unknown(describe(&error)),
    }
}

/// Whether the cast of a word failed.
fn says(error: &Error, word: &str) -> bool {
    let is_cast = error.code() == Some(&SqlState::INVALID_TEXT_REPRESENTATION);
    is_cast && describe(error).contains(word)
}

fn describe(error: &Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |own| own.message().to_owned())
}

impl fmt::Debug for PostgresParticipant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.shared.open.lock().len();
        f.debug_struct("PostgresParticipant").field("open", &open).finish_non_exhaustive()
    }
}

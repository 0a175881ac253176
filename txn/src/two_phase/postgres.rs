//! A PostgreSQL database as a participant, by `PREPARE TRANSACTION`.
//!
//! Each branch that writes also inserts its id into the table `voussoir_txn_branches` of its own
//! database. An id that the server does not hold prepared is committed if the row is there, and was
//! rolled back or lost if not: the server's answer alone ("does not exist") cannot tell.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::core::{Decision, Heuristic};
use super::gid::Gid;
use super::participant::{Applied, InDoubt, Participant, ParticipantError, PrepareError, Vote};

const INSTALL: &str = "CREATE TABLE IF NOT EXISTS voussoir_txn_branches (gid TEXT PRIMARY KEY)";
/// What two sessions that install at once answer to the slower one.
const INSTALLED_MEANWHILE: [SqlState; 2] = [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_TABLE];

/// Opens connections to one database.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Opens a connection, and has its traffic carried by a task of its own.
    ///
    /// # Errors
    /// What the client says.
    ///
    /// # Cancel safety
    /// Dropped, it leaves no connection behind.
    async fn connect(&self) -> Result<Client, Error>;
}

/// Connections without TLS.
#[async_trait]
impl Connect for tokio_postgres::Config {
    async fn connect(&self) -> Result<Client, Error> {
        let (client, connection) = Self::connect(self, tokio_postgres::NoTls).await?;
        // Ends with the client.
        tokio::spawn(connection);
        Ok(client)
    }
}

/// The database cannot take part. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The server's `max_prepared_transactions` is below the number of connections that may
    /// prepare. Set it to at least that number for each participant of the server, and restart the
    /// server.
    #[error("max_prepared_transactions is {found}, and {needed} branches may be prepared at once")]
    Slots {
        /// The server's setting.
        found: i64,
        /// [`PostgresParticipant::open`]'s `max_connections`.
        needed: usize,
    },
    /// No branch may be open.
    #[error("`max_connections` must be at least 1")]
    NoConnection,
    /// The database cannot be asked.
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
    /// One permit for each connection that works for a branch.
    permits: Arc<Semaphore>,
    /// Connections that wait for work.
    idle: Mutex<Vec<Client>>,
    /// Branches that are not prepared.
    open: Mutex<HashMap<Gid, Arc<Working>>>,
}

/// A connection inside a transaction. The permit is given back with it.
struct Working {
    client: Client,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// For a connection that the caller still holds: what the caller sends from now on fails.
const SHUT: &str = "ROLLBACK; BEGIN READ ONLY";

/// A branch on which the caller works: statements run inside its transaction.
///
/// Drop it, and all its clones, before the transaction commits: a branch that is still held is
/// refused, because a statement behind the vote would be outside of the transaction. The same is
/// true when a statement ends the transaction.
#[derive(Clone)]
pub struct PostgresBranch {
    working: Arc<Working>,
}

impl Deref for PostgresBranch {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.working.client
    }
}

impl fmt::Debug for PostgresBranch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBranch").finish_non_exhaustive()
    }
}

impl PostgresParticipant {
    /// Connects, checks what the server is configured with, and creates the table of branches.
    ///
    /// At most `max_connections` branches are open by this participant at once. Prepared branches
    /// are bounded by the coordinator's `max_active`, and each call that finishes one takes a
    /// connection: the server needs room for both.
    ///
    /// # Errors
    /// [`PostgresError`].
    ///
    /// # Cancel safety
    /// Dropped, it may have created the table.
    pub async fn open(
        connect: impl Connect,
        max_connections: usize,
    ) -> Result<Self, PostgresError> {
        if max_connections == 0 {
            return Err(PostgresError::NoConnection);
        }
        let client = connect.connect().await?;
        let setting = "SELECT current_setting('max_prepared_transactions')::BIGINT";
        let found: i64 = client.query_one(setting, &[]).await?.get(0);
        if usize::try_from(found).is_ok_and(|found| found < max_connections) {
            return Err(PostgresError::Slots { found, needed: max_connections });
        }
        if let Err(error) = client.batch_execute(INSTALL).await {
            let known = error.code().is_some_and(|code| INSTALLED_MEANWHILE.contains(code));
            if !known {
                return Err(error.into());
            }
        }
        let shared = Shared {
            connect: Box::new(connect),
            permits: Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
            idle: Mutex::new(vec![client]),
            open: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Begins a branch, and waits while `max_connections` branches are open.
    ///
    /// # Errors
    /// What the client says: the branch was not begun, and its transaction will abort.
    ///
    /// # Cancel safety
    /// Dropped, no branch was begun.
    pub async fn begin(&self, gid: &Gid) -> Result<PostgresBranch, Error> {
        let permits = Arc::clone(&self.shared.permits);
        let Ok(permit) = permits.acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        let client = self.shared.client().await?;
        client.batch_execute("BEGIN").await?;
        let working = Arc::new(Working { client, _permit: permit });
        self.shared.open.lock().insert(gid.clone(), Arc::clone(&working));
        Ok(PostgresBranch { working })
    }

    /// The prepared branches of a coordinator with this name that nobody has finished.
    async fn list(&self, coordinator: &str, max: usize) -> Result<Vec<InDoubt>, Error> {
        let client = self.shared.client().await?;
        let prefix = format!("vs1:{coordinator}:");
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let rows = client
            .query(
                "SELECT gid, extract(epoch FROM now() - prepared)::FLOAT8 FROM pg_prepared_xacts \
                 WHERE database = current_database() AND starts_with(gid, $1) \
                 ORDER BY prepared LIMIT $2",
                &[&prefix, &max],
            )
            .await?;
        self.shared.idle.lock().push(client);
        let list = rows.iter().filter_map(|row| {
            // What another program prepared under a similar name is none of ours.
            let gid = row.get::<_, &str>(0).parse().ok()?;
            let age = Duration::try_from_secs_f64(row.get::<_, f64>(1)).unwrap_or_default();
            Some(InDoubt::new(gid, age))
        });
        Ok(list.collect())
    }
}

impl Shared {
    /// A connection outside of any transaction.
    async fn client(&self) -> Result<Client, Error> {
        // Ends: each turn takes one away.
        loop {
            let Some(idle) = self.idle.lock().pop() else { return self.connect.connect().await };
            if !idle.is_closed() {
                return Ok(idle);
            }
        }
    }

    /// Keeps a connection that is outside of any transaction, without what the caller has set in
    /// its session. One that the caller still holds ends with the caller.
    async fn give_back(&self, working: Arc<Working>) {
        if let Some(working) = Arc::into_inner(working)
            && working.client.batch_execute("DISCARD ALL").await.is_ok()
        {
            self.idle.lock().push(working.client);
        }
    }

    async fn finish_prepared(&self, gid: &Gid, decision: Decision) -> Result<Applied, Error> {
        let client = self.client().await?;
        let statement = match decision {
            Decision::Commit => format!("COMMIT PREPARED '{gid}'"),
            Decision::Abort => format!("ROLLBACK PREPARED '{gid}'"),
        };
        let applied = match client.batch_execute(&statement).await {
            Ok(()) => Applied::Done,
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
                // The server's word alone proves nothing: the row says whether it was committed.
                let row = "SELECT 1 FROM voussoir_txn_branches WHERE gid = $1";
                let is_committed = client.query_opt(row, &[&gid.to_string()]).await?.is_some();
                match (decision, is_committed) {
                    (Decision::Commit, true) | (Decision::Abort, false) => Applied::Done,
                    (Decision::Commit, false) => Applied::Heuristic(Heuristic::RolledBack),
                    (Decision::Abort, true) => Applied::Heuristic(Heuristic::Committed),
                }
            }
            Err(error) => return Err(error),
        };
        self.idle.lock().push(client);
        Ok(applied)
    }
}

#[async_trait]
impl Participant for PostgresParticipant {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        let Some(working) = self.shared.open.lock().remove(gid) else {
            return Err(PrepareError::Refused("no work was begun under this id".into()));
        };
        // Dropped on the way, the connection is closed with its answer unread.
        let client = &working.client;
        // One: this one. Nobody else has it, and nobody can make another.
        if Arc::strong_count(&working) > 1 {
            client.batch_execute(SHUT).await.map_err(not_prepared)?;
            let why = "its `PostgresBranch` is still held".to_owned();
            return Err(PrepareError::Refused(why));
        }
        // Inside a transaction `now()` is the time of its first statement, the `BEGIN`. As one
        // message of the simple protocol, a statement outside of any has one time for both.
        let state = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL, \
                     now() = statement_timestamp()";
        let rows = client.simple_query(state).await.map_err(not_prepared)?;
        let row = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let is = |column| row.and_then(|row| row.get(column)) == Some("t");
        let (wrote, is_ended) = (is(0), is(1));
        if is_ended {
            return Err(PrepareError::Refused("a statement ended the transaction".into()));
        }
        if !wrote {
            client.batch_execute("ROLLBACK").await.map_err(not_prepared)?;
            self.shared.give_back(working).await;
            return Ok(Vote::ReadOnly);
        }
        // One round trip. Both or neither: an error rolls the transaction back.
        let prepare = format!(
            "INSERT INTO voussoir_txn_branches VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'"
        );
        client.batch_execute(&prepare).await.map_err(may_be_prepared)?;
        self.shared.give_back(working).await;
        Ok(Vote::Prepared)
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        let failed = |error: Error| ParticipantError(error.to_string());
        let open = self.shared.open.lock().remove(gid);
        if let Some(working) = open {
            // It was never prepared. If the roll-back fails, the connection ends and it with it.
            let is_held = Arc::strong_count(&working) > 1;
            let end = if is_held { SHUT } else { "ROLLBACK" };
            if working.client.batch_execute(end).await.is_ok() {
                self.shared.give_back(working).await;
            }
        }
        self.shared.finish_prepared(gid, decision).await.map_err(failed)
    }

    async fn in_doubt(
        &self,
        coordinator: &str,
        max: usize,
    ) -> Result<Vec<InDoubt>, ParticipantError> {
        self.list(coordinator, max).await.map_err(|error| ParticipantError(error.to_string()))
    }

    async fn forget(&self, gids: &[Gid]) {
        let gids: Vec<String> = gids.iter().map(Gid::to_string).collect();
        let delete = "DELETE FROM voussoir_txn_branches WHERE gid = ANY($1)";
        // A row that stays costs room, and nothing else.
        if let Ok(client) = self.shared.client().await
            && client.execute(delete, &[&gids]).await.is_ok()
        {
            self.shared.idle.lock().push(client);
        }
    }
}

/// The server answered, or the statement was one that prepares nothing.
fn not_prepared(error: Error) -> PrepareError {
    PrepareError::Refused(describe(&error))
}

fn may_be_prepared(error: Error) -> PrepareError {
    match error.as_db_error() {
        Some(_) => PrepareError::Refused(describe(&error)),
        None => PrepareError::Unknown(describe(&error)),
    }
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

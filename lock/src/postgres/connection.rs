//! Connections to the database, and the schema in it.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Error};

use super::failed;
use super::waits::Waits;
use crate::service::ServiceError;
use crate::silence::Silence;

const SCHEMA: &str = include_str!("schema.sql");
/// The format of the tables and functions of this version.
const FORMAT: i32 = 1;
/// The longest that a connection takes, setting up included: a server that does not answer holds
/// up those who wait for it no longer.
const CONNECT: Duration = Duration::from_secs(5);

/// Opens connections to the database.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Opens a connection, has its traffic carried by a task of its own, and passes on each
    /// notification.
    ///
    /// # Errors
    /// What the client says.
    ///
    /// # Cancel safety
    /// Dropped, it leaves no connection behind.
    async fn connect(&self, notified: Notified) -> Result<Client, Error>;
}

/// Takes the notifications of a connection. To be dropped with it.
#[derive(Debug)]
pub struct Notified(Option<Arc<Waits>>);

impl Notified {
    /// A notification has come. Never blocks.
    pub fn notification(&self, payload: &str) {
        if let Some(waits) = &self.0 {
            waits.notified(payload);
        }
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        if let Some(waits) = &self.0 {
            waits.ring_all();
        }
    }
}

/// Connections without TLS.
#[async_trait]
impl Connect for tokio_postgres::Config {
    async fn connect(&self, notified: Notified) -> Result<Client, Error> {
        let (client, mut connection) = Self::connect(self, tokio_postgres::NoTls).await?;
        tokio::spawn(async move {
            // Ends: with the client, or with the connection.
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    notified.notification(notification.payload());
                }
            }
        });
        Ok(client)
    }
}

/// One connection.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) silence: Silence,
}

/// A connection that is made anew when it has ended, or answers nothing any more.
pub(super) struct Link {
    connect: Arc<dyn Connect>,
    schema: String,
    /// Whom its notifications wake; `None` if it does not listen.
    waits: Option<Arc<Waits>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// The task that opens the next one; at most one. It outlives the call that began it: calls
    /// whose time is shorter than connecting takes would begin anew for ever. Ends with the link.
    opening: JoinSet<Result<Client, ServiceError>>,
}

impl Link {
    pub(super) fn new(connect: Arc<dyn Connect>, schema: &str, waits: Option<Arc<Waits>>) -> Self {
        Self { connect, schema: schema.to_owned(), waits, state: Mutex::default() }
    }

    /// The connection. If the future is dropped, connecting goes on for the next caller.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, ServiceError> {
        let mut state = self.state.lock().await;
        let is_usable =
            |one: &&Arc<Connection>| !one.client.is_closed() && !one.silence.is_given_up();
        if let Some(connection) = state.connection.as_ref().filter(is_usable) {
            return Ok(Arc::clone(connection));
        }
        // Calls that are under way on it keep it until their deadlines.
        state.connection = None;
        if state.opening.is_empty() {
            let (connect, schema) = (Arc::clone(&self.connect), self.schema.clone());
            state.opening.spawn(open_in_time(connect, schema, self.waits.clone()));
        }
        let opened = state.opening.join_next().await;
        // `None` cannot be: there is a task. A `Connect` of the caller's may panic.
        let opened = opened.and_then(Result::ok);
        let client =
            opened.ok_or_else(|| ServiceError::unavailable("the task that connects ended"))??;
        let connection = Arc::new(Connection { client, silence: Silence::new() });
        state.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }
}

async fn open_in_time(
    connect: Arc<dyn Connect>,
    schema: String,
    waits: Option<Arc<Waits>>,
) -> Result<Client, ServiceError> {
    let opened = tokio::time::timeout(CONNECT, open(&*connect, &schema, waits)).await;
    // Nothing was asked yet: whatever failed, nothing was changed.
    match opened {
        Ok(Err(ServiceError::Unknown { reason })) => Err(ServiceError::Unavailable { reason }),
        Ok(opened) => opened,
        Err(_) => Err(ServiceError::unavailable("no connection within 5 s")),
    }
}

async fn open(
    connect: &dyn Connect,
    schema: &str,
    waits: Option<Arc<Waits>>,
) -> Result<Client, ServiceError> {
    let failed = |error: Error| failed(&error);
    let listens = waits.is_some();
    let client = connect.connect(Notified(waits)).await.map_err(failed)?;
    install(&client, schema).await?;
    if listens {
        let listen = format!("LISTEN {}", quoted(schema));
        client.batch_execute(&listen).await.map_err(failed)?;
    }
    Ok(client)
}

/// Creates the schema unless it is there: a user without the right to create may use what an
/// administrator has created.
async fn install(client: &Client, schema: &str) -> Result<(), ServiceError> {
    let missing = match format_of(client, schema).await {
        Ok(found) => return check_format(found),
        Err(error) => error,
    };
    if !matches!(missing.code(), Some(&(SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME)))
    {
        return Err(failed(&missing));
    }
    let create = SCHEMA.replace("{schema}", &quoted(schema));
    let sequence = format!("{}.numbers", quoted(schema));
    let create = create.replace("{channel}", &text(schema)).replace("{sequence}", &text(&sequence));
    match client.batch_execute(&format!("BEGIN; {create} COMMIT")).await {
        Ok(()) => Ok(()),
        Err(error) => {
            client.batch_execute("ROLLBACK").await.map_err(|error| failed(&error))?;
            // Another may have created it meanwhile.
            let found = format_of(client, schema).await;
            check_format(found.map_err(|_| failed(&error))?)
        }
    }
}

/// The version of the format that the schema has; `None` if its table is empty.
async fn format_of(client: &Client, schema: &str) -> Result<Option<i32>, Error> {
    let newest = format!("SELECT max(version) FROM {}.format", quoted(schema));
    let rows = client.query_typed(&newest, &[]).await?;
    rows.first().map_or(Ok(None), |row| row.try_get(0))
}

fn check_format(found: Option<i32>) -> Result<(), ServiceError> {
    if found == Some(FORMAT) {
        Ok(())
    } else {
        Err(ServiceError::Format { found, expected: FORMAT })
    }
}

/// The text as it stands in a statement.
fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The name as it stands in a statement, whatever characters it has.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

//! Connections to the database, and the schema in it.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Error};

use super::failed;
use super::waits::Waits;
use crate::service::ServiceError;

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

/// A connection that is made anew when it has ended.
pub(super) struct Link {
    connect: Arc<dyn Connect>,
    schema: String,
    /// Whom its notifications wake; `None` if it does not listen.
    waits: Option<Arc<Waits>>,
    client: Mutex<Option<Arc<Client>>>,
}

impl Link {
    pub(super) fn new(connect: Arc<dyn Connect>, schema: &str, waits: Option<Arc<Waits>>) -> Self {
        Self { connect, schema: schema.to_owned(), waits, client: Mutex::new(None) }
    }

    /// The connection; a dropped future leaves the next caller to connect.
    pub(super) async fn client(&self) -> Result<Arc<Client>, ServiceError> {
        let mut kept = self.client.lock().await;
        if let Some(client) = kept.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        *kept = None;
        let opened = tokio::time::timeout(CONNECT, self.open()).await;
        let client = opened.map_err(|_| ServiceError::unavailable("no connection within 5 s"))?;
        // Nothing was asked yet: whatever failed, nothing was changed.
        let client = client.map_err(|error| match failed(&error) {
            ServiceError::Unknown { reason } => ServiceError::Unavailable { reason },
            error => error,
        })?;
        let client = Arc::new(client);
        *kept = Some(Arc::clone(&client));
        Ok(client)
    }

    async fn open(&self) -> Result<Client, Error> {
        let client = self.connect.connect(Notified(self.waits.clone())).await?;
        install(&client, &self.schema).await?;
        if self.waits.is_some() {
            client.batch_execute(&format!("LISTEN {}", quoted(&self.schema))).await?;
        }
        Ok(client)
    }
}

/// Creates the schema unless it is there: a user without the right to create may use what an
/// administrator has created.
async fn install(client: &Client, schema: &str) -> Result<(), Error> {
    let version = format!("SELECT version FROM {}.format WHERE version = {FORMAT}", quoted(schema));
    let missing = match client.batch_execute(&version).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    if !matches!(missing.code(), Some(&(SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME)))
    {
        return Err(missing);
    }
    let create = SCHEMA.replace("{schema}", &quoted(schema));
    let sequence = format!("{}.numbers", quoted(schema));
    let create = create.replace("{channel}", &text(schema)).replace("{sequence}", &text(&sequence));
    match client.batch_execute(&format!("BEGIN; {create} COMMIT")).await {
        Ok(()) => Ok(()),
        Err(error) => {
            client.batch_execute("ROLLBACK").await?;
            // Another may have created it meanwhile.
            client.batch_execute(&version).await.map_err(|_| error)
        }
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

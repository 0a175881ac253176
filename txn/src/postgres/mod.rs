//! What all parts that work with PostgreSQL share: connections, and the schema of our tables.

use std::future::poll_fn;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Error};

use crate::error::ConfigError;

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

    /// As [`connect`](Self::connect), and calls `wake` for each notification that the connection
    /// is sent, and when the connection ends. Without it, which is the default, whoever waits for
    /// notifications finds what is new when it looks by itself.
    ///
    /// # Errors
    /// What the client says.
    ///
    /// # Cancel safety
    /// Dropped, it leaves no connection behind.
    async fn connect_notified(&self, wake: Wake) -> Result<Client, Error> {
        drop(wake);
        self.connect().await
    }
}

/// Wakes a task that waits for notifications. Never blocks.
#[derive(Clone, Debug)]
pub struct Wake(Arc<Notify>);

impl Wake {
    pub(crate) fn new(notify: &Arc<Notify>) -> Self {
        Self(Arc::clone(notify))
    }

    /// Something may be new.
    pub fn wake(&self) {
        self.0.notify_one();
    }
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

    async fn connect_notified(&self, wake: Wake) -> Result<Client, Error> {
        let (client, mut connection) = Self::connect(self, tokio_postgres::NoTls).await?;
        tokio::spawn(async move {
            // Ends with the client.
            loop {
                match poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => wake.wake(),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return wake.wake(),
                }
            }
        });
        Ok(client)
    }
}

/// PostgreSQL cuts longer names off.
const MAX_NAME_BYTES: usize = 63;

/// Whether PostgreSQL can have a schema of this name.
pub(crate) fn check_schema(name: &str) -> Result<(), ConfigError> {
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains('\0');
    let rule = "must have 1 to 63 bytes, without zero byte";
    if fits { Ok(()) } else { Err(ConfigError { field: "schema", rule }) }
}

/// The name as it stands in a statement, whatever characters it has.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What two sessions that install at once answer to the slower one.
const INSTALLED_MEANWHILE: [SqlState; 4] = [
    SqlState::UNIQUE_VIOLATION,
    SqlState::DUPLICATE_TABLE,
    SqlState::DUPLICATE_SCHEMA,
    SqlState::DUPLICATE_OBJECT,
];

/// Creates a schema and a table in it, unless they exist: a user without the right to create may
/// use what an administrator has created. `create` is what follows the name of the table.
pub(crate) async fn install(
    client: &Client,
    schema: &str,
    table: &str,
    create: &str,
) -> Result<(), Error> {
    let exists = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1), \
                  EXISTS (SELECT FROM pg_catalog.pg_tables \
                          WHERE schemaname = $1 AND tablename = $2)";
    let row = client.query_one(exists, &[&schema, &table]).await?;
    let (has_schema, has_table) = (row.get::<_, bool>(0), row.get::<_, bool>(1));
    let schema = quoted(schema);
    if !has_schema {
        meanwhile(client.batch_execute(&format!("CREATE SCHEMA {schema}")).await)?;
    }
    if !has_table {
        let create = format!("CREATE TABLE {schema}.{table} {create}");
        meanwhile(client.batch_execute(&create).await)?;
    }
    Ok(())
}

fn meanwhile(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.code().is_some_and(|code| INSTALLED_MEANWHILE.contains(code)) => Ok(()),
        done => done,
    }
}

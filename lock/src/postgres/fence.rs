//! The check of fencing tokens in the caller's own transaction.

use tokio_postgres::{Client, Error, Transaction};

use crate::fence::{FencingToken, StaleToken};

/// Refuses the writes of holders that have lost their lock, in a PostgreSQL database: the one of
/// the lock service or any other. It keeps the greatest token of each resource in a table, which is
/// written in the caller's own transaction, together with the effect.
///
/// A table of one's own that has a column for the token does the same by
/// `UPDATE ... SET epoch = $token WHERE id = $id AND epoch <= $token`.
///
/// # Example
/// ```no_run
/// use voussoir_lock::postgres::PostgresFence;
/// use voussoir_lock::Guard;
///
/// # async fn run(
/// #     client: &mut tokio_postgres::Client,
/// #     guard: &Guard,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let fence = PostgresFence::new("voussoir_fences");
/// fence.install(client).await?; // once, or by your migrations
///
/// let transaction = client.transaction().await?;
/// fence.enter(&transaction, "ledger", guard.permit()?.token()).await?;
/// transaction.execute("INSERT INTO ledger VALUES ('entry')", &[]).await?;
/// transaction.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PostgresFence {
    /// The table as it stands in statements.
    table: String,
}

/// Why a transaction does not go on. It is to be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// A later holder has entered. Final for this one.
    #[error(transparent)]
    Stale(#[from] StaleToken),
    /// The token is greater than PostgreSQL's numbers: it is none of this crate's services.
    #[error("the fencing token is greater than 2^63 - 1")]
    OutOfRange,
    /// The database.
    #[error(transparent)]
    Postgres(#[from] Error),
}

impl PostgresFence {
    /// The tokens in this table: a name with or without schema, as it stands in a statement.
    pub fn new(table: impl Into<String>) -> Self {
        Self { table: table.into() }
    }

    /// Creates the table, unless it is there.
    ///
    /// # Errors
    /// What the database says.
    ///
    /// # Cancel safety
    /// A dropped future may have created it.
    pub async fn install(&self, client: &Client) -> Result<(), Error> {
        let create = "(resource text PRIMARY KEY, token bigint NOT NULL)";
        client.batch_execute(&format!("CREATE TABLE IF NOT EXISTS {} {create}", self.table)).await
    }

    /// Lets the transaction go on if no greater token has entered the resource, and shuts smaller
    /// ones out. Others enter after this transaction has ended. Before the first read of what is
    /// guarded, too.
    ///
    /// # Errors
    /// [`FenceError`].
    ///
    /// # Cancel safety
    /// A dropped future may have entered, if the transaction commits.
    pub async fn enter(
        &self,
        transaction: &Transaction<'_>,
        resource: &str,
        token: FencingToken,
    ) -> Result<(), FenceError> {
        let number = i64::try_from(token.get()).map_err(|_| FenceError::OutOfRange)?;
        let table = &self.table;
        let enter = format!(
            "INSERT INTO {table} AS f (resource, token) VALUES ($1, $2) \
             ON CONFLICT (resource) DO UPDATE SET token = EXCLUDED.token \
             WHERE f.token <= EXCLUDED.token"
        );
        if transaction.execute(&enter, &[&resource, &number]).await? == 1 {
            return Ok(());
        }
        let latest = format!("SELECT token FROM {table} WHERE resource = $1");
        let row = transaction.query_one(&latest, &[&resource]).await?;
        let latest = row.try_get::<_, i64>(0)?.max(0) as u64;
        Err(StaleToken { token: token.get(), latest }.into())
    }
}

//! Keys in a PostgreSQL database, which many processes share.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::error::Elapsed;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error};

use super::store::{Found, KeyStore, NewKey, Settlement};
use crate::error::{ConfigError, StoreError};
use crate::postgres::{Connect, check_schema, install, quoted};

const TABLE: &str = "voussoir_keys";
/// How often a claim looks again when its key goes away while it looks.
const LOOKS: usize = 16;
/// The longest that connecting may take, and an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Keys in the table `voussoir_keys`. Leases and ages are measured by the server's clock. Clones
/// share one connection, on which statements do not wait for each other.
///
/// Connecting may take 10 s, and an answer too. Past it an operation fails, done or not, and the
/// next one connects again.
#[derive(Clone)]
pub struct PostgresKeys {
    shared: Arc<Shared>,
}

struct Shared {
    connect: Box<dyn Connect>,
    table: String,
    client: Mutex<Option<Arc<Client>>>,
}

impl PostgresKeys {
    /// Creates the table in `schema`, and the schema, unless they exist.
    ///
    /// # Errors
    /// [`StoreError`], also for a name that no schema can have.
    ///
    /// # Cancel safety
    /// Dropped, it may have created the schema and the table.
    pub async fn open(connect: impl Connect, schema: &str) -> Result<Self, StoreError> {
        check_schema(schema).map_err(|error: ConfigError| StoreError::new(error))?;
        let create = "(key TEXT PRIMARY KEY, fingerprint BYTEA NOT NULL, owner TEXT NOT NULL, \
                       lease_until TIMESTAMPTZ NOT NULL, forgotten_at TIMESTAMPTZ NOT NULL, \
                       abandoned BOOLEAN NOT NULL DEFAULT FALSE, result BYTEA)";
        let installed = async {
            let client = connect.connect().await?;
            install(&client, schema, TABLE, create).await?;
            Ok::<_, Error>(client)
        };
        let client = within(installed).await?;
        let shared = Shared {
            connect: Box::new(connect),
            table: format!("{}.{TABLE}", quoted(schema)),
            client: Mutex::new(Some(Arc::new(client))),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Deletes at most `max` keys that are no longer remembered, and returns how many.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Cancel safety
    /// Dropped, they are deleted or not.
    pub async fn forget_expired(&self, max: u32) -> Result<u64, StoreError> {
        let delete = format!(
            "DELETE FROM {0} WHERE forgotten_at < pg_catalog.clock_timestamp() AND key = ANY \
             (ARRAY(SELECT key FROM {0} WHERE forgotten_at < pg_catalog.clock_timestamp() \
             LIMIT $1))",
            self.shared.table
        );
        let client = self.client().await?;
        let max = i64::from(max);
        self.asked(&client, client.execute(&delete, &[&max])).await
    }

    async fn client(&self) -> Result<Arc<Client>, StoreError> {
        let connected = async {
            let mut client = self.shared.client.lock().await;
            match &*client {
                Some(open) if !open.is_closed() => Ok(Arc::clone(open)),
                _ => {
                    let open = Arc::new(self.shared.connect.connect().await?);
                    Ok(Arc::clone(client.insert(open)))
                }
            }
        };
        within(connected).await
    }

    /// What the server answers. A connection on which an answer takes too long is replaced: others
    /// would wait behind it.
    async fn asked<T>(
        &self,
        client: &Arc<Client>,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        let asked = tokio::time::timeout(LIMIT, answer).await;
        if asked.is_err() {
            let mut shared = self.shared.client.lock().await;
            if shared.as_ref().is_some_and(|shared| Arc::ptr_eq(shared, client)) {
                *shared = None;
            }
        }
        answered(asked)
    }

    async fn take(&self, client: &Client, new: &NewKey) -> Result<Option<Found>, Error> {
        let table = &self.shared.table;
        let take = format!(
            "INSERT INTO {table} AS old (key, fingerprint, owner, lease_until, forgotten_at) \
             VALUES ($1, $2, $3, pg_catalog.clock_timestamp() + \
             pg_catalog.make_interval(secs => $4), pg_catalog.clock_timestamp() + \
             pg_catalog.make_interval(secs => $5)) ON CONFLICT (key) DO UPDATE SET \
             fingerprint = excluded.fingerprint, owner = excluded.owner, result = NULL, \
             lease_until = excluded.lease_until, forgotten_at = excluded.forgotten_at, \
             abandoned = old.forgotten_at > pg_catalog.clock_timestamp() \
             WHERE old.forgotten_at <= pg_catalog.clock_timestamp() OR (old.result IS NULL AND \
             old.fingerprint = excluded.fingerprint AND \
             $6 AND old.lease_until <= pg_catalog.clock_timestamp()) RETURNING abandoned"
        );
        let (owner, fingerprint) = (owner(new.owner), &*new.fingerprint);
        let (lease, keep) = (new.lease.as_secs_f64(), new.keep.as_secs_f64());
        let takes = new.takes_abandoned;
        let values: [&(dyn ToSql + Sync); 6] =
            [&new.key, &fingerprint, &owner, &lease, &keep, &takes];
        let taken = client.query_opt(&take, &values).await?;
        if let Some(row) = taken {
            return Ok(Some(if row.get(0) { Found::Abandoned } else { Found::Vacant }));
        }
        let look = format!(
            "SELECT fingerprint = $2, result, extract(epoch FROM lease_until - \
             pg_catalog.clock_timestamp())::FLOAT8 FROM {table} WHERE key = $1"
        );
        let row = client.query_opt(&look, &[&new.key, &fingerprint]).await?;
        Ok(row.map(|row| match (row.get(0), row.get::<_, Option<&[u8]>>(1)) {
            (false, _) => Found::Mismatch,
            (true, Some(result)) => Found::Done(Bytes::copy_from_slice(result)),
            (true, None) => match row.get::<_, f64>(2) {
                left if left <= 0.0 && !takes => Found::Abandoned,
                left => Found::InProgress(Duration::try_from_secs_f64(left).unwrap_or_default()),
            },
        }))
    }
}

async fn within<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
    answered(tokio::time::timeout(LIMIT, call).await)
}

fn answered<T>(answer: Result<Result<T, Error>, Elapsed>) -> Result<T, StoreError> {
    let late = |_| StoreError::new(format!("the database did not answer within {LIMIT:?}"));
    answer.map_err(late)?.map_err(StoreError::new)
}

fn owner(owner: u128) -> String {
    format!("{owner:032x}")
}

#[async_trait]
impl KeyStore for PostgresKeys {
    async fn claim(&self, new: &NewKey) -> Result<Found, StoreError> {
        let client = self.client().await?;
        let look = async {
            for _ in 0..LOOKS {
                // `None`: its owner freed it between the two statements.
                if let Some(found) = self.take(&client, new).await? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        };
        let freed = || StoreError::new("the key was freed each time that it was looked at");
        self.asked(&client, look).await?.ok_or_else(freed)
    }

    async fn settle(
        &self,
        key: &str,
        of: u128,
        end: Settlement,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let client = self.client().await?;
        let table = &self.shared.table;
        let own = "WHERE key = $1 AND owner = $2 AND result IS NULL";
        let owner = owner(of);
        let set = |what: &str| {
            format!(
                "UPDATE {table} SET {what}, forgotten_at = pg_catalog.clock_timestamp() + \
                 pg_catalog.make_interval(secs => $3) {own}"
            )
        };
        let keep = keep.as_secs_f64();
        let changed = match end {
            Settlement::Done(result) => {
                let (finish, result) = (set("result = $4"), &*result);
                let values: [&(dyn ToSql + Sync); 4] = [&key, &owner, &keep, &result];
                self.asked(&client, client.execute(&finish, &values)).await
            }
            Settlement::Free => {
                let free = format!("DELETE FROM {table} {own}");
                self.asked(&client, client.execute(&free, &[&key, &owner])).await
            }
            Settlement::Abandoned => {
                let leave = set("lease_until = pg_catalog.clock_timestamp()");
                self.asked(&client, client.execute(&leave, &[&key, &owner, &keep])).await
            }
        };
        Ok(changed? == 1)
    }
}

impl fmt::Debug for PostgresKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresKeys").field("table", &self.shared.table).finish_non_exhaustive()
    }
}

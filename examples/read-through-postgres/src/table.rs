//! The table of products in PostgreSQL: what is read through, and changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};
use voussoir_cache::{Loaded, Source, SourceError, async_trait};

use crate::pool::Pool;

/// The server ends a statement after this time. Below the hard time-out of the cache.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one process.
const CONNECTIONS: usize = 16;
/// Products that one statement loads.
const MAX_LOADED: usize = 100;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Product {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) category: String,
    pub(crate) cents: i64,
    /// Grows by one with each change of the row, by a trigger.
    pub(crate) version: i64,
}

/// The tag of all products of a category.
pub(crate) fn category_tag(category: &str) -> String {
    format!("category:{category}")
}

/// The channel on which triggers tell of changes of a table.
pub(crate) fn channel(table: &str) -> String {
    format!("{table}_changed")
}

/// A table of products. Clones share the connections.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    name: Arc<str>,
    pool: Arc<Pool>,
    /// Loads the products whose ids are in `$1`.
    load: Arc<str>,
}

impl Table {
    /// Connects when the first statement is executed.
    ///
    /// # Errors
    /// `url` is no connection string.
    pub(crate) fn new(url: &str, name: &str) -> Result<Self, Error> {
        let pool = Arc::new(Pool::new(url, CONNECTIONS, STATEMENT_TIMEOUT)?);
        let load =
            format!("SELECT id, name, category, cents, version FROM {name} WHERE id = ANY($1)");
        Ok(Self { name: name.into(), pool, load: load.into() })
    }

    /// The same table, with a load whose cost and number the database can tell: `load` answers one
    /// row of NULLs where it finds nothing.
    #[cfg(feature = "demo")]
    pub(crate) fn with_load(&self, load: &str) -> Self {
        Self { load: load.into(), ..self.clone() }
    }

    /// Creates table and triggers if they do not exist.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached or refuses.
    ///
    /// # Cancel safety
    /// Not cancel safe: they may be there or not.
    pub(crate) async fn create(&self) -> Result<(), Error> {
        let (name, channel) = (&self.name, channel(&self.name));
        // A trigger tells of a change when its transaction commits, also of changes by migrations
        // and psql. A payload takes up to 8,000 bytes, an id at most 20.
        self.execute(&format!(
            "BEGIN;
             CREATE TABLE IF NOT EXISTS {name} (
                 id BIGINT PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL,
                 cents BIGINT NOT NULL CHECK (cents >= 0), version BIGINT NOT NULL DEFAULT 1);
             CREATE INDEX IF NOT EXISTS {name}_by_category ON {name} (category);
             CREATE OR REPLACE FUNCTION {name}_next_version() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN NEW.version := OLD.version + 1; RETURN NEW; END $$;
             CREATE OR REPLACE TRIGGER {name}_next_version BEFORE UPDATE ON {name}
                 FOR EACH ROW EXECUTE FUNCTION {name}_next_version();
             CREATE OR REPLACE FUNCTION {name}_tell() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_notify('{channel}', COALESCE(NEW.id, OLD.id)::TEXT);
                 RETURN NULL; END $$;
             CREATE OR REPLACE TRIGGER {name}_tell AFTER INSERT OR UPDATE OR DELETE ON {name}
                 FOR EACH ROW EXECUTE FUNCTION {name}_tell();
             COMMIT"
        ))
        .await
    }

    /// Executes statements without parameters.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached or refuses.
    ///
    /// # Cancel safety
    /// Not cancel safe: they may be executed or not.
    pub(crate) async fn execute(&self, statements: &str) -> Result<(), Error> {
        let client = self.pool.get().await?;
        client.batch_execute(statements).await?;
        client.give_back();
        Ok(())
    }

    /// One number, from a statement that answers one row of one `BIGINT`.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached or refuses.
    ///
    /// # Cancel safety
    /// Cancel safe.
    #[cfg(feature = "demo")]
    pub(crate) async fn number(&self, statement: &str) -> Result<i64, Error> {
        let client = self.pool.get().await?;
        let number = client.query_typed_one(statement, &[]).await?.try_get(0)?;
        client.give_back();
        Ok(number)
    }

    /// Changes the price of a product. Committed when it returns; false where there is none.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached, or refuses the price.
    ///
    /// # Cancel safety
    /// Not cancel safe: the price may be changed or not.
    pub(crate) async fn set_price(&self, id: i64, cents: i64) -> Result<bool, Error> {
        let client = self.pool.get().await?;
        let statement = format!("UPDATE {} SET cents = $2 WHERE id = $1", self.name);
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&id, Type::INT8), (&cents, Type::INT8)];
        let changed = client.execute_typed(&statement, &parameters).await?;
        client.give_back();
        Ok(changed > 0)
    }

    /// Lowers the prices of a category by a share in percent. Committed when it returns; the number
    /// of products.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached.
    ///
    /// # Cancel safety
    /// Not cancel safe: all prices may be changed, or none.
    pub(crate) async fn discount(&self, category: &str, percent: i64) -> Result<u64, Error> {
        let client = self.pool.get().await?;
        let statement = format!(
            "UPDATE {} SET cents = cents - cents * $2 / 100 WHERE category = $1",
            self.name
        );
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&category, Type::TEXT), (&percent, Type::INT8)];
        let changed = client.execute_typed(&statement, &parameters).await?;
        client.give_back();
        Ok(changed)
    }

    async fn select(&self, ids: &[i64]) -> Result<HashMap<i64, Product>, Error> {
        let client = self.pool.get().await?;
        let rows = client.query_typed(&self.load, &[(&ids, Type::INT8_ARRAY)]).await?;
        client.give_back();
        let products = rows.iter().filter_map(|row| product(row).transpose());
        products.map(|product| product.map(|product| (product.id, product))).collect()
    }
}

/// The product of a row; `None` for a row of NULLs.
fn product(row: &Row) -> Result<Option<Product>, Error> {
    let Some(id) = row.try_get(0)? else { return Ok(None) };
    Ok(Some(Product {
        id,
        name: row.try_get(1)?,
        category: row.try_get(2)?,
        cents: row.try_get(3)?,
        version: row.try_get(4)?,
    }))
}

#[async_trait]
impl Source<i64, Arc<Product>> for Table {
    async fn load(&self, ids: &[i64]) -> Vec<Result<Loaded<Arc<Product>>, SourceError>> {
        match self.select(ids).await {
            Ok(mut found) => {
                let load = |id| match found.remove(id) {
                    Some(product) => {
                        let (tag, version) = (category_tag(&product.category), product.version);
                        Loaded::value(Arc::new(product))
                            .tagged(tag)
                            .at_version(version.cast_unsigned())
                    }
                    None => Loaded::absent(),
                };
                ids.iter().map(load).map(Ok).collect()
            }
            Err(error) => {
                let error = SourceError::new(error);
                ids.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    fn max_batch(&self) -> usize {
        MAX_LOADED
    }
}

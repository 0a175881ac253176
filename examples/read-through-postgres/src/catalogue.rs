//! The catalogue: reads go through the cache, changes go to the table and then invalidate.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio_postgres::Error;
use voussoir_cache::{Cache, Config, LevelConfig, LoadError};

use crate::shared::Shared;
use crate::table::{Product, Table, category_tag};

/// Products in memory.
const MAX_PRODUCTS: u64 = 50_000;

/// How long what was read is kept. Both times bound how long a change goes unseen that was made
/// behind the cache's back while no listener told of it.
#[derive(Clone, Debug)]
pub(crate) struct Freshness {
    /// How long a product is fresh.
    pub(crate) ttl: Duration,
    /// How long it is remembered that there is no such product.
    pub(crate) negative_ttl: Duration,
    /// The age at which a product that is read is loaded again in the background. Below `ttl`.
    pub(crate) refresh_after: Option<Duration>,
    /// How long after its `ttl` a product is served while it is loaded again.
    pub(crate) stale_while_revalidate: Duration,
    /// How long after its `ttl` a product is served while the database fails.
    pub(crate) stale_if_error: Duration,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(10),
            refresh_after: Some(Duration::from_secs(45)),
            stale_while_revalidate: Duration::from_secs(5),
            stale_if_error: Duration::from_secs(600),
        }
    }
}

impl Freshness {
    fn config(&self) -> Config {
        let mut config = Config::default();
        config.max_weight = MAX_PRODUCTS;
        config.ttl = Some(self.ttl);
        config.negative_ttl = self.negative_ttl;
        config.refresh_after = self.refresh_after;
        config.stale_while_revalidate = self.stale_while_revalidate;
        config.stale_if_error = self.stale_if_error;
        config
    }
}

/// Products by id. Clones are handles to the same catalogue.
#[derive(Clone, Debug)]
pub(crate) struct Catalogue {
    cache: Cache<i64, Arc<Product>>,
    table: Table,
}

impl Catalogue {
    /// A catalogue over `table`; with `shared`, between its memory and the table, and told of the
    /// changes of the other processes. Needs a tokio runtime then.
    ///
    /// # Errors
    /// `freshness` breaks a rule of the cache, or Redis cannot be used with this configuration.
    pub(crate) fn new(
        table: Table,
        freshness: &Freshness,
        shared: Option<&Shared>,
    ) -> Result<Self, crate::Error> {
        let mut builder = Cache::builder().config(freshness.config()).source(table.clone());
        if let Some(shared) = shared {
            let mut level = LevelConfig::default();
            level.ttl = freshness.ttl;
            builder = shared.add_to(builder, level)?;
        }
        Ok(Self { cache: builder.build()?, table })
    }

    /// The cache itself, for its statistics, and for the listener.
    pub(crate) fn cache(&self) -> &Cache<i64, Arc<Product>> {
        &self.cache
    }

    /// A product; `None` where there is none.
    ///
    /// # Errors
    /// The database gave no answer, and nothing that may be served instead is in memory.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn product(&self, id: i64) -> Result<Option<Arc<Product>>, LoadError> {
        self.cache.get_or_load(&id).await
    }

    /// Several products, each as [`product`](Self::product) gives it. Those that are not in memory
    /// are loaded by few statements: misses that come at the same time are collected.
    ///
    /// # Errors
    /// As [`product`](Self::product), of any of them.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn products(
        &self,
        ids: &[i64],
    ) -> Result<Vec<Option<Arc<Product>>>, LoadError> {
        try_join_all(ids.iter().map(|id| self.product(*id))).await
    }

    /// Changes the price of a product. Reads in this process that begin after it has returned see
    /// the new one, reads in other processes some milliseconds later. False where there is no such
    /// product.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached, or refuses the price. The product is read again either way:
    /// whether the price was changed may be unknown.
    ///
    /// # Cancel safety
    /// Not cancel safe: see [`Table::set_price`].
    pub(crate) async fn set_price(&self, id: i64, cents: i64) -> Result<bool, Error> {
        let (catalogue, table) = (self.clone(), self.table.clone());
        // In a task of its own: a future that is dropped between commit and invalidation would
        // leave the old price in memory.
        let changed = tokio::spawn(async move {
            let changed = table.set_price(id, cents).await;
            // After the commit: before it, a reader would load the old price again.
            catalogue.cache.invalidate(&id);
            changed
        });
        changed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Lowers the prices of a category; the number of products. Whoever reads one of them after it
    /// has returned sees the new price, in this process.
    ///
    /// # Errors
    /// As [`set_price`](Self::set_price).
    ///
    /// # Cancel safety
    /// Not cancel safe: see [`Table::discount`].
    pub(crate) async fn discount(&self, category: &str, percent: i64) -> Result<u64, Error> {
        let (catalogue, table, category) = (self.clone(), self.table.clone(), category.to_owned());
        let changed = tokio::spawn(async move {
            let changed = table.discount(&category, percent).await;
            catalogue.cache.invalidate_tag(&category_tag(&category));
            changed
        });
        changed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

//! A stampede: many readers of one product that is in no memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use voussoir_cache::Source;

use super::{LOAD_COST, Stage, expect, only_ttl, show};
use crate::Error;

/// One run: how long each reader waited, sorted, and the loads that the database has executed.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) variant: &'static str,
    pub(super) waits: Vec<Duration>,
    pub(super) loads: u64,
}

impl Run {
    /// The wait that a share `q` (0 to 1) of the readers did not exceed.
    pub(super) fn quantile(&self, q: f64) -> Duration {
        let at = (self.waits.len() as f64 * q).ceil() as usize;
        self.waits.get(at.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// The same readers without and with the cache.
///
/// # Errors
/// A reader got no product, or the loads are not one for each reader and one for all.
pub(super) async fn run(stage: &Stage, readers: u32) -> Result<[Run; 2], Error> {
    let table = stage.table.clone();
    let without = readers_of(stage, "without a cache", readers, move || {
        let table = table.clone();
        async move {
            let loaded = table.load(&[1]).await.pop().ok_or("no answer")??;
            Ok(matches!(loaded, voussoir_cache::Loaded::Value { .. }))
        }
    })
    .await?;
    let catalogue = stage.catalogue(&only_ttl(Duration::from_secs(60)))?;
    let with = readers_of(stage, "one load for all", readers, move || {
        let catalogue = catalogue.clone();
        async move { Ok(catalogue.product(1).await?.is_some()) }
    })
    .await?;
    expect(without.loads == u64::from(readers), "without a cache each reader loads")?;
    expect(with.loads == 1, "all readers share one load")?;
    Ok([without, with])
}

async fn readers_of<F>(
    stage: &Stage,
    variant: &'static str,
    readers: u32,
    read: impl Fn() -> F,
) -> Result<Run, Error>
where
    F: Future<Output = Result<bool, Error>> + Send + 'static,
{
    let before = stage.loads().await?;
    // All begin at once.
    let start = Arc::new(Barrier::new(readers as usize));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..readers {
        let (start, read) = (Arc::clone(&start), read());
        tasks.spawn(async move {
            start.wait().await;
            let began = Instant::now();
            let found = read.await;
            found.map(|found| (found, began.elapsed()))
        });
    }
    let mut waits = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        let (found, wait) = ended??;
        expect(found, "every reader gets the product")?;
        waits.push(wait);
    }
    waits.sort_unstable();
    let run = Run { variant, waits, loads: stage.loads().await? - before };
    let millis = |q| run.quantile(q).as_secs_f64() * 1e3;
    let saw = format!(
        "waited p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms; a load takes {} ms",
        millis(0.5),
        millis(0.99),
        millis(1.0),
        LOAD_COST.as_millis(),
    );
    show("stampede on a cold key", variant, u64::from(readers), run.loads, &saw);
    Ok(run)
}

//! The other scenes. Each uses products of its own.

use std::time::{Duration, Instant};

use tokio::time::{interval, sleep, timeout};

use super::{IN_CATEGORY, Stage, expect, only_ttl, show};
use crate::Error;
use crate::catalogue::{Catalogue, Freshness};
use crate::listener::Listener;

/// A change that no reader has seen after this long is never seen.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn price(catalogue: &Catalogue, id: i64) -> Result<i64, Error> {
    let product = catalogue.product(id).await?;
    Ok(product.ok_or_else(|| format!("no product {id}"))?.cents)
}

/// A product that is read all the time, over two lifetimes: do readers wait at its end?
pub(super) async fn refresh_ahead(stage: &Stage) -> Result<(), Error> {
    const ID: i64 = 11;
    const TTL: Duration = Duration::from_secs(2);
    let expiring = only_ttl(TTL);
    let refreshed = Freshness { refresh_after: Some(TTL / 2), ..expiring.clone() };
    for (variant, freshness) in [("expires every 2 s", expiring), ("is loaded at 1 s", refreshed)] {
        let ahead = freshness.refresh_after.is_some();
        let catalogue = stage.catalogue(&freshness)?;
        let before = stage.loads().await?;
        let (mut ticks, end) = (interval(Duration::from_millis(1)), Instant::now() + TTL * 9 / 4);
        let mut reads = 0;
        while Instant::now() < end {
            ticks.tick().await;
            price(&catalogue, ID).await?;
            reads += 1;
        }
        let stats = catalogue.cache().stats();
        let saw = format!("{} reads waited for a load", stats.misses);
        show("refresh-ahead", variant, reads, stage.loads().await? - before, &saw);
        if ahead {
            expect(stats.refreshes >= 2, "it is refreshed")?;
            expect(stats.misses == 1, "with refresh-ahead only the first reader waits")?;
        } else {
            expect(stats.misses >= 3, "without refresh-ahead a reader waits at each end")?;
        }
    }
    Ok(())
}

/// A product whose time is over, and whose row has changed: what does a reader get, and when?
pub(super) async fn stale_while_revalidate(stage: &Stage) -> Result<(), Error> {
    const ID: i64 = 12;
    const TTL: Duration = Duration::from_millis(300);
    let stale_while_revalidate = Duration::from_secs(30);
    let catalogue = stage.catalogue(&Freshness { stale_while_revalidate, ..only_ttl(TTL) })?;
    let before = stage.loads().await?;
    let old = price(&catalogue, ID).await?;
    stage.table.set_price(ID, old + 1).await?;
    sleep(TTL + Duration::from_millis(50)).await;
    let began = Instant::now();
    let served = price(&catalogue, ID).await?;
    let waited = began.elapsed();
    expect(served == old, "the stale product is served at once")?;
    let (mut reads, until) = (2, Instant::now() + PATIENCE);
    while price(&catalogue, ID).await? == old {
        expect(Instant::now() < until, "the product is loaded in the background")?;
        reads += 1;
        sleep(Duration::from_millis(1)).await;
    }
    let saw = format!(
        "the old price at once ({:.1} ms), the new one after {:.0} ms",
        waited.as_secs_f64() * 1e3,
        began.elapsed().as_secs_f64() * 1e3,
    );
    let loads = stage.loads().await? - before;
    show("stale-while-revalidate", "past its TTL", reads + 1, loads, &saw);
    expect(loads == 2, "one load at first, one in the background")
}

/// Reads of a product that does not exist.
pub(super) async fn negative_caching(stage: &Stage) -> Result<(), Error> {
    const READS: u64 = 200;
    let forgetting = only_ttl(Duration::from_secs(60));
    let remembering = Freshness { negative_ttl: Duration::from_secs(30), ..forgetting.clone() };
    let variants = [("absence is forgotten", forgetting), ("absence is remembered", remembering)];
    for ((variant, freshness), wanted) in variants.into_iter().zip([READS, 1]) {
        let catalogue = stage.catalogue(&freshness)?;
        let before = stage.loads().await?;
        for _ in 0..READS {
            expect(catalogue.product(-1).await?.is_none(), "there is no product -1")?;
        }
        let loads = stage.loads().await? - before;
        show("negative caching", variant, READS, loads, "no product, each time");
        expect(loads == wanted, variant)?;
    }
    Ok(())
}

/// All products of a category change in one transaction, and their tag is invalidated.
pub(super) async fn invalidation_by_tag(stage: &Stage) -> Result<(), Error> {
    let category = "category 1";
    let ids: Vec<i64> = (IN_CATEGORY + 1..=2 * IN_CATEGORY).collect();
    let catalogue = stage.catalogue(&only_ttl(Duration::from_secs(60)))?;
    let before = stage.loads().await?;
    let old = prices(&catalogue, &ids).await?;
    let first = stage.loads().await? - before;
    show("batched loads", "200 at once", ids.len() as u64, first, "every product");
    let changed = catalogue.discount(category, 10).await?;
    let before = stage.loads().await?;
    let new = prices(&catalogue, &ids).await?;
    let lowered = old.iter().zip(&new).filter(|(old, new)| **new == **old - **old * 10 / 100);
    let lowered = lowered.count();
    let saw = format!("{lowered} of {changed} new prices");
    let loads = stage.loads().await? - before;
    show("invalidation by tag", "after the commit", ids.len() as u64, loads, &saw);
    expect(lowered == ids.len() && changed == ids.len() as u64, "every price is the new one")?;
    expect(first.max(loads) <= ids.len() as u64 / 4, "misses of different products share loads")
}

async fn prices(catalogue: &Catalogue, ids: &[i64]) -> Result<Vec<i64>, Error> {
    let products = catalogue.products(ids).await?;
    let price = |(id, product): (&i64, Option<std::sync::Arc<crate::table::Product>>)| {
        product.map(|product| product.cents).ok_or_else(|| format!("no product {id}").into())
    };
    ids.iter().zip(products).map(price).collect()
}

/// A row is changed by another program, which knows nothing of the cache.
pub(super) async fn behind_the_back(stage: &Stage) -> Result<(), Error> {
    const ID: i64 = 13;
    const TTL: Duration = Duration::from_millis(1_500);
    const LONG: Duration = Duration::from_secs(60);
    let alone = stage.catalogue(&only_ttl(TTL))?;
    let told = stage.catalogue(&only_ttl(LONG))?;
    let listener = listen(stage, &told).await?;
    let old = price(&alone, ID).await?;
    expect(price(&told, ID).await? == old, "both have the old price")?;
    let other = crate::table::Table::new(stage.postgres.url(), &stage.name)?;
    other.set_price(ID, old + 1).await?;
    let changed = Instant::now();
    let watch = |catalogue: Catalogue| {
        tokio::spawn(async move {
            let mut reads = 1;
            while price(&catalogue, ID).await? == old {
                expect(changed.elapsed() < PATIENCE, "the change is seen")?;
                reads += 1;
                sleep(Duration::from_millis(1)).await;
            }
            Ok::<_, Error>((reads, changed.elapsed()))
        })
    };
    let before = stage.loads().await?;
    let (alone, told) = (watch(alone), watch(told));
    let ((reads, by_ttl), (told_reads, by_notify)) = (alone.await??, told.await??);
    let loads = stage.loads().await? - before;
    let stale = |time: Duration| format!("stale for {:.0} ms", time.as_secs_f64() * 1e3);
    let saw = format!("{}, until the end of its TTL", stale(by_ttl));
    show("changed behind its back", "TTL of 1.5 s", reads, loads / 2, &saw);
    let saw = format!("{}, until NOTIFY", stale(by_notify));
    show("", "LISTEN, TTL of 60 s", told_reads, loads - loads / 2, &saw);
    drop(listener);
    expect(by_ttl <= TTL + PATIENCE / 2, "nothing is stale past its TTL")?;
    expect(by_notify < by_ttl, "NOTIFY is quicker than the TTL")
}

/// A row is changed while the listener has lost its connection: nobody tells of it.
pub(super) async fn listener_lost(stage: &Stage) -> Result<(), Error> {
    const ID: i64 = 14;
    let catalogue = stage.catalogue(&only_ttl(Duration::from_secs(60)))?;
    let _listener = listen(stage, &catalogue).await?;
    let old = price(&catalogue, ID).await?;
    let changed = Instant::now();
    // Without the trigger nobody is told of the change, as if it had come while the connection was
    // lost.
    let (name, channel) = (&stage.name, crate::table::channel(&stage.name));
    stage
        .table
        .execute(&format!(
            "BEGIN;
             ALTER TABLE {name} DISABLE TRIGGER {name}_tell;
             UPDATE {name} SET cents = cents + 1 WHERE id = {ID};
             ALTER TABLE {name} ENABLE TRIGGER {name}_tell;
             COMMIT;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE query = 'LISTEN {channel}'"
        ))
        .await?;
    let (mut reads, until) = (1, Instant::now() + PATIENCE);
    while price(&catalogue, ID).await? == old {
        expect(Instant::now() < until, "a listener that returns drops everything")?;
        reads += 1;
        sleep(Duration::from_millis(1)).await;
    }
    let time = changed.elapsed().as_secs_f64() * 1e3;
    let saw = format!("stale for {time:.0} ms: the listener returned, and dropped everything");
    show("", "LISTEN lost, not told", reads, 1, &saw);
    Ok(())
}

/// The database goes away after a product's time is over.
pub(super) async fn stale_if_error(stage: &mut Stage) -> Result<(), Error> {
    const ID: i64 = 15;
    const READS: u64 = 50;
    let ttl = Duration::from_millis(300);
    let stale_if_error = Duration::from_secs(600);
    let covered = stage.catalogue(&Freshness { stale_if_error, ..only_ttl(ttl) })?;
    let bare = stage.catalogue(&only_ttl(ttl))?;
    let old = price(&covered, ID).await?;
    expect(price(&bare, ID).await? == old, "both have the price")?;
    let variant = stage.outage().await?;
    sleep(ttl).await;
    let (mut served, mut failed) = (0, 0);
    for _ in 0..READS {
        served += u64::from(price(&covered, ID).await? == old);
        failed += u64::from(price(&bare, ID).await.is_err());
    }
    stage.end_outage().await?;
    let saw = format!("{served} old prices; without it {failed} errors");
    show("stale-if-error", variant, READS, 0, &saw);
    expect(served == READS && failed == READS, "the old price covers the outage")?;
    expect(price(&bare, ID).await? == old, "the database is back")
}

async fn listen(stage: &Stage, catalogue: &Catalogue) -> Result<Listener, Error> {
    let listener = Listener::start(stage.postgres.url(), &stage.name, catalogue.cache().clone())?;
    timeout(PATIENCE, listener.ready()).await?;
    Ok(listener)
}

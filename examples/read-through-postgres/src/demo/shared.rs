//! Two processes over one Redis. Both are in this process here, and share nothing else.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::scenes::{PATIENCE, price};
use super::{Stage, expect, only_ttl, show};
use crate::Error;
use crate::catalogue::{Catalogue, Freshness};

/// Products that both read, and that no other scene does.
const IDS: std::ops::Range<i64> = 401..501;
const READS: u64 = 100;
/// A product that is in no memory when Redis goes away.
const COLD: i64 = 501;

/// What a second process asks the database for, how soon it sees a change, and what readers notice
/// of a Redis that goes away.
pub(super) async fn run(stage: &mut Stage) -> Result<(), Error> {
    let freshness = only_ttl(Duration::from_secs(60));
    let alone = [stage.catalogue(&freshness)?, stage.catalogue(&freshness)?];
    let loads = read_by_both(stage, &alone).await?;
    let saw = "the second process loads again what the first one has";
    show("two processes", "each with its own memory", 2 * READS, loads, saw);
    expect(loads == 2 * READS, "without Redis each process loads")?;
    let both = [stage.shared_catalogue(&freshness)?, stage.shared_catalogue(&freshness)?];
    bus_is_up(&both).await?;
    let loads = read_by_both(stage, &both).await?;
    show("", "and Redis for both", 2 * READS, loads, "the second process loads nothing");
    expect(loads == READS, "the second process finds in Redis what the first one has loaded")?;
    change(stage, &both).await?;
    outage(stage, &both, &freshness).await
}

/// A cache drops everything when its bus comes up.
async fn bus_is_up(both: &[Catalogue; 2]) -> Result<(), Error> {
    let until = Instant::now() + PATIENCE;
    while both.iter().any(|catalogue| catalogue.cache().stats().bus_gaps == 0) {
        expect(Instant::now() < until, "the bus comes up")?;
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The loads that the reads have cost.
async fn read_by_both(stage: &Stage, both: &[Catalogue; 2]) -> Result<u64, Error> {
    let before = stage.loads().await?;
    for catalogue in both {
        for id in IDS {
            price(catalogue, id).await?;
        }
    }
    Ok(stage.loads().await? - before)
}

/// The first process changes a price.
async fn change(stage: &Stage, [first, second]: &[Catalogue; 2]) -> Result<(), Error> {
    let old = price(second, IDS.start).await?;
    let before = stage.loads().await?;
    expect(first.set_price(IDS.start, old + 1).await?, "there is such a product")?;
    let changed = Instant::now();
    expect(price(first, IDS.start).await? == old + 1, "the first process sees it at once")?;
    let mut reads = 2;
    while price(second, IDS.start).await? == old {
        expect(changed.elapsed() < PATIENCE, "the second process sees the change")?;
        reads += 1;
        sleep(Duration::from_millis(1)).await;
    }
    let stale = changed.elapsed().as_secs_f64() * 1e3;
    let loads = stage.loads().await? - before;
    let saw = format!("the second process is stale for {stale:.1} ms");
    show("", "the first changes a price", reads, loads, &saw);
    expect(loads <= 2, "one load, or one for each of them that came at the same moment")
}

/// Redis is killed, and started empty.
async fn outage(
    stage: &mut Stage,
    [first, _]: &[Catalogue; 2],
    freshness: &Freshness,
) -> Result<(), Error> {
    if !stage.redis.is_own() {
        show("", "Redis goes away", 0, 0, "left out: the Redis of REDIS_URL is not ours to stop");
        return Ok(());
    }
    stage.redis.crash().await?;
    let before = stage.loads().await?;
    let began = Instant::now();
    for id in IDS {
        price(first, id).await?;
    }
    price(first, COLD).await?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    let loads = stage.loads().await? - before;
    let saw = format!("every price, from memory or the database, in {took:.0} ms");
    show("", "Redis is killed", READS + 1, loads, &saw);
    stage.redis.restart().await?;
    let before = stage.loads().await?;
    let third = stage.shared_catalogue(freshness)?;
    let until = Instant::now() + PATIENCE;
    // The first process finds the new server by itself, and stores in it what it loads.
    while first.cache().stats().bus_gaps < 3 {
        expect(Instant::now() < until, "the bus comes back")?;
        sleep(Duration::from_millis(5)).await;
    }
    bus_is_up(&[third.clone(), third.clone()]).await?;
    let mut reads = 0;
    // Ends: at the limit. Redis is left alone for a moment after a call that has failed.
    while third.cache().stats().level_hits == 0 {
        expect(Instant::now() < until, "Redis is used again")?;
        price(first, COLD).await?;
        third.cache().invalidate(&COLD);
        third.cache().settle().await;
        price(first, COLD).await?;
        price(&third, COLD).await?;
        reads += 3;
    }
    let loads = stage.loads().await? - before;
    show("", "Redis is back, empty", reads, loads, "both use it again");
    Ok(())
}

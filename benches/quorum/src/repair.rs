//! A replica is lost and rebuilt, and replicas are compared, under many keys.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Error;
use crate::clients::{Clients, Op};
use crate::ours::{self, Ours, Start, State};
use crate::report::Report;

/// Keys of 100 bytes each; `VOUSSOIR_KEYS` sets another number.
const KEYS: u64 = 1_000_000;
/// Writes under way while they are loaded.
const LOADERS: u64 = 256;
/// Keys that differ.
const DIFFERING: u64 = 100;
/// The node that is lost.
const LOST: usize = 2;
const PERIOD: Duration = Duration::from_secs(5);
/// The longest that anything here may take.
const LONG: Duration = Duration::from_secs(600);

/// The rows.
pub async fn all(report: &mut Report) -> Result<(), Error> {
    let keys: u64 = std::env::var("VOUSSOIR_KEYS").map_or(Ok(KEYS), |keys| keys.parse())?;
    let mut ours = Ours::start()?;
    for at in 0..ours::NODES.len() {
        wait(&mut ours, at, |state| state.is_whole).await?;
    }
    let begun = Instant::now();
    load(&ours, 0, keys).await?;
    report.alone(&format!("{keys} keys loaded, W = 2"), begun.elapsed().as_secs_f64(), "s");
    let is_loaded = |state: State| state.hints == 0 && state.keys >= Some(keys);
    // What the third replica has missed is repaired first.
    for at in 0..ours::NODES.len() {
        let first = ours.repair(at)?;
        if first.left > 0 {
            return Err(format!("{first:?}").into());
        }
    }
    for at in 0..ours::NODES.len() {
        wait(&mut ours, at, is_loaded).await?;
    }
    compare(report, &mut ours, keys).await?;
    rebuild(report, &mut ours, keys + DIFFERING).await?;
    compare_after(report, &mut ours)
}

/// Equal replicas, then some keys that one has missed.
async fn compare(report: &mut Report, ours: &mut Ours, keys: u64) -> Result<(), Error> {
    let equal = ours.repair(0)?;
    if (equal.replicas, equal.differing) != (2, 0) {
        return Err(format!("they are not equal: {equal:?}").into());
    }
    report.alone("equal, with each other one (bar 16)", equal.bytes as f64 / 2048.0, "KiB");
    ours.kill(LOST);
    load(ours, keys, DIFFERING).await?;
    let begun = Instant::now();
    ours.restart(LOST, Start::Again)?;
    wait(ours, LOST, |state| state.is_whole).await?;
    let name = format!("killed and started again with {keys} keys, answers after");
    report.alone(&name, begun.elapsed().as_secs_f64(), "s");
    // It reads its store first.
    wait(ours, LOST, |state| state.keys.is_some()).await?;
    report.alone("- and compares after", begun.elapsed().as_secs_f64(), "s");
    let begun = Instant::now();
    let found = ours.repair(LOST)?;
    if (found.repaired, found.left) != (DIFFERING, 0) || found.replicas != 2 {
        return Err(format!("{DIFFERING} differ: {found:?}").into());
    }
    report.alone("100 keys differ, repaired (bar 256)", found.bytes as f64 / 1024.0, "KiB");
    report.alone("- and took", begun.elapsed().as_secs_f64() * 1e3, "ms");
    let again = ours.repair(LOST)?;
    if again.differing != 0 {
        return Err(format!("they differ again: {again:?}").into());
    }
    report.alone("a second time (bar: nothing)", again.bytes as f64 / 1024.0, "KiB");
    Ok(())
}

/// The disk of one is lost, while clients put at a third of what they reach.
async fn rebuild(report: &mut Report, ours: &mut Ours, keys: u64) -> Result<(), Error> {
    const CLIENTS: usize = 64;
    let mut clients = Clients::start("ours", 0, 4, CLIENTS / 4, &ours.addresses)?;
    let full = clients.run(Op::Put, PERIOD, Duration::ZERO)?.count as f64 / PERIOD.as_secs_f64();
    let every = Duration::from_secs_f64(3.0 * CLIENTS as f64 / full);
    let cpu = ours.cpu()?;
    let before = clients.run(Op::Put, PERIOD, every)?;
    let cpu_of_put = (ours.cpu()? - cpu).as_secs_f64() / before.count as f64;
    ours.kill(LOST);
    let begun = Instant::now();
    ours.restart(LOST, Start::Lost)?;
    let cpu = ours.cpu()?;
    let (mut worst, mut rounds, mut unknown, mut puts) = (0.0_f64, 0, 0, 0);
    // Ends: it is rebuilt, or the time is over.
    while !ours.state(LOST)?.is_whole {
        if begun.elapsed() > LONG {
            return Err("it is not rebuilt".into());
        }
        let done = clients.run_beside_faults(Op::Put, Duration::from_secs(2), every)?;
        (worst, unknown) = (worst.max(done.p99), unknown + done.unknown);
        (rounds, puts) = (rounds + 1, puts + done.count);
    }
    // Beside what the puts have taken.
    let cpu = (ours.cpu()? - cpu).as_secs_f64() - puts as f64 * cpu_of_put;
    report.alone("rebuilt under load (bar 120)", begun.elapsed().as_secs_f64(), "s");
    report.alone("- p99 of puts before it", before.p99, "us");
    report.alone(&format!("- p99, the worst of {rounds} times 2 s"), worst, "us");
    report.alone("- puts of unknown outcome (bar 0)", unknown as f64, "");
    report.alone("- of 2x + 1 ms (bar 1)", worst / (2.0 * before.p99 + 1_000.0), "x");
    report.alone("- CPU of the three nodes for each key", cpu * 1e6 / keys as f64, "us");
    report.alone("- memory of the rebuilt node", ours.memory_mib(LOST)?, "MiB");
    Ok(())
}

/// What was rebuilt is equal to the others, once what was missed meanwhile is repaired.
fn compare_after(report: &mut Report, ours: &mut Ours) -> Result<(), Error> {
    let first = ours.repair(LOST)?;
    let second = ours.repair(LOST)?;
    if (second.differing, second.replicas) != (0, 2) {
        return Err(format!("{first:?}, then {second:?}").into());
    }
    report.alone("keys that differed after it", first.differing as f64, "");
    Ok(())
}

/// Writes keys, each once, and again until it is acknowledged.
async fn load(ours: &Ours, first: u64, count: u64) -> Result<(), Error> {
    let link = ours::link(900, &ours.addresses, false).await?;
    let table = ours::table(&link)?;
    let (mut writes, until) = (JoinSet::new(), Instant::now() + LONG);
    for loader in 0..LOADERS {
        let table = table.clone();
        writes.spawn(async move {
            for key in (first..first + count).filter(|key| key % LOADERS == loader) {
                let key = format!("key-{key}");
                // Ends: it is there, or the time is over. What is written twice is a sibling, and
                // a key with two of these values is as good here.
                while let Err(error) = table.put_blind(key.clone(), vec![7; 100]).await {
                    if Instant::now() > until {
                        return Err::<(), Error>(error.into());
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let is_sure = error.outcome() == voussoir_quorum::table::Outcome::NotApplied;
                    if !is_sure && table.get(key.clone()).await.is_ok_and(|state| !state.is_empty())
                    {
                        break;
                    }
                }
            }
            Ok(())
        });
    }
    while let Some(written) = writes.join_next().await {
        written??;
    }
    Ok(())
}

async fn wait(ours: &mut Ours, at: usize, is_so: impl Fn(State) -> bool) -> Result<(), Error> {
    let until = Instant::now() + LONG;
    // Ends: it is so, or the time is over.
    while !is_so(ours.state(at)?) {
        if Instant::now() > until {
            return Err(format!("node {at}: {:?}", ours.state(at)?).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

//! `store soak`: three nodes under random faults for minutes, and a check of everything at the end.

mod faults;

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use voussoir_sim::Situations;

use self::faults::{Fault, Faults};
use super::check::{self, Checked};
use super::load::{Load, Shape};
use crate::args::Soak;
use crate::cluster::Cluster;
use crate::log::print;

/// Options of the nodes. Snapshots are frequent and the log is short, so that a node that is down
/// for a few seconds needs a snapshot.
const OPTIONS: [&str; 6] =
    ["--snapshot-after", "4MiB", "--keep-entries", "200", "--max-bytes", "2GiB"];
/// After a fault the cluster must acknowledge a write within this time.
const RECOVERY: Duration = Duration::from_secs(15);
/// Time between two checks whether a write was acknowledged.
const LOOK: Duration = Duration::from_millis(20);
/// A run with at least this many faults must have reached every situation.
const ENOUGH: usize = 3 * Fault::ALL.len();

/// The situations that a soak has to reach.
pub static SITUATIONS: [&str; 17] = [
    "leader killed",
    "follower killed",
    "every node killed",
    "leader stopped (SIGSTOP)",
    "follower stopped (SIGSTOP)",
    "leader cut off",
    "node heard by nobody",
    "node that hears nobody",
    "two nodes cut off from each other",
    "connections reset",
    "slow link",
    "follower down until its entries were released",
    "node ended (SIGTERM)",
    "leader changed",
    "snapshot taken",
    "snapshot received",
    "write with an unknown outcome",
];

/// Runs the soak in a temporary folder and prints each fault.
///
/// # Errors
/// The first violation. The folder with the data and logs of the nodes is kept then, and the error
/// names it.
///
/// # Cancel safety
/// Dropping the future kills the nodes.
pub async fn run(options: &Soak) -> Result<(), Box<dyn Error>> {
    let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
    let folder = tempfile::tempdir()?;
    print(&format!("soak for {} s, seed {seed}", options.minutes.as_secs()));
    print(&format!("data and logs in {}", folder.path().display()));
    let program = std::env::current_exe()?;
    match soak(&program, folder.path(), options.minutes, seed).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let kept = folder.keep();
            let kept = kept.display();
            Err(format!("seed {seed}: {error}\nthe data and logs are kept below {kept}").into())
        }
    }
}

/// Runs the soak over nodes of `program` with their data below `folder`.
///
/// # Errors
/// The first violation.
///
/// # Cancel safety
/// Dropping the future kills the nodes.
pub async fn soak(
    program: &Path,
    folder: &Path,
    time: Duration,
    seed: u64,
) -> Result<(), Box<dyn Error>> {
    let situations = Situations::new(&SITUATIONS);
    let mut cluster = Cluster::new(program, folder, 3)?;
    cluster.set_options(&OPTIONS);
    let mut faults = Faults::new(&mut cluster, seed).await?;
    cluster.start_all()?;
    let client = cluster.client();
    cluster.leader(&client).await?;

    let began = Instant::now();
    let shape = Shape {
        clients: 16,
        pause: Duration::from_millis(15),
        large_percent: 20,
        era: Duration::from_secs(30),
    };
    let load = Load::start(&client, shape);
    let mut longest = Duration::ZERO;
    let mut count = 0;
    while began.elapsed() < time {
        let said = faults.one(&mut cluster, &client, &situations).await?;
        count += 1;
        let recovery = recovered(&mut cluster, &load).await.map_err(|e| format!("{said}: {e}"))?;
        longest = longest.max(recovery);
        print(&format!(
            "{:6.1} s  {said}; {} ms to the next write; {} acknowledged",
            began.elapsed().as_secs_f64(),
            recovery.as_millis(),
            load.stats.done.load(Ordering::Relaxed),
        ));
        faults.look(&client, &situations).await;
    }

    let stats = load.stats.clone();
    let history = load.stop().await;
    situations.add("write with an unknown outcome", stats.unknown.load(Ordering::Relaxed));
    cluster.caught_up(&client).await?;
    cluster.no_crash()?;
    print(&format!("the clients have stopped; checking {} operations", history.calls().len()));
    let checked = check::check(&cluster, &client, &history).await?;
    cluster.end_all().await?;
    no_alarm(&cluster)?;
    print(&summary(&checked, count, longest));
    print(&situations.to_string());
    let missed = situations.missed();
    if count >= ENOUGH && !missed.is_empty() {
        return Err(format!("the run proves nothing about: {}", missed.join(", ")).into());
    }
    Ok(())
}

/// Waits until a write that began after this call is acknowledged. Returns how long it took.
async fn recovered(cluster: &mut Cluster, load: &Load) -> Result<Duration, String> {
    let began = Instant::now();
    load.stats.outage_begins();
    while began.elapsed() < RECOVERY {
        cluster.no_crash().map_err(|error| error.to_string())?;
        if let Some(took) = load.stats.failover() {
            return Ok(took);
        }
        sleep(LOOK).await;
    }
    Err(format!("no write was acknowledged within {} s after the fault", RECOVERY.as_secs()))
}

/// Fails when a node has logged an error: no fault of the soak is an error of a node.
fn no_alarm(cluster: &Cluster) -> Result<(), String> {
    for id in cluster.ids() {
        let log = cluster.log(id);
        if let Some(line) =
            log.lines().find(|line| line.contains("ERROR") || line.contains("panic"))
        {
            return Err(format!("node {id} logged an error: {line}"));
        }
    }
    Ok(())
}

fn summary(checked: &Checked, faults: usize, longest: Duration) -> String {
    let Checked { acknowledged, unknown, kept, nodes, judged, keys } = checked;
    format!(
        "
operations        {acknowledged} acknowledged, {unknown} with an unknown outcome
faults            {faults}, at most {} ms from the end of one to the next new write
acknowledged keys {kept} on each of {nodes} nodes, none lost; all nodes hold the same
history           linearizable: {judged} operations on {keys} keys and prefixes
",
        longest.as_millis()
    )
}

//! Random workloads under power losses, crashes of the process, and failing disks.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many power losses there are in all (default 3,000), half of
//! them again beside rewriting, and
//! `VOUSSOIR_SEED` replays one seed, with everything that happened in it.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use voussoir_journal::Config;
use voussoir_journal::files::crash::Counters;
use voussoir_sim::Situations;

use crate::run::{Settings, Tally, run};

/// What the random workloads count. What each family has to reach stands at its test.
pub(crate) static SITUATIONS: [&str; 24] = [
    "a segment becomes full",
    "a segment is recycled",
    "an idle journal is marked",
    "appends are refused for want of room",
    "appends resume after a refusal",
    "the disk is full in a life that rotates",
    "an index has been lost",
    "a middle segment has been freed",
    "a middle segment has been freed, the index lost",
    "the newest segment has only its table",
    "written commits are cut off",
    "a commit is overtaken by a later one",
    "second crash inside a recovery",
    "failed sync, then a crash",
    "failed sync after pages reached the disk by themselves",
    "a round of rewriting ends",
    "a round of rewriting ends in a crash",
    "crash between the copies and the manifest",
    "a victim is freed behind a pinned segment",
    "a moved batch is moved again",
    "a victim is released in part",
    "a victim is truncated",
    "a log is deleted and created again in a round",
    "a victim is read",
];

/// Small commits, which the journal writes in the order of their submission.
pub(crate) fn in_order() -> Settings {
    let mut config = Config::manual();
    config.segment_bytes = 64 << 10;
    config.max_bytes = 12 * config.segment_bytes;
    config.identity = Some(0x766f_7573_736f_6972);
    Settings {
        config,
        crashes: 12,
        steps: 40,
        cold: false,
        lukewarm: false,
        record_bytes_max: 3000,
        in_order: true,
        lazy: false,
        buffered: false,
    }
}

/// Commits large and small, which overtake each other, some of them merely buffered, and room.
pub(crate) fn overtaking() -> Settings {
    let mut config = in_order().config;
    config.segment_bytes = 512 << 10;
    config.max_bytes = 400 * config.segment_bytes;
    config.bulk_share_bytes = 16 << 10;
    Settings { config, record_bytes_max: 60_000, in_order: false, buffered: true, ..in_order() }
}

/// Lives long enough that segments are filled, freed and recycled between two crashes, while cold
/// logs pin old ones.
pub(crate) fn long_lives() -> Settings {
    Settings { steps: 240, record_bytes_max: 9_000, cold: true, ..in_order() }
}

/// Cold logs pin each segment by little, so that the pool is always short, and are themselves
/// released, truncated and deleted now and then.
pub(crate) fn rewriting() -> Settings {
    let mut config = in_order().config;
    config.max_bytes = 8 * config.segment_bytes;
    let steps = 500;
    Settings { config, steps, record_bytes_max: 6_000, cold: true, lukewarm: true, ..in_order() }
}

/// Small commits that are hardly ever synced: much is lost, torn, and left behind the end.
pub(crate) fn unsynced() -> Settings {
    Settings { record_bytes_max: 12, lazy: true, crashes: 40, ..in_order() }
}

/// Runs seeds on all processors until `enough` says so, or one fails.
fn play(
    settings: &Settings,
    test: &str,
    situations: &[&str],
    enough: impl Fn(&Tally) -> bool + Sync,
) {
    let reached = Situations::new(&SITUATIONS);
    if let Ok(seed) = std::env::var("VOUSSOIR_SEED") {
        let seed = seed.parse().expect("VOUSSOIR_SEED is a number");
        return report(run(seed, settings, &reached).map(|_| ()), test);
    }
    let (next, total) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    let failure = Mutex::new(Ok(()));
    let work = || {
        while failure.lock().is_ok() && !enough(&total.lock()) {
            match run(next.fetch_add(1, Ordering::Relaxed), settings, &reached) {
                Ok(tally) => total.lock().merge(&tally),
                Err(error) => *failure.lock() = Err(error),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    println!("{test}: {} seeds: {}", next.into_inner(), total.into_inner());
    report(failure.into_inner(), test);
    println!("{reached}");
    for name in situations {
        assert!(reached.count(name) > 0, "no seed reached: {name}\n{reached}");
    }
}

fn report(result: Result<(), String>, test: &str) {
    if let Err(error) = result {
        panic!(
            "{error}\n\nreplay: VOUSSOIR_SEED=<the seed above> cargo test -p voussoir-journal \
             --all-features --test power -- --exact losses::{test} --nocapture"
        );
    }
}

fn power_losses() -> u64 {
    let wanted = std::env::var("VOUSSOIR_POWER_LOSSES").ok();
    wanted.map_or(3_000, |wanted| wanted.parse().expect("VOUSSOIR_POWER_LOSSES is a number"))
}

fn all_fired(counters: &Counters) -> bool {
    let fired = [
        counters.kills,
        counters.writes_kept,
        counters.writes_lost,
        counters.writes_torn,
        counters.files_reordered,
        counters.sizes_ahead,
        counters.entries_kept,
        counters.entries_lost,
        counters.failed,
        counters.no_space,
        counters.short,
        counters.dirty_dropped,
    ];
    fired.iter().all(|count| *count > 0)
}

#[test]
fn acknowledged_commits_survive_in_order() {
    let enough = |tally: &Tally| {
        tally.disk.power_losses >= power_losses() / 2
            && tally.rotations >= power_losses() / 20
            && all_fired(&tally.disk)
    };
    let situations = &[
        "a segment becomes full",
        "a segment is recycled",
        "an idle journal is marked",
        "an index has been lost",
        "the newest segment has only its table",
        "written commits are cut off",
        "second crash inside a recovery",
        "failed sync, then a crash",
    ];
    play(&in_order(), "acknowledged_commits_survive_in_order", situations, enough);
}

#[test]
fn acknowledged_commits_survive_when_small_ones_overtake() {
    let enough = |tally: &Tally| tally.disk.power_losses >= power_losses() / 4;
    let situations = &[
        "a segment becomes full",
        "a segment is recycled",
        "an index has been lost",
        "a commit is overtaken by a later one",
    ];
    let test = "acknowledged_commits_survive_when_small_ones_overtake";
    play(&overtaking(), test, situations, enough);
}

#[test]
fn what_was_lost_never_comes_back() {
    let enough = |tally: &Tally| tally.disk.power_losses >= power_losses() / 4;
    let situations = &[
        "an idle journal is marked",
        "written commits are cut off",
        "second crash inside a recovery",
        "failed sync, then a crash",
    ];
    play(&unsynced(), "what_was_lost_never_comes_back", situations, enough);
}

#[test]
fn acknowledged_commits_survive_in_long_lives() {
    let enough = |tally: &Tally| tally.disk.power_losses >= power_losses() / 2;
    let situations: Vec<&str> = SITUATIONS[..15]
        .iter()
        .copied()
        .filter(|name| *name != "a commit is overtaken by a later one")
        .collect();
    play(&long_lives(), "acknowledged_commits_survive_in_long_lives", &situations, enough);
}

#[test]
fn acknowledged_commits_survive_while_segments_are_rewritten() {
    let enough = |tally: &Tally| tally.disk.power_losses >= power_losses() / 2;
    let mut situations = SITUATIONS[15..].to_vec();
    situations.extend(["a segment is recycled", "second crash inside a recovery"]);
    let test = "acknowledged_commits_survive_while_segments_are_rewritten";
    play(&rewriting(), test, &situations, enough);
}

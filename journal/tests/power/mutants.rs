//! A test of the tests: a journal with a deliberate defect must be caught, and soon.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_journal::testing::Mutant;
use voussoir_journal::{Commit, Durability, Journal, Options, Work};
use voussoir_sim::Situations;

use crate::flips;
use crate::losses::{SITUATIONS, in_order, overtaking, unsynced};
use crate::run::{Settings, run, world};
use crate::workload::KEYS;

/// Seeds within which each mutant has to be caught.
const SEEDS_MAX: u64 = 300;

fn caught_by(settings: &Settings, seed: u64) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| run(seed, settings, &Situations::new(&SITUATIONS)))) {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.lines().last().unwrap_or_default().trim().to_owned()),
        Err(_) => Some("an assertion of the journal".to_owned()),
    }
}

/// A frame that a recovery cut off, at the very place where the next frame of the new epoch is
/// expected, and with its LSN: a mark takes as much room as the empty commit that was lost.
fn shows_what_was_cut_off(options: Options) -> Option<String> {
    let key = KEYS[0];
    let disk = CrashFiles::new(1);
    let open = |disk: &CrashFiles| Journal::open_with(disk.mount(), options.clone()).unwrap();
    let journal = open(&disk);
    let log = journal.log(key.0, key.1).unwrap();
    journal.commit_blocking(Commit::new().append(&log, ["kept"])).unwrap();
    let written = || Commit::new().durability(Durability::Written);
    journal.commit_blocking(written()).unwrap();
    journal.commit_blocking(written().append(&log, ["lost, or not"])).unwrap();
    (0..400).find_map(|seed| {
        let disk = disk.fork(seed);
        let [first, second] = [0, 1].map(|_| {
            disk.power_loss(Loss::Any);
            let journal = open(&disk);
            let seen = world(&journal);
            // Dropped alive, it would close and write.
            disk.kill();
            seen
        });
        (first != second).then(|| format!("{first:?}, and after the next crash {second:?}"))
    })
}

#[test]
fn what_was_cut_off_stays_away() {
    assert_eq!(shows_what_was_cut_off(in_order().options), None);
}

/// A release that is merely written frees segments; one of them is made ready for a new life, and
/// then the power goes, and the release with it.
fn shows_what_was_used_again(options: Options) -> Option<String> {
    let key = KEYS[0];
    let disk = CrashFiles::new(1);
    let open = || Journal::open_with(disk.mount(), options.clone()).unwrap();
    let journal = open();
    let log = journal.log(key.0, key.1).unwrap();
    while journal.stats().rotations < 2 {
        journal.commit_blocking(Commit::new().append(&log, [[7; 900]])).unwrap();
    }
    let before = world(&journal);
    let release = Commit::new().release(&log, log.end()).durability(Durability::Written);
    journal.commit_blocking(release).unwrap();
    assert_eq!(journal.work(0), Work::Prepared);
    disk.power_loss(Loss::Everything);
    let after = world(&open());
    (before != after).then(|| format!("{before:.60?}, and after the crash {after:?}"))
}

#[test]
fn what_a_lost_release_had_freed_is_still_there() {
    assert_eq!(shows_what_was_used_again(in_order().options), None);
}

/// Several manifests are written in turn into two places; the power goes. One of them is whole.
fn loses_the_manifest(options: Options) -> Option<String> {
    let disk = CrashFiles::new(1);
    let journal = Journal::open_with(disk.mount(), options.clone()).unwrap();
    let log = journal.log(KEYS[0].0, KEYS[0].1).unwrap();
    while journal.stats().rotations < 3 {
        journal.commit_blocking(Commit::new().append(&log, [[7; 900]])).unwrap();
        journal.work(0);
    }
    (0..1_000).find_map(|seed| {
        let disk = disk.fork(seed);
        disk.power_loss(Loss::Any);
        Journal::open_with(disk.mount(), options.clone()).err().map(|error| error.to_string())
    })
}

#[test]
fn one_manifest_is_always_whole() {
    assert_eq!(loses_the_manifest(in_order().options), None);
}

/// The seeds of the random runs come first, then what is made for single rules.
fn caught(mutant: Mutant) -> Option<String> {
    let families = [in_order(), unsynced(), in_order(), overtaking()];
    for seed in 0..SEEDS_MAX {
        let sound = families[seed as usize % families.len()].clone();
        let mut settings = sound.clone();
        settings.options.__mutant = Some(mutant);
        if let Some(why) = caught_by(&settings, seed) {
            assert_eq!(caught_by(&sound, seed), None, "seed {seed} fails without the mutant too");
            return Some(format!("seed {seed}: {why}"));
        }
    }
    let mut options = in_order().options;
    options.__mutant = Some(mutant);
    let cut_off = shows_what_was_cut_off(options.clone()).map(|why| format!("cut off: {why}"));
    let again = || shows_what_was_used_again(options.clone());
    let used_again = || again().map(|why| format!("used again: {why}"));
    cut_off
        .or_else(used_again)
        .or_else(|| loses_the_manifest(options.clone()).map(|why| format!("manifest: {why}")))
        .or_else(|| flips::caught(options).map(|why| format!("flipped: {why}")))
}

#[test]
fn every_mutant_is_caught() {
    assert_eq!(flips::caught(in_order().options), None);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut escaped = Vec::new();
        while let Some(mutant) = Mutant::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            match caught(*mutant) {
                Some(why) => println!("{mutant:?}: caught by {why:.150}"),
                None => escaped.push(*mutant),
            }
        }
        escaped
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let escaped: Vec<Mutant> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}

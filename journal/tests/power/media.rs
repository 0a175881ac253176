//! Disks on which no log can keep its first promise: syncs that lie, and sectors that are lost when
//! the power goes. What the journal still promises there, it keeps.

use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Error, Health, Journal, OpenError, ReadError};
use voussoir_sim::Situations;

use crate::losses::in_order;
use crate::oracle::{Key, Oracle, Said, Survives, World};
use crate::rng::Rng;
use crate::run::{build, read_all};
use crate::workload::{KEYS, Workload};

const SEEDS: u64 = 400;

/// Writes commits one by one and loses the power. `arm` is called once on the way; commits ask to
/// be synced before, and for what `arm` answers from then on.
fn life(seed: u64, arm: impl FnOnce(&CrashFiles, &mut Rng) -> Survives) -> (CrashFiles, Oracle) {
    let disk = CrashFiles::new(seed);
    let (mut rng, mut arm) = (Rng::new(seed), Some(arm));
    let (mut oracle, mut workload) = (Oracle::new(true), Workload::with_cold_logs(seed, 9_000));
    let journal = Journal::open_with(disk.mount(), in_order().config).unwrap();
    let (armed_at, mut survives) = (rng.below(100), Survives::PowerLoss);
    for number in 0..armed_at + 1 + rng.below(60) {
        if number == armed_at
            && let Some(arm) = arm.take()
        {
            survives = arm(&disk, &mut rng);
        }
        let changes = workload.commit(oracle.tip());
        let commit = build(&journal, &changes, survives).unwrap();
        let receipt = match journal.commit_blocking(commit) {
            Ok(receipt) => receipt,
            Err(Error::TooLarge { .. }) => continue,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        let index = oracle.submit(changes, survives);
        oracle.report(index, Said::Done(receipt.lsn()));
        journal.work(0);
    }
    disk.power_loss(Loss::Any);
    drop(journal);
    (disk, oracle)
}

/// What a journal shows: whole logs, and the names of those that it reports as damaged. Whatever
/// can be read of a damaged one was once written there.
fn shown(journal: &Journal, oracle: &Oracle) -> Result<(World, Vec<Key>), String> {
    let (mut seen, mut damaged) = (World::new(), Vec::new());
    for key in KEYS {
        let log = journal.log(key.0, key.1).map_err(|error| error.to_string())?;
        let read = read_all(&log);
        match (log.health(), read) {
            (Health::Intact, Ok(state)) => {
                if log.exists() {
                    seen.insert(key, state);
                }
            }
            (Health::Intact, Err(error)) if !matches!(error, ReadError::Damaged { .. }) => {
                return Err(format!("{key:?}: {error}"));
            }
            _ => {
                damaged.push(key);
                for position in log.bounds() {
                    let Ok(record) = log.read(position) else { continue };
                    if !oracle.was_written(key, position, &record) {
                        return Err(format!("{key:?} shows {record:.40?} at {position}"));
                    }
                }
            }
        }
    }
    Ok((seen, damaged))
}

static LIES: [&str; 3] = [
    "nothing is lost",
    "the journal goes back to an earlier state",
    "damage is reported by a log or by open",
];

/// A sync that lies takes acknowledged commits with it. What is left is an earlier state of the
/// journal, or says that it is damaged; it is never a mixture, and never wrong.
#[test]
fn a_sync_that_lies_leaves_an_earlier_state_or_reported_damage() {
    let situations = Situations::new(&LIES);
    for seed in 0..SEEDS {
        let (disk, oracle) = life(seed, |disk, rng| {
            let when = if rng.one_in(2) { When::From(0) } else { When::OneIn(3) };
            disk.inject(Fault::new(Op::Sync, when, Effect::LieSync));
            Survives::PowerLoss
        });
        disk.heal();
        let journal = match Journal::open_with(disk.mount(), in_order().config) {
            Ok(journal) => journal,
            Err(error @ (OpenError::Io(_) | OpenError::InUse)) => panic!("seed {seed}: {error}"),
            Err(_) => {
                situations.reached("damage is reported by a log or by open");
                continue;
            }
        };
        let judged = shown(&journal, &oracle).and_then(|(seen, damaged)| {
            oracle.explain_except(&damaged, &seen, Survives::BadMedium)?;
            situations.reached(match (damaged.is_empty(), seen == *oracle.tip()) {
                (false, _) => "damage is reported by a log or by open",
                (true, true) => "nothing is lost",
                (true, false) => "the journal goes back to an earlier state",
            });
            Ok(())
        });
        judged.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    situations.assert_all_reached();
}

static FRAGILE: [&str; 6] = [
    "the torn sector is not needed",
    "a record names the sector that cannot be read",
    "open names the sector that cannot be read",
    "after the repair all that was synced is there",
    "after the repair the last synced commits are lost",
    "after the repair damage is reported",
];

/// A torn sector that cannot be read: the journal does not guess. It opens when the sector has been
/// overwritten, and misses at most what was in it.
#[test]
fn a_torn_sector_that_cannot_be_read_is_named_and_can_be_repaired() {
    let situations = Situations::new(&FRAGILE);
    for seed in 0..2 * SEEDS {
        let (disk, oracle) = life(seed, |disk, rng| {
            disk.set_fragile(true);
            // Some of these writes are under way when the power goes.
            if rng.one_in(4) { Survives::PowerLoss } else { Survives::Kill }
        });
        let before = disk.snapshot();
        let opened = Journal::open_with(disk.mount(), in_order().config);
        let whole = opened.is_ok();
        let journal = match opened {
            Ok(journal) => {
                situations.reached("the torn sector is not needed");
                journal
            }
            Err(OpenError::Io(fault)) => {
                situations.reached("open names the sector that cannot be read");
                assert_eq!(fault.operation, "read");
                let named = fault.message.contains("unreadable (in bytes ");
                assert!(named || fault.name == "manifest", "{fault}");
                assert!(
                    disk.snapshot() == before,
                    "seed {seed}: the refusal has changed something"
                );
                assert!(disk.repair() > 0);
                match Journal::open_with(disk.mount(), in_order().config) {
                    Ok(journal) => journal,
                    Err(error @ OpenError::Io(_)) => panic!("seed {seed}: {error}"),
                    Err(_) => {
                        situations.reached("after the repair damage is reported");
                        continue;
                    }
                }
            }
            Err(_) => continue,
        };
        // Of a full segment only what opening needs is read: a record in the sector is named when
        // it is read itself, and reported as damaged once the sector has been overwritten.
        let mut is_unread = false;
        let judged = match shown(&journal, &oracle) {
            Err(error) if whole && error.contains("unreadable (in bytes ") => {
                situations.reached("a record names the sector that cannot be read");
                is_unread = true;
                assert!(disk.repair() > 0);
                shown(&journal, &oracle)
            }
            judged => judged,
        };
        let judged = judged.and_then(|(seen, damaged)| {
            oracle.explain_except(&damaged, &seen, Survives::BadMedium)?;
            let kept = oracle.explain_except(&damaged, &seen, Survives::PowerLoss).is_ok();
            // What opens and reads without a repair has lost nothing.
            let is_complete = kept && damaged.is_empty();
            assert!(!whole || is_complete != is_unread, "seed {seed}: {damaged:?}");
            situations.reached(match (damaged.is_empty(), kept) {
                (false, _) => "after the repair damage is reported",
                (true, true) => "after the repair all that was synced is there",
                (true, false) => "after the repair the last synced commits are lost",
            });
            Ok(())
        });
        judged.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    situations.assert_all_reached();
}

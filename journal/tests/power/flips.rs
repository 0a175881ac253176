//! Bit rot: whatever bit flips, the journal shows what was written, or says that it cannot.
//!
//! Below the durable mark a flip is harmless or reported, above it it shortens the tail at most;
//! a wrong payload is never read. `VOUSSOIR_FLIPS` sets how many bits of the larger image are
//! tried (default 4,000); of the small image it is every bit that is not in a page of zeros.

use std::collections::BTreeMap;
use std::fmt;

use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Commit, Error, Health, Journal, Log, OpenError, ReadError};
use voussoir_sim::Situations;

use crate::losses::in_order;
use crate::oracle::{Key, Oracle, Said, Survives, World};
use crate::rng::Rng;
use crate::run::{build, open_error, read_all, world};
use crate::workload::{KEYS, Workload};

/// A journal at rest, and what it must show.
struct Recorded {
    disk: CrashFiles,
    oracle: Oracle,
}

/// How a journal comes to be.
#[derive(Clone, Debug, Default)]
struct Story {
    seed: u64,
    commits: usize,
    /// It loses its power half-way, with commits under way of which some survive.
    scarred: bool,
    closed: bool,
    /// Injected after the scar.
    fault: Option<Fault>,
}

impl Story {
    /// Writes the commits one by one.
    fn record(self) -> Recorded {
        let Self { seed, commits, .. } = self;
        let disk = CrashFiles::new(seed);
        let mut journal = Journal::open_with(disk.mount(), in_order().config).unwrap();
        let (mut oracle, mut workload) = (Oracle::new(true), Workload::new(seed, 800));
        for number in 0..commits {
            if number == commits / 2 {
                if self.scarred {
                    journal = scar(&disk, journal, &mut oracle, &mut workload);
                }
                self.fault.clone().into_iter().for_each(|fault| disk.inject(fault));
            }
            // The mark that covers the last commit is written by close alone.
            let marked = self.closed || number + 1 < commits;
            let survives = if marked { Survives::PowerLoss } else { Survives::Nothing };
            write_one(&journal, &mut oracle, &mut workload, Survives::PowerLoss, survives);
        }
        if self.closed {
            journal.close().unwrap();
        }
        disk.heal();
        disk.power_loss(Loss::Nothing);
        Recorded { disk, oracle }
    }
}

fn write_one(
    journal: &Journal,
    oracle: &mut Oracle,
    workload: &mut Workload,
    asked: Survives,
    expected: Survives,
) {
    let changes = workload.commit(oracle.tip());
    let receipt = journal.commit_blocking(build(journal, &changes, asked).unwrap()).unwrap();
    let number = oracle.submit(changes, expected);
    oracle.report(number, Said::Done(receipt.lsn()));
}

/// A power loss among unsynced commits: frames that were cut off stay behind the new end.
fn scar(
    disk: &CrashFiles,
    journal: Journal,
    oracle: &mut Oracle,
    workload: &mut Workload,
) -> Journal {
    for _ in 0..6 {
        write_one(&journal, oracle, workload, Survives::Kill, Survives::Kill);
    }
    disk.power_loss(Loss::Any);
    drop(journal);
    let journal = Journal::open_with(disk.mount(), in_order().config).unwrap();
    oracle.recovered(world(&journal).unwrap(), Survives::PowerLoss).unwrap();
    journal
}

/// What became of the damage.
#[derive(Debug, Default)]
struct Verdicts {
    harmless: u64,
    shorter_tail: u64,
    log_reported: u64,
    open_refused: u64,
    /// The journal went on in a new segment, behind the damage.
    recovery_rotated: u64,
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { harmless, shorter_tail, log_reported, open_refused, recovery_rotated } = self;
        write!(f, "{harmless} harmless, {shorter_tail} shortened the tail, ")?;
        write!(f, "{log_reported} reported by log, {open_refused} reported by open, ")?;
        write!(f, "{recovery_rotated} recoveries rotated")
    }
}

impl Recorded {
    /// Opens a damaged copy and checks all that it shows.
    fn judge(&self, disk: &CrashFiles, verdicts: &mut Verdicts) -> Result<(), String> {
        let journal = match Journal::open_with(disk.mount(), in_order().config) {
            Ok(journal) => journal,
            Err(error @ (OpenError::Io(_) | OpenError::InUse)) => return Err(open_error(error)),
            Err(_) => {
                verdicts.open_refused += 1;
                return Ok(());
            }
        };
        verdicts.recovery_rotated += u64::from(journal.stats().rotations > 0);
        let (mut seen, mut damaged) = (World::new(), Vec::new());
        for key in KEYS {
            let log = journal.log(key.0, key.1).map_err(|error| error.to_string())?;
            let read = if log.exists() { read_all(&log).map(Some) } else { Ok(None) };
            match (log.health(), read) {
                (Health::Intact, Ok(Some(state))) => drop(seen.insert(key, state)),
                (Health::Intact, Ok(None)) => {}
                // Whole segments are not read when a journal is opened, but when they are.
                (Health::Intact, Err(ReadError::Damaged { .. })) => {
                    damaged.push(key);
                    self.check_damaged(key, &log)?;
                }
                (Health::Intact, Err(error)) => return Err(format!("{key:?}: {error}")),
                _ => {
                    damaged.push(key);
                    self.check_damaged(key, &log)?;
                }
            }
        }
        self.oracle.explain_except(&damaged, &seen, Survives::PowerLoss)?;
        match (damaged.is_empty(), seen == *self.oracle.tip()) {
            (false, _) => verdicts.log_reported += 1,
            (true, true) => verdicts.harmless += 1,
            (true, false) => verdicts.shorter_tail += 1,
        }
        Ok(())
    }

    /// A log that is reported as damaged still shows nothing that was never written there, and,
    /// unless it is under suspicion as a whole, nothing outdated.
    fn check_damaged(&self, key: Key, log: &Log) -> Result<(), String> {
        let tip = self.oracle.tip().get(&key);
        for position in log.bounds() {
            let Ok(read) = log.read(position) else { continue };
            let current = tip
                .and_then(|state| state.records.get(position.checked_sub(state.first)? as usize));
            let right = match log.health() {
                Health::Suspect => self.oracle.was_written(key, position, &read),
                _ => current == Some(&read),
            };
            if !right {
                let health = log.health();
                return Err(format!("{key:?} is {health:?} and shows {read:.80?} at {position}"));
            }
        }
        Ok(())
    }

    /// The bits worth flipping: all of every page that is not zeros alone.
    fn bits(&self) -> Vec<(String, u64)> {
        let mut bits = Vec::new();
        for (name, content) in self.disk.snapshot() {
            for (page, bytes) in content.chunks(64).enumerate() {
                if bytes.iter().any(|byte| *byte != 0) {
                    let start = page as u64 * 64 * 8;
                    bits.extend((start..start + bytes.len() as u64 * 8).map(|b| (name.clone(), b)));
                }
            }
        }
        bits
    }

    fn flip(&self, name: &str, bit: u64, verdicts: &mut Verdicts) -> Result<(), String> {
        let disk = self.disk.fork(bit);
        assert!(disk.flip_bit(name, bit));
        self.judge(&disk, verdicts)
            .map_err(|error| format!("bit {} of byte {} of {name}: {error}", bit % 8, bit / 8))
    }
}

#[test]
fn every_bit_of_a_small_journal() {
    for (closed, scarred) in [(false, false), (true, false), (true, true)] {
        let story = Story { seed: 1, commits: 6, scarred, closed, fault: None };
        let (recorded, mut verdicts) = (story.record(), Verdicts::default());
        let bits = recorded.bits();
        for (name, bit) in &bits {
            recorded.flip(name, *bit, &mut verdicts).unwrap();
        }
        println!("closed {closed}, scarred {scarred}: {} bits: {verdicts}", bits.len());
        assert!(verdicts.harmless > 0 && verdicts.log_reported > 0);
        assert_eq!(verdicts.shorter_tail > 0, !closed, "only above the mark, and always there");
    }
}

#[test]
fn some_bits_of_a_journal_of_one_segment() {
    let recorded = story(1, 20, true).record();
    let (bits, mut verdicts) = (recorded.bits(), Verdicts::default());
    for (name, bit) in bits.iter().step_by(97) {
        recorded.flip(name, *bit, &mut verdicts).unwrap();
    }
}

fn story(seed: u64, commits: usize, closed: bool) -> Story {
    Story { seed, commits, scarred: true, closed, fault: None }
}

#[test]
fn many_bits_of_a_journal_of_several_segments() {
    let wanted = std::env::var("VOUSSOIR_FLIPS").ok();
    let wanted = wanted.map_or(4_000, |wanted| wanted.parse().expect("VOUSSOIR_FLIPS is a number"));
    let images: Vec<Recorded> =
        (0..4).map(|seed| story(seed, 150, seed % 2 == 0).record()).collect();
    let mut by_file = BTreeMap::<String, Verdicts>::new();
    let mut rng = Rng::new(1);
    for recorded in &images {
        let bits = recorded.bits();
        for _ in 0..wanted / images.len() as u64 {
            let (name, bit) = rng.pick(&bits);
            let verdicts = by_file.entry(name.clone()).or_default();
            recorded.flip(name, *bit, verdicts).unwrap();
        }
    }
    for (name, verdicts) in by_file {
        println!("{name}: {verdicts}");
    }
}

/// Where the frame stands with which the journal was closed.
fn closing_mark(content: &[u8]) -> Option<usize> {
    let frame = |at: &usize| content[*at..].starts_with(b"vsrf");
    let closed = |at: &usize| content.get(at + 38..at + 40) == Some(&[2, 1]);
    (0..content.len()).rev().step_by(8).map(|at| at / 8 * 8).filter(frame).find(closed)
}

/// Whole blocks, except the one with the last frame of all: when that is gone, with others before
/// it, no trace is left of them.
#[test]
fn blocks_that_were_overwritten() {
    let (mut verdicts, mut rng) = (Verdicts::default(), Rng::new(2));
    for round in 0..1_000 {
        let recorded = story(round / 100, 150, true).record();
        let disk = recorded.disk.fork(1);
        let files = disk.snapshot();
        let (name, content) = rng.pick(&files);
        let offset = rng.below(content.len() as u64 / 512) * 512;
        let fill = if rng.one_in(2) { 0 } else { rng.next() as u8 };
        let garbage = vec![fill; if rng.one_in(2) { 512 } else { 4096 }];
        let block = offset as usize..offset as usize + garbage.len();
        if closing_mark(content).is_some_and(|at| block.start < at + 40 && at < block.end) {
            continue;
        }
        disk.overwrite(name, offset, &garbage);
        let judged = recorded.judge(&disk, &mut verdicts);
        judged.unwrap_or_else(|error| panic!("round {round}: {name} at {offset}: {error}"));
    }
    println!("{verdicts}");
    assert!(verdicts.log_reported > 0 && verdicts.harmless > 0);
    assert!(verdicts.recovery_rotated > 0 && verdicts.open_refused > 0);
}

#[test]
fn writes_that_landed_elsewhere() {
    let mut verdicts = Verdicts::default();
    for seed in 0..150 {
        let mut rng = Rng::new(seed);
        let fault = Fault::new(Op::Write, When::Nth(rng.below(40)), Effect::Misdirect);
        let recorded = Story { fault: Some(fault), ..story(seed, 60, true) }.record();
        let judged = recorded.judge(&recorded.disk, &mut verdicts);
        judged.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    println!("{verdicts}");
    assert!(verdicts.log_reported > 0);
}

/// Opens a journal with records of one log, each in a batch of its own.
fn open_with_records(disk: &CrashFiles, records: u64) -> (Journal, Log) {
    let journal = Journal::open_with(disk.mount(), in_order().config).unwrap();
    let log = journal.log("hit", 1).unwrap();
    for number in log.end()..records {
        let commit = Commit::new().append(&log, [format!("record {number}")]);
        journal.commit_blocking(commit).unwrap();
    }
    (journal, log)
}

/// Bits that flip while the journal is open: opening has checked them, so only the read can tell.
#[test]
fn a_bit_that_flips_after_the_open_never_reaches_a_reader() {
    let disk = CrashFiles::new(1);
    let (_journal, log) = open_with_records(&disk, 4);
    let intact = log.read_range(0..4, 1_000).unwrap();
    let image = disk.snapshot();
    let segment = image.iter().find(|(_, content)| find(content, b"record 0", 0).is_some());
    let (name, content) = segment.unwrap();
    let first = find(content, b"record 0", 0).unwrap();
    let last = find(content, b"record 3", first).unwrap();
    let (mut reported, mut short) = (0, 0);
    for bit in (first as u64 * 8 - 512)..(last as u64 + 16) * 8 {
        assert!(disk.flip_bit(name, bit));
        for position in 0..4 {
            let expected = &intact[position as usize];
            match log.read(position) {
                Ok(read) => assert_eq!(read, expected, "bit {bit}"),
                Err(ReadError::Damaged { position: at, .. }) => {
                    assert_eq!(at, position, "bit {bit}");
                    reported += 1;
                }
                Err(error) => panic!("bit {bit}: {error}"),
            }
            if let Ok(Some(read)) = log.try_read(position) {
                assert_eq!(read, expected, "bit {bit}");
            }
        }
        // Several batches by one call: those before the damage.
        match log.read_range(0..4, 1_000) {
            Ok(read) => {
                assert_eq!(read, intact[..read.len()], "bit {bit}");
                short += u64::from(read.len() < intact.len());
            }
            Err(error) => assert!(matches!(error, ReadError::Damaged { position: 0, .. })),
        }
        disk.flip_bit(name, bit);
    }
    assert_eq!(log.read_range(0..4, 1_000).unwrap(), intact, "every bit is back");
    assert!(reported > 4 * 8 * 8 && short > 3 * 8 * 8, "{reported} reported, {short} short");
}

fn find(content: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    (from..content.len()).find(|at| content[*at..].starts_with(wanted))
}

/// The end of the journal is gone, and no frame is left that refers to it: the manifest says what
/// was durable when it was last opened, so nothing of that is taken for a torn tail.
#[test]
fn a_lost_end_below_the_mark_of_the_manifest_is_reported() {
    static SITUATIONS: [&str; 2] = ["lost below the mark", "lost above the mark"];
    let reached = Situations::new(&SITUATIONS);
    for lost_from in 1..14_u64 {
        let disk = CrashFiles::new(lost_from);
        let (journal, log) = open_with_records(&disk, 8);
        disk.kill();
        drop((journal, log));
        // The second opening notes in the manifest that the first eight are durable.
        let (journal, log) = open_with_records(&disk, 12);
        // Killed first, so that dropping the journal does not close it in good order.
        disk.kill();
        drop((journal, log));
        if lost_from < 12 {
            let image = disk.snapshot();
            let wanted = format!("record {lost_from}");
            let found = image.iter().find_map(|(name, content)| {
                Some((name, content, find(content, wanted.as_bytes(), 0)?))
            });
            let (name, content, at) = found.unwrap();
            // From the middle of the frame's head on.
            disk.overwrite(name, at as u64 - 40, &vec![0; content.len() - at + 40]);
        }
        let journal = Journal::open_with(disk.mount(), in_order().config).unwrap();
        let log = journal.log("hit", 1).unwrap();
        if lost_from < 8 {
            reached.reached(SITUATIONS[0]);
            assert_eq!(log.health(), Health::Suspect, "lost from record {lost_from}");
            let refused = journal.commit_blocking(Commit::new().append(&log, ["x"])).unwrap_err();
            assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
        } else {
            reached.reached(SITUATIONS[1]);
            assert_eq!(log.health(), Health::Intact, "lost from record {lost_from}");
            assert_eq!(log.bounds(), 0..lost_from.min(12));
        }
    }
    reached.assert_all_reached();
}

/// Damage is no dead end: the owner gives the log up or moves on behind the damage, and what is
/// appended from then on is as safe as anywhere.
#[test]
fn a_damaged_log_can_be_used_again() {
    for deleted in [true, false] {
        let disk = CrashFiles::new(1);
        let open = || Journal::open_with(disk.mount(), in_order().config).unwrap();
        let journal = open();
        let (hit, other) = (journal.log("hit", 1).unwrap(), journal.log("other", 1).unwrap());
        for number in 0..10_u64 {
            let record = [number.to_le_bytes()];
            let commit = Commit::new().append(&hit, [record[0]]).append(&other, [record[0]]);
            journal.commit_blocking(commit).unwrap();
            journal.commit_blocking(Commit::new().append(&hit, ["fragile"])).unwrap();
        }
        journal.close().unwrap();
        drop((journal, hit, other));
        let image = disk.snapshot();
        let (name, content) = image.iter().find(|(name, _)| name.starts_with("segment")).unwrap();
        let mut places = (0..content.len()).filter(|at| content[*at..].starts_with(b"fragile"));
        let at = places.nth(5).unwrap();
        // The head of the frame with this record: later ones prove that it has been there.
        disk.overwrite(name, at as u64 - 40, &[0xff; 8]);

        let journal = open();
        let (hit, other) = (journal.log("hit", 1).unwrap(), journal.log("other", 1).unwrap());
        assert_eq!((hit.health(), other.health()), (Health::Suspect, Health::Intact));
        let refused = journal.commit_blocking(Commit::new().append(&hit, ["x"])).unwrap_err();
        assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
        journal.commit_blocking(Commit::new().append(&other, ["x"])).unwrap();
        let mend = if deleted {
            Commit::new().delete(&hit)
        } else {
            Commit::new().release(&hit, hit.end() + 5)
        };
        journal.commit_blocking(mend).unwrap();
        journal.commit_blocking(Commit::new().append(&hit, ["new life"])).unwrap();
        let expected = read_all(&hit).unwrap();
        assert_eq!(expected.records, ["new life"]);
        for _ in 0..3 {
            disk.power_loss(Loss::Any);
            let journal = open();
            let (hit, other) = (journal.log("hit", 1).unwrap(), journal.log("other", 1).unwrap());
            assert_eq!((hit.health(), other.health()), (Health::Intact, Health::Intact));
            assert_eq!(read_all(&hit).unwrap(), expected);
            assert_eq!(other.bounds(), 0..11);
            disk.kill();
        }
    }
}

//! Each I/O call of a workload fails once, in each way; and the disk is full.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_journal::files::crash::{Counters, CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Commit, Config, Error, Journal};

use crate::losses::in_order;
use crate::oracle::{Change, Key, Oracle, Said, State, Survives};
use crate::run::{build, log_world, said, world};
use crate::workload::Workload;

const COMMITS: usize = 90;

/// A workload of which one operation fails.
struct Script {
    disk: CrashFiles,
    oracle: Oracle,
    /// Errors that the journal answered.
    errors: Vec<String>,
    rotations: u64,
}

impl Script {
    fn play(fault: Fault) -> Self {
        let disk = CrashFiles::new(9);
        disk.inject(fault);
        let mut script = Self { disk, oracle: Oracle::new(true), errors: vec![], rotations: 0 };
        match Journal::open_with(script.disk.mount(), in_order().config) {
            Ok(journal) => script.work(&journal),
            Err(error) => script.errors.push(error.to_string()),
        }
        script
    }

    fn work(&mut self, journal: &Journal) {
        let mut workload = Workload::new(4, 6_000);
        let answers = Arc::new(Mutex::new(Vec::new()));
        for number in 0..COMMITS {
            let changes = workload.commit(self.oracle.tip());
            let survives = if number % 3 == 1 { Survives::Kill } else { Survives::PowerLoss };
            let Ok(commit) = build(journal, &changes, survives) else { continue };
            let (index, sink) = (self.oracle.submitted(), Arc::clone(&answers));
            let submitted = journal.submit(commit, move |result| {
                let error = result.as_ref().err().map(ToString::to_string);
                sink.lock().push((index, said(result), error));
            });
            match submitted {
                Ok(()) => assert_eq!(self.oracle.submit(changes, survives), index),
                Err(error) => self.errors.push(error.to_string()),
            }
            // Several commits share a group now and then, and the journal idles in between.
            if number % 4 != 3 {
                journal.work(number as u64 * if number % 20 == 0 { 1 << 28 } else { 1 << 10 });
            }
        }
        self.rotations = journal.stats().rotations;
        if let Err(error) = journal.close() {
            self.errors.push(error.to_string());
        }
        for (commit, said, error) in answers.lock().drain(..) {
            self.oracle.report(commit, said);
            self.errors.extend(error);
        }
        assert!(self.oracle.all_answered(), "a commit was left without an answer");
    }

    /// One future of the disk: reopens after the crash, writes, and reopens after one more.
    fn check(&self, seed: u64, crash: Survives) -> Counters {
        let (disk, mut oracle) = (self.disk.fork(seed), self.oracle.clone());
        disk.heal();
        for crash in [crash, Survives::PowerLoss] {
            match crash {
                Survives::PowerLoss => disk.power_loss(Loss::Any),
                _ => disk.kill(),
            }
            let journal = Journal::open_with(disk.mount(), in_order().config).unwrap();
            oracle.recovered(world(&journal).unwrap(), crash).unwrap();
            let log = journal.log("raft", 1).unwrap();
            let record = Bytes::from_static(b"it takes commits again");
            let changes = vec![(("raft", 1), Change::Append(vec![record.clone()]))];
            let receipt = journal.commit_blocking(Commit::new().append(&log, [record])).unwrap();
            let number = oracle.submit(changes, Survives::PowerLoss);
            oracle.report(number, Said::Done(receipt.lsn()));
        }
        disk.counters()
    }
}

/// Every operation of the script fails in turn with `effect`; `futures` are tried of each.
fn at_each_operation(effect: Effect, futures: u64) {
    let mut counters = Counters::default();
    let (mut runs, mut with_error) = (0, 0);
    for nth in 0.. {
        let script = Script::play(Fault::new(Op::Any, When::Nth(nth), effect));
        with_error += u32::from(!script.errors.is_empty());
        counters.merge(&script.disk.counters());
        for future in 0..futures {
            let crash = if future % 2 == nth % 2 { Survives::Kill } else { Survives::PowerLoss };
            counters.merge(&script.check(nth * futures + future, crash));
        }
        if script.disk.counters().operations <= nth {
            assert!(script.rotations >= 2, "the workload fills too few segments");
            runs = nth;
            break;
        }
    }
    println!("{effect:?}: {runs} operations, {with_error} led to an error; {counters}");
    assert!(runs > 150 && (with_error > 100 || effect == Effect::Short));
}

#[test]
fn an_io_error_at_each_operation() {
    at_each_operation(Effect::Fail, 2);
}

#[test]
fn no_space_at_each_operation() {
    at_each_operation(Effect::NoSpace, 2);
}

#[test]
fn a_failed_sync_that_drops_pages_at_each_operation() {
    at_each_operation(Effect::DropDirty, 2);
}

#[test]
fn a_short_transfer_at_each_operation() {
    at_each_operation(Effect::Short, 2);
}

#[test]
fn a_power_loss_at_each_operation() {
    at_each_operation(Effect::PowerOff, 6);
}

/// The same for the recovery itself: the power goes once more at each of its operations.
#[test]
fn a_power_loss_at_each_operation_of_a_recovery() {
    let mut recoveries = 0;
    for crash_at in (20..200).step_by(23) {
        let script = Script::play(Fault::new(Op::Any, When::Nth(crash_at), Effect::PowerOff));
        let crashed = script.disk.fork(crash_at);
        crashed.heal();
        crashed.power_loss(Loss::Any);
        for nth in 0.. {
            let disk = crashed.fork(nth);
            disk.inject(Fault::new(Op::Any, When::Nth(nth), Effect::PowerOff));
            let opened = Journal::open_with(disk.mount(), in_order().config);
            let done = disk.counters().operations <= nth;
            let (disk, oracle) = (disk.clone(), script.oracle.clone());
            let script = Script { disk, oracle, errors: vec![], rotations: 0 };
            for future in 0..3 {
                script.check(future, Survives::PowerLoss);
            }
            recoveries += 1;
            drop(opened);
            if done {
                break;
            }
        }
    }
    println!("{recoveries} recoveries were cut off");
    assert!(recoveries > 100);
}

/// Appends until the journal refuses.
fn fill(journal: &Journal, key: Key) -> (Error, u64) {
    let log = journal.log(key.0, key.1).unwrap();
    loop {
        let commit = Commit::new().append(&log, [vec![7; 5_000]]);
        if let Err(error) = journal.commit_blocking(commit) {
            return (error, log.end());
        }
    }
}

/// Appends fail with `Full`, while releases, deletes and truncations work and make room.
fn works_when_full(disk: &CrashFiles, config: Config) {
    let open = || Journal::open_with(disk.mount(), config.clone()).unwrap();
    let journal = open();
    let keys: [Key; 3] = [("kept", 1), ("released", 1), ("deleted", 1)];
    for key in keys {
        let log = journal.log(key.0, key.1).unwrap();
        journal.commit_blocking(Commit::new().append(&log, ["first", "second"])).unwrap();
    }
    for round in 0..20 {
        let key = keys[1 + round % 2];
        let (error, end) = fill(&journal, key);
        let Error::Full { pinned_by, .. } = &error else { panic!("{error}") };
        assert!(pinned_by.iter().any(|log| (&*log.namespace, log.id) == key), "{error}");
        assert!(error.is_retryable());
        let log = journal.log(key.0, key.1).unwrap();
        let freeing = match round % 4 {
            0 => Commit::new().release(&log, end),
            2 => Commit::new().release(&log, end - 1),
            _ => Commit::new().delete(&log),
        };
        journal.commit_blocking(freeing).unwrap();
        // Nothing else happens: the space comes back by work alone.
        for now in 0..20 {
            journal.work(now << 28);
        }
    }
    let expected = log_world(&journal, keys[0]).unwrap();
    assert_eq!(expected, State { first: 0, records: vec!["first".into(), "second".into()] });
    let before = world_of(&journal, &keys);
    disk.power_loss(Loss::Any);
    drop(journal);
    assert_eq!(world_of(&open(), &keys), before);
}

fn world_of(journal: &Journal, keys: &[Key]) -> Vec<State> {
    keys.iter().map(|key| log_world(journal, *key).unwrap()).collect()
}

#[test]
fn release_and_delete_work_on_a_full_disk() {
    let disk = CrashFiles::new(3);
    let mut config = in_order().config;
    config.max_bytes = 200 << 20;
    // The manifest and five segments and a half.
    disk.set_capacity(Some((128 << 10) + 11 * config.segment_bytes / 2));
    works_when_full(&disk, config);
    assert!(disk.counters().no_space > 0);
}

#[test]
fn release_and_delete_work_at_the_limit_of_the_journal() {
    works_when_full(&CrashFiles::new(3), in_order().config);
}

//! `kill -9` of a real process over real files.
//!
//! The page cache outlives a process, so this says nothing about power losses: it tests that a
//! journal needs no orderly end, and that what it left on a real file system can be opened. The
//! simulated disk does the rest.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use voussoir_journal::{Commit, Config, DiskFiles, Journal, Role, inspect};

use crate::rng::Rng;

const DIRECTORY: &str = "VOUSSOIR_KILL_DIRECTORY";
const LOAD: &str = "VOUSSOIR_KILL_LOAD";
const THREADS: u64 = 4;
const ROUNDS: u64 = 12;
/// What each record of a thread's log is followed by in the log that all share.
const SHARED: &str = "shared";

/// How a child writes.
#[derive(Clone, Copy, PartialEq)]
enum Load {
    /// There is room for all of it.
    Roomy,
    /// A log that never releases has a record in each segment of a small pool.
    Pinned,
}

/// The log that never releases.
const COLD: &str = "cold";
/// It gets a record with each of so many commits of a thread.
const COLD_EVERY: u64 = 50;

impl Load {
    fn name(self) -> &'static str {
        if self == Self::Roomy { "roomy" } else { "pinned" }
    }

    fn config(self) -> Config {
        let mut config = Config::default();
        let (bytes, segments) = if self == Self::Roomy { (256 << 10, 64) } else { (64 << 10, 8) };
        (config.segment_bytes, config.max_bytes) = (bytes, bytes * segments);
        config
    }

    /// Records that a thread keeps of each of its logs.
    fn kept(self) -> u64 {
        if self == Self::Roomy { 1_000 } else { 20 }
    }
}

/// Record `number` of log `id`: its length and content follow from its number.
fn record(id: u64, number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(8 + (Rng::new(id ^ (number << 8)).below(600) as usize), id as u8);
    bytes
}

/// Not a test by itself: the process that is killed.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let pinned = std::env::var(LOAD).is_ok_and(|load| load == Load::Pinned.name());
    let load = if pinned { Load::Pinned } else { Load::Roomy };
    let journal = Journal::open(PathBuf::from(directory), load.config()).unwrap();
    std::thread::scope(|scope| {
        for id in 0..THREADS {
            let journal = journal.clone();
            scope.spawn(move || append_for_ever(&journal, load, id));
        }
    });
}

fn append_for_ever(journal: &Journal, load: Load, id: u64) {
    let cold = journal.log(COLD, id).unwrap();
    let (own, shared) = (journal.log("own", id).unwrap(), journal.log(SHARED, id).unwrap());
    loop {
        let number = own.end();
        let mut commit = Commit::new().append(&own, [record(id, number)]);
        commit = commit.append(&shared, [record(id, number)]);
        if let Some(upto) = number.checked_sub(load.kept()) {
            commit = commit.release(&own, upto).release(&shared, upto);
        }
        if load == Load::Pinned && number % COLD_EVERY == 0 {
            commit = commit.append(&cold, [record(id, number)]);
        }
        journal.commit_blocking(commit).unwrap();
        let mut out = std::io::stdout().lock();
        // The parent reads as many as it wants before it kills: the pipe may be closed.
        let _ = writeln!(out, "ack {id} {number}").and_then(|()| out.flush());
    }
}

fn spawn(directory: &Path, load: Load) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .env(LOAD, load.name())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Lets a child run for so many acknowledgements, kills it, and answers the first number of each
/// log that was not seen as acknowledged.
fn run_and_kill(directory: &Path, load: Load, acknowledgements: u64) -> [u64; THREADS as usize] {
    let mut child = spawn(directory, load);
    let mut reader = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = [0; THREADS as usize];
    let mut take = |line: &str| {
        let mut words =
            line.split_once("ack ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
        let mut number = || words.next()?.parse::<u64>().ok();
        if let (Some(id), Some(number)) = (number(), number()) {
            acknowledged[id as usize] = number + 1;
            return true;
        }
        false
    };
    let mut seen = 0;
    while seen < acknowledgements {
        let line = reader.next().expect("the child ended by itself").unwrap();
        seen += u64::from(take(&line));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it still said before it died, but for a torn last line.
    let rest: Vec<String> = reader.map_while(Result::ok).collect();
    for line in rest.iter().take(rest.len().saturating_sub(1)) {
        take(line);
    }
    acknowledged
}

fn check(directory: &Path, load: Load, acknowledged: [u64; THREADS as usize]) {
    let journal = Journal::open(directory, load.config()).unwrap();
    for (id, acknowledged) in (0..THREADS).zip(acknowledged) {
        let (own, shared) = (journal.log("own", id).unwrap(), journal.log(SHARED, id).unwrap());
        assert!(own.end() >= acknowledged, "log {id} ends at {}, not {acknowledged}", own.end());
        let ranges = (own.first()..own.end(), shared.first()..shared.end());
        assert_eq!(ranges.0, ranges.1, "a commit over two logs was split");
        for number in ranges.0 {
            assert_eq!(own.read(number).unwrap(), record(id, number));
            assert_eq!(shared.read(number).unwrap(), record(id, number));
        }
        if load == Load::Pinned {
            let cold = journal.log(COLD, id).unwrap();
            assert_eq!(cold.bounds(), 0..own.end().div_ceil(COLD_EVERY));
            for position in cold.bounds() {
                assert_eq!(cold.read(position).unwrap(), record(id, position * COLD_EVERY));
            }
        }
    }
    journal.close().unwrap();
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let directory = std::env::temp_dir().join(format!("voussoir-kill-{}", std::process::id()));
    let mut rng = Rng::new(1);
    for _ in 0..ROUNDS {
        let acknowledged = run_and_kill(&directory, Load::Roomy, 1 + rng.below(400));
        check(&directory, Load::Roomy, acknowledged);
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_process_that_is_killed_while_it_rewrites_loses_nothing() {
    let directory = std::env::temp_dir().join(format!("voussoir-moves-{}", std::process::id()));
    let mut rng = Rng::new(2);
    for _ in 0..ROUNDS {
        let acknowledged = run_and_kill(&directory, Load::Pinned, 1 + rng.below(1_500));
        check(&directory, Load::Pinned, acknowledged);
    }
    let report = inspect(&DiskFiles::existing(&directory).unwrap(), &mut |_| {}).unwrap();
    assert_eq!(report.problems, []);
    assert!(report.segments.iter().any(|segment| segment.role == Role::Rewritten), "{report:?}");
    std::fs::remove_dir_all(&directory).unwrap();
}

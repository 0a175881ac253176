//! `kill -9` of a real process over real files.
//!
//! The page cache outlives a process, so this says nothing about power losses: it tests that a
//! journal needs no orderly end, and that what it left on a real file system can be opened. The
//! simulated disk does the rest.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use voussoir_journal::{Commit, Config, Journal};

use crate::rng::Rng;

const DIRECTORY: &str = "VOUSSOIR_KILL_DIRECTORY";
const THREADS: u64 = 4;
const ROUNDS: u64 = 12;
/// What each record of a thread's log is followed by in the log that all share.
const SHARED: &str = "shared";

fn config() -> Config {
    let mut config = Config::default();
    config.segment_bytes = 256 << 10;
    config.max_bytes = 64 * config.segment_bytes;
    config
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
    let journal = Journal::open(PathBuf::from(directory), config()).unwrap();
    std::thread::scope(|scope| {
        for id in 0..THREADS {
            let journal = journal.clone();
            scope.spawn(move || append_for_ever(&journal, id));
        }
    });
}

fn append_for_ever(journal: &Journal, id: u64) {
    let (own, shared) = (journal.log("own", id).unwrap(), journal.log(SHARED, id).unwrap());
    loop {
        let number = own.end();
        let mut commit = Commit::new().append(&own, [record(id, number)]);
        commit = commit.append(&shared, [record(id, number)]);
        if number > 1000 {
            commit = commit.release(&own, number - 1000).release(&shared, number - 1000);
        }
        journal.commit_blocking(commit).unwrap();
        let mut out = std::io::stdout().lock();
        // The parent reads as many as it wants before it kills: the pipe may be closed.
        let _ = writeln!(out, "ack {id} {number}").and_then(|()| out.flush());
    }
}

fn spawn(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Lets a child run for so many acknowledgements, kills it, and answers the first number of each
/// log that was not seen as acknowledged.
fn run_and_kill(directory: &Path, acknowledgements: u64) -> [u64; THREADS as usize] {
    let mut child = spawn(directory);
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

fn check(directory: &Path, acknowledged: [u64; THREADS as usize]) {
    let journal = Journal::open(directory, config()).unwrap();
    for (id, acknowledged) in (0..THREADS).zip(acknowledged) {
        let (own, shared) = (journal.log("own", id).unwrap(), journal.log(SHARED, id).unwrap());
        assert!(own.end() >= acknowledged, "log {id} ends at {}, not {acknowledged}", own.end());
        let ranges = (own.first()..own.end(), shared.first()..shared.end());
        assert_eq!(ranges.0, ranges.1, "a commit over two logs was split");
        for number in ranges.0 {
            assert_eq!(own.read(number).unwrap(), record(id, number));
            assert_eq!(shared.read(number).unwrap(), record(id, number));
        }
    }
    journal.close().unwrap();
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let directory = std::env::temp_dir().join(format!("voussoir-kill-{}", std::process::id()));
    let mut rng = Rng::new(1);
    for _ in 0..ROUNDS {
        let acknowledged = run_and_kill(&directory, 1 + rng.below(400));
        check(&directory, acknowledged);
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

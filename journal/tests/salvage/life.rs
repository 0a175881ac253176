//! The life of a journal, with all that its logs ever held.

use std::collections::BTreeMap;
use std::sync::Arc;

use voussoir_journal::{Commit, Config, Durability, File, Files, Journal, LogName, MemoryFiles};
use voussoir_sim::Rng;

use crate::frames::State;

/// The files of a directory.
pub(crate) type Image = BTreeMap<String, Vec<u8>>;

const LOGS: u64 = 5;

/// What a journal was, at rest and whole.
pub(crate) struct Life {
    pub(crate) image: Image,
    pub(crate) truth: BTreeMap<LogName, State>,
    /// Everything that ever stood at a position.
    pub(crate) written: BTreeMap<(LogName, u64), Vec<Vec<u8>>>,
}

pub(crate) fn name_of(log: u64) -> LogName {
    let namespace = ["entries", "votes", "a namespace of many words"][log as usize % 3];
    LogName { namespace: namespace.to_owned(), id: log * 7 }
}

pub(crate) fn image_of(files: &dyn Files) -> Image {
    let names = files.list().unwrap().into_iter().filter(|name| name != "lock");
    let files = names.map(|name| {
        let file = files.open(&name).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
        (name, bytes)
    });
    files.collect()
}

pub(crate) fn files_of(image: &Image) -> MemoryFiles {
    let files = MemoryFiles::new();
    for (name, bytes) in image {
        let file: Arc<dyn File> = files.create(name).unwrap();
        file.write_at(&[std::io::IoSlice::new(bytes)], 0).unwrap();
    }
    files
}

pub(crate) fn config(segment_bytes: u64) -> Config {
    let mut config = Config::manual();
    config.segment_bytes = segment_bytes;
    config
}

/// Commits at random, closed and opened again now and then, and closed at the end. The last log is
/// written rarely and never releases, so that it pins old segments.
pub(crate) fn live(rng: &mut Rng, commits: u64) -> Life {
    let files = MemoryFiles::new();
    let open = || Journal::open_with(Arc::new(files.clone()), config(64 << 10)).unwrap();
    let names: Vec<LogName> = (0..LOGS).map(name_of).collect();
    let mut life = Life { image: Image::new(), truth: BTreeMap::new(), written: BTreeMap::new() };
    let mut journal = open();
    for number in 0..commits {
        if rng.below(60) == 0 {
            journal.close().unwrap();
            journal = open();
        }
        let mut commit = Commit::new().durability(Durability::Written);
        for _ in 0..rng.between(1, 3) {
            let which = if rng.below(12) == 0 { LOGS - 1 } else { rng.below(LOGS - 1) };
            let name = &names[which as usize];
            let log = journal.log(&name.namespace, name.id).unwrap();
            let state = life.truth.entry(name.clone()).or_default();
            match rng.below(20) {
                0 if state.end > state.first => {
                    let position = rng.between(state.first, state.end);
                    commit = commit.truncate(&log, position);
                    state.truncate(position);
                }
                1..=3 if which < LOGS - 1 && state.end > state.first => {
                    let position = rng.between(state.first, state.end);
                    commit = commit.release(&log, position);
                    state.release(position);
                }
                4 if which < 2 && state.end > 0 && rng.below(3) == 0 => {
                    commit = commit.delete(&log);
                    life.truth.remove(name);
                }
                _ => {
                    let records: Vec<Vec<u8>> = (0..rng.between(1, 4))
                        .map(|record| {
                            let mut bytes = format!("{name} {number} {record}").into_bytes();
                            bytes.resize(bytes.len() + rng.below(900) as usize, number as u8);
                            bytes
                        })
                        .collect();
                    commit = commit.append(&log, &records);
                    let end = state.end;
                    for (position, record) in (end..).zip(&records) {
                        let all = life.written.entry((name.clone(), position)).or_default();
                        all.push(record.clone());
                    }
                    state.append(end, records.len() as u32, Some(records));
                }
            }
        }
        journal.commit_blocking(commit).unwrap();
        journal.work(number * 1_000_000_000);
    }
    journal.close().unwrap();
    // An untouched log does not exist.
    life.truth.retain(|_, state| state.end > 0);
    life.image = image_of(&files);
    life
}

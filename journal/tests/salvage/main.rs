//! Salvage of directories that were damaged at random: every intact frame comes out once, at its
//! place, and nothing that is damaged does; what a log says of itself is true.

mod damage;
mod frames;
#[path = "../../examples/inspect/json.rs"]
mod json;
mod life;
mod moved;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use voussoir_journal::files::crash::Op;
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{
    Commit, Durability, FileRole, Files, Health, Journal, Log, LogName, MemoryFiles, ReadError,
    SalvageConfig, SalvageError, SalvageReport, inspect, salvage,
};
use voussoir_sim::{Rng, Situations};

use damage::Wreck;
use frames::{Intact, State};
use life::{Life, config, files_of, image_of};

static SITUATIONS: [&str; 21] = [
    "the last frames lost",
    "a head damaged",
    "a payload damaged",
    "a table damaged",
    "a frame cut off",
    "a header lost, named by the manifest",
    "a header lost, found by its frames",
    "copies that complete each other",
    "a segment that the manifest knows to be released",
    "a released segment without a manifest",
    "no manifest",
    "files of another journal",
    "two files of one segment",
    "a segment that the manifest lists is missing",
    "a log that is intact",
    "a log that is intact beside one that is not",
    "a log with records lost",
    "a log with records behind those lost",
    "a log under suspicion",
    "a log without a name",
    "nothing missing",
];

fn run(image: &life::Image, config: &SalvageConfig) -> (Arc<MemoryFiles>, SalvageReport) {
    let (from, to) = (files_of(image), Arc::new(MemoryFiles::new()));
    let report = salvage(&from, to.clone(), config, &mut |_| {}).unwrap();
    assert_eq!(image_of(&from), *image, "the damaged directory was written to");
    (to, report)
}

/// What a log of the new journal shows; positions that cannot be read are left out.
fn shown(log: &Log) -> State {
    let (first, end) = (log.first(), log.end());
    let mut state = State { first, end, ..State::default() };
    for position in first..end {
        match log.read(position) {
            Ok(record) => drop(state.records.insert(position, record.to_vec())),
            Err(ReadError::Damaged { .. }) => {}
            Err(error) => panic!("{}: {error}", log.name()),
        }
    }
    state
}

fn missing(state: &State) -> Vec<u64> {
    (state.first..state.end).filter(|position| !state.records.contains_key(position)).collect()
}

struct Judge<'a> {
    life: &'a Life,
    /// What the logs were as of the last frame that is intact: when nothing is left of the last
    /// frames before a crash, nothing says that they were there.
    truth: &'a BTreeMap<LogName, State>,
    situations: &'a Situations,
    report: &'a SalvageReport,
}

impl Judge<'_> {
    /// Compares a new journal with what the intact frames say, and with what there was.
    fn compare(&self, journal: &Journal, expected: Option<&BTreeMap<LogName, State>>) {
        let mut seen = BTreeMap::new();
        for info in journal.logs() {
            let log = journal.log(&info.name.namespace, info.name.id).unwrap();
            let state = shown(&log);
            self.check_report(&info.name, &state, log.health());
            self.check_truth(&info.name, &state, log.health());
            seen.insert(info.name, state);
        }
        assert_eq!(seen.len(), self.report.logs.len());
        if let Some(expected) = expected {
            assert_eq!(seen.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (name, expected) in expected {
                let seen = &seen[name];
                assert_eq!((seen.first, seen.end), (expected.first, expected.end), "{name}");
                assert!(seen.records == expected.records, "{name}: other records");
            }
        }
        let is_gone = |name: &&LogName| !seen.contains_key(*name);
        let gone = self.truth.keys().find(is_gone);
        assert!(gone.is_none() || self.report.names_missing, "{gone:?} is gone, unsaid");
        let intact = self.report.logs.iter().filter(|log| log.health == Health::Intact).count();
        self.situations.add("a log that is intact", intact as u64);
        let some = intact > 0 && intact < self.report.logs.len();
        self.situations.add("a log that is intact beside one that is not", u64::from(some));
        self.situations.add("nothing missing", u64::from(self.report.is_whole()));
    }

    fn check_report(&self, name: &LogName, state: &State, health: Health) {
        let reported = self.report.logs.iter().find(|log| log.name == *name).unwrap();
        let positions: Vec<u64> = reported.missing.iter().cloned().flatten().collect();
        assert_eq!(positions, missing(state), "{name}");
        assert_eq!(reported.health, health, "{name}");
        assert_eq!((reported.first, reported.end), (state.first, state.end), "{name}");
        assert_eq!(reported.records, state.records.len() as u64, "{name}");
        let bytes: usize = state.records.values().map(Vec::len).sum();
        assert_eq!(reported.bytes, bytes as u64, "{name}");
    }

    fn check_truth(&self, name: &LogName, state: &State, health: Health) {
        for (position, record) in &state.records {
            let key = (name.clone(), *position);
            let is_unnamed = name.namespace == "unnamed";
            self.situations.add("a log without a name", u64::from(is_unnamed));
            let known = self.life.written.get(&key).is_some_and(|all| all.contains(record));
            assert!(known || is_unnamed, "{name}: nobody wrote what is at {position}");
        }
        let nothing = State::default();
        let truth = self.truth.get(name).unwrap_or(&nothing);
        let lost = missing(state);
        match health {
            Health::Intact => assert!(state == truth, "{name} says that it is intact"),
            Health::Lost { from, until } => {
                self.situations.reached("a log with records lost");
                assert_eq!((from, until), (lost[0], lost[lost.len() - 1] + 1), "{name}");
                assert_eq!((state.first, state.end), (truth.first, truth.end), "{name}");
                for (position, record) in &state.records {
                    assert!(truth.records[position] == *record, "{name}: outdated at {position}");
                }
                let behind = state.records.range(from..).next().is_some();
                let name = "a log with records behind those lost";
                self.situations.add(name, u64::from(behind));
            }
            Health::Suspect => self.situations.reached("a log under suspicion"),
            other => panic!("{other:?}"),
        }
    }
}

fn count_files(report: &SalvageReport, situations: &Situations) {
    let has = |role| u64::from(report.files.iter().any(|file| file.role == role));
    situations.add("files of another journal", has(FileRole::Foreign));
    situations.add("two files of one segment", has(FileRole::Copy));
    situations.add("no manifest", u64::from(!report.has_manifest));
    let missing = !report.missing_segments.is_empty();
    situations.add("a segment that the manifest lists is missing", u64::from(missing));
}

/// `VOUSSOIR_LIVES` sets how many journals there are (default 12), each of which is damaged in 80
/// ways.
#[test]
fn each_intact_frame_comes_out_once_and_no_damaged_one_does() {
    let lives = std::env::var("VOUSSOIR_LIVES").map_or(12, |lives| lives.parse().unwrap());
    let situations = Situations::new(&SITUATIONS);
    let (mut rounds, mut certain) = (0, 0);
    for seed in 0..lives {
        let mut rng = Rng::new(seed);
        let foreign = life::live(&mut rng, 60).image;
        // A short life has one segment, with one table that names no log.
        let commits = if seed % 4 == 0 { rng.between(10, 40) } else { rng.between(100, 400) };
        let life = life::live(&mut rng, commits);
        let unhurt = Situations::new(&SITUATIONS);
        let whole = Wreck::new(&life.image).left(&unhurt).frames;
        let truth = frames::replay(&whole);
        let exists = |(_, state): &(&LogName, &State)| state.end > 0;
        assert!(truth.iter().filter(exists).eq(&life.truth), "the judge reads the whole journal");
        for round in 0..80 {
            let mut wreck = Wreck::new(&life.image);
            for _ in 0..rng.below(5) {
                wreck.strike(&mut rng, &foreign);
            }
            let journal = u128::from_le_bytes(identity(&life));
            let mut told = SalvageConfig::default();
            told.journal = (rng.below(2) == 0 || wreck.image().len() < 4).then_some(journal);
            let left = wreck.left(&situations);
            let expected = frames::replay(&left.frames);
            println!("seed {seed}, round {round}: {:?}", wreck.story);
            let (to, report) = run(&wreck.image(), &told);
            if report.journal != journal {
                // More files of the other journal than of this one.
                continue;
            }
            assert_eq!(report.has_manifest, wreck.has_manifest());
            count_files(&report, &situations);
            let last = report.lsns.1;
            let truth = frames::replay(&whole.range(..=last).map(cloned).collect());
            let judge =
                Judge { life: &life, truth: &truth, situations: &situations, report: &report };
            let behind = whole.range(last + 1..).next().is_some();
            situations.add("the last frames lost", u64::from(behind));
            let expected = left.is_certain.then_some(&expected);
            rounds += 1;
            certain += u64::from(left.is_certain);
            if left.is_certain {
                assert_eq!(report.frames, left.frames.len() as u64);
            }
            // Each opening shows the same.
            for _ in 0..2 {
                let inspected = inspect(&*to, &mut |_| {}).unwrap();
                assert_eq!(inspected.problems, []);
                let journal = Journal::open_with(to.clone(), config(64 << 10)).unwrap();
                judge.compare(&journal, expected);
                journal.close().unwrap();
            }
        }
    }
    situations.assert_all_reached();
    assert!(certain * 4 > rounds * 3, "only {certain} of {rounds} are compared frame by frame");
}

fn cloned((lsn, frame): (&u64, &Intact)) -> (u64, Intact) {
    (*lsn, frame.clone())
}

fn identity(life: &Life) -> [u8; 16] {
    life.image["manifest"][24..40].try_into().unwrap()
}

/// The way of an owner with peers: what is lost is taken from them, and the log goes on.
#[test]
fn a_log_with_lost_records_is_repaired_from_its_peers() {
    let (from, to) = (MemoryFiles::new(), Arc::new(MemoryFiles::new()));
    let journal = Journal::open_with(Arc::new(from.clone()), config(64 << 10)).unwrap();
    let log = journal.log("entries", 1).unwrap();
    let record = |number: u64| vec![number as u8; 2_000];
    for number in 0..120 {
        let commit = Commit::new().append(&log, [record(number)]);
        journal.commit_blocking(commit).unwrap();
        journal.work(0);
    }
    journal.close().unwrap();
    let mut image = image_of(&from);
    let segment = image.get_mut("segment-00000001").unwrap();
    let lost = frames::frames_of(segment);
    let payload = |number: usize| lost[number].sections[0].payload.start;
    let position = |number: usize| lost[number].sections[0].position;
    segment[payload(3)] ^= 1;
    segment[payload(6)] ^= 1;

    let (new, report) =
        (to.clone(), salvage(&files_of(&image), to, &SalvageConfig::default(), &mut |_| {}));
    let report = report.unwrap();
    let (first, second) = (position(3), position(6));
    let [found] = &report.logs[..] else { panic!("{report:?}") };
    assert_eq!(found.missing, [first..first + 1, second..second + 1]);
    let journal = Journal::open_with(new, config(4 << 20)).unwrap();
    let log = journal.log("entries", 1).unwrap();
    let Health::Lost { from, until } = log.health() else { panic!("{:?}", log.health()) };
    assert_eq!((from, until), (first, second + 1));
    assert_eq!(log.read(first + 1).unwrap(), record(first + 1), "between the two");
    assert!(journal.commit_blocking(Commit::new().append(&log, [record(120)])).is_err());

    // What is readable from there on stays at hand; only the rest is asked of a peer.
    let records: Vec<Vec<u8>> = (from..log.end())
        .map(|position| log.read(position).map_or_else(|_| record(position), |read| read.to_vec()))
        .collect();
    let repair = Commit::new().truncate(&log, from).append(&log, &records);
    journal.commit_blocking(repair).unwrap();
    assert_eq!(log.health(), Health::Intact);
    let all: Vec<Vec<u8>> = (0..120).map(record).collect();
    assert_eq!(log.read_range(0..120, usize::MAX).unwrap(), all);
}

#[test]
fn the_new_directory_must_be_empty_and_the_old_one_one_of_a_journal() {
    let life = life::live(&mut Rng::new(1), 20);
    let from = files_of(&life.image);
    let same = Arc::new(from.clone());
    let told = SalvageConfig::default();
    let refused = salvage(&MemoryFiles::new(), same, &told, &mut |_| {}).unwrap_err();
    assert!(matches!(refused, SalvageError::NotEmpty { .. }), "{refused}");
    assert_eq!(image_of(&from), life.image);
    let nothing = MemoryFiles::new();
    nothing.create("segment-00000000").unwrap();
    let to = Arc::new(MemoryFiles::new());
    let refused = salvage(&nothing, to.clone(), &told, &mut |_| {}).unwrap_err();
    assert_eq!(refused, SalvageError::NoJournal { files: 1 });
    assert_eq!(to.list().unwrap(), Vec::<String>::new());
    let _held = from.lock().unwrap();
    let refused = salvage(&from, to, &told, &mut |_| {}).unwrap_err();
    assert_eq!(refused, SalvageError::InUse { directory: "damaged" });
}

/// Without a manifest nothing proves that the newest segments are there; whoever calls may know.
#[test]
fn an_end_that_nothing_proves_can_be_accepted() {
    let life = life::live(&mut Rng::new(5), 60);
    let mut image = life.image.clone();
    image.remove("manifest");
    let mut told = SalvageConfig::default();
    let (_, report) = run(&image, &told);
    assert!(!report.end_is_proven && !report.has_manifest && report.names_missing);
    assert!(report.logs.iter().all(|log| log.health == Health::Suspect), "{report:?}");
    told.accept_end = true;
    let (_, report) = run(&image, &told);
    assert!(report.is_whole(), "{report:?}");
}

/// What programs read says what the report says.
#[test]
fn the_reports_are_json() {
    let life = life::live(&mut Rng::new(9), 150);
    let mut wreck = Wreck::new(&life.image);
    wreck.strike(&mut Rng::new(2), &life.image);
    let (to, report) = run(&wreck.image(), &SalvageConfig::default());
    let (mut text, mut inspected) = (String::new(), String::new());
    json::salvaged(&report, &mut text).unwrap();
    json::inspected(&inspect(&*to, &mut |_| {}).unwrap(), &mut inspected).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["frames"], report.frames);
    assert_eq!(json["files"].as_array().unwrap().len(), report.files.len());
    let logs = json["logs"].as_array().unwrap();
    assert_eq!(logs.len(), report.logs.len());
    for (json, log) in logs.iter().zip(&report.logs) {
        assert_eq!(json["namespace"], log.name.namespace);
        assert_eq!((&json["id"], &json["end"]), (&log.name.id.into(), &log.end.into()));
        let missing: Vec<[u64; 2]> = serde_json::from_value(json["missing"].clone()).unwrap();
        let ranges: Vec<[u64; 2]> = log.missing.iter().map(|r| [r.start, r.end]).collect();
        assert_eq!(missing, ranges);
        let health = match log.health {
            Health::Intact => "intact",
            Health::Lost { .. } => "lost",
            _ => "suspect",
        };
        assert_eq!(json["health"], health);
    }
    let json: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(json["logs"].as_array().unwrap().len(), report.logs.len());
}

/// A crash may leave frames that were never acknowledged behind the new end. They verify, and are
/// no part of the journal.
#[test]
fn what_a_crash_left_behind_the_end_stays_there() {
    let files = MemoryFiles::new();
    let open = |files: &MemoryFiles| {
        Journal::open_with(Arc::new(files.clone()), config(64 << 10)).unwrap()
    };
    let journal = open(&files);
    let log = journal.log("entries", 1).unwrap();
    let append = |record: &[u8]| Commit::new().append(&log, [record]);
    journal.commit_blocking(append(b"acknowledged")).unwrap();
    let written = append(&[1; 3_000]).durability(Durability::Written);
    journal.commit_blocking(written).unwrap();
    journal.commit_blocking(append(b"left").durability(Durability::Written)).unwrap();
    // The power fails: the second of the three is torn, the third has reached the disk.
    let mut image = image_of(&files);
    drop(journal);
    let segment = image.get_mut("segment-00000000").unwrap();
    let frames = frames::frames_of(segment);
    let torn = frames.iter().find(|frame| frame.all.len() > 3_000).unwrap().clone();
    let left = frames.iter().find(|frame| frame.lsn == torn.lsn + 1).unwrap().clone();
    let head = segment[left.head.clone()].to_vec();
    segment[torn.head.start + 8] ^= 1;
    let files = files_of(&image);
    let journal = open(&files);
    let log = journal.log("entries", 1).unwrap();
    assert_eq!(log.end(), 1);
    let more = Commit::new().append(&log, ["after"]);
    journal.commit_blocking(more).unwrap();
    journal.close().unwrap();
    let image = image_of(&files);
    assert_eq!(image["segment-00000000"][left.head], head, "still there");

    let (to, report) = run(&image, &SalvageConfig::default());
    assert!(report.is_whole(), "{report:?}");
    let journal = open(&to);
    let log = journal.log("entries", 1).unwrap();
    let all = log.read_range(0..9, usize::MAX).unwrap();
    assert_eq!(all, ["acknowledged", "after"]);
}

/// Each write and each sync of the new journal fails once: what is there then does not pass for
/// all that could be saved.
#[test]
fn a_salvage_that_did_not_end_leaves_only_suspects() {
    let life = life::live(&mut Rng::new(3), 120);
    let from = files_of(&life.image);
    let (mut opened, mut fails_at) = (0, 0);
    // Ends: with enough calls let through, the salvage succeeds.
    loop {
        let to: Arc<MemoryFiles> = Arc::default();
        let calls = AtomicU64::new(0);
        let hooked = HookedFiles::new(to.clone(), move |call| {
            let counts = matches!(call.op, Op::Write | Op::Sync);
            if counts && calls.fetch_add(1, Ordering::Relaxed) >= fails_at {
                return Err(std::io::Error::other("the disk is gone"));
            }
            Ok(())
        });
        match salvage(&from, Arc::new(hooked), &SalvageConfig::default(), &mut |_| {}) {
            Ok(_) => break,
            Err(SalvageError::Write(_) | SalvageError::Create(_)) => {}
            Err(error) => panic!("{error}"),
        }
        fails_at += 1;
        let Ok(journal) = Journal::open_with(to, config(64 << 10)) else { continue };
        let logs = journal.logs();
        opened += u64::from(!logs.is_empty());
        let suspect = logs.iter().all(|log| log.health == Health::Suspect);
        // The last table is what says that all is there: from then on it may be believed.
        let done = life.truth.iter().all(|(name, truth)| {
            let log = journal.log(&name.namespace, name.id).unwrap();
            shown(&log) == *truth
        });
        assert!(suspect || done, "write {fails_at} failed, and {logs:?}");
    }
    assert!(opened > 5 && fails_at > 20, "{opened} of {fails_at} had logs");
}

/// A sector that the device cannot read costs as much as one that is full of zeros.
#[test]
fn a_sector_that_cannot_be_read_is_one_of_zeros() {
    let life = life::live(&mut Rng::new(6), 150);
    let mut damaged = 0;
    for sector in (0..130).step_by(13) {
        let bytes = sector * 512..(sector + 1) * 512;
        let mut zeroed = life.image.clone();
        zeroed.get_mut("segment-00000001").unwrap()[bytes.start as usize..bytes.end as usize]
            .fill(0);
        let (_, expected) = run(&zeroed, &SalvageConfig::default());
        let from = HookedFiles::new(Arc::new(files_of(&life.image)), move |call| {
            let is_hit = call.op == Op::Read && call.name == "segment-00000001";
            if is_hit && call.touches(&bytes) {
                return Err(std::io::Error::other("unreadable"));
            }
            Ok(())
        });
        let to = Arc::new(MemoryFiles::new());
        let found = salvage(&from, to, &SalvageConfig::default(), &mut |_| {}).unwrap();
        assert_eq!(found, expected, "sector {sector}");
        damaged += u64::from(!found.is_whole());
    }
    assert!(damaged > 3, "{damaged} sectors held what counts");
}

/// A file that this process may not open is not one that is empty: nothing is known of it.
#[test]
fn a_file_that_is_refused_ends_a_salvage() {
    let life = life::live(&mut Rng::new(6), 150);
    // Too many open files, in the process or in the system, and no permission.
    let refusals: [fn() -> std::io::Error; 3] = [
        || std::io::Error::from_raw_os_error(24),
        || std::io::Error::from_raw_os_error(23),
        || std::io::ErrorKind::PermissionDenied.into(),
    ];
    for refused in ["manifest", "segment-00000001"] {
        for refusal in refusals {
            let from = HookedFiles::new(Arc::new(files_of(&life.image)), move |call| {
                let is_hit = call.op == Op::Open && call.name == refused;
                if is_hit { Err(refusal()) } else { Ok(()) }
            });
            let to = Arc::new(MemoryFiles::new());
            let told = SalvageConfig::default();
            let error = salvage(&from, to.clone(), &told, &mut |_| {}).unwrap_err();
            let SalvageError::Damaged(fault) = error else { panic!("{error}") };
            assert_eq!((fault.operation, &*fault.name), ("open", refused));
            assert_eq!(image_of(&*to), life::Image::new(), "nothing was written");
        }
    }
}

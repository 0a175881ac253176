//! One run: a disk, a journal on it, random commits, crashes, and the oracle that watches. The
//! seed is the whole run.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use voussoir_journal::files::crash::{Counters, CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{
    Commit, Config, Durability, Error, Health, Journal, Log, OpenError, Outcome, ReadError,
    Receipt, Report, Role, SegmentInfo, Work, inspect,
};
use voussoir_sim::Situations;

use crate::moves::Moves;
use crate::oracle::{Change, Changes, Key, Oracle, Said, State, Survives, World};
use crate::rng::Rng;
use crate::workload::{KEYS, Workload};

const IDLE_NANOS: u64 = 100_000_000;
/// After this time a journal tries again to prepare a segment.
const RETRY_NANOS: u64 = 1_000_000_000;

/// What distinguishes one family of runs from another.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    /// Crashes in the life of one disk.
    pub(crate) crashes: u64,
    /// The most steps between two crashes.
    pub(crate) steps: u64,
    /// Some logs are cold: they pin old segments while younger ones are freed.
    pub(crate) cold: bool,
    /// The cold logs are touched often, in every way, and never emptied for long.
    pub(crate) lukewarm: bool,
    pub(crate) record_bytes_max: u64,
    /// No commit of the workload is large enough to be overtaken.
    pub(crate) in_order: bool,
    /// Hardly any commit is synced.
    pub(crate) lazy: bool,
    /// Some commits are acknowledged when they are accepted. A full disk may still drop those
    /// without a word, so there must be room.
    pub(crate) buffered: bool,
}

type Answers = Arc<Mutex<Vec<(usize, Said)>>>;

/// What happened in runs: how often each fault fired, and what the journal did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) disk: Counters,
    pub(crate) commits: u64,
    pub(crate) rotations: u64,
}

impl Tally {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.disk.merge(&other.disk);
        self.commits += other.commits;
        self.rotations += other.rotations;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "commits {}, rotations {}, {}", self.commits, self.rotations, self.disk)
    }
}

pub(crate) struct Run<'a> {
    settings: Settings,
    situations: &'a Situations,
    pub(crate) disk: CrashFiles,
    rng: Rng,
    workload: Workload,
    oracle: Oracle,
    now: u64,
    /// Few commits of this life are synced.
    lazy: bool,
    /// The last append of this life was refused for want of room.
    full: bool,
    /// The commit of this life that was told last, and its LSN.
    latest: usize,
    lsn_told: u64,
    /// The rounds of rewriting.
    moves: Moves,
    /// Counters of the disk when this life began.
    before: Counters,
    tally: Tally,
    /// What happened, for the report of a failure.
    trace: Option<Vec<String>>,
}

/// Runs one seed to its end.
pub(crate) fn run(
    seed: u64,
    settings: &Settings,
    situations: &Situations,
) -> Result<Tally, String> {
    if let Ok(tally) = Run::new(seed, settings.clone(), situations, false).play() {
        return Ok(tally);
    }
    let mut run = Run::new(seed, settings.clone(), situations, true);
    let error = run.play().expect_err("a run must be the same when it is repeated");
    let trace = run.trace.take().unwrap_or_default().join("\n  ");
    Err(format!("seed {seed}:\n  {trace}\n  {error}"))
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        seed: u64,
        settings: Settings,
        situations: &'a Situations,
        traced: bool,
    ) -> Self {
        let workload = match (settings.cold, settings.lukewarm) {
            (true, true) => Workload::with_lukewarm_logs,
            (true, false) => Workload::with_cold_logs,
            (false, _) => Workload::new,
        };
        let disk = CrashFiles::new(seed);
        if settings.cold && seed % 2 == 1 {
            disk.set_aging(Some(2));
        }
        Self {
            disk,
            rng: Rng::new(seed),
            workload: workload(seed, settings.record_bytes_max),
            oracle: Oracle::new(settings.in_order),
            now: 0,
            lazy: false,
            full: false,
            latest: 0,
            lsn_told: 0,
            moves: Moves::default(),
            before: Counters::default(),
            situations,
            tally: Tally::default(),
            trace: traced.then(Vec::new),
            settings,
        }
    }

    fn play(&mut self) -> Result<Tally, String> {
        let mut crash = Survives::PowerLoss;
        for _ in 0..self.settings.crashes {
            let journal = self.recover(crash)?;
            crash = self.live(journal)?;
        }
        self.recover(crash)?;
        self.tally.disk = self.disk.counters();
        Ok(self.tally)
    }

    /// Opens the journal, with a crash or several on the way, and checks what it shows.
    fn recover(&mut self, crash: Survives) -> Result<Journal, String> {
        let mut crash = crash;
        while self.rng.one_in(3) {
            let nth = self.rng.below(60);
            self.note(|| format!("open, with the power going at operation {nth}"));
            self.disk.inject(Fault::new(Op::Any, When::Nth(nth), Effect::PowerOff));
            let opened = self.open();
            self.disk.heal();
            match &opened {
                // What an opened journal shows is durable from here on.
                Ok(journal) => {
                    self.check(journal, crash)?;
                    crash = self.crash();
                }
                Err(OpenError::Io(_)) => {
                    self.situations.reached("second crash inside a recovery");
                    crash = crash.max(self.crash());
                }
                Err(error) => return Err(format!("cut off while opening: {error}")),
            }
        }
        self.look()?;
        self.note(|| "open".to_owned());
        let journal = self.open().map_err(open_error)?;
        self.check(&journal, crash)?;
        Ok(journal)
    }

    fn open(&mut self) -> Result<Journal, OpenError> {
        Journal::open_with(self.disk.mount(), self.settings.config.clone())
    }

    fn check(&mut self, journal: &Journal, crash: Survives) -> Result<(), String> {
        let seen = world(journal)?;
        self.note(|| format!("shows {seen:?}"));
        self.oracle.recovered(seen, crash)
    }

    /// Looks at the disk before it is opened: no crash is damage, and what it left is counted.
    fn look(&mut self) -> Result<(), String> {
        let report = match inspect(&*self.disk.mount(), &mut |_| {}) {
            Ok(report) => report,
            // The first opening was cut off before it had created the manifest.
            Err(OpenError::ManifestMissing { segments: 0 }) => return Ok(()),
            Err(error) => return Err(format!("cannot be inspected: {error}")),
        };
        self.count_recovery(&report);
        self.moves.recovered(&report, &self.disk, self.situations);
        if !report.problems.is_empty() {
            let Report { problems, segments, .. } = report;
            return Err(format!("problems after a crash: {problems:?} in {segments:?}"));
        }
        Ok(())
    }

    fn count_recovery(&self, report: &Report) {
        if report.last_lsn < self.lsn_told {
            self.situations.reached("written commits are cut off");
        }
        for pair in report.segments.windows(2) {
            let [segment @ SegmentInfo { role: Role::Sealed, .. }, next] = pair else { continue };
            let behind_a_hole = next.first_lsn > segment.last_lsn + 2;
            match (segment.indexed, behind_a_hole) {
                (true, true) => self.situations.reached("a middle segment has been freed"),
                (false, true) => {
                    self.situations.reached("a middle segment has been freed, the index lost");
                }
                (false, false) => self.situations.reached("an index has been lost"),
                (true, false) => {}
            }
        }
        let active = report.segments.iter().find(|segment| segment.role == Role::Active);
        if active.is_some_and(|active| active.first_lsn == active.last_lsn) {
            self.situations.reached("the newest segment has only its table");
        }
    }

    /// Counts what this life, which is about to end, has reached.
    fn count_life(&self, stats: &voussoir_journal::Stats) {
        let disk = self.disk.counters();
        let situations = self.situations;
        let failed = disk.dirty_dropped > self.before.dirty_dropped;
        situations.add("failed sync, then a crash", u64::from(failed));
        let aged = failed && disk.aged > self.before.aged;
        situations.add("failed sync after pages reached the disk by themselves", u64::from(aged));
        situations.add("a segment is recycled", stats.segments_recycled);
        situations.add("a segment becomes full", stats.rotations);
        let full = disk.no_space > self.before.no_space && stats.rotations > 0;
        situations.add("the disk is full in a life that rotates", u64::from(full));
    }

    /// Power loss, mostly, or the death of the process alone.
    fn crash(&mut self) -> Survives {
        let survives = if self.rng.one_in(5) {
            self.disk.kill();
            Survives::Kill
        } else {
            self.disk.power_loss(Loss::Any);
            Survives::PowerLoss
        };
        self.disk.heal();
        self.disk.set_capacity(None);
        self.note(|| format!("crash: {survives:?}"));
        survives
    }

    /// Works for a while and dies.
    fn live(&mut self, journal: Journal) -> Result<Survives, String> {
        self.arm();
        self.lazy = self.settings.lazy || self.rng.one_in(3);
        let answers = Answers::default();
        self.before = self.disk.counters();
        self.full = false;
        self.moves.life_begins();
        (self.latest, self.lsn_told) = (0, 0);
        let steps = if self.rng.one_in(6) { 0 } else { self.rng.below(self.settings.steps) };
        for _ in 0..steps {
            self.step(&journal, &answers)?;
        }
        if self.rng.one_in(8) {
            let closed = journal.close();
            self.note(|| format!("close: {closed:?}"));
        }
        self.collect(&answers);
        let stats = journal.stats();
        self.tally.commits += stats.commits;
        self.tally.rotations += stats.rotations;
        self.count_life(&stats);
        let crash = self.crash();
        drop(journal);
        Ok(crash)
    }

    /// Plans what goes wrong in this life.
    fn arm(&mut self) {
        let nth = When::Nth(self.rng.below(60));
        let fault = match self.rng.below(16) {
            0..=3 => Fault::new(Op::Any, nth, Effect::PowerOff),
            4..=6 => Fault::new(Op::Sync, When::Nth(self.rng.below(15)), Effect::PowerOff),
            7 => Fault::new(Op::Sync, When::Nth(self.rng.below(12)), Effect::DropDirty),
            8 => Fault::new(Op::Sync, When::Nth(self.rng.below(12)), Effect::Fail),
            9 => Fault::new(Op::Any, nth, Effect::Fail),
            10 if !self.settings.buffered => Fault::new(Op::Any, nth, Effect::NoSpace),
            11 => Fault::new(Op::Any, When::OneIn(3), Effect::Short),
            12 | 13 if !self.settings.buffered => {
                // Somebody else fills the disk.
                let room = self.rng.below(self.settings.config.segment_bytes / 2);
                self.disk.set_capacity(Some(self.disk.used() + room));
                self.note(|| format!("armed: {room} bytes of room"));
                return;
            }
            _ => return,
        };
        self.note(|| format!("armed: {fault:?}"));
        self.disk.inject(fault);
    }

    fn step(&mut self, journal: &Journal, answers: &Answers) -> Result<(), String> {
        match self.rng.below(20) {
            0..=10 => self.submit(journal, answers)?,
            11..=17 => {
                let work = journal.work(self.now);
                self.moves.worked(&journal.stats(), work, self.situations);
                self.note(|| format!("work: {work:?}"));
            }
            18 => {
                // Whoever filled the disk may free it again.
                if self.full && self.rng.one_in(2) {
                    self.disk.set_capacity(None);
                    self.note(|| "room again".to_owned());
                }
                self.now += if self.full { RETRY_NANOS } else { IDLE_NANOS };
                if journal.work(self.now) == Work::Marked {
                    self.situations.reached("an idle journal is marked");
                }
                self.note(|| "idle, work".to_owned());
            }
            _ => self.check_reads(journal)?,
        }
        self.now += 1_000;
        self.collect(answers);
        Ok(())
    }

    fn submit(&mut self, journal: &Journal, answers: &Answers) -> Result<(), String> {
        self.workload.hurried = self.settings.lukewarm && self.moves.is_moving();
        let changes = self.workload.commit(self.oracle.tip());
        let survives = self.survives();
        let commit = build(journal, &changes, survives)?;
        let number = self.oracle.submitted();
        let sink = Arc::clone(answers);
        let done = move |result| sink.lock().push((number, said(result)));
        match journal.submit(commit, done) {
            Ok(()) => {
                let appends = |(_, change): &(_, Change)| matches!(change, Change::Append(_));
                if self.full && changes.iter().any(appends) {
                    self.full = false;
                    self.situations.reached("appends resume after a refusal");
                }
                self.note(|| format!("submit {number} {survives:?}: {}", brief(&changes)));
                self.moves.changed(journal, self.oracle.tip(), &changes, self.situations);
                self.oracle.submit(changes, survives);
            }
            Err(rejected) => {
                let error = rejected.error;
                if matches!(error, Error::Full { .. }) {
                    self.full = true;
                    self.situations.reached("appends are refused for want of room");
                }
                self.note(|| format!("refused: {error}"));
            }
        }
        Ok(())
    }

    /// What a commit is to survive: mostly power losses, but in a lazy life mostly kills.
    fn survives(&mut self) -> Survives {
        let synced = if self.lazy { 1 } else { 8 };
        match self.rng.below(4 + synced) {
            0 if self.settings.buffered => Survives::Nothing,
            0..=3 => Survives::Kill,
            _ => Survives::PowerLoss,
        }
    }

    fn collect(&mut self, answers: &Answers) {
        for (commit, said) in answers.lock().drain(..) {
            self.note(|| format!("commit {commit}: {said:?}"));
            if let Said::Done(Some(lsn)) = said {
                // Told in the order of LSNs.
                if commit < self.latest {
                    self.situations.reached("a commit is overtaken by a later one");
                }
                self.latest = commit;
                self.lsn_told = lsn;
            }
            self.oracle.report(commit, said);
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// While the journal lives, a read shows what was acknowledged, and nothing else. Commits
    /// under way may show or not.
    fn check_reads(&mut self, journal: &Journal) -> Result<(), String> {
        assert_eq!(journal.stats().logs, journal.logs().len());
        let nth = self.rng.below(8) as usize;
        let Some((key, state)) = self.oracle.tip().iter().nth(nth) else { return Ok(()) };
        let log = journal.log(key.0, key.1).map_err(|error| error.to_string())?;
        let position = state.first + self.rng.below(state.records.len() as u64 + 1);
        let expected = state.records.get((position - state.first) as usize);
        match (log.read(position), expected) {
            (Ok(record), Some(expected)) if record == *expected => {
                self.moves.read(&log, position, self.situations);
                Ok(())
            }
            (Err(ReadError::Absent { .. }), None) => Ok(()),
            // The fault plan hits reads too.
            (Err(ReadError::Io(_)), _) => Ok(()),
            (Ok(_) | Err(ReadError::Absent { .. } | ReadError::Released { .. }), _)
                if !self.oracle.all_done() =>
            {
                Ok(())
            }
            (read, expected) => {
                Err(format!("{key:?} reads {read:.80?} at {position}, not {expected:.80?}"))
            }
        }
    }
}

pub(crate) fn said(result: Result<Receipt, Error>) -> Said {
    match result {
        Ok(receipt) => Said::Done(receipt.lsn()),
        Err(error) if error.outcome() == Outcome::NotApplied => Said::NotApplied,
        Err(_) => Said::Unknown,
    }
}

/// The commit that makes these changes.
pub(crate) fn build(
    journal: &Journal,
    changes: &Changes,
    survives: Survives,
) -> Result<Commit, String> {
    let mut commit = Commit::new().durability(match survives {
        Survives::Nothing => Durability::Buffered,
        Survives::Kill => Durability::Written,
        Survives::PowerLoss | Survives::BadMedium => Durability::Synced,
    });
    for ((namespace, id), change) in changes {
        let log = journal.log(namespace, *id).map_err(|error| error.to_string())?;
        commit = match change {
            Change::Append(records) => commit.append(&log, records),
            Change::Truncate(from) => commit.truncate(&log, *from),
            Change::Release(upto) => commit.release(&log, *upto),
            Change::Delete => commit.delete(&log),
        };
    }
    Ok(commit)
}

/// Everything that a journal without damage shows.
pub(crate) fn world(journal: &Journal) -> Result<World, String> {
    let mut world = World::new();
    for info in journal.logs() {
        let key = known_key(&info.name.namespace, info.name.id)?;
        world.insert(key, log_world(journal, key)?);
    }
    Ok(world)
}

/// All of one log.
pub(crate) fn log_world(journal: &Journal, key: Key) -> Result<State, String> {
    let log = journal.log(key.0, key.1).map_err(|error| error.to_string())?;
    if log.health() != Health::Intact {
        return Err(format!("{key:?} is reported as damaged: {:?}", log.health()));
    }
    read_all(&log).map_err(|error| format!("{key:?}: {error}"))
}

/// All records of a log that reads without a fault.
pub(crate) fn read_all(log: &Log) -> Result<State, ReadError> {
    let (first, end) = (log.first(), log.end());
    let mut records = Vec::new();
    while first + (records.len() as u64) < end {
        let from = first + records.len() as u64;
        // Small bites, so that batches are read from their middle too.
        let more = log.read_range(from..end, 700)?;
        assert!(!more.is_empty(), "{log:?} reads nothing at {from}");
        records.extend(more);
    }
    assert_eq!(first + records.len() as u64, end, "{log:?} reads past its end");
    Ok(State { first, records })
}

pub(crate) fn open_error(error: OpenError) -> String {
    format!("cannot be opened: {error}")
}

fn known_key(namespace: &str, id: u64) -> Result<Key, String> {
    let known = KEYS.iter().find(|key| **key == (namespace, id));
    known.copied().ok_or_else(|| format!("log {namespace}/{id} was never created"))
}

fn brief(changes: &Changes) -> String {
    let brief = |(key, change): &(Key, Change)| match change {
        Change::Append(records) => {
            let bytes: usize = records.iter().map(bytes::Bytes::len).sum();
            format!("{key:?} append {} of {bytes} bytes", records.len())
        }
        other => format!("{key:?} {other:?}"),
    };
    changes.iter().map(brief).collect::<Vec<_>>().join("; ")
}

//! Resources that check fencing tokens: those of this crate pass the suite, defective ones do not,
//! and the one in a journal keeps its word across losses of power.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many there are (default 300); `VOUSSOIR_SEED` replays one life.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Commit, Config, Files, Journal, Log, MemoryFiles};
use voussoir_lock::journal::{JournalFence, JournalFenceError};
use voussoir_lock::testing::{FencedError, FencedResource, fence_conformance};
use voussoir_lock::*;
use voussoir_sim::{Rng, Situations};

fn config() -> Config {
    let mut config = Config::default();
    config.segment_bytes = 64 << 10;
    config
}

/// Entries in log 1 of the namespace whose log 0 has the tokens.
struct Ledger {
    fence: JournalFence,
    entries: Log,
}

impl Ledger {
    fn open(journal: &Journal) -> Result<Self, JournalFenceError> {
        let fence = JournalFence::open(journal, "ledger")?;
        Ok(Self { fence, entries: journal.log("ledger", 1)? })
    }

    async fn append(&self, token: u64, entry: &str) -> Result<(), JournalFenceError> {
        let commit = Commit::new().append(&self.entries, [entry]);
        self.fence.commit(FencingToken::new(token), commit).await.map(drop)
    }

    fn read(&self) -> Vec<String> {
        let records = self.entries.read_range(self.entries.bounds(), 1 << 20).expect("it is whole");
        records.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
    }
}

#[async_trait]
impl FencedResource for Ledger {
    async fn write(&self, token: FencingToken, entry: &str) -> Result<(), FencedError> {
        match self.append(token.get(), entry).await {
            Err(JournalFenceError::Stale(_)) => Err(FencedError::Stale),
            written => written.map_err(|error| FencedError::Failed(error.to_string())),
        }
    }

    async fn entries(&self) -> Result<Vec<String>, String> {
        Ok(self.read())
    }
}

#[tokio::test]
async fn a_journal_conforms() {
    let files: Arc<dyn Files> = Arc::new(MemoryFiles::new());
    let journal = Mutex::new(None);
    let open = async || {
        let mut journal = journal.lock().unwrap();
        if let Some(before) = journal.take() {
            Journal::close(&before).expect("it closes");
        }
        let opened = Journal::open_with(Arc::clone(&files), config()).expect("it opens");
        Ledger::open(journal.insert(opened)).expect("it opens")
    };
    fence_conformance(open).await.assert_passed();
}

#[tokio::test]
async fn a_fence_of_a_journal_is_open_once_and_says_what_is_wrong() {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config()).expect("it opens");
    let ledger = Ledger::open(&journal).expect("it opens");
    let twice = JournalFence::open(&journal, "ledger").expect_err("it is open");
    assert_eq!(twice.outcome(), Outcome::NotApplied);
    assert!(matches!(twice, JournalFenceError::Journal(voussoir_journal::Error::Leased { .. })));
    ledger.fence.enter(FencingToken::new(34)).await.expect("nobody has entered");
    let late = ledger.append(33, "late").await.expect_err("34 has entered");
    assert_eq!(late.to_string(), "fencing token 33 is older than 34");
    assert_eq!((late.outcome(), ledger.fence.latest()), (Outcome::NotApplied, 34));
    // Tokens take no more room than one, however many there were.
    for token in 35..135 {
        ledger.append(token, "entry").await.expect("a newer one");
    }
    let tokens = journal.log("ledger", 0).expect("it is there");
    assert!(tokens.bounds().count() <= 2, "{:?}", tokens.bounds());
    drop(ledger);
    let garbled = Commit::new().append(&tokens, ["\x02garbled"]);
    journal.commit(garbled).await.expect("nobody keeps it from it");
    let other = JournalFence::open(&journal, "ledger").expect_err("of another version");
    assert!(matches!(other, JournalFenceError::Format { .. }), "{other}");
}

/// The answer of a commit, while the disk works.
fn until_told<T>(journal: &Journal, call: &mut (impl Future<Output = T> + Unpin)) -> T {
    let mut context = Context::from_waker(Waker::noop());
    // Ends: the journal answers each commit.
    loop {
        match Pin::new(&mut *call).poll(&mut context) {
            Poll::Ready(told) => return told,
            Poll::Pending => journal.work(0),
        };
    }
}

fn is_under_way<T>(call: &mut (impl Future<Output = T> + Unpin)) -> bool {
    Pin::new(call).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// More than the journal lets pass before small commits.
fn large() -> Vec<u8> {
    vec![7; 900 << 10]
}

/// Small commits overtake large ones of other logs, and the log of tokens is another one. So is a
/// log that the next holder writes to first.
#[test]
fn nothing_of_an_older_token_comes_once_a_newer_has_entered() {
    for by_a_commit in [false, true] {
        let files = Arc::new(MemoryFiles::new());
        let journal = Journal::open_with(files, Config::manual()).expect("it opens");
        let fence = JournalFence::open(&journal, "fence").expect("it opens");
        let logs = [1, 2, 3].map(|id| journal.log("ledger", id).expect("a name"));
        let (old, new) = (FencingToken::new(5), FencingToken::new(6));
        until_told(&journal, &mut Box::pin(fence.enter(old))).expect("nobody has entered");
        let large = large();
        let mut writes: Vec<_> = (0..6)
            .map(|at| {
                let commit = Commit::new().append(&logs[at % 2], [&large]);
                Box::pin(fence.commit(old, commit))
            })
            .collect();
        assert!(writes.iter_mut().all(is_under_way), "{by_a_commit}: the disk stands still");
        // Its caller is gone, and it goes on.
        drop(writes.pop());
        if by_a_commit {
            // Of two at once, none has entered before what was under way has ended.
            let commit = || fence.commit(new, Commit::new().append(&logs[2], ["by 6"]));
            let (mut first, mut second) = (Box::pin(commit()), Box::pin(commit()));
            assert!(is_under_way(&mut first) && is_under_way(&mut second));
            until_told(&journal, &mut second).expect("it is newer");
        } else {
            until_told(&journal, &mut Box::pin(fence.enter(new))).expect("it is newer");
        }
        let seen = [logs[0].end(), logs[1].end()];
        assert_eq!(seen, [3, 3], "{by_a_commit}: 6 reads all that 5 has handed in");
        for write in &mut writes {
            until_told(&journal, write).expect("it was handed in before 6 came");
        }
        assert_eq!(seen, [logs[0].end(), logs[1].end()], "{by_a_commit}");
    }
}

#[test]
fn a_fence_that_is_opened_again_knows_what_was_under_way() {
    let files = Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(files, Config::manual()).expect("it opens");
    let fence = JournalFence::open(&journal, "fence").expect("it opens");
    let ledger = journal.log("ledger", 1).expect("a name");
    let [old, new] = [5, 6].map(FencingToken::new);
    until_told(&journal, &mut Box::pin(fence.enter(old))).expect("nobody has entered");
    let mut write = Box::pin(fence.commit(new, Commit::new().append(&ledger, [large()])));
    assert!(is_under_way(&mut write), "the disk stands still");
    drop(write);
    drop(fence);
    let fence = JournalFence::open(&journal, "fence").expect("it is free");
    assert_eq!((fence.latest(), ledger.end()), (6, 1));
    let late = until_told(&journal, &mut Box::pin(fence.enter(old))).expect_err("6 has entered");
    assert!(matches!(late, JournalFenceError::Stale(_)), "{late}");
}

/// A journal that fails behind the commit, and before what was under way has ended.
#[test]
fn a_holder_has_not_entered_when_the_journal_fails_before_the_older_have_ended() {
    let disk = CrashFiles::new(1);
    let journal = Journal::open_with(disk.mount(), Config::manual()).expect("it opens");
    let fence = JournalFence::open(&journal, "fence").expect("it opens");
    let ledger = journal.log("ledger", 1).expect("a name");
    let (old, new) = (FencingToken::new(5), FencingToken::new(6));
    until_told(&journal, &mut Box::pin(fence.enter(old))).expect("nobody has entered");
    let large = large();
    let mut writes: Vec<_> = (0..6)
        .map(|_| Box::pin(fence.commit(old, Commit::new().append(&ledger, [&large]))))
        .collect();
    assert!(writes.iter_mut().all(is_under_way), "the disk stands still");
    let mut entering = Box::pin(fence.enter(new));
    assert!(is_under_way(&mut entering));
    let tokens = journal.log("fence", 0).expect("it is there");
    // Ends: the record of 6 is small, and overtakes.
    while tokens.end() == 1 {
        journal.work(0);
    }
    assert!(ledger.end() < 6, "some are under way");
    disk.inject(Fault::new(Op::Sync, When::From(0), Effect::Fail));
    let failed = until_told(&journal, &mut entering).expect_err("the disk has failed");
    assert!(matches!(failed, JournalFenceError::NotEntered(_)), "{failed}");
    assert_eq!(failed.outcome(), Outcome::Unknown, "{failed}");
}

static SITUATIONS: [&str; 5] = [
    "an older token was refused",
    "an older token was refused after a loss",
    "a token entered and was lost with its commit",
    "a commit of unknown outcome was found",
    "holders raced",
];

/// What a life has seen.
struct Life<'a> {
    seed: u64,
    rng: Rng,
    /// The greatest token of an acknowledged commit.
    acknowledged: u64,
    /// The greatest token that was tried.
    newest: u64,
    /// Entries that were acknowledged.
    kept: Vec<String>,
    /// Entries of the latest process that were not.
    unknown: Vec<String>,
    seen: &'a Situations,
}

impl Life<'_> {
    /// A process begins on what the one before has left.
    async fn look(&mut self, ledger: &Ledger) {
        let (seed, latest, entries) = (self.seed, ledger.fence.latest(), ledger.read());
        let before = self.acknowledged;
        assert!(latest >= before, "seed {seed}: {latest} after {before} was durable");
        if self.newest > latest && self.newest > 1 {
            self.seen.reached("a token entered and was lost with its commit");
        }
        if self.unknown.iter().any(|entry| entries.contains(entry)) {
            self.seen.reached("a commit of unknown outcome was found");
        }
        self.unknown.clear();
        if latest > 1 {
            let late = polled(&mut Box::pin(ledger.append(latest - 1, "late"))).await;
            let is_stale = matches!(late, Some(Err(JournalFenceError::Stale(_))));
            assert!(is_stale, "seed {seed}: {late:?}");
            self.seen.reached("an older token was refused after a loss");
        }
    }

    /// Up to three holders write at once; some are not answered.
    async fn round(&mut self, journal: &Journal, ledger: &Ledger) {
        let mut writes = Vec::new();
        for _ in 0..self.rng.between(1, 4) {
            self.newest += self.rng.below(3);
            let token = self.newest.saturating_sub(self.rng.below(3));
            writes.push((token, format!("{token} {}", self.rng.next_u64())));
        }
        if writes.len() > 1 {
            self.seen.reached("holders raced");
        }
        // Handed in, in this order; the disk is at work now and then.
        let mut calls: Vec<_> = Vec::new();
        for (token, entry) in &writes {
            let mut call = Box::pin(ledger.append(*token, entry));
            let told = polled(&mut call).await;
            calls.push((*token, entry, call, told));
            for _ in 0..self.rng.below(3) {
                journal.work(0);
            }
        }
        let is_waiting = self.rng.below(2) == 0;
        // Ends: the journal answers each.
        while is_waiting && calls.iter().any(|(.., told)| told.is_none()) {
            journal.work(0);
            for (_, _, call, told) in &mut calls {
                if told.is_none() {
                    *told = polled(call).await;
                }
            }
        }
        for (token, entry, _, told) in calls {
            match told {
                Some(Ok(())) => {
                    self.acknowledged = self.acknowledged.max(token);
                    self.kept.push(entry.clone());
                }
                Some(Err(JournalFenceError::Stale(_))) => {
                    self.seen.reached("an older token was refused");
                }
                Some(Err(error)) => panic!("seed {}: {error}", self.seed),
                None => self.unknown.push(entry.clone()),
            }
        }
    }
}

/// Power is lost while holders write at once, again and again.
async fn life(seed: u64, seen: &Situations) {
    let files = CrashFiles::new(seed);
    let (kept, unknown, rng) = (Vec::new(), Vec::new(), Rng::new(seed));
    let mut life = Life { seed, rng, acknowledged: 0, newest: 1, kept, unknown, seen };
    let mut manual = Config::manual();
    manual.segment_bytes = config().segment_bytes;
    for _ in 0..10 {
        let journal = Journal::open_with(files.mount(), manual.clone()).expect("it opens");
        let ledger = Ledger::open(&journal).expect("a loss of power is no damage");
        life.look(&ledger).await;
        for _ in 0..life.rng.between(1, 4) {
            life.round(&journal, &ledger).await;
        }
        files.power_loss(Loss::Any);
    }
    let journal = Journal::open_with(files.mount(), manual).expect("it opens");
    let entries = Ledger::open(&journal).expect("it opens").read();
    let token = |entry: &String| entry.split(' ').next().and_then(|token| token.parse().ok());
    let is_rising = entries.is_sorted_by_key(|entry| -> Option<u64> { token(entry) });
    assert!(is_rising, "seed {seed}: an older token behind a newer one");
    for entry in &life.kept {
        assert!(entries.contains(entry), "seed {seed}: {entry} was acknowledged and is gone");
    }
}

/// Polls a call once: `None` if it waits for the disk.
async fn polled<F: Future + Unpin>(call: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        Poll::Ready(match Pin::new(&mut *call).poll(cx) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn no_loss_of_power_lets_an_older_token_in() {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let seen = Situations::new(&SITUATIONS);
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return life(seed, &seen).await;
    }
    for seed in 0..number("VOUSSOIR_POWER_LOSSES").unwrap_or(300).div_ceil(10) {
        life(seed, &seen).await;
    }
    println!("{seen}");
    seen.assert_all_reached();
}

/// What is wrong with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    ChecksNothing,
    TakesATokenOnce,
    ForgetsAtARestart,
    ChecksBeforeItWrites,
    WritesBeforeItChecks,
}

#[derive(Clone)]
struct Defective {
    defect: Defect,
    latest: Arc<AtomicU64>,
    entries: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl FencedResource for Defective {
    async fn write(&self, token: FencingToken, entry: &str) -> Result<(), FencedError> {
        let (defect, token) = (self.defect, token.get());
        let push = || self.entries.lock().unwrap().push(entry.to_owned());
        if defect == Defect::WritesBeforeItChecks {
            push();
        }
        let latest = self.latest.fetch_max(token, SeqCst);
        let is_stale = match defect {
            Defect::ChecksNothing => false,
            Defect::TakesATokenOnce => token <= latest,
            _ => token < latest,
        };
        if is_stale {
            return Err(FencedError::Stale);
        }
        if defect == Defect::ChecksBeforeItWrites {
            for _ in 0..8 - token % 8 {
                tokio::task::yield_now().await;
            }
        }
        if defect != Defect::WritesBeforeItChecks {
            push();
        }
        Ok(())
    }

    async fn entries(&self) -> Result<Vec<String>, String> {
        Ok(self.entries.lock().unwrap().clone())
    }
}

#[tokio::test]
async fn defective_fences_are_rejected() {
    let found = [
        (Defect::ChecksNothing, "an_older_token_leaves_nothing"),
        (Defect::TakesATokenOnce, "a_holder_writes_again"),
        (Defect::ForgetsAtARestart, "an_older_token_is_refused_after_a_restart"),
        (Defect::ChecksBeforeItWrites, "racing_holders_leave_rising_tokens"),
        (Defect::WritesBeforeItChecks, "an_older_token_leaves_nothing"),
    ];
    for (defect, check) in found {
        let defective = Defective { defect, latest: Arc::default(), entries: Arc::default() };
        let open = async || {
            if defect == Defect::ForgetsAtARestart {
                defective.latest.store(0, SeqCst);
            }
            defective.clone()
        };
        let report = fence_conformance(open).await;
        let failed: Vec<_> = report.failed.iter().map(|(name, _)| *name).collect();
        assert!(failed.contains(&check), "{defect:?}: {report:?}");
    }
}

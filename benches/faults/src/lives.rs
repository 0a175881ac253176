//! The lives of a log on one disk, and what must hold of them.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::disk::{Disk, Met, Names};
use crate::mount::Shared;

/// Which faults a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Power is lost; names are durable with any later sync.
    Power,
    /// Power is lost; names are durable with a sync of their folder alone.
    PowerStrictNames,
    /// One sync fails, and power is lost some time after.
    Sync,
}

impl Fault {
    pub(crate) const ALL: [Self; 3] = [Self::Power, Self::PowerStrictNames, Self::Sync];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::PowerStrictNames => "power-strict-names",
            Self::Sync => "sync",
        }
    }
}

/// Losses of power on one disk; a life without faults follows the last.
const LIVES: u32 = 5;
/// A process that tells nothing for so long hangs. No step of one takes more than milliseconds.
const LONGEST_SILENCE: Duration = Duration::from_secs(8);
const APPENDS_OF_LAST_LIFE: u64 = 5;

/// How the lives on one disk went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    pub(crate) acknowledged: u64,
    /// Acknowledged records that a later life did not find.
    pub(crate) lost: u64,
    /// Records that were not acknowledged, that a life found and a later one did not.
    pub(crate) gone: u64,
    /// Records found that were never appended, or twice, or in another order.
    pub(crate) wrong: u64,
    /// Why the log did not open on what the disk had kept.
    pub(crate) refused: Option<String>,
    /// Lives that ended by a panic.
    pub(crate) panics: u64,
    /// Records that were acknowledged in a life after a sync had failed in it.
    pub(crate) acknowledged_after_failed_sync: u64,
    /// Lives that ended because nothing went on in them.
    pub(crate) hung: u64,
    pub(crate) met: Met,
}

impl Chain {
    pub(crate) fn is_sound(&self) -> bool {
        self.lost + self.gone + self.wrong + self.hung == 0 && self.refused.is_none()
    }
}

/// What a life told.
#[derive(Default)]
struct Life {
    found: Vec<u64>,
    never_made: u64,
    /// All that was there has been told.
    is_listed: bool,
    begun: Vec<u64>,
    acknowledged: Vec<u64>,
    /// How many were acknowledged before the first error.
    before_error: Option<usize>,
    failed: Option<String>,
    panicked: bool,
    hung: bool,
}

impl Life {
    fn hear(&mut self, line: &str) {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number =
            || -> Option<u64> { rest.split(' ').next().and_then(|word| word.parse().ok()) };
        match kind {
            "R" => self.found.extend(number()),
            "X" => self.never_made += 1,
            "L" => self.is_listed = true,
            "S" => self.begun.extend(number()),
            "A" => self.acknowledged.extend(number()),
            "E" => {
                self.before_error.get_or_insert(self.acknowledged.len());
            }
            "F" => self.failed = Some(rest.to_owned()),
            _ => {}
        }
    }
}

fn start(name: &str, folder: &Path, first: u64, appends: u64) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["child", name])
        .arg(folder)
        .args([first.to_string(), appends.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// Runs a process until it ends or the power fails, then takes the power from it.
fn live(name: &str, shared: &Shared, at: &Path, first: u64, appends: u64) -> io::Result<Life> {
    let session = shared.mount(at)?;
    let mut child = start(name, at, first, appends)?;
    let out = child.stdout.take().expect("a pipe");
    let heard_at = Arc::new(Mutex::new(Instant::now()));
    let of_listener = Arc::clone(&heard_at);
    let listener = thread::spawn(move || {
        let mut life = Life::default();
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            life.hear(&line);
            *of_listener.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        life
    });
    let mut hung = false;
    let mut ended: Option<ExitStatus> = None;
    while ended.is_none() && !hung && !shared.wait_for_loss(Duration::from_millis(2)) {
        ended = child.try_wait()?;
        let heard = *heard_at.lock().unwrap_or_else(PoisonError::into_inner);
        hung = ended.is_none() && heard.elapsed() > LONGEST_SILENCE;
    }
    // Also of a process that ended by itself: what it left unsynced is at risk.
    shared.cut_power();
    if ended.is_none() {
        child.kill()?;
        // A thread in a request ends when that is answered, and sees nothing of the answer.
        while child.try_wait()?.is_none() {
            shared.drop_held();
            thread::sleep(Duration::from_millis(1));
        }
    }
    let mut life = listener.join().expect("the listener does not panic");
    (life.panicked, life.hung) = (ended.is_some_and(|status| !status.success()), hung);
    shared.drop_held();
    session.umount_and_join()?;
    shared.restore_power();
    Ok(life)
}

/// Several lives on one disk.
pub(crate) fn chain(name: &str, fault: Fault, seed: u64, at: &Path) -> io::Result<Chain> {
    let mut random = Rng::with_seed(seed);
    let names = match fault {
        Fault::Power | Fault::Sync => Names::WithAnySync,
        Fault::PowerStrictNames => Names::WithTheirFolder,
    };
    let shared = Shared::new(Disk::new(names, random.u64(..)));
    let mut chain = Chain::default();
    let (mut acknowledged, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut begun = BTreeSet::new();
    for turn in 0..=LIVES {
        let is_last = turn == LIVES;
        {
            let mut disk = shared.disk();
            let until_loss = if random.u8(..4) == 0 { 1..40 } else { 40..700 };
            disk.loses_power_after = if is_last { u64::MAX } else { random.u64(until_loss) };
            let fails = fault == Fault::Sync && !is_last;
            disk.fails_sync_after = fails.then(|| random.u64(..120));
        }
        let failed_before = shared.disk().met.syncs_failed;
        let first = begun.last().map_or(0, |last| last + 1);
        let appends = if is_last { APPENDS_OF_LAST_LIFE } else { u64::MAX >> 1 };
        let life = live(name, &shared, at, first, appends)?;
        let had_failed_sync = shared.disk().met.syncs_failed > failed_before;
        chain.panics += u64::from(life.panicked);
        chain.hung += u64::from(life.hung);
        if !had_failed_sync && !life.is_listed {
            let panicked = life.panicked.then(|| "a panic".to_owned());
            chain.refused = life.failed.clone().or(panicked);
        }
        if life.is_listed {
            judge(&mut chain, &life, &acknowledged, &seen, &begun);
        }
        if !chain.is_sound() || (is_last && !life.is_listed) {
            break;
        }
        if let Some(before) = life.before_error {
            chain.acknowledged_after_failed_sync += (life.acknowledged.len() - before) as u64;
        }
        chain.acknowledged += life.acknowledged.len() as u64;
        if life.is_listed {
            seen = life.found.iter().copied().collect();
        }
        begun.extend(life.begun);
        acknowledged.extend(life.acknowledged);
    }
    chain.met = shared.disk().met;
    Ok(chain)
}

fn judge(
    chain: &mut Chain,
    life: &Life,
    acknowledged: &BTreeSet<u64>,
    seen: &BTreeSet<u64>,
    begun: &BTreeSet<u64>,
) {
    let found: BTreeSet<u64> = life.found.iter().copied().collect();
    chain.lost = acknowledged.difference(&found).count() as u64;
    let seen_only = seen.difference(acknowledged).copied().collect::<BTreeSet<u64>>();
    chain.gone = seen_only.difference(&found).count() as u64;
    let unordered = life.found.windows(2).filter(|pair| pair[0] >= pair[1]).count() as u64;
    chain.wrong = life.never_made + unordered + found.difference(begun).count() as u64;
}

//! What a run observes: its trace, the situations that it reached, and the first violation.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex as StdMutex, Once, PoisonError};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::SITUATIONS;

/// Lines of trace that a failure shows.
const TRACE_LINES: usize = 150;
/// The same when one seed is run alone.
const TRACE_LINES_ALONE: usize = 3000;

/// The notebook of one run. Every part of the run writes into it.
pub(crate) struct Notes {
    begun: Instant,
    /// One seed is run alone: messages are part of the trace.
    pub(crate) alone: bool,
    /// The virtual time that was last asked for, in ns.
    last: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    hash: u64,
    events: u64,
    counts: Vec<u64>,
    violation: Option<String>,
    /// Virtual time that was skipped by clock jumps, in ns.
    jumped_ns: u64,
}

impl Notes {
    pub(crate) fn new() -> Self {
        let alone = std::env::var_os("VOUSSOIR_SEED").is_some();
        let state = State { counts: vec![0; SITUATIONS.len()], ..State::default() };
        Self { begun: Instant::now(), alone, last: AtomicU64::new(0), state: Mutex::new(state) }
    }

    /// Virtual time since the run began, in ns.
    pub(crate) fn now(&self) -> u64 {
        let now = self.begun.elapsed().as_nanos() as u64;
        self.last.store(now, Ordering::Relaxed);
        now
    }

    /// The virtual time that was last asked for, in ns; for threads outside the run.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Adds a line to the trace and to its hash.
    pub(crate) fn line(&self, text: String) {
        let now = self.now();
        let mut state = self.state.lock();
        state.mix(now, text.as_bytes());
        let keep = if self.alone { TRACE_LINES_ALONE } else { TRACE_LINES };
        if state.lines.len() == keep {
            state.lines.pop_front();
        }
        state.lines.push_back(format!("{:>10.3} ms  {text}", now as f64 / 1e6));
    }

    /// Adds a message to the hash; to the trace only when the seed is run alone.
    pub(crate) fn message(&self, from: u64, to: u64, bytes: &[u8], text: impl FnOnce() -> String) {
        if self.alone {
            self.line(format!("{from} -> {to}: {}", text()));
        } else {
            let now = self.now();
            let mut state = self.state.lock();
            state.mix(now ^ (from << 56) ^ (to << 48), bytes);
        }
    }

    /// Counts a situation.
    pub(crate) fn reached(&self, name: &str) {
        let at = SITUATIONS.iter().position(|known| *known == name);
        let at = at.unwrap_or_else(|| panic!("{name:?} is not a situation of this test"));
        self.state.lock().counts[at] += 1;
    }

    /// How often each situation was reached, in the order of [`SITUATIONS`].
    pub(crate) fn counts(&self) -> Vec<u64> {
        self.state.lock().counts.clone()
    }

    /// Notes that something happened that must never happen. The first one counts.
    pub(crate) fn object(&self, text: String) {
        self.line(format!("VIOLATION: {text}"));
        self.state.lock().violation.get_or_insert(text);
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.state.lock().violation.clone()
    }

    /// The clock is about to jump by so many ns.
    pub(crate) fn jumps(&self, by_ns: u64) {
        self.state.lock().jumped_ns += by_ns;
    }

    /// The sum of all clock jumps so far, in ns.
    pub(crate) fn jumped(&self) -> u64 {
        self.state.lock().jumped_ns
    }

    /// Hash and number of events so far.
    pub(crate) fn hash(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hash, state.events)
    }

    /// The last lines of the trace.
    pub(crate) fn trace(&self) -> String {
        let state = self.state.lock();
        state.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

impl State {
    /// FNV-1a over the time and the bytes of an event.
    fn mix(&mut self, time: u64, bytes: &[u8]) {
        self.events += 1;
        for byte in time.to_le_bytes().iter().chain(bytes) {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

thread_local! {
    /// The seed that this thread plays.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Panics of tasks, by the seed in whose run they happened. A task's panic does not end the run,
/// so it has to be collected.
static PANICS: StdMutex<BTreeMap<u64, Vec<String>>> = StdMutex::new(BTreeMap::new());

/// The name of the threads on which the run of a seed reads files.
pub(crate) fn thread_name(seed: u64) -> String {
    format!("seed-{seed}")
}

/// Collects the panics of all tasks of this run while `run` goes on, also those on threads that
/// are named by [`thread_name`].
pub(crate) fn collecting_panics<T>(seed: u64, run: impl FnOnce() -> T) -> (T, Vec<String>) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let named = std::thread::current()
                .name()
                .and_then(|name| name.strip_prefix("seed-").and_then(|seed| seed.parse().ok()));
            match SEED.get().or(named) {
                Some(seed) => {
                    let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
                    panics.entry(seed).or_default().push(info.to_string().replace('\n', " "));
                }
                None => default(info),
            }
        }));
    });
    let collected = || {
        let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        panics.remove(&seed).unwrap_or_default()
    };
    collected();
    SEED.set(Some(seed));
    let result = run();
    SEED.set(None);
    (result, collected())
}

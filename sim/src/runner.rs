//! Runs many seeds, and stops at the first one that fails.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::env;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::{Broken, Failure, Report, Summary};

thread_local! {
    /// What a world that is dropped by a panic leaves behind.
    static WRECK: RefCell<Option<Failure>> = const { RefCell::new(None) };
    static TRACE_LINES: Cell<Option<usize>> = const { Cell::new(None) };
    /// Virtual time that the trace of a repeated run has to show, from and to, in ns.
    static WINDOW: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

pub(crate) fn deposit(wreck: Failure) {
    WRECK.with_borrow_mut(|slot| *slot = Some(wreck));
}

pub(crate) fn trace_lines() -> Option<usize> {
    TRACE_LINES.get()
}

pub(crate) fn window() -> Option<(u64, u64)> {
    WINDOW.get()
}

/// How many lines of trace are kept when one seed is run alone.
const LINES_ALONE: usize = 400;

/// Runs a closure for each of many seeds, on several threads.
///
/// The environment overrides: `VOUSSOIR_SEED=17` runs that seed alone, with a longer trace;
/// `VOUSSOIR_SEEDS=5000` sets how many; `VOUSSOIR_TRACE=400` how many lines of trace are kept.
/// Values are decimal numbers. A value that is not a number, and a run of no seed at all, panic:
/// they would pass and prove nothing.
#[derive(Clone, Debug)]
#[must_use = "a runner does nothing until `run` is called"]
pub struct Runner {
    command: String,
    first: u64,
    seeds: u64,
    threads: Option<NonZeroUsize>,
    twice: u64,
}

impl Runner {
    /// A runner of 100 seeds from 0 on, on all cores.
    ///
    /// `command` is what a person types to run this very test; it is printed, with the seed in
    /// front, when a seed fails. Example: `cargo test -p voussoir-raft --test sim safety`.
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: command.into(), first: 0, seeds: 100, threads: None, twice: 1 }
    }

    /// How many seeds to run. Default: 100.
    pub fn seeds(mut self, seeds: u64) -> Self {
        self.seeds = seeds;
        self
    }

    /// The first seed. Default: 0.
    pub fn first(mut self, first: u64) -> Self {
        self.first = first;
        self
    }

    /// How many threads to use. Default: as many as there are cores.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// How many of the seeds to run twice, to see that the trace hash is the same. Default: 1.
    pub fn twice(mut self, twice: u64) -> Self {
        self.twice = twice;
        self
    }

    /// Runs `run` for each seed and adds the reports up.
    ///
    /// A panic in `run` counts as a failure. The seed that failed is run a second time, to see
    /// whether it fails again in the same way. With several threads, the failure returned is
    /// the one of the lowest seed among those that were running.
    ///
    /// # Errors
    /// [`Broken`] for a seed whose run failed, or gave another trace hash the second time.
    ///
    /// # Panics
    /// If there is no seed to run, if the last seed would be above `u64::MAX`, or if
    /// `VOUSSOIR_SEED`, `VOUSSOIR_SEEDS` or `VOUSSOIR_TRACE` is set to something that is not a
    /// decimal number, or the latter two to 0.
    ///
    /// # Example
    /// ```
    /// use voussoir_sim::{FaultSet, Config, Rng, Runner};
    /// let summary = Runner::new("cargo test -p mine walk").seeds(20).run(|seed| {
    ///     let plan = Config::default().plan(seed)?;
    ///     // Here a real run builds a `World`, steps it, and checks it.
    ///     let steps = Rng::new(plan.seed).below(10);
    ///     Ok(voussoir_sim::Report::of(seed).with("steps", steps))
    /// });
    /// assert_eq!(summary.unwrap().runs, 20);
    /// ```
    pub fn run<F>(&self, run: F) -> Result<Summary, Broken>
    where
        F: Fn(u64) -> Result<Report, Failure> + Sync,
    {
        let begun = Instant::now();
        let (alone, many) = (number("VOUSSOIR_SEED", 0), number("VOUSSOIR_SEEDS", 1));
        let (first, seeds, lines) = match alone {
            Some(seed) => (seed, 1, Some(LINES_ALONE)),
            None => (self.first, many.unwrap_or(self.seeds), None),
        };
        assert!(seeds > 0, "a runner of 0 seeds proves nothing");
        assert!(
            first.checked_add(seeds - 1).is_some(),
            "{seeds} seeds from {first} on go beyond the last seed, {}",
            u64::MAX
        );
        let lines = number("VOUSSOIR_TRACE", 1).map(|lines| lines as usize).or(lines);
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let result = Mutex::new((Summary::default(), None::<Broken>));
        let work = || {
            TRACE_LINES.set(lines);
            while !stop.load(Ordering::Relaxed) {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= seeds {
                    break;
                }
                let outcome = self.one(first + turn, turn < self.twice, &run);
                let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
                match outcome {
                    Ok(report) => result.0.add(report),
                    Err(broken) => {
                        stop.store(true, Ordering::Relaxed);
                        if result.1.as_ref().is_none_or(|known| broken.seed < known.seed) {
                            result.1 = Some(*broken);
                        }
                    }
                }
            }
            TRACE_LINES.set(None);
        };
        let threads = self.threads.or_else(|| thread::available_parallelism().ok());
        let threads = threads.map_or(1, NonZeroUsize::get);
        let threads = threads.min(usize::try_from(seeds).unwrap_or(usize::MAX));
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        let (mut summary, broken) = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        summary.elapsed = begun.elapsed();
        broken.map_or(Ok(summary), Err)
    }

    fn one(
        &self,
        seed: u64,
        twice: bool,
        run: &impl Fn(u64) -> Result<Report, Failure>,
    ) -> Result<Report, Box<Broken>> {
        let broken = |failure, reproduced| {
            let command = format!("VOUSSOIR_SEED={seed} {}", self.command);
            Box::new(Broken { seed, failure, reproduced, command })
        };
        let report = match guarded(seed, run) {
            Ok(report) => report,
            Err(failure) => {
                // The second run keeps the trace around the failure, if that has a time.
                WINDOW.set(failure.window());
                let again = guarded(seed, run).err();
                WINDOW.set(None);
                let again = again.filter(|again| again.alike(&failure));
                let is_same = again.is_some();
                return Err(broken(again.unwrap_or(failure), is_same));
            }
        };
        if twice {
            match guarded(seed, run) {
                Ok(again) if again == report => {}
                Ok(again) => {
                    let message = format!(
                        "two runs of one seed differ: trace hash {:016x} after {} events, \
                         then {:016x} after {}",
                        report.trace_hash, report.events, again.trace_hash, again.events
                    );
                    return Err(broken(Failure::new(message), false));
                }
                Err(failure) => return Err(broken(failure, false)),
            }
        }
        Ok(report)
    }
}

/// Runs one seed; a panic becomes a failure, with what its world left behind.
fn guarded(seed: u64, run: &impl Fn(u64) -> Result<Report, Failure>) -> Result<Report, Failure> {
    WRECK.take();
    let payload = match catch_unwind(AssertUnwindSafe(|| run(seed))) {
        Ok(result) => return result,
        Err(payload) => payload,
    };
    let message = format!("panicked: {}", text(&*payload));
    Err(match WRECK.take() {
        Some(wreck) => wreck.renamed(message),
        None => Failure::new(message),
    })
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("(not a text)")
}

/// The value of an environment variable, if it is set.
fn number(variable: &str, min: u64) -> Option<u64> {
    let text = env::var_os(variable)?;
    let value = text.to_str().and_then(|text| text.trim().parse().ok());
    match value {
        Some(value) if value >= min => Some(value),
        _ => panic!("{variable}={} is not a decimal number from {min} on", text.display()),
    }
}

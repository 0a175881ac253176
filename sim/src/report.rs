//! What runs tell about themselves.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::plan::Instant;
use crate::{ConfigError, Counts, FaultSet, Plan};

/// What a run that held did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The seed of the run.
    pub seed: u64,
    /// The hash over everything that happened: the same for the same seed, in every process.
    pub trace_hash: u64,
    /// How many events were handled.
    pub events: u64,
    /// How much virtual time went by, in ns.
    pub virtual_ns: u64,
    /// How often each class of faults had an effect.
    pub faults: Counts,
    /// Figures of the caller's own, added up over all runs by the runner.
    pub figures: Vec<(&'static str, u64)>,
}

impl Report {
    pub(crate) fn new(
        seed: u64,
        trace_hash: u64,
        events: u64,
        virtual_ns: u64,
        faults: Counts,
    ) -> Self {
        Self { seed, trace_hash, events, virtual_ns, faults, figures: Vec::new() }
    }

    /// A report without a world, for checks that need none.
    pub fn of(seed: u64) -> Self {
        Self::new(seed, 0, 0, 0, Counts::default())
    }

    /// This report with a figure of the caller's own.
    pub fn with(mut self, name: &'static str, value: u64) -> Self {
        self.figures.push((name, value));
        self
    }
}

/// A run that did not hold: what it found, and all that is needed to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    message: String,
    world: Option<Box<(Report, Plan, Traced)>>,
    /// When the failure happened, from and to, in ns of virtual time.
    window: Option<(u64, u64)>,
}

/// What a world kept of its trace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traced {
    pub(crate) last: String,
    /// The lines around the time of the failure; empty if that time was not known beforehand.
    pub(crate) around: String,
}

impl Failure {
    /// A failure without a world; see also [`World::failure`](crate::World::failure).
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), world: None, window: None }
    }

    pub(crate) fn in_world(message: String, report: Report, plan: Plan, trace: Traced) -> Self {
        Self { message, world: Some(Box::new((report, plan, trace))), window: None }
    }

    /// This failure with the virtual time at which it happened, in ns, if that is not the end of
    /// the run. The [`Runner`](crate::Runner), which runs a failing seed a second time, then shows
    /// the trace of this time beside the last lines.
    pub fn around(mut self, from_ns: u64, to_ns: u64) -> Self {
        self.window = Some((from_ns, to_ns));
        self
    }

    /// When the failure happened, as given to [`Failure::around`].
    pub fn window(&self) -> Option<(u64, u64)> {
        self.window
    }

    pub(crate) fn renamed(mut self, message: String) -> Self {
        self.message = message;
        self
    }

    /// Is this the failure of the same run?
    pub(crate) fn alike(&self, other: &Self) -> bool {
        self.message == other.message && self.report() == other.report()
    }

    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the run had done until then, if it was in a world.
    pub fn report(&self) -> Option<&Report> {
        self.world.as_ref().map(|world| &world.0)
    }

    /// The plan of the run, if it was in a world.
    pub fn plan(&self) -> Option<&Plan> {
        self.world.as_ref().map(|world| &world.1)
    }

    /// The last lines of its trace; empty if it was not in a world.
    pub fn trace(&self) -> &str {
        self.world.as_ref().map_or("", |world| &world.2.last)
    }

    /// The trace around the time given to [`Failure::around`], at most 400 lines. Empty unless a
    /// [`Runner`](crate::Runner) has run the seed a second time to get it.
    pub fn trace_around(&self) -> &str {
        self.world.as_ref().map_or("", |world| &world.2.around)
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)?;
        let Some(world) = &self.world else { return Ok(()) };
        let (report, plan, trace) = &**world;
        writeln!(f, "plan: {plan}")?;
        writeln!(f, "plan as JSON: {}", plan.to_json())?;
        writeln!(f, "faults so far: {}", report.faults)?;
        if let (Some((from, to)), false) = (self.window, trace.around.is_empty()) {
            let (from, to) = (Instant(from), Instant(to));
            writeln!(f, "trace around the failure, {from} to {to}:")?;
            f.write_str(&trace.around)?;
        }
        writeln!(
            f,
            "trace hash {:016x} after {} events; its last lines:",
            report.trace_hash, report.events
        )?;
        f.write_str(&trace.last)
    }
}

/// What all runs of a [`Runner`](crate::Runner) did together.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// How many seeds ran.
    pub runs: u64,
    /// How many events they handled.
    pub events: u64,
    /// How much virtual time went by in them, in ns.
    pub virtual_ns: u64,
    /// How often each class of faults had an effect.
    pub faults: Counts,
    /// The figures of the reports, added up.
    pub figures: Vec<(&'static str, u64)>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A seed that failed.
#[non_exhaustive]
pub struct Broken {
    /// The seed.
    pub seed: u64,
    /// What it found.
    pub failure: Failure,
    /// Whether a second run of the same seed failed in the same way with the same trace hash.
    pub reproduced: bool,
    /// How to run this seed alone.
    pub command: String,
}

impl Summary {
    pub(crate) fn add(&mut self, report: Report) {
        self.runs += 1;
        self.events += report.events;
        self.virtual_ns = self.virtual_ns.saturating_add(report.virtual_ns);
        self.faults.add(&report.faults);
        for (name, value) in report.figures {
            match self.figures.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum = sum.saturating_add(value),
                None => self.figures.push((name, value)),
            }
        }
    }

    /// The classes of `wanted` that never fired: what the runs do not prove anything about.
    pub fn silent(&self, wanted: FaultSet) -> FaultSet {
        let silent = self.faults.silent();
        wanted.iter().filter(|&class| silent.contains(class)).collect()
    }

    /// A figure of the reports, added up; 0 if no report had it.
    pub fn figure(&self, name: &str) -> u64 {
        self.figures.iter().find(|(known, _)| *known == name).map_or(0, |&(_, sum)| sum)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        let virtual_s = self.virtual_ns / 1_000_000_000;
        let Self { runs, events, .. } = self;
        writeln!(f, "{runs} seeds, {events} events, {virtual_s} virtual s in {seconds:.1} s")?;
        writeln!(f, "faults: {}", self.faults)?;
        for (name, sum) in &self.figures {
            writeln!(f, "{name}: {sum}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} failed: {}", self.seed, self.failure)?;
        let again = if self.reproduced {
            "a second run failed in the same way"
        } else {
            "A SECOND RUN DID NOT FAIL IN THE SAME WAY: something in the run is not deterministic"
        };
        writeln!(f, "{again}")?;
        writeln!(f, "to see it again: {}", self.command)
    }
}

/// The same as `Display`, so that `unwrap` in a test prints all of it readably.
impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        fmt::Display::fmt(self, f)
    }
}

impl Error for Broken {}

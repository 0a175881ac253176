//! The state machine over the windows and the probes.

use crossbeam_utils::CachePadded;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::probes::{Admission, Finding, Probes};
use super::rules::{Thresholds, Trip};
use super::striped::Striped;
use super::tagged::{Added, Tag, Tagged};
use super::window::{Counts, Sample, Window};
use crate::sync::{AtomicU64, Mutex};

const PHASE_BITS: u32 = 3;
const PHASE_MASK: u64 = (1 << PHASE_BITS) - 1;
/// Changes of state that wait for the observer, at most; the oldest are dropped first.
const MAX_UNHEARD: usize = 64;

/// Phase of a breaker. A word wide: a read of a rejection that mixes widths would stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Phase {
    Closed = 0,
    Open = 1,
    HalfOpen = 2,
    ForcedOpen = 3,
    ForcedClosed = 4,
    MetricsOnly = 5,
}

impl Phase {
    const fn of(word: u64) -> Self {
        match word & PHASE_MASK {
            0 => Self::Closed,
            1 => Self::Open,
            2 => Self::HalfOpen,
            3 => Self::ForcedOpen,
            4 => Self::ForcedClosed,
            _ => Self::MetricsOnly,
        }
    }
}

/// The state word, `[generation 61 | phase 3]`, at the time of the admission. An answer counts only
/// if the state word of the breaker is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// All that a breaker has counted since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Answers that counted, whatever the state.
    pub(crate) answers: Counts,
    pub(crate) rejected: u64,
    /// Answers of calls that an earlier state had admitted.
    pub(crate) late: u64,
    pub(crate) openings: u64,
    /// Bad answers at which a breaker that is not metrics-only would have opened.
    pub(crate) would_open: u64,
}

/// A call that was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) phase: Phase,
    /// Nanoseconds until the next call may be admitted, where that is known.
    pub(crate) retry_after: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShiftCause {
    Tripped(Trip),
    WaitOver,
    ProbesHealthy,
    ProbesSick,
    ProbesStuck,
    ByHand,
    Restored,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shift {
    pub(crate) from: Phase,
    pub(crate) to: Phase,
    pub(crate) at: u64,
    pub(crate) cause: ShiftCause,
    /// Nanoseconds that the new state waits, for an opening.
    pub(crate) wait: Option<u64>,
    /// Counts of the window in the state that ends.
    pub(crate) counts: Counts,
}

/// The content of a snapshot. All times are relative, so that they fit the clock of another
/// process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) phase: Phase,
    pub(crate) wait_left: u64,
    pub(crate) openings: u32,
    pub(crate) consecutive_failures: u64,
    pub(crate) window: Vec<(u32, Counts)>,
}

/// Fields read and written by a transition, under one lock.
struct Transitions {
    /// Openings since the breaker was last closed.
    openings: u32,
    rng: fastrand::Rng,
    /// Changes that the observer has not heard of, oldest first.
    unheard: VecDeque<Shift>,
    /// Whether a thread is calling the observer now. That thread also announces `unheard`.
    is_announcing: bool,
}

impl Transitions {
    /// Queues `shift` for the observer. Returns true if the calling thread must announce it, false
    /// if another thread is announcing and will take `shift` too.
    fn take_or_queue(&mut self, shift: Shift) -> Option<Shift> {
        if !self.is_announcing {
            self.is_announcing = true;
            return Some(shift);
        }
        if self.unheard.len() == MAX_UNHEARD {
            self.unheard.pop_front();
        }
        self.unheard.push_back(shift);
        None
    }

    /// The next change that the announcing thread passes to the observer. `None` ends its turn.
    fn next_unheard(&mut self) -> Option<Shift> {
        let next = self.unheard.pop_front();
        self.is_announcing = next.is_some();
        next
    }
}

type Observer = Box<dyn Fn(Shift) + Send + Sync>;

/// The breaker. Admissions and answers take no lock; changes of state take one, and are observed
/// in their order, without the lock.
pub(crate) struct Machine {
    state: CachePadded<AtomicU64>,
    /// Time at which the open state ends, in ns; since when it is half-open. Stored before `state`
    /// becomes either.
    open_until: AtomicU64,
    rules: Thresholds,
    window: Window,
    run: CachePadded<Tagged>,
    probes: CachePadded<Probes>,
    rejected: Striped,
    late: AtomicU64,
    would_open: AtomicU64,
    openings_total: AtomicU64,
    transitions: Mutex<Transitions>,
    observer: Observer,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

fn generation(word: u64) -> u64 {
    word >> PHASE_BITS
}

impl Machine {
    /// A closed breaker at `now`. The observer is called without any lock, by one thread at a
    /// time, and may call back. It must not panic.
    pub(crate) fn new(rules: Thresholds, now: u64, observer: Observer) -> Self {
        let window = Window::new(rules.shape);
        window.reset(1, now);
        let run = Tagged::new();
        run.set(Tag { generation: 1, epoch: 0 }, 0);
        Self {
            state: CachePadded::new(AtomicU64::new(1 << PHASE_BITS | Phase::Closed as u64)),
            open_until: AtomicU64::new(0),
            window,
            run: CachePadded::new(run),
            probes: CachePadded::new(Probes::new(rules.probes, rules.max_bad_probes)),
            rejected: Striped::new(rules.shape.stripes()),
            late: AtomicU64::new(0),
            would_open: AtomicU64::new(0),
            openings_total: AtomicU64::new(0),
            transitions: Mutex::new(Transitions {
                openings: 0,
                rng: fastrand::Rng::with_seed(rules.seed),
                unheard: VecDeque::new(),
                is_announcing: false,
            }),
            rules,
            observer,
        }
    }

    /// Restores a breaker from `memory`. A half-open breaker is restored as an open one whose wait
    /// is over, because the probes of the snapshot belonged to another process.
    pub(crate) fn restore(
        rules: Thresholds,
        now: u64,
        memory: &Memory,
        observer: Observer,
    ) -> Self {
        let this = Self::new(rules, now, observer);
        this.transitions.lock().openings = memory.openings;
        let (to, wait) = match memory.phase {
            Phase::HalfOpen => (Phase::Open, 0),
            phase => (phase, memory.wait_left.min(this.rules.max_open_for)),
        };
        if to != Phase::Closed {
            this.enter(None, to, now, ShiftCause::Restored, Some(wait));
        }
        let generation = generation(this.state.load(Acquire)) as u8;
        this.window.import(generation, now, &memory.window);
        this.run.set(Tag { generation, epoch: 0 }, memory.consecutive_failures);
        this
    }

    pub(crate) fn memory(&self, now: u64) -> Memory {
        let transitions = self.transitions.lock();
        let state = self.state.load(Acquire);
        let tag = generation(state) as u8;
        Memory {
            phase: Phase::of(state),
            wait_left: match Phase::of(state) {
                Phase::Open => self.open_until.load(Acquire).saturating_sub(now),
                _ => 0,
            },
            openings: transitions.openings,
            consecutive_failures: self.run.count(Tag { generation: tag, epoch: 0 }),
            window: self.window.export(tag, now),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::of(self.state.load(Acquire))
    }

    /// The time at which [`tick`](Self::tick) changes the state: the end of an open wait, or of
    /// the patience with a full set of probes.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let state = self.state.load(Acquire);
        let until = match Phase::of(state) {
            Phase::Open => self.open_until.load(Acquire),
            Phase::HalfOpen => match self.probes.look(generation(state) as u16) {
                Admission::Full { patient_until } => patient_until,
                Admission::Admitted | Admission::Stale => return None,
            },
            _ => return None,
        };
        (until != u64::MAX && self.state.load(Acquire) == state).then_some(until)
    }

    /// Makes the changes of state that only time causes: ends an open wait that is over, and opens
    /// a half-open breaker whose probes have been out for longer than its patience.
    pub(crate) fn tick(&self, now: u64) {
        let state = self.state.load(Acquire);
        if self.next_deadline().is_none_or(|due| now < due) {
            return;
        }
        // `shift` changes nothing if the state is no longer the one that was looked at.
        match Phase::of(state) {
            Phase::Open => self.shift(state, Phase::HalfOpen, now, ShiftCause::WaitOver),
            Phase::HalfOpen => self.shift(state, Phase::Open, now, ShiftCause::ProbesStuck),
            _ => false,
        };
    }

    /// Since when an open breaker has waited for a call to probe with, or a half-open one for the
    /// answers of its probes. A time to come for an open one whose wait is not over.
    pub(crate) fn probing_since(&self) -> Option<u64> {
        let state = self.state.load(Acquire);
        let since = self.open_until.load(Acquire);
        let waits = matches!(Phase::of(state), Phase::Open | Phase::HalfOpen);
        (waits && self.state.load(Acquire) == state).then_some(since)
    }

    /// Whether a call would be admitted at `now`. Takes no probe and counts nothing.
    pub(crate) fn would_admit(&self, now: impl FnOnce() -> u64) -> bool {
        let state = self.state.load(Acquire);
        match Phase::of(state) {
            Phase::Closed | Phase::ForcedClosed | Phase::MetricsOnly => true,
            Phase::ForcedOpen => false,
            Phase::Open => now() >= self.open_until.load(Acquire),
            Phase::HalfOpen => {
                !matches!(self.probes.look(generation(state) as u16), Admission::Full { .. })
            }
        }
    }

    /// Counts of the window.
    pub(crate) fn counts(&self, now: u64) -> Counts {
        self.window.sum(generation(self.state.load(Acquire)) as u8, now)
    }

    /// All that was ever counted.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            answers: self.window.lifetime(),
            rejected: self.rejected.iter().map(|word| word.load(Relaxed)).sum(),
            late: self.late.load(Relaxed),
            openings: self.openings_total.load(Relaxed),
            would_open: self.would_open.load(Relaxed),
        }
    }

    /// Asks for one call. `now` is asked for only where the decision depends on it.
    #[inline]
    pub(crate) fn admit(&self, now: impl FnOnce() -> u64) -> Result<Ticket, Rejection> {
        let state = self.state.load(Acquire);
        match Phase::of(state) {
            Phase::Closed | Phase::ForcedClosed | Phase::MetricsOnly => Ok(Ticket(state)),
            Phase::ForcedOpen => Err(self.reject(Phase::ForcedOpen, None)),
            Phase::Open | Phase::HalfOpen => {
                let now = now();
                self.reject_now(state, now).map_or_else(|| self.admit_slow(state, now), Err)
            }
        }
    }

    /// The rejection by an open breaker. `None` if the breaker is not open.
    #[inline]
    fn reject_now(&self, state: u64, now: u64) -> Option<Rejection> {
        let until = self.open_until.load(Acquire);
        // The time belongs to `state` only if `state` has not changed meanwhile.
        let is_early = now < until && self.state.load(Acquire) == state;
        (Phase::of(state) == Phase::Open && is_early)
            .then(|| self.reject(Phase::Open, Some(until - now)))
    }

    #[cold]
    fn admit_slow(&self, mut state: u64, now: u64) -> Result<Ticket, Rejection> {
        let patience = self.rules.max_half_open_for;
        let patient_until = patience.map_or(u64::MAX, |patience| now.saturating_add(patience));
        // Ends: each round returns, or the state has changed since the round began. Changes are
        // bounded by the waits between them, or made by hand.
        loop {
            let phase = Phase::of(state);
            match phase {
                Phase::Closed | Phase::ForcedClosed | Phase::MetricsOnly => {
                    return Ok(Ticket(state));
                }
                Phase::ForcedOpen => return Err(self.reject(phase, None)),
                Phase::Open => {
                    if let Some(denied) = self.reject_now(state, now) {
                        return Err(denied);
                    }
                    self.shift(state, Phase::HalfOpen, now, ShiftCause::WaitOver);
                }
                Phase::HalfOpen => {
                    match self.probes.admit(generation(state) as u16, patient_until) {
                        Admission::Admitted => return Ok(Ticket(state)),
                        Admission::Stale => {}
                        // The probes may answer at any moment: there is no time to come back at.
                        Admission::Full { patient_until } if now < patient_until => {
                            if self.state.load(Acquire) == state {
                                return Err(self.reject(phase, None));
                            }
                        }
                        Admission::Full { .. } => {
                            self.shift(state, Phase::Open, now, ShiftCause::ProbesStuck);
                        }
                    }
                }
            }
            state = self.state.load(Acquire);
        }
    }

    #[inline]
    fn reject(&self, phase: Phase, retry_after: Option<u64>) -> Rejection {
        self.rejected.own().fetch_add(1, Relaxed);
        Rejection { phase, retry_after }
    }

    /// Takes the answer of an admitted call.
    #[inline]
    pub(crate) fn record(&self, ticket: Ticket, now: u64, sample: Sample) {
        let state = self.state.load(Acquire);
        let is_usual = state == ticket.0 && Phase::of(state) == Phase::Closed;
        if is_usual && !sample.failed && !sample.slow {
            self.record_good(generation(state) as u8, now);
        } else {
            self.record_rest(state, ticket, now, sample);
        }
    }

    #[inline]
    fn record_good(&self, tag: u8, now: u64) {
        self.window.add_good(tag, now);
        if self.rules.consecutive_failures.is_some() {
            self.run.zero(Tag { generation: tag, epoch: 0 });
        }
    }

    #[cold]
    fn record_rest(&self, state: u64, ticket: Ticket, now: u64, sample: Sample) {
        if state != ticket.0 {
            self.late.fetch_add(1, Relaxed);
            return;
        }
        match Phase::of(state) {
            Phase::Closed | Phase::MetricsOnly if sample.failed || sample.slow => {
                self.record_bad(state, now, sample);
            }
            Phase::Closed | Phase::MetricsOnly => self.record_good(generation(state) as u8, now),
            Phase::HalfOpen => self.record_probe(state, now, sample),
            Phase::Open | Phase::ForcedOpen | Phase::ForcedClosed => {}
        }
    }

    fn record_bad(&self, state: u64, now: u64, sample: Sample) {
        let run = Tag { generation: generation(state) as u8, epoch: 0 };
        self.window.add(run.generation, now, sample);
        let mut trip = None;
        if let Some(max) = self.rules.consecutive_failures {
            if sample.failed {
                let in_a_row = match self.run.add(run) {
                    Added::Now(count) => count,
                    Added::Fresh { .. } => 1,
                    Added::Late => 0,
                };
                trip = (in_a_row >= max).then_some(Trip::ConsecutiveFailures);
            } else {
                self.run.zero(run);
            }
        }
        let trip = trip.or_else(|| self.rules.judge(self.window.sum(run.generation, now)));
        let Some(trip) = trip else { return };
        if Phase::of(state) == Phase::Closed {
            self.shift(state, Phase::Open, now, ShiftCause::Tripped(trip));
        } else {
            self.would_open.fetch_add(1, Relaxed);
        }
    }

    fn record_probe(&self, state: u64, now: u64, sample: Sample) {
        let is_bad = sample.failed || (sample.slow && self.rules.slow_rate.is_some());
        match self.probes.answer(generation(state) as u16, is_bad) {
            Finding::Open => {}
            Finding::Healthy => {
                self.shift(state, Phase::Closed, now, ShiftCause::ProbesHealthy);
            }
            Finding::Sick => {
                self.shift(state, Phase::Open, now, ShiftCause::ProbesSick);
            }
        }
    }

    /// Takes back an admission whose call said nothing about the dependency.
    #[inline]
    pub(crate) fn cancel(&self, ticket: Ticket) {
        if Phase::of(ticket.0) == Phase::HalfOpen {
            self.probes.give_back(generation(ticket.0) as u16);
        }
    }

    /// Moves to `to` from any state, by hand. [`open_for`](Self::open_for) opens for a given time.
    pub(crate) fn force(&self, to: Phase, now: u64) {
        self.enter(None, to, now, ShiftCause::ByHand, None);
    }

    /// Opens it by hand for `wait` nanoseconds. Not one of the openings that lengthen the wait.
    pub(crate) fn open_for(&self, wait: u64, now: u64) {
        self.enter(None, Phase::Open, now, ShiftCause::ByHand, Some(wait));
    }

    /// Moves from `state` to `to`, unless another thread has changed the state.
    fn shift(&self, state: u64, to: Phase, now: u64, cause: ShiftCause) -> bool {
        self.enter(Some(state), to, now, cause, None)
    }

    /// Moves to `to`. Returns false, and changes nothing, if the state is not `expected`.
    fn enter(
        &self,
        expected: Option<u64>,
        to: Phase,
        now: u64,
        cause: ShiftCause,
        wait: Option<u64>,
    ) -> bool {
        let mut transitions = self.transitions.lock();
        let state = self.state.load(Acquire);
        if expected.is_some_and(|expected| expected != state) {
            return false;
        }
        let next = generation(state) + 1;
        let mut waits = None;
        match to {
            Phase::Open => {
                if wait.is_none() {
                    transitions.openings = transitions.openings.saturating_add(1);
                    self.openings_total.fetch_add(1, Relaxed);
                }
                let openings = transitions.openings;
                let wait =
                    wait.unwrap_or_else(|| self.rules.open_wait(openings, &mut transitions.rng));
                waits = Some(wait);
                self.open_until.store(now.saturating_add(wait), Release);
            }
            Phase::HalfOpen => {
                self.open_until.store(now, Release);
                self.probes.reset(next as u16);
            }
            Phase::Closed | Phase::ForcedClosed | Phase::MetricsOnly => transitions.openings = 0,
            Phase::ForcedOpen => {}
        }
        let counts = self.window.sum(generation(state) as u8, now);
        self.window.reset(next as u8, now);
        self.run.set(Tag { generation: next as u8, epoch: 0 }, 0);
        self.state.store(next << PHASE_BITS | to as u64, Release);
        let from = Phase::of(state);
        let shift = Shift { from, to, at: now, cause, wait: waits, counts };
        let announced = (from != to).then(|| transitions.take_or_queue(shift)).flatten();
        // The observer is foreign code: it is called without the lock.
        drop(transitions);
        if let Some(shift) = announced {
            self.announce(shift);
        }
        true
    }

    /// Passes a change to the observer, then the changes that other threads queued meanwhile.
    fn announce(&self, mut shift: Shift) {
        // Ends: each round announces one change, and further ones come only as fast as the state
        // changes: by the waits between openings, or by hand.
        loop {
            (self.observer)(shift);
            let Some(next) = self.transitions.lock().next_unheard() else { return };
            shift = next;
        }
    }
}

//! The two threads of a journal: one writes groups, one prepares segments.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Engine;
use super::lead::{Lead, StopOnPanic};
use super::rewrite::Rewritten;
use super::space::Need;
use crate::error::Fault;

/// After a group of this many commits the writer waits for more before it writes the next one.
const BATCHING_MIN: usize = 4;
/// And never longer than this.
const BATCHING_WAIT_MAX: Duration = Duration::from_micros(250);

pub(crate) fn write_until_closed(engine: &Engine) {
    let mut groups = engine.groups();
    loop {
        if let Some(lead) = engine.assume_handed_lead() {
            lead_while_any(&lead);
            lead.hand_over();
            continue;
        }
        if engine.closed.load(Ordering::Acquire) {
            return;
        }
        if !engine.leadership.mark_is_due() {
            std::thread::park();
            continue;
        }
        let (parked, idle_mark) = (Instant::now(), engine.config.idle_mark);
        std::thread::park_timeout(idle_mark);
        if parked.elapsed() < idle_mark {
            // Unparked, perhaps for a commit before this thread parked: the journal is not idle.
            continue;
        }
        let before = std::mem::replace(&mut groups, engine.groups());
        let idle = before == groups && !engine.leadership.is_handed();
        if idle
            && !engine.closed.load(Ordering::Acquire)
            && let Some(lead) = engine.try_lead()
        {
            lead.mark_begins();
            if let Err(fault) = lead.mark(false) {
                engine.stop(&fault);
            }
            lead.hand_over_after_mark();
        }
    }
}

/// Writes group after group while anything waits.
fn lead_while_any(lead: &Lead<'_>) {
    loop {
        let start = Instant::now();
        let told = lead.run_group(0);
        if told == 0 {
            return;
        }
        if told >= BATCHING_MIN {
            yield_for_batching(lead.engine, told, (start.elapsed() / 2).min(BATCHING_WAIT_MAX));
        }
    }
}

/// Callers that have just been told their outcome often commit again at once. A sync that starts
/// with the first of those commits makes the others wait for that sync and for the next one.
/// Yields the processor to them until as many commits wait as were told, at most for `limit`.
fn yield_for_batching(engine: &Engine, told: usize, limit: Duration) {
    let start = Instant::now();
    while engine.waiting_commits() < told && start.elapsed() < limit {
        std::thread::yield_now();
    }
}

pub(crate) fn keep_until_closed(engine: &Engine) {
    let _stop = StopOnPanic(engine);
    let mut resume_at = Instant::now();
    loop {
        let done = match engine.space.wait_for_need() {
            Need::Seal => engine.seal_full_segments(),
            Need::Spare => engine.prepare().map(|_| ()),
            Need::Rewrite => rewrite_within_budget(engine, &mut resume_at),
            Need::Nothing | Need::Stop => return,
        };
        if let Err(fault) = done {
            engine.stop(&fault);
            return;
        }
    }
}

/// Moves one piece, when the budget allows it or appends wait for room.
fn rewrite_within_budget(engine: &Engine, resume_at: &mut Instant) -> Result<(), Fault> {
    let rest = resume_at.saturating_duration_since(Instant::now());
    if !engine.space.rest(rest) {
        return Ok(());
    }
    if let Rewritten::Moved(bytes) = engine.rewrite(None)? {
        let rate = engine.config.rewrite_bytes_per_second.max(1);
        let nanos = bytes.saturating_mul(1_000_000_000) / rate;
        *resume_at = Instant::now() + Duration::from_nanos(nanos);
    }
    Ok(())
}

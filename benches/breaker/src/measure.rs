//! Rounds in turn, on threads that stay on their processors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::report::Figure;

const ROUNDS: usize = 101;
/// Short, so that what disturbs the machine falls into few of them.
const ROUND: Duration = Duration::from_millis(2);

/// Makes so many calls and returns the nanoseconds of each.
pub type Subject = Box<dyn Fn(u64) -> f64 + Sync>;

/// The median of the rounds, with their range.
pub fn median(mut rounds: Vec<f64>) -> Figure {
    rounds.sort_by(f64::total_cmp);
    let last = rounds.len() - 1;
    Figure { value: rounds[last / 2], range: Some((rounds[0], rounds[last])) }
}

/// Every subject once in each round, so that what disturbs the machine disturbs them all. With
/// several threads, all make their calls at the same time, and the slowest one counts.
pub fn figures(threads: usize, subjects: &[Subject]) -> Vec<Figure> {
    let calls: Vec<u64> = subjects.iter().map(calls_in_a_round).collect();
    let arrived = AtomicUsize::new(0);
    let by_thread: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let run = |thread| {
            stay_on_one(thread);
            let mut values = Vec::with_capacity(ROUNDS * subjects.len());
            for turn in 0..ROUNDS * subjects.len() {
                let at = turn % subjects.len();
                arrived.fetch_add(1, Ordering::AcqRel);
                while arrived.load(Ordering::Acquire) < (turn + 1) * threads {
                    std::hint::spin_loop();
                }
                values.push(subjects[at](calls[at]));
            }
            values
        };
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        workers.into_iter().map(|worker| worker.join().expect("ran")).collect()
    });
    let slowest = |turn: usize| by_thread.iter().map(|values| values[turn]).fold(0.0, f64::max);
    (0..subjects.len())
        .map(|at| median((0..ROUNDS).map(|round| slowest(round * subjects.len() + at)).collect()))
        .collect()
}

fn calls_in_a_round(subject: &Subject) -> u64 {
    let each = subject(2_000).min(subject(2_000)).max(1.0);
    (ROUND.as_nanos() as f64 / each) as u64
}

/// A thread that moves between processors in a round measures the move. The last processors first:
/// the first one serves most interrupts. Where the system does not allow it, the thread stays where
/// it likes.
fn stay_on_one(thread: usize) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    set.set(processors - 1 - thread % processors);
    let _ = sched_setaffinity(None, &set);
}

/// Nanoseconds for each of `calls` calls.
pub fn timed(calls: u64, mut call: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    for number in 0..calls {
        call(number);
    }
    start.elapsed().as_nanos() as f64 / calls as f64
}

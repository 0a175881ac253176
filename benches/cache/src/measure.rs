//! Rounds in turn, on threads that stay on their processors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::report::Figure;

pub const HITS: Rounds = Rounds { count: 21, length: Duration::from_millis(15) };
/// Long: each of the caches is far larger than the processor's, and has been pushed out by others.
pub const LOADS: Rounds = Rounds { count: 11, length: Duration::from_millis(100) };

/// How often each subject is measured, and for how long.
#[derive(Clone, Copy)]
pub struct Rounds {
    count: usize,
    length: Duration,
}

/// Makes `calls` calls from `turn` on and returns the nanoseconds of each.
pub type Run = Box<dyn Fn(u64, u64) -> f64 + Sync>;

/// What is timed, and its name.
pub struct Subject {
    pub name: &'static str,
    pub run: Run,
}

impl Subject {
    /// Times a call. The closure is inlined into the loop.
    pub fn new<T>(name: &'static str, call: impl Fn(u64) -> T + Sync + 'static) -> Self {
        let run = move |turn: u64, calls: u64| {
            let start = Instant::now();
            for turn in turn..turn + calls {
                std::hint::black_box(call(turn));
            }
            start.elapsed().as_nanos() as f64 / calls as f64
        };
        Self { name, run: Box::new(run) }
    }
}

/// The median of the rounds, with their range.
pub fn median(mut rounds: Vec<f64>) -> Figure {
    rounds.sort_by(f64::total_cmp);
    let last = rounds.len() - 1;
    Figure { value: rounds[last / 2], range: Some((rounds[0], rounds[last])) }
}

/// Every subject once in each round, so that what disturbs the machine disturbs them all. With
/// several threads, all make their calls at the same time, and the slowest one counts.
pub fn figures(threads: usize, rounds: Rounds, subjects: &[Subject]) -> Vec<Figure> {
    let count = rounds.count;
    let calls = subjects.iter().map(|subject| calls_in_a_round(subject, rounds.length));
    let calls: Vec<u64> = calls.collect();
    let arrived = AtomicUsize::new(0);
    let by_thread: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let run = |thread| {
            stay_on_one(thread);
            let mut values = Vec::with_capacity(count * subjects.len());
            // Each thread has a part of the keys' sequence of its own.
            let mut at_turn = thread as u64 * 777_777;
            for turn in 0..count * subjects.len() {
                let at = turn % subjects.len();
                arrived.fetch_add(1, Ordering::AcqRel);
                while arrived.load(Ordering::Acquire) < (turn + 1) * threads {
                    std::hint::spin_loop();
                }
                values.push((subjects[at].run)(at_turn, calls[at]));
                at_turn += calls[at];
            }
            values
        };
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        workers.into_iter().map(|worker| worker.join().expect("ran")).collect()
    });
    let slowest = |turn: usize| by_thread.iter().map(|values| values[turn]).fold(0.0, f64::max);
    (0..subjects.len())
        .map(|at| median((0..count).map(|round| slowest(round * subjects.len() + at)).collect()))
        .collect()
}

fn calls_in_a_round(subject: &Subject, length: Duration) -> u64 {
    let each = (subject.run)(0, 2_000).min((subject.run)(2_000, 2_000)).max(1.0);
    (length.as_nanos() as f64 / each) as u64
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

/// So many keys, each below `keys`, by Zipf's law with exponent 0.99; a key's rank is scattered.
pub fn zipf(keys: u64, draws: usize) -> Vec<u64> {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(7);
    let draw = |_| {
        let uniform = random.f64() * sum;
        let rank = sums.partition_point(|upto| *upto < uniform) as u64;
        rank.wrapping_mul(0x9E37_79B9_7F4A_7C15) % keys
    };
    (0..draws).map(draw).collect()
}

//! How picks are timed: all subjects in turn, eleven times, so that a slow moment of the machine
//! meets all of them.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::report::Figure;

const ROUNDS: usize = 11;
/// About the length of one round of one subject.
const ROUND: Duration = Duration::from_millis(20);

/// Picks and ends a number of requests, the first of them with this number.
pub type Work = Box<dyn Fn(u64, u64) + Send + Sync>;

/// A subject: its name, and its work.
pub struct Subject {
    pub name: String,
    pub work: Arc<Work>,
}

impl Subject {
    pub fn new(name: impl Into<String>, work: Work) -> Self {
        Self { name: name.into(), work: Arc::new(work) }
    }
}

/// Nanoseconds for one pick, by the slowest of the threads.
fn round(work: &Arc<Work>, threads: u64, picks: u64) -> f64 {
    let begin = Arc::new(Barrier::new(threads as usize));
    let run = |thread: u64| {
        let (work, begin) = (Arc::clone(work), Arc::clone(&begin));
        move || {
            begin.wait();
            let start = Instant::now();
            work(thread << 40, picks);
            start.elapsed()
        }
    };
    let others: Vec<_> = (1..threads).map(|thread| std::thread::spawn(run(thread))).collect();
    let own = run(0)();
    let slowest =
        others.into_iter().map(|other| other.join().expect("no panic")).fold(own, Duration::max);
    slowest.as_nanos() as f64 / picks as f64
}

/// The median of the rounds of each subject, with its range.
pub fn compare(subjects: &[Subject], threads: u64) -> Vec<Figure> {
    let picks: Vec<u64> = subjects
        .iter()
        .map(|subject| {
            let first = round(&subject.work, threads, 2_000);
            (ROUND.as_nanos() as f64 / first).clamp(1_000.0, 1e7) as u64
        })
        .collect();
    let mut rounds = vec![Vec::new(); subjects.len()];
    for _ in 0..ROUNDS {
        for (at, subject) in subjects.iter().enumerate() {
            rounds[at].push(round(&subject.work, threads, picks[at]));
        }
    }
    let figure = |mut rounds: Vec<f64>| {
        rounds.sort_by(f64::total_cmp);
        Figure { value: rounds[ROUNDS / 2], range: Some((rounds[0], rounds[ROUNDS - 1])) }
    };
    rounds.into_iter().map(figure).collect()
}

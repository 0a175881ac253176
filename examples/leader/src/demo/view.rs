//! What the terminal shows.

use std::time::{Duration, Instant};

use crate::guarded::Event;
use crate::ledger::Author;

/// Time between two lines of figures.
const PERIOD: Duration = Duration::from_secs(1);

/// What happened to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    Killed,
    Paused,
    Resigned,
}

#[derive(Debug)]
pub(crate) struct View {
    began: Instant,
    next: Duration,
    added: u64,
    late_lines: u64,
    late_entries: u64,
    /// What happened, and how long it took until the next leader's first line.
    takeovers: Vec<(Happened, Duration)>,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            next: Duration::ZERO,
            added: 0,
            late_lines: 0,
            late_entries: 0,
            takeovers: Vec::new(),
        }
    }

    /// Lines that were acknowledged.
    pub(crate) fn added(&self) -> u64 {
        self.added
    }

    /// Lines that were refused because of their term.
    pub(crate) fn late_lines(&self) -> u64 {
        self.late_lines
    }

    /// Counts an event, and prints a line of figures when it is time.
    pub(crate) fn look(&mut self, event: Event) {
        match event {
            Event::Added(author) => {
                self.added += 1;
                self.show(author);
            }
            Event::Refused { is_line: true, .. } => self.late_lines += 1,
            Event::Refused { is_line: false, .. } => self.late_entries += 1,
            Event::Entered(_) => {}
        }
    }

    fn show(&mut self, Author { term, node }: Author) {
        let at = self.began.elapsed();
        if at < self.next {
            return;
        }
        if self.next == Duration::ZERO {
            println!("     s  leader   term   lines  late lines refused");
        }
        self.next = at + PERIOD;
        let (s, added, late) = (at.as_secs_f64(), self.added, self.late_lines);
        println!("{s:>6.1}  {node:>6} {term:>6} {added:>7} {late:>19}");
    }

    pub(crate) fn say(&self, text: String) {
        println!("{:>6.1}  {text}", self.began.elapsed().as_secs_f64());
    }

    pub(crate) fn took_over(&mut self, why: Happened, took: Duration) {
        self.takeovers.push((why, took));
    }

    pub(crate) fn sum_up(&self) {
        for why in [Happened::Killed, Happened::Paused, Happened::Resigned] {
            let took = self.takeovers.iter().filter(|(happened, _)| *happened == why);
            let took: Vec<u128> = took.map(|(_, took)| took.as_millis()).collect();
            println!("{why:?}: the next leader worked after {took:?} ms");
        }
        let (late, entries) = (self.late_lines, self.late_entries);
        println!("late lines refused: {late}, late entries refused: {entries}");
    }
}

//! Counts of the situations that a random test has to reach.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts how often a random test reached each situation that matters to its guarantees.
///
/// A test that draws its inputs at random proves nothing about a situation that no input led to.
/// A test therefore names its situations, counts them over all seeds and threads, and fails when
/// one was never reached. The counts do not depend on the schedule of threads as long as each
/// seed's run is deterministic.
///
/// # Example
/// ```
/// use voussoir_sim::Situations;
/// static SITUATIONS: [&str; 2] = ["leader crashed", "follower behind the window"];
/// let situations = Situations::new(&SITUATIONS);
/// situations.reached("leader crashed");
/// assert_eq!(situations.missed(), ["follower behind the window"]);
/// situations.add("follower behind the window", 3);
/// situations.assert_all_reached();
/// ```
#[derive(Debug)]
pub struct Situations {
    names: &'static [&'static str],
    /// One count per name, at the same index.
    counts: Box<[AtomicU64]>,
}

impl Situations {
    /// Starts with a count of zero for each of `names`.
    ///
    /// # Panics
    /// If `names` holds one name twice.
    pub fn new(names: &'static [&'static str]) -> Self {
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "the situation {name:?} is listed twice");
        }
        Self { names, counts: names.iter().map(|_| AtomicU64::new(0)).collect() }
    }

    /// Counts the situation `name` once.
    ///
    /// # Panics
    /// If `name` is not one of the names given to [`Situations::new`].
    pub fn reached(&self, name: &str) {
        self.add(name, 1);
    }

    /// Counts the situation `name` `times` times. Adding 0 does not count as reaching it.
    ///
    /// # Panics
    /// If `name` is not one of the names given to [`Situations::new`].
    pub fn add(&self, name: &str, times: u64) {
        self.counts[self.index(name)].fetch_add(times, Ordering::Relaxed);
    }

    /// How often the situation `name` was reached.
    ///
    /// # Panics
    /// If `name` is not one of the names given to [`Situations::new`].
    pub fn count(&self, name: &str) -> u64 {
        self.counts[self.index(name)].load(Ordering::Relaxed)
    }

    /// The situations that were never reached, in the order of their names.
    pub fn missed(&self) -> Vec<&'static str> {
        let zero = |name: &&&'static str| self.count(name) == 0;
        self.names.iter().filter(zero).copied().collect()
    }

    /// Prints the table of counts to standard output.
    ///
    /// # Panics
    /// If a situation was never reached; the message names all of these.
    pub fn assert_all_reached(&self) {
        println!("{self}");
        let missed = self.missed();
        assert!(missed.is_empty(), "no input of this run reached {missed:?}\n{self}");
    }

    fn index(&self, name: &str) -> usize {
        let at = self.names.iter().position(|&known| known == name);
        at.unwrap_or_else(|| panic!("{name:?} is not a situation of this test"))
    }
}

/// A table with one line per situation: count and name.
impl fmt::Display for Situations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12}  situation", "times")?;
        for name in self.names {
            write!(f, "\n{:>12}  {name}", self.count(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NAMES: [&str; 2] = ["rotation during recovery", "disk full"];

    #[test]
    fn a_situation_at_zero_fails_the_run_and_is_named() {
        let situations = Situations::new(&NAMES);
        situations.add("disk full", 0);
        situations.reached("rotation during recovery");
        assert_eq!(situations.missed(), ["disk full"]);
        let failed = std::panic::catch_unwind(|| situations.assert_all_reached()).unwrap_err();
        let message = failed.downcast_ref::<String>().unwrap();
        assert!(message.contains("disk full"), "{message}");
        situations.reached("disk full");
        situations.assert_all_reached();
    }

    #[test]
    fn the_table_lists_every_situation_in_order() {
        let situations = Situations::new(&NAMES);
        situations.add("disk full", 12);
        let table = situations.to_string();
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        assert_eq!(lines, ["times  situation", "0  rotation during recovery", "12  disk full"]);
    }

    #[test]
    #[should_panic(expected = "is not a situation of this test")]
    fn a_name_that_was_not_listed_is_refused() {
        Situations::new(&NAMES).reached("disk fall");
    }

    #[test]
    #[should_panic(expected = "is listed twice")]
    fn a_name_that_is_listed_twice_is_refused() {
        static TWICE: [&str; 2] = ["a", "a"];
        Situations::new(&TWICE);
    }
}

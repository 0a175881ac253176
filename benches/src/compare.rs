//! Each contender in turn, several rounds, medians with their spread.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What one round of one case took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Operations done.
    pub ops: u64,
    /// Wall time of them.
    pub wall: Duration,
    /// CPU time of the whole process in the meantime.
    pub cpu: Duration,
}

impl Sample {
    /// Operations in a second of wall time.
    pub fn rate(&self) -> f64 {
        self.ops as f64 / self.wall.as_secs_f64().max(1e-9)
    }

    /// Microseconds of CPU time for one operation.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.ops as f64).max(1.0)
    }
}

/// Times `work`, which returns how many operations it did.
pub fn time(work: impl FnOnce() -> u64) -> Sample {
    let (wall, cpu) = (Instant::now(), process_cpu());
    let ops = work();
    Sample { ops, wall: wall.elapsed(), cpu: process_cpu().saturating_sub(cpu) }
}

/// CPU time of the whole process so far, all threads together.
pub fn process_cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The smallest, the middle and the largest of some figures.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of figures in any order; all zero without any.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
            (Some(&min), Some(&median), Some(&max)) => Self { min, median, max },
            _ => Self::default(),
        }
    }
}

/// One thing that is measured against others.
pub struct Contender<'a> {
    /// Who.
    pub name: &'a str,
    /// One round.
    pub round: Box<dyn FnMut() -> Sample + 'a>,
}

impl std::fmt::Debug for Contender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contender").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A contender for [`compare`].
pub fn contender<'a>(name: &'a str, round: impl FnMut() -> Sample + 'a) -> Contender<'a> {
    Contender { name, round: Box::new(round) }
}

/// What a contender reached.
#[derive(Debug, Clone)]
pub struct Row {
    /// Who.
    pub name: String,
    /// Operations in a second.
    pub rate: Spread,
    /// Microseconds of CPU time for one operation.
    pub cpu_us: Spread,
    /// `rate` of the first contender over this one's, round by round.
    pub ratio: Spread,
}

/// Runs the contenders in turn, `rounds` times after one round that does not count, prints a table
/// with a line of JSON for each row, and returns the rows. The first contender is ours; a ratio
/// over 1 says that it did more.
pub fn compare(case: &str, rounds: usize, mut contenders: Vec<Contender<'_>>) -> Vec<Row> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
            let sample = (contender.round)();
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let ours: Vec<f64> = samples.first().into_iter().flatten().map(Sample::rate).collect();
    let rows: Vec<Row> = contenders
        .iter()
        .zip(&samples)
        .map(|(contender, samples)| Row {
            name: contender.name.to_owned(),
            rate: Spread::of(samples.iter().map(Sample::rate)),
            cpu_us: Spread::of(samples.iter().map(Sample::cpu_us)),
            ratio: Spread::of(ours.iter().zip(samples).map(|(ours, other)| ours / other.rate())),
        })
        .collect();
    print(case, rounds, &rows);
    rows
}

fn print(case: &str, rounds: usize, rows: &[Row]) {
    let mut out = format!("\n{case} (median of {rounds} [min..max])\n");
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows {
        let Row { name, rate, cpu_us, ratio } = row;
        let _ = writeln!(
            out,
            "  {name:width$}  {:>9}/s [{}..{}]  cpu {:8.2} us/op  ours is {:5.2}x [{:.2}..{:.2}]",
            short(rate.median),
            short(rate.min),
            short(rate.max),
            cpu_us.median,
            ratio.median,
            ratio.min,
            ratio.max,
        );
    }
    for row in rows {
        let Row { name, rate, cpu_us, ratio } = row;
        let _ = writeln!(
            out,
            "{{\"case\":{case:?},\"name\":{name:?},\"per_s\":{:.1},\"per_s_min\":{:.1},\
             \"per_s_max\":{:.1},\"cpu_us\":{:.3},\"ratio\":{:.3}}}",
            rate.median, rate.min, rate.max, cpu_us.median, ratio.median
        );
    }
    println!("{out}");
}

/// Three digits and a unit.
fn short(figure: f64) -> String {
    match figure {
        f if f >= 1e6 => format!("{:.2}M", f / 1e6),
        f if f >= 1e3 => format!("{:.1}k", f / 1e3),
        f => format!("{f:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_one() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert!((spread.min - 1.0).abs() < f64::EPSILON);
        assert!((spread.median - 2.0).abs() < f64::EPSILON);
        assert!((spread.max - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn contenders_take_turns_and_the_first_round_does_not_count() {
        let order = std::cell::RefCell::new(Vec::new());
        let round = |name: &'static str, millis| {
            let order = &order;
            contender(name, move || {
                order.borrow_mut().push(name);
                Sample { ops: 1, wall: Duration::from_millis(millis), cpu: Duration::ZERO }
            })
        };
        let rows = compare("turns", 2, vec![round("ours", 1), round("other", 3)]);
        assert_eq!(*order.borrow(), ["ours", "other"].repeat(3));
        assert!((rows[1].ratio.median - 3.0).abs() < 1e-6);
    }
}

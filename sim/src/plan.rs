//! The faults of one run, drawn from its seed.

use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use crate::config::{Limits, MILLISECOND, SECOND};
use crate::json::json_line;
use crate::{Config, FaultClass, FaultSet, Rng};

/// How hard one class of faults strikes. Which fields matter depends on the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Intensity {
    /// Mean time between two faults, in ns; at least 100 µs. 0 for classes that strike message by
    /// message.
    pub every_ns: u64,
    /// How long one lasts at most; for `duplicate`, `reorder`, `delay` and `clock_jump`, how far
    /// it reaches; a clock jumps by a year at most.
    pub for_ns: u64,
    /// `drop`, `duplicate`, `reorder`, `delay`, `client_loss`: how many messages of a million.
    /// `clock_skew`: the greatest rate in millionths, up to 500,000. `slow_link`: bytes per second.
    /// `disk_slow`: how many times slower. `flap`: ns between two turns. Else 0.
    pub amount: u64,
}

impl Intensity {
    /// An intensity of these three values.
    pub const fn new(every_ns: u64, for_ns: u64, amount: u64) -> Self {
        Self { every_ns, for_ns, amount }
    }
}

/// What will go wrong in one run, and until when.
///
/// Its `Display` is one line; [`Plan::to_json`] is one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The seed of every random choice of the run.
    pub seed: u64,
    /// When faults end: links heal, nodes restart and go on, disks recover. In ns.
    pub quiet_ns: u64,
    /// When the run ends, in ns.
    pub end_ns: u64,
    /// The least and the greatest one-way delay of a healthy link, in ns.
    pub delay_ns: (u64, u64),
    /// The least and the greatest time of an operation of a healthy disk, in ns.
    pub disk_ns: (u64, u64),
    /// Are crashes, power losses and pauses left out while they would hold up half of the nodes
    /// or more? Worlds of one or two nodes have no majority that could be spared: there it has no
    /// effect.
    pub spare_majority: bool,
    /// Bounds on what the run may take.
    pub limits: Limits,
    intensities: [Option<Intensity>; FaultClass::COUNT],
}

impl Plan {
    /// A plan without faults that ends at `end_ns`.
    pub fn calm(seed: u64, end_ns: u64) -> Self {
        let config = Config::default();
        Self {
            seed,
            quiet_ns: 0,
            end_ns,
            delay_ns: (config.delay_ns.0, MILLISECOND),
            disk_ns: config.disk_ns,
            spare_majority: true,
            limits: config.limits,
            intensities: [None; FaultClass::COUNT],
        }
    }

    /// This plan with one class set, or left out by `None`. The end of faults is not moved:
    /// see [`Plan::quiet_ns`].
    pub fn with(mut self, class: FaultClass, intensity: impl Into<Option<Intensity>>) -> Self {
        self.intensities[class.index()] = intensity.into();
        self
    }

    /// This plan with faults until `quiet_ns`.
    pub fn quiet_at(mut self, quiet_ns: u64) -> Self {
        self.quiet_ns = quiet_ns;
        self
    }

    /// How hard `class` strikes; `None` if it is not part of the plan.
    pub const fn intensity(&self, class: FaultClass) -> Option<Intensity> {
        self.intensities[class.index()]
    }

    /// The classes in the plan.
    pub fn classes(&self) -> FaultSet {
        FaultClass::ALL.into_iter().filter(|&class| self.intensity(class).is_some()).collect()
    }

    pub(crate) fn draw(config: &Config, seed: u64) -> Self {
        let mut rng = Rng::stream(seed, u64::from_le_bytes(*b"the plan"));
        let (least, most) = config.delay_ns;
        let mut plan = Self {
            seed,
            quiet_ns: config.faults_ns,
            end_ns: config.faults_ns.saturating_add(config.settle_ns),
            delay_ns: (least, rng.scaled(least.saturating_mul(2).min(most), most)),
            disk_ns: config.disk_ns,
            spare_majority: rng.chance(700_000),
            limits: config.limits.clone(),
            intensities: [None; FaultClass::COUNT],
        };
        for class in FaultClass::ALL {
            // Drawn for every class, so that leaving one out does not change the others.
            let intensity = draw_intensity(class, config, &mut rng);
            if rng.chance(config.enable_ppm) && config.faults.contains(class) {
                plan.intensities[class.index()] = Some(intensity);
            }
        }
        plan
    }

    /// The plan as one line of JSON.
    pub fn to_json(&self) -> String {
        json_line(self)
    }
}

fn draw_intensity(class: FaultClass, config: &Config, rng: &mut Rng) -> Intensity {
    let span = config.faults_ns.max(1_000);
    let every = rng.scaled(span / 40, span / 2);
    let lasts = rng.scaled(span / 400, span / 8);
    let reach = rng.scaled(MILLISECOND, SECOND / 2);
    let often = rng.scaled(1_000, 250_000);
    let fifth = rng.next_u64();
    let scaled = |low, high| Rng::new(fifth).scaled(low, high);
    match class {
        FaultClass::Drop | FaultClass::ClientLoss => Intensity::new(0, 0, often),
        // Second copies come out of the depths of a network: long after the first.
        FaultClass::Duplicate => Intensity::new(0, reach.saturating_mul(8), often),
        FaultClass::Reorder | FaultClass::Delay => Intensity::new(0, reach, often),
        FaultClass::SlowLink => Intensity::new(every, lasts, scaled(10_000, 10_000_000)),
        FaultClass::Flap => {
            Intensity::new(every, lasts, scaled(5 * MILLISECOND, 300 * MILLISECOND))
        }
        FaultClass::ClockSkew => {
            let most = u64::from(config.skew_ppm);
            Intensity::new(0, 0, scaled(10, most).min(most))
        }
        FaultClass::ClockJump => {
            let most = config.jump_ns;
            Intensity::new(every, scaled(MILLISECOND, most).min(most), 0)
        }
        FaultClass::DiskSlow => Intensity::new(every, lasts, scaled(2, 200)),
        FaultClass::Partition
        | FaultClass::OneWay
        | FaultClass::Crash
        | FaultClass::PowerLoss
        | FaultClass::Pause
        | FaultClass::DiskStall
        | FaultClass::DiskFail
        | FaultClass::DiskFull => Intensity::new(every, lasts, 0),
        // What is ruined stays ruined: rare enough that many runs keep all their disks.
        FaultClass::BitRot | FaultClass::DiskLoss => {
            Intensity::new(scaled(span / 4, span * 2), lasts, 0)
        }
    }
}

/// A point in virtual time, as the trace prints it.
pub(crate) struct Instant(pub(crate) u64);

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}ms", self.0 / MILLISECOND, self.0 % MILLISECOND)
    }
}

/// A duration in the unit that suits it.
pub(crate) struct Span(pub(crate) u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0;
        match ns {
            0..1_000 => write!(f, "{ns}ns"),
            1_000..1_000_000 => write!(f, "{}us", ns / 1_000),
            1_000_000..10_000_000_000 => write!(f, "{}ms", ns / 1_000_000),
            _ => write!(f, "{}s", ns / SECOND),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed={} quiet={} end={} delay={}..{}{}",
            self.seed,
            Span(self.quiet_ns),
            Span(self.end_ns),
            Span(self.delay_ns.0),
            Span(self.delay_ns.1),
            if self.spare_majority { " spare_majority" } else { "" },
        )?;
        for class in self.classes().iter() {
            let Some(Intensity { every_ns, for_ns, amount }) = self.intensity(class) else {
                continue;
            };
            write!(f, " {class}(")?;
            let mut gap = "";
            for (label, value) in [("every ", every_ns), ("for ", for_ns)] {
                if value > 0 {
                    write!(f, "{gap}{label}{}", Span(value))?;
                    gap = " ";
                }
            }
            if amount > 0 {
                write!(f, "{gap}{amount}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// The faults of a plan by their classes, in the fixed order of those.
struct Faults<'a>(&'a Plan);

impl Serialize for Faults<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let classes = self.0.classes();
        let intensity = |class| Some((FaultClass::name(class), self.0.intensity(class)?));
        serializer.collect_map(classes.iter().filter_map(intensity))
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut plan = serializer.serialize_struct("Plan", 7)?;
        plan.serialize_field("seed", &self.seed)?;
        plan.serialize_field("quiet_ns", &self.quiet_ns)?;
        plan.serialize_field("end_ns", &self.end_ns)?;
        plan.serialize_field("delay_ns", &self.delay_ns)?;
        plan.serialize_field("disk_ns", &self.disk_ns)?;
        plan.serialize_field("spare_majority", &self.spare_majority)?;
        plan.serialize_field("faults", &Faults(self))?;
        plan.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_half_of_the_classes_are_in_and_each_comes_up() {
        let config = Config::default();
        let mut seen = FaultSet::NONE;
        let mut total = 0;
        for seed in 0..200 {
            let plan = config.plan(seed).unwrap();
            seen = plan.classes().iter().fold(seen, FaultSet::with);
            total += plan.classes().iter().count();
        }
        assert_eq!(seen, FaultSet::ALL);
        assert!((1_700..2_300).contains(&total), "{total} of {}", 200 * FaultClass::COUNT);
    }

    #[test]
    fn leaving_a_class_out_keeps_the_others() {
        let all = Config::default();
        let fewer = Config { faults: FaultSet::ALL.without(FaultClass::Drop), ..all.clone() };
        for seed in 0..50 {
            let (a, b) = (all.plan(seed).unwrap(), fewer.plan(seed).unwrap());
            assert_eq!(a.with(FaultClass::Drop, None), b);
        }
    }

    #[test]
    fn plans_print_in_one_line() {
        let plan = Plan::calm(7, 2 * SECOND)
            .quiet_at(SECOND)
            .with(FaultClass::Drop, Intensity::new(0, 0, 20_000))
            .with(FaultClass::Crash, Intensity::new(400 * MILLISECOND, 90 * MILLISECOND, 0));
        assert_eq!(
            plan.to_string(),
            "seed=7 quiet=1000ms end=2000ms delay=50us..1ms spare_majority drop(20000) \
             crash(every 400ms for 90ms)"
        );
        assert_eq!(
            plan.to_json(),
            "{\"seed\":7,\"quiet_ns\":1000000000,\"end_ns\":2000000000,\
             \"delay_ns\":[50000,1000000],\"disk_ns\":[50000,2000000],\"spare_majority\":true,\
             \"faults\":{\"drop\":{\"every_ns\":0,\"for_ns\":0,\"amount\":20000},\
             \"crash\":{\"every_ns\":400000000,\"for_ns\":90000000,\"amount\":0}}}"
        );
    }
}

//! The classes of faults, sets of them, and how often each fired.

use std::fmt;

/// A class of faults that a [`Plan`](crate::Plan) may contain.
///
/// A count in [`Counts`] is one effect that a node or a client could notice, not one intention:
/// a partition that no message met counts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FaultClass {
    /// A message is lost. One count: one message.
    Drop,
    /// A message arrives twice, the second time perhaps much later. One count: one extra copy.
    Duplicate,
    /// A message is overtaken by later ones of its link. One count: one late arrival.
    Reorder,
    /// A message, and what queues behind it, is held up. One count: one message.
    Delay,
    /// A link carries few bytes per second. One count: one message that had to wait for it.
    SlowLink,
    /// The nodes fall into two halves that do not hear each other. One count: one message.
    Partition,
    /// Messages pass between two groups in one direction only. One count: one message.
    OneWay,
    /// A link goes down and up in quick turns. One count: one message lost to it.
    Flap,
    /// A process dies; its disk keeps what was written. One count: one node.
    Crash,
    /// A machine dies; its disk keeps what was synced. One count: one node.
    PowerLoss,
    /// A process stands still and its inputs wait. One count: one input put off.
    Pause,
    /// A clock runs fast or slow. One count: one start of a node with such a clock.
    ClockSkew,
    /// A clock jumps. One count: one jump of a running node's clock.
    ClockJump,
    /// Disk operations take many times longer. One count: one disk turning slow.
    DiskSlow,
    /// Disk operations do not complete for a while. One count: one stall.
    DiskStall,
    /// Disk operations fail. One count: one disk turning bad.
    DiskFail,
    /// A disk has no room. One count: one disk turning full.
    DiskFull,
    /// A client's request or its answer is lost. One count: one of them.
    ClientLoss,
    /// A bit of a disk flips while its node is down. It stays so. One count: one disk.
    BitRot,
    /// A disk is lost while its node is down, and an empty one takes its place. One count: one
    /// disk.
    DiskLoss,
}

impl FaultClass {
    /// How many classes there are.
    pub const COUNT: usize = 20;

    /// All classes, in their fixed order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Drop,
        Self::Duplicate,
        Self::Reorder,
        Self::Delay,
        Self::SlowLink,
        Self::Partition,
        Self::OneWay,
        Self::Flap,
        Self::Crash,
        Self::PowerLoss,
        Self::Pause,
        Self::ClockSkew,
        Self::ClockJump,
        Self::DiskSlow,
        Self::DiskStall,
        Self::DiskFail,
        Self::DiskFull,
        Self::ClientLoss,
        Self::BitRot,
        Self::DiskLoss,
    ];

    /// The name used in plans, traces and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::Delay => "delay",
            Self::SlowLink => "slow_link",
            Self::Partition => "partition",
            Self::OneWay => "one_way",
            Self::Flap => "flap",
            Self::Crash => "crash",
            Self::PowerLoss => "power_loss",
            Self::Pause => "pause",
            Self::ClockSkew => "clock_skew",
            Self::ClockJump => "clock_jump",
            Self::DiskSlow => "disk_slow",
            Self::DiskStall => "disk_stall",
            Self::DiskFail => "disk_fail",
            Self::DiskFull => "disk_full",
            Self::ClientLoss => "client_loss",
            Self::BitRot => "bit_rot",
            Self::DiskLoss => "disk_loss",
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of fault classes.
///
/// # Example
/// ```
/// use voussoir_sim::{FaultClass, FaultSet};
/// let set = FaultSet::ALL.without(FaultClass::DiskFull);
/// assert!(set.contains(FaultClass::Crash) && !set.contains(FaultClass::DiskFull));
/// assert_eq!(FaultSet::NONE.with(FaultClass::Drop).to_string(), "drop");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FaultSet(u32);

impl FaultSet {
    /// No class.
    pub const NONE: Self = Self(0);
    /// Every class.
    pub const ALL: Self = Self((1 << FaultClass::COUNT) - 1);

    /// This set and `class`.
    pub const fn with(self, class: FaultClass) -> Self {
        Self(self.0 | 1 << class.index())
    }

    /// This set but `class`.
    pub const fn without(self, class: FaultClass) -> Self {
        Self(self.0 & !(1 << class.index()))
    }

    /// Is `class` in it?
    pub const fn contains(self, class: FaultClass) -> bool {
        self.0 & 1 << class.index() != 0
    }

    /// Is it without any class?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its classes in their fixed order.
    pub fn iter(self) -> impl Iterator<Item = FaultClass> {
        FaultClass::ALL.into_iter().filter(move |&class| self.contains(class))
    }
}

impl fmt::Display for FaultSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, class) in self.iter().enumerate() {
            write!(f, "{}{class}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromIterator<FaultClass> for FaultSet {
    fn from_iter<I: IntoIterator<Item = FaultClass>>(classes: I) -> Self {
        classes.into_iter().fold(Self::NONE, Self::with)
    }
}

/// How often each class of faults had an effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; FaultClass::COUNT]);

impl Counts {
    /// How often `class` had an effect; [`FaultClass`] says what one count is.
    pub const fn get(&self, class: FaultClass) -> u64 {
        self.0[class.index()]
    }

    /// The classes that never fired.
    pub fn silent(&self) -> FaultSet {
        FaultClass::ALL.into_iter().filter(|&class| self.get(class) == 0).collect()
    }

    /// Each class with its count.
    pub fn iter(&self) -> impl Iterator<Item = (FaultClass, u64)> + '_ {
        FaultClass::ALL.into_iter().zip(self.0)
    }

    pub(crate) fn hit(&mut self, class: FaultClass) {
        self.0[class.index()] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(count);
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (class, count)) in self.iter().enumerate() {
            write!(f, "{}{class}={count}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_classes_is_complete_and_in_order() {
        for (at, class) in FaultClass::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), at);
        }
        assert_eq!(FaultSet::ALL.iter().count(), FaultClass::COUNT);
        assert_eq!(FaultClass::DiskLoss.index() + 1, FaultClass::COUNT);
    }

    #[test]
    fn sets_and_counts_agree() {
        let mut counts = Counts::default();
        counts.hit(FaultClass::Crash);
        let mut twice = counts;
        twice.add(&counts);
        assert_eq!(twice.get(FaultClass::Crash), 2);
        assert_eq!(counts.silent(), FaultSet::ALL.without(FaultClass::Crash));
        assert!(FaultSet::NONE.is_empty() && FaultSet::NONE.to_string().is_empty());
        assert!(counts.to_string().contains("crash=1 power_loss=0"));
    }
}

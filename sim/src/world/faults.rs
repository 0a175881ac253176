//! Carries out a plan: when each class of faults strikes, whom, and for how long.

use super::World;
use crate::core::links::{BY_FLAP, BY_ONE_WAY, BY_PARTITION};
use crate::core::trace::{EVERYBODY, Kind};
use crate::kernel::{Ailment, BY_PLAN, Happening, Kernel};
use crate::node::{Crash, DiskFault, Node};
use crate::{FaultClass, Intensity, Plan, Rng};

/// Classes that come and go by time; the others strike message by message.
const TIMED: [FaultClass; 14] = [
    FaultClass::SlowLink,
    FaultClass::Partition,
    FaultClass::OneWay,
    FaultClass::Flap,
    FaultClass::Crash,
    FaultClass::PowerLoss,
    FaultClass::Pause,
    FaultClass::ClockJump,
    FaultClass::DiskSlow,
    FaultClass::DiskStall,
    FaultClass::DiskFail,
    FaultClass::DiskFull,
    FaultClass::BitRot,
    FaultClass::DiskLoss,
];

/// Least time between two faults of one class, and between two turns of a flap: without it a plan
/// with an interval of 0 would spend the run on faults that find no victim.
const GAP_NS_MIN: u64 = 100_000;
/// How far a clock may jump at once: a year. Clocks stay far from the end of their range.
const JUMP_NS_MAX: u64 = 365 * 24 * 3_600 * 1_000_000_000;

#[derive(Debug)]
pub(super) struct Injector {
    /// One stream per class, so that a class left out does not change what the others do.
    rngs: [Rng; FaultClass::COUNT],
    first: [u64; FaultClass::COUNT],
    /// Whose disk each class has struck.
    disk_victims: [Option<usize>; FaultClass::COUNT],
    flap: Option<Flap>,
    quiet: bool,
}

#[derive(Clone, Copy, Debug)]
struct Flap {
    from: usize,
    to: usize,
    both: bool,
    turn_ns: u64,
    until: u64,
}

impl Injector {
    pub(super) fn new(plan: &Plan) -> Self {
        let label = |class: FaultClass| u64::from_le_bytes(*b"faults..") ^ class.index() as u64;
        let mut rngs = FaultClass::ALL.map(|class| Rng::stream(plan.seed, label(class)));
        let first = FaultClass::ALL.map(|class| {
            let every = plan.intensity(class).map_or(0, |intensity| intensity.every_ns);
            rngs[class.index()].between(every / 4, every)
        });
        let disk_victims = [None; FaultClass::COUNT];
        Self { rngs, first, disk_victims, flap: None, quiet: false }
    }

    pub(super) fn begin<N: Node>(&self, kernel: &mut Kernel<N>) {
        for class in TIMED {
            if kernel.plan.intensity(class).is_some() {
                kernel.queue.push(self.first[class.index()], Happening::Strike(class));
            }
        }
        kernel.queue.push(kernel.plan.quiet_ns, Happening::Quiet);
    }

    fn rng(&mut self, class: FaultClass) -> &mut Rng {
        &mut self.rngs[class.index()]
    }
}

impl<N: Node> World<N> {
    /// A class of faults strikes, if there is a victim for it. Says whether there was.
    pub(super) fn strike(&mut self, class: FaultClass) -> bool {
        let Some(intensity) = self.kernel.plan.intensity(class).filter(|_| !self.injector.quiet)
        else {
            return false;
        };
        let rng = self.injector.rng(class);
        let lasts = rng.between(intensity.for_ns / 4, intensity.for_ns).max(1);
        let gap = rng.between(intensity.every_ns / 2, intensity.every_ns.saturating_mul(3) / 2);
        let struck = match class {
            FaultClass::SlowLink => self.slow_links(intensity, lasts),
            FaultClass::Partition | FaultClass::OneWay => self.split(class, lasts),
            FaultClass::Flap => self.begin_flap(intensity, lasts),
            FaultClass::Crash | FaultClass::PowerLoss => self.crash_some(class, lasts),
            FaultClass::Pause => self.pause_one(lasts),
            FaultClass::ClockJump => self.jump_one(lasts),
            FaultClass::BitRot | FaultClass::DiskLoss => self.ruin_one(class, lasts),
            _ => self.strike_disk(class, intensity, lasts),
        };
        let now = self.kernel.now;
        let ends = now.saturating_add(lasts);
        if struck && has_end(class) {
            self.kernel.queue.push(ends, Happening::Mend(class));
        }
        // Those that have an end do not overlap with themselves.
        let next = if has_end(class) { ends } else { now };
        let next = next.saturating_add(gap.max(GAP_NS_MIN));
        self.kernel.queue.push(next, Happening::Strike(class));
        struck
    }

    /// A fault with an end has come to it. Says whether it was still going on.
    pub(super) fn mend(&mut self, class: FaultClass) -> bool {
        if self.injector.quiet {
            return false;
        }
        match class {
            FaultClass::Partition => self.kernel.links.mend_all(BY_PARTITION),
            FaultClass::OneWay => self.kernel.links.mend_all(BY_ONE_WAY),
            FaultClass::SlowLink => {
                let freed = self.kernel.links.unlimit();
                self.kernel.free_links(|from, to| freed.contains(&(from, to)));
            }
            _ => self.mend_disk(class),
        }
        self.kernel.trace.labelled(self.kernel.now, Kind::Mended, 0, 0, 0, class.name());
        true
    }

    /// Ends all faults of the plan: links, disks, pauses, and nodes that are down.
    pub(super) fn quiet(&mut self) {
        let now = self.kernel.now;
        self.kernel.trace.event(now, Kind::Quiet, 0, 0, 0);
        self.injector.quiet = true;
        self.injector.flap = None;
        self.kernel.links.calm();
        self.kernel.free_links(|_, _| true);
        self.kernel.client_loss_ppm = 0;
        for class in FaultClass::ALL {
            self.mend_disk(class);
        }
        for at in 0..self.kernel.sites.len() {
            let site = &mut self.kernel.sites[at];
            if site.paused_by_plan {
                site.paused_until = now;
                self.kernel.arm_resume(at);
            }
            self.kernel.queue.push(now, Happening::Start { node: at as u32 });
        }
    }

    fn slow_links(&mut self, intensity: Intensity, lasts: u64) -> bool {
        let nodes = self.nodes.len();
        if nodes < 2 {
            return false;
        }
        let rng = self.injector.rng(FaultClass::SlowLink);
        let from = rng.below(nodes as u64) as usize;
        let only = rng.chance(500_000).then(|| rng.below(nodes as u64) as usize);
        for to in (0..nodes).filter(|&to| to != from && only.is_none_or(|only| only == to)) {
            self.kernel.links.set_speed(from, to, intensity.amount, false);
        }
        let id = self.kernel.sites[from].id;
        self.kernel.trace.fault(self.kernel.now, FaultClass::SlowLink, id, lasts);
        true
    }

    /// Cuts the links between two random groups: both ways, or one.
    fn split(&mut self, class: FaultClass, lasts: u64) -> bool {
        let nodes = self.nodes.len();
        if nodes < 2 {
            return false;
        }
        let rng = self.injector.rng(class);
        let mut order: Vec<usize> = (0..nodes).collect();
        rng.shuffle(&mut order);
        let (left, right) = order.split_at(rng.between(1, nodes as u64 - 1) as usize);
        for &from in left {
            for &to in right {
                if class == FaultClass::OneWay {
                    self.kernel.links.cut(from, to, BY_ONE_WAY);
                } else {
                    self.kernel.links.cut(from, to, BY_PARTITION);
                    self.kernel.links.cut(to, from, BY_PARTITION);
                }
            }
        }
        // The hash and the log show who was on the left: the ids, mixed into one word.
        let sides = left.iter().fold(0_u64, |all, &at| all | 1 << (at % 64));
        let name = class.name();
        self.kernel.trace.labelled(self.kernel.now, Kind::Fault, EVERYBODY, lasts, sides, name);
        true
    }

    fn begin_flap(&mut self, intensity: Intensity, lasts: u64) -> bool {
        let nodes = self.nodes.len();
        if nodes < 2 {
            return false;
        }
        let rng = self.injector.rng(FaultClass::Flap);
        let mut order: Vec<usize> = (0..nodes).collect();
        rng.shuffle(&mut order);
        let until = self.kernel.now.saturating_add(lasts);
        let (both, turn_ns) = (rng.chance(500_000), intensity.amount.max(GAP_NS_MIN));
        self.injector.flap = Some(Flap { from: order[0], to: order[1], both, turn_ns, until });
        let id = self.kernel.sites[order[0]].id;
        self.kernel.trace.fault(self.kernel.now, FaultClass::Flap, id, lasts);
        self.kernel.queue.push(self.kernel.now, Happening::FlapTurn { down: true });
        true
    }

    /// A flapping link goes down or up. Says whether there is one.
    pub(super) fn flap(&mut self, down: bool) -> bool {
        let Some(Flap { from, to, both, turn_ns, until }) = self.injector.flap else {
            return false;
        };
        let now = self.kernel.now;
        let over = now >= until;
        if over || !down {
            self.kernel.links.mend_all(BY_FLAP);
        } else {
            self.kernel.links.cut(from, to, BY_FLAP);
            if both {
                self.kernel.links.cut(to, from, BY_FLAP);
            }
        }
        if over {
            self.injector.flap = None;
        } else {
            let due = now.saturating_add(turn_ns).min(until);
            self.kernel.queue.push(due, Happening::FlapTurn { down: !down });
        }
        true
    }

    /// Nodes that a fault may stop without stopping too many.
    fn stoppable(&self) -> Vec<usize> {
        let now = self.kernel.now;
        let sites = self.kernel.sites.iter();
        let stopped = sites.filter(|site| !site.up || site.paused_until > now).count();
        let nodes = self.nodes.len();
        // One node or two have no majority that could be spared.
        let spares = self.kernel.plan.spare_majority && nodes > 2;
        if spares && (stopped + 1) * 2 >= nodes {
            return Vec::new();
        }
        let sites = self.kernel.sites.iter().enumerate();
        let well = sites.filter(|(_, site)| site.up && site.paused_until <= now);
        well.map(|(at, _)| at).collect()
    }

    fn crash_some(&mut self, class: FaultClass, lasts: u64) -> bool {
        let mut victims = self.stoppable();
        let rng = self.injector.rng(class);
        // Now and then the whole room loses power at once.
        let all = class == FaultClass::PowerLoss
            && !self.kernel.plan.spare_majority
            && rng.chance(250_000);
        if !all {
            rng.shuffle(&mut victims);
            victims.truncate(1);
        }
        let kind = match class {
            FaultClass::Crash => Crash::Process,
            _ => Crash::Power,
        };
        for &at in &victims {
            self.kernel.counts.hit(class);
            self.kill(at, kind);
            let back = self.injector.rng(class).between(lasts / 2, lasts);
            let due = self.kernel.now.saturating_add(back);
            self.kernel.queue.push(due, Happening::Start { node: at as u32 });
        }
        !victims.is_empty()
    }

    fn pause_one(&mut self, lasts: u64) -> bool {
        let victims = self.stoppable();
        let Some(&at) = self.injector.rng(FaultClass::Pause).pick(&victims) else {
            return false;
        };
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        site.paused_until = now.saturating_add(lasts);
        site.paused_by_plan = true;
        self.kernel.trace.fault(now, FaultClass::Pause, site.id, lasts);
        true
    }

    fn jump_one(&mut self, reach: u64) -> bool {
        let reach = reach.min(JUMP_NS_MAX);
        let sites = self.kernel.sites.iter().enumerate();
        let up: Vec<usize> = sites.filter(|(_, site)| site.up).map(|(at, _)| at).collect();
        let rng = self.injector.rng(FaultClass::ClockJump);
        let Some(&at) = rng.pick(&up) else { return false };
        let (wall_only, back) = (rng.chance(500_000), rng.chance(500_000));
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        if wall_only {
            let by = reach.cast_signed();
            site.clock.jump_wall(if back { -by } else { by });
        } else {
            site.clock.jump(now, reach);
        }
        self.kernel.counts.hit(FaultClass::ClockJump);
        self.kernel.trace.fault(now, FaultClass::ClockJump, site.id, reach);
        self.rearm(at);
        true
    }

    fn strike_disk(&mut self, class: FaultClass, intensity: Intensity, lasts: u64) -> bool {
        let nodes = self.nodes.len() as u64;
        if nodes == 0 {
            return false;
        }
        let at = self.injector.rng(class).below(nodes) as usize;
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        let fault = match class {
            FaultClass::DiskSlow => {
                site.disk[BY_PLAN].factor = intensity.amount.max(1);
                DiskFault::Slow { factor: intensity.amount.max(1) }
            }
            FaultClass::DiskStall => {
                site.disk[BY_PLAN].stalled_until = now.saturating_add(lasts);
                DiskFault::Stall { for_ns: lasts }
            }
            FaultClass::DiskFail => {
                site.disk[BY_PLAN].failing = true;
                DiskFault::Fail
            }
            _ => {
                site.disk[BY_PLAN].full = true;
                DiskFault::Full
            }
        };
        self.injector.disk_victims[class.index()] = Some(at);
        self.kernel.counts.hit(class);
        self.kernel.trace.fault(now, class, site.id, lasts);
        N::disk_fault(&mut self.disks[at], fault, &mut site.rng);
        true
    }

    /// Stops a node and ruins its disk. What a disk held stays ruined, so that in one run fewer
    /// than half of the disks are.
    fn ruin_one(&mut self, class: FaultClass, lasts: u64) -> bool {
        let ruined = self.kernel.sites.iter().filter(|site| site.ruined).count();
        if (ruined + 1) * 2 >= self.nodes.len() {
            return false;
        }
        let mut victims = self.stoppable();
        victims.retain(|at| !self.kernel.sites[*at].ruined);
        let rng = self.injector.rng(class);
        let Some(&at) = rng.pick(&victims) else { return false };
        let kind = if rng.chance(500_000) { Crash::Process } else { Crash::Power };
        let fault = if class == FaultClass::BitRot { DiskFault::Rot } else { DiskFault::Lost };
        self.kernel.counts.hit(class);
        self.kill(at, kind);
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        site.ruined = true;
        self.kernel.trace.fault(now, class, site.id, lasts);
        N::disk_fault(&mut self.disks[at], fault, &mut site.rng);
        let due = now.saturating_add(lasts);
        self.kernel.queue.push(due, Happening::Start { node: at as u32 });
        true
    }

    /// Ends what `class` did to a disk. What was done by hand stays.
    fn mend_disk(&mut self, class: FaultClass) {
        let Some(at) = self.injector.disk_victims[class.index()].take() else { return };
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        let disk = &mut site.disk[BY_PLAN];
        match class {
            FaultClass::DiskSlow => disk.factor = 1,
            FaultClass::DiskStall => disk.stalled_until = now,
            FaultClass::DiskFail => disk.failing = false,
            _ => disk.full = false,
        }
        self.tell_disk(at);
    }

    /// Tells a disk that it is well, and then what still ails it, by the plan or by hand.
    pub(super) fn tell_disk(&mut self, at: usize) {
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        let Ailment { factor, stalled_until, failing, full } = site.ailment();
        let for_ns = stalled_until.saturating_sub(now);
        let left = [
            (true, DiskFault::Healed),
            (factor > 1, DiskFault::Slow { factor }),
            (for_ns > 0, DiskFault::Stall { for_ns }),
            (failing, DiskFault::Fail),
            (full, DiskFault::Full),
        ];
        for (_, fault) in left.into_iter().filter(|&(holds, _)| holds) {
            N::disk_fault(&mut self.disks[at], fault, &mut site.rng);
        }
    }
}

/// Does the class last, and so need an end of its own?
const fn has_end(class: FaultClass) -> bool {
    matches!(
        class,
        FaultClass::SlowLink
            | FaultClass::Partition
            | FaultClass::OneWay
            | FaultClass::DiskSlow
            | FaultClass::DiskStall
            | FaultClass::DiskFail
            | FaultClass::DiskFull
    )
}

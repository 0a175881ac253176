//! Directed links between nodes, and what becomes of a message on one.

use crate::{Counts, FaultClass, Intensity, Plan, Rng};

/// Why a link is cut. One bit each, so that one reason ending leaves the others in force.
pub(crate) const BY_HAND: u8 = 1;
pub(crate) const BY_PARTITION: u8 = 2;
pub(crate) const BY_ONE_WAY: u8 = 4;
pub(crate) const BY_FLAP: u8 = 8;

/// The number of second copies. Messages are numbered from 1.
pub(crate) const COPY: u64 = 0;

/// A slow link that carries something queues no more than it carries in this time; what comes on
/// top is lost, as at a full send queue. An idle link takes a message of any length.
const BACKLOG_NS: u64 = 1_000_000_000;

#[derive(Clone, Debug, Default)]
struct Link {
    cut: u8,
    /// Bytes per second by a slow-link fault, and by hand; 0 is unlimited.
    slow: [u64; 2],
    /// When the link will have carried what it was given.
    busy_until: u64,
    /// When the latest message in order arrives: later ones do not overtake it.
    last_arrival: u64,
    sent: u64,
    highest_arrived: u64,
}

/// When the copies of a message arrive: none, one or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost(FaultClass),
    Cut,
    Arrives { number: u64, at: u64, again: Option<u64> },
}

#[derive(Debug)]
pub(crate) struct Links {
    nodes: usize,
    all: Vec<Link>,
    delay_ns: (u64, u64),
    faults: [Option<Intensity>; 4],
    rng: Rng,
    /// One stream per class, so that a class left out does not change what the others do.
    fault_rng: [Rng; 4],
}

const STRIKES: [FaultClass; 4] =
    [FaultClass::Drop, FaultClass::Duplicate, FaultClass::Reorder, FaultClass::Delay];
const DROP: usize = 0;
const DUPLICATE: usize = 1;
const REORDER: usize = 2;
const DELAY: usize = 3;

impl Links {
    pub(crate) fn new(plan: &Plan) -> Self {
        let label = |at: usize| u64::from_le_bytes(*b"links...") ^ (at as u64 + 1);
        Self {
            nodes: 0,
            all: Vec::new(),
            delay_ns: plan.delay_ns,
            faults: STRIKES.map(|class| plan.intensity(class)),
            rng: Rng::stream(plan.seed, label(4)),
            fault_rng: [0, 1, 2, 3].map(|at| Rng::stream(plan.seed, label(at))),
        }
    }

    pub(crate) fn grow(&mut self, nodes: usize) {
        let mut links = vec![Link::default(); nodes * nodes];
        for from in 0..self.nodes {
            for to in 0..self.nodes {
                links[from * nodes + to] = std::mem::take(&mut self.all[from * self.nodes + to]);
            }
        }
        (self.all, self.nodes) = (links, nodes);
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.all[from * self.nodes + to]
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize, reason: u8) {
        self.link(from, to).cut |= reason;
    }

    pub(crate) fn mend_all(&mut self, reason: u8) {
        self.all.iter_mut().for_each(|link| link.cut &= !reason);
    }

    /// Sets the speed of a link; 0 is unlimited. What the link has taken on stays as late as it
    /// was, until `free`.
    pub(crate) fn set_speed(&mut self, from: usize, to: usize, bytes_s: u64, by_hand: bool) {
        self.link(from, to).slow[usize::from(by_hand)] = bytes_s;
    }

    /// Ends all slowness that is not by hand. Returns the ends of the links that were slow by it.
    pub(crate) fn unlimit(&mut self) -> Vec<(usize, usize)> {
        let mut ends = Vec::new();
        for (at, link) in self.all.iter_mut().enumerate() {
            if std::mem::take(&mut link.slow[0]) > 0 {
                ends.push((at / self.nodes, at % self.nodes));
            }
        }
        ends
    }

    /// Ends all faults but cuts and speeds set by hand.
    pub(crate) fn calm(&mut self) {
        self.faults = [None; 4];
        for link in &mut self.all {
            link.cut &= BY_HAND;
            link.slow[0] = 0;
        }
    }

    /// Forgets what links have taken on, if they are not slow any more. Every message in the queue
    /// must be given its new time by `retimed`.
    pub(crate) fn free(&mut self, is_freed: impl Fn(usize, usize) -> bool) {
        for (at, link) in self.all.iter_mut().enumerate() {
            if is_freed(at / self.nodes, at % self.nodes) && link.slow == [0; 2] {
                (link.busy_until, link.last_arrival) = (0, 0);
            }
        }
    }

    /// The new time of a message that is under way on a link that has been freed. To be called in
    /// the order of the old times.
    pub(crate) fn retimed(&mut self, from: usize, to: usize, at: u64, now: u64) -> u64 {
        if self.link(from, to).slow != [0; 2] {
            return at;
        }
        let healthy = now.saturating_add(self.delay());
        let link = self.link(from, to);
        link.last_arrival = link.last_arrival.max(at.min(healthy));
        link.last_arrival
    }

    /// A delay as of a healthy link.
    pub(crate) fn delay(&mut self) -> u64 {
        self.rng.between(self.delay_ns.0, self.delay_ns.1)
    }

    fn strikes(&mut self, which: usize) -> Option<u64> {
        let Intensity { for_ns, amount, .. } = self.faults[which]?;
        let rng = &mut self.fault_rng[which];
        rng.chance(amount.min(1_000_000) as u32).then(|| rng.between(1, for_ns))
    }

    pub(crate) fn send(
        &mut self,
        (from, to): (usize, usize),
        bytes: usize,
        now: u64,
        counts: &mut Counts,
    ) -> Fate {
        let reason = self.link(from, to).cut;
        if reason != 0 {
            return cut_by(reason, counts);
        }
        if from != to && self.strikes(DROP).is_some() {
            counts.hit(FaultClass::Drop);
            return Fate::Lost(FaultClass::Drop);
        }
        let mut at = now.saturating_add(self.delay());
        let held_up = if from == to { None } else { self.strikes(DELAY) };
        if let Some(extra) = held_up {
            counts.hit(FaultClass::Delay);
            at = at.saturating_add(extra);
        }
        let late = if from == to { None } else { self.strikes(REORDER) };
        let again = if from == to { None } else { self.strikes(DUPLICATE) };
        let again = again.map(|later| self.delay().saturating_add(later));

        let link = self.link(from, to);
        let Some(waited) = link.carry(bytes, now) else {
            counts.hit(FaultClass::SlowLink);
            return Fate::Lost(FaultClass::SlowLink);
        };
        if waited > 0 {
            counts.hit(FaultClass::SlowLink);
            at = at.saturating_add(waited);
        }
        at = at.max(link.last_arrival);
        if let Some(extra) = late {
            at = at.saturating_add(extra);
        } else {
            link.last_arrival = at;
        }
        link.sent += 1;
        if again.is_some() {
            counts.hit(FaultClass::Duplicate);
        }
        Fate::Arrives { number: link.sent, at, again: again.map(|gap| at.saturating_add(gap)) }
    }

    /// Records the arrival of a message, and counts a `Reorder` if a later-sent message arrived
    /// first.
    pub(crate) fn arrived(&mut self, from: usize, to: usize, number: u64, counts: &mut Counts) {
        let link = self.link(from, to);
        // A second copy is late by itself.
        if number != COPY && number < link.highest_arrived {
            counts.hit(FaultClass::Reorder);
        }
        link.highest_arrived = link.highest_arrived.max(number);
    }
}

impl Link {
    /// How much longer than on an unlimited link the last byte takes, in ns; `None` if the link
    /// has too much to carry already.
    fn carry(&mut self, bytes: usize, now: u64) -> Option<u64> {
        let [fault, hand] = self.slow;
        let speed = match (fault, hand) {
            (0, other) | (other, 0) => other,
            (fault, hand) => fault.min(hand),
        };
        if speed == 0 {
            return Some(self.busy_until.saturating_sub(now));
        }
        if self.busy_until.saturating_sub(now) > BACKLOG_NS {
            return None;
        }
        let takes = u128::from(bytes as u64) * 1_000_000_000 / u128::from(speed);
        let takes = u64::try_from(takes).unwrap_or(u64::MAX);
        self.busy_until = self.busy_until.max(now).saturating_add(takes);
        Some(self.busy_until - now)
    }
}

fn cut_by(reason: u8, counts: &mut Counts) -> Fate {
    let classes = [
        (BY_PARTITION, FaultClass::Partition),
        (BY_ONE_WAY, FaultClass::OneWay),
        (BY_FLAP, FaultClass::Flap),
    ];
    for (bit, class) in classes {
        if reason & bit != 0 {
            counts.hit(class);
            return Fate::Lost(class);
        }
    }
    Fate::Cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(plan: &Plan) -> (Links, Counts) {
        let mut links = Links::new(plan);
        links.grow(2);
        (links, Counts::default())
    }

    fn arrival(fate: Fate) -> u64 {
        match fate {
            Fate::Arrives { at, .. } => at,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_healthy_link_keeps_order_and_its_bounds() {
        let plan = Plan::calm(1, 1_000);
        let (mut links, mut counts) = pair(&plan);
        let mut last = 0;
        for now in (0..100_000_000).step_by(10_000) {
            let at = arrival(links.send((0, 1), 100, now, &mut counts));
            assert!(at >= last && at >= now + plan.delay_ns.0 && at <= now + plan.delay_ns.1);
            last = at;
        }
        assert_eq!(counts, Counts::default());
    }

    #[test]
    fn each_strike_has_its_effect_and_is_counted() {
        let plan = Plan::calm(1, 1_000)
            .with(FaultClass::Drop, Intensity::new(0, 0, 100_000))
            .with(FaultClass::Duplicate, Intensity::new(0, 0, 100_000))
            .with(FaultClass::Reorder, Intensity::new(0, 50_000_000, 100_000))
            .with(FaultClass::Delay, Intensity::new(0, 50_000_000, 100_000));
        let (mut links, mut counts) = pair(&plan);
        let (mut lost, mut twice, mut arrivals) = (0_u64, 0_u64, Vec::new());
        for round in 0..10_000_u64 {
            match links.send((0, 1), 100, round * 1_000_000, &mut counts) {
                Fate::Arrives { number, at, again } => {
                    twice += u64::from(again.is_some());
                    arrivals.push((at, number));
                }
                Fate::Lost(FaultClass::Drop) => lost += 1,
                other => panic!("{other:?}"),
            }
        }
        arrivals.sort_unstable();
        let late = arrivals.iter().scan(0, |top, &(_, number)| {
            let late = number < *top;
            *top = number.max(*top);
            Some(u64::from(late))
        });
        let late: u64 = late.sum();
        for &(_, number) in &arrivals {
            links.arrived(0, 1, number, &mut counts);
        }
        assert_eq!(counts.get(FaultClass::Drop), lost);
        assert_eq!(counts.get(FaultClass::Duplicate), twice);
        assert_eq!(counts.get(FaultClass::Reorder), late);
        assert!((800..1_200).contains(&lost) && (800..1_200).contains(&twice) && late > 200);
        assert!((700..1_200).contains(&counts.get(FaultClass::Delay)));
    }

    #[test]
    fn a_slow_link_carries_its_bytes_per_second_and_recovers() {
        let (mut links, mut counts) = pair(&Plan::calm(1, 1_000));
        links.set_speed(0, 1, 1_000, false);
        let second = 1_000_000_000;
        let first = arrival(links.send((0, 1), 500, 0, &mut counts));
        let next = arrival(links.send((0, 1), 500, 0, &mut counts));
        assert!((second / 2..second * 6 / 10).contains(&first) && next >= second, "{first} {next}");
        assert!(arrival(links.send((1, 0), 500, 0, &mut counts)) < second / 100);
        // A message longer than the backlog is carried by an idle link, slowly.
        let long = arrival(links.send((0, 1), 100_000, 2 * second, &mut counts));
        assert!((102 * second..103 * second).contains(&long), "{long}");
        links.calm();
        links.free(|_, _| true);
        let later = 3 * second;
        assert_eq!(links.retimed(1, 0, 3 * second + 1, later), 3 * second + 1, "it was not late");
        let freed = links.retimed(0, 1, long, later);
        assert!((later..later + second / 100).contains(&freed), "{freed}");
        assert!(arrival(links.send((0, 1), 500, later, &mut counts)) >= freed, "in order");
        assert!(arrival(links.send((0, 1), 500, later, &mut counts)) < later + second / 100);
    }

    #[test]
    fn a_cut_is_one_way_and_its_reasons_add_up() {
        let (mut links, mut counts) = pair(&Plan::calm(1, 1_000));
        links.cut(0, 1, BY_HAND);
        links.cut(0, 1, BY_FLAP);
        assert_eq!(links.send((0, 1), 1, 0, &mut counts), Fate::Lost(FaultClass::Flap));
        links.mend_all(BY_FLAP);
        assert_eq!(links.send((0, 1), 1, 0, &mut counts), Fate::Cut);
        arrival(links.send((1, 0), 1, 0, &mut counts));
        links.mend_all(BY_HAND);
        arrival(links.send((0, 1), 1, 0, &mut counts));
    }
}

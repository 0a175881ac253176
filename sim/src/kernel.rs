//! The state of a world beside the nodes themselves.

use std::collections::VecDeque;
use std::hash::Hash;

use bytes::Bytes;

use crate::core::clock::Clock;
use crate::core::links::{COPY, Fate, Links};
use crate::core::queue::Queue;
use crate::core::trace::{Kind, Trace};
use crate::node::{DiskHealth, Node, RequestId};
use crate::{Counts, FaultClass, Plan, Rng};

/// Something that is due. Nodes are named by their place, not by their id.
pub(crate) enum Happening<N: Node> {
    Start {
        node: u32,
    },
    Message {
        from: u32,
        to: u32,
        number: u64,
        body: Bytes,
    },
    Timer {
        node: u32,
        incarnation: u64,
    },
    Own {
        node: u32,
        incarnation: u64,
        event: N::Event,
    },
    Request {
        node: u32,
        id: RequestId,
        request: N::Request,
    },
    Reply {
        node: u32,
        id: RequestId,
        reply: N::Reply,
    },
    Alarm {
        token: u64,
    },
    Strike(FaultClass),
    Mend(FaultClass),
    FlapTurn {
        down: bool,
    },
    Quiet,
    /// A pause may be over: the oldest input that was put off is handled.
    Resume {
        node: u32,
    },
}

/// What the world knows of one node.
pub(crate) struct Site<N: Node> {
    pub(crate) id: u64,
    pub(crate) incarnation: u64,
    pub(crate) up: bool,
    /// Crashed by hand: only a restart by hand brings it back.
    pub(crate) held_down: bool,
    pub(crate) paused_until: u64,
    pub(crate) paused_by_plan: bool,
    /// Inputs that came during a pause, in the order in which they came. While there are any,
    /// later inputs queue up behind them, so that a pause never changes the order.
    pub(crate) put_off: VecDeque<Happening<N>>,
    /// Time of the next `Resume` in the queue. Earlier ones that the queue still holds are stale.
    pub(crate) resume_at: Option<u64>,
    pub(crate) clock: Clock,
    /// The deadline in the node's time, and when the queue will next look at it.
    pub(crate) timer: Option<u64>,
    pub(crate) armed_at: Option<u64>,
    /// What ails the disk by the plan, and what ails it by hand.
    pub(crate) disk: [Ailment; 2],
    /// What the disk held is damaged or gone.
    pub(crate) ruined: bool,
    pub(crate) rng: Rng,
}

/// Places in [`Site::disk`].
pub(crate) const BY_PLAN: usize = 0;
pub(crate) const HAND_MADE: usize = 1;

/// What ails a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ailment {
    pub(crate) factor: u64,
    pub(crate) stalled_until: u64,
    pub(crate) failing: bool,
    pub(crate) full: bool,
}

impl Ailment {
    pub(crate) const NONE: Self = Self { factor: 1, stalled_until: 0, failing: false, full: false };
}

impl<N: Node> Site<N> {
    /// What ails the disk by either cause: the worse of the two.
    pub(crate) fn ailment(&self) -> Ailment {
        let [plan, hand] = self.disk;
        Ailment {
            factor: plan.factor.max(hand.factor),
            stalled_until: plan.stalled_until.max(hand.stalled_until),
            failing: plan.failing || hand.failing,
            full: plan.full || hand.full,
        }
    }
}

pub(crate) struct Kernel<N: Node> {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) steps: u64,
    pub(crate) queue: Queue<Happening<N>>,
    pub(crate) links: Links,
    pub(crate) sites: Vec<Site<N>>,
    /// Ids with their places, in order of ids.
    places: Vec<(u64, u32)>,
    pub(crate) counts: Counts,
    pub(crate) trace: Trace,
    pub(crate) client_loss_ppm: u32,
    client_rng: Rng,
    disk_rng: Rng,
    pub(crate) restart_rng: Rng,
    /// Set by a node that wants to end.
    pub(crate) exiting: bool,
}

impl<N: Node> Kernel<N> {
    pub(crate) fn new(plan: Plan, trace_lines: usize) -> Self {
        let stream = |label: &[u8; 8]| Rng::stream(plan.seed, u64::from_le_bytes(*label));
        let loss = plan.intensity(FaultClass::ClientLoss);
        Self {
            now: 0,
            steps: 0,
            queue: Queue::new(plan.limits.pending),
            links: Links::new(&plan),
            sites: Vec::new(),
            places: Vec::new(),
            counts: Counts::default(),
            trace: Trace::new(plan.seed, trace_lines),
            client_loss_ppm: loss.map_or(0, |loss| loss.amount.min(1_000_000) as u32),
            client_rng: stream(b"clients "),
            disk_rng: stream(b"disks   "),
            restart_rng: stream(b"restarts"),
            exiting: false,
            plan,
        }
    }

    /// # Panics
    /// If there is such a node already.
    pub(crate) fn add_site(&mut self, id: u64) -> usize {
        let at = self.sites.len();
        let place = self.places.binary_search_by_key(&id, |&(id, _)| id);
        let Err(place) = place else { panic!("there is a node {id} already") };
        self.places.insert(place, (id, at as u32));
        let label = u64::from_le_bytes(*b"nodes   ") ^ id.rotate_left(32);
        let mut rng = Rng::stream(self.plan.seed, label);
        let clock = self.new_clock(&mut rng);
        self.sites.push(Site {
            id,
            incarnation: 0,
            up: false,
            held_down: false,
            paused_until: 0,
            paused_by_plan: false,
            put_off: VecDeque::new(),
            resume_at: None,
            clock,
            timer: None,
            armed_at: None,
            disk: [Ailment::NONE; 2],
            ruined: false,
            rng,
        });
        self.links.grow(self.sites.len());
        at
    }

    /// Clocks of different nodes have nothing in common, so that comparing them does not work
    /// by accident.
    fn new_clock(&self, rng: &mut Rng) -> Clock {
        let (local, wall) = (rng.below(1 << 42), rng.below(1 << 42).cast_signed());
        let rate = rng.next_u64();
        let rate = self.plan.intensity(FaultClass::ClockSkew).map_or(0, |skew| {
            let most = skew.amount.min(500_000);
            (rate % (most * 2 + 1)).cast_signed() - most.cast_signed()
        });
        Clock::new(self.now, local, rate, wall)
    }

    pub(crate) fn place(&self, id: u64) -> Option<usize> {
        let place = self.places.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(self.places[place].1 as usize)
    }

    pub(crate) fn send(&mut self, from: usize, to: u64, body: Bytes) {
        let (now, sender) = (self.now, self.sites[from].id);
        let fate = self
            .place(to)
            .map(|to| (to, self.links.send((from, to), body.len(), now, &mut self.counts)));
        match fate {
            Some((place, Fate::Arrives { number, at, again })) => {
                self.trace.event(now, Kind::Send, sender, to, body.len() as u64);
                self.trace.body(&body);
                let (from, to) = (from as u32, place as u32);
                if let Some(again) = again {
                    let body = body.clone();
                    self.queue.push(again, Happening::Message { from, to, number: COPY, body });
                }
                self.queue.push(at, Happening::Message { from, to, number, body });
            }
            Some((_, Fate::Lost(class))) => {
                self.trace.labelled(now, Kind::Lost, sender, to, 0, class.name());
            }
            Some((_, Fate::Cut)) => self.trace.labelled(now, Kind::Lost, sender, to, 0, "a cut"),
            None => self.trace.labelled(now, Kind::Lost, sender, to, 0, "no such node"),
        }
    }

    fn client_loses(&mut self) -> bool {
        let lost = self.client_loss_ppm > 0 && self.client_rng.chance(self.client_loss_ppm);
        if lost {
            self.counts.hit(FaultClass::ClientLoss);
        }
        lost
    }

    pub(crate) fn request(&mut self, node: usize, id: RequestId, request: N::Request) {
        let who = self.sites[node].id;
        self.trace.words([self.now, Kind::Request as u64, who, id.client(), id.number()]);
        request.hash(&mut self.trace);
        if !self.client_loses() {
            let at = self.now.saturating_add(self.links.delay());
            self.queue.push(at, Happening::Request { node: node as u32, id, request });
        }
    }

    pub(crate) fn reply(&mut self, node: usize, id: RequestId, reply: N::Reply) {
        let who = self.sites[node].id;
        self.trace.event(self.now, Kind::Answer, who, id.client(), id.number());
        reply.hash(&mut self.trace);
        if !self.client_loses() {
            let at = self.now.saturating_add(self.links.delay());
            self.queue.push(at, Happening::Reply { node: node as u32, id, reply });
        }
    }

    /// Looks at the inputs that a node has put off when its pause is over, and no later than it
    /// looks anyway.
    pub(crate) fn arm_resume(&mut self, at: usize) {
        let site = &mut self.sites[at];
        let due = site.paused_until.max(self.now);
        if !site.put_off.is_empty() && site.resume_at.is_none_or(|armed| due < armed) {
            site.resume_at = Some(due);
            self.queue.push(due, Happening::Resume { node: at as u32 });
        }
    }

    /// Lets what slow links hold back arrive as on a healthy link from now on, in the same order.
    /// `is_freed` says which links, by the places of their ends, are not slow any more.
    pub(crate) fn free_links(&mut self, is_freed: impl Fn(usize, usize) -> bool) {
        let Self { queue, links, now, .. } = self;
        links.free(&is_freed);
        queue.retime(|at, due| match due {
            Happening::Message { from, to, number, .. } if *number != COPY => {
                let (from, to) = (*from as usize, *to as usize);
                if is_freed(from, to) { links.retimed(from, to, at, *now) } else { at }
            }
            _ => at,
        });
    }

    /// Has the queue look at a node's timer when it is due, and no later than it looks anyway.
    ///
    /// A deadline moved back leaves the earlier look in the queue, which then finds nothing due
    /// and arms anew: a deadline that moves with every message costs no event per message.
    pub(crate) fn arm(&mut self, at: usize) {
        let site = &mut self.sites[at];
        let Some(deadline) = site.timer else { return };
        let due = site.clock.true_at(deadline).max(self.now);
        if site.armed_at.is_none_or(|armed| due < armed) {
            site.armed_at = Some(due);
            let incarnation = site.incarnation;
            self.queue.push(due, Happening::Timer { node: at as u32, incarnation });
        }
    }

    /// Is the node's timer due now? Arms it anew if it was moved.
    pub(crate) fn timer_due(&mut self, at: usize) -> bool {
        let now = self.now;
        let site = &mut self.sites[at];
        if site.armed_at != Some(now) {
            return false;
        }
        site.armed_at = None;
        if site.timer.is_some_and(|deadline| site.clock.local(now) >= deadline) {
            site.timer = None;
            return true;
        }
        self.arm(at);
        false
    }

    pub(crate) fn disk_delay(&mut self, at: usize) -> u64 {
        let (low, high) = self.plan.disk_ns;
        let base = self.disk_rng.between(low, high);
        let Ailment { factor, stalled_until, .. } = self.sites[at].ailment();
        base.saturating_mul(factor).saturating_add(stalled_until.saturating_sub(self.now))
    }

    pub(crate) fn disk_health(&self, at: usize) -> DiskHealth {
        let Ailment { factor, stalled_until, failing, full } = self.sites[at].ailment();
        let stalled_ns = stalled_until.saturating_sub(self.now);
        DiskHealth { failing, full, factor, stalled_ns }
    }
}

//! The world: nodes, what passes between them, and the hand that moves time.

mod faults;
mod hands;

use std::fmt;

use crate::core::trace::Kind;
use crate::kernel::{Happening, Kernel};
use crate::node::{Boot, Context, Crash, Node};
use crate::runner;
use crate::{Plan, Rng};
use faults::Injector;

type Factory<N> = Box<dyn FnMut(Boot<'_, <N as Node>::Disk>) -> Option<N>>;

/// A deterministic world of nodes.
///
/// It moves by [`step`](World::step): one event each, in order of virtual time. Between steps the
/// caller may look at every node, ask as a client, and make things go wrong by hand; what the
/// [`Plan`] holds goes wrong by itself.
pub struct World<N: Node> {
    kernel: Kernel<N>,
    nodes: Vec<Option<N>>,
    disks: Vec<N::Disk>,
    injector: Injector,
    factory: Factory<N>,
    requests: u64,
    rng: Rng,
}

/// What one [`World::step`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step<R> {
    /// A node handled something.
    Node(u64),
    /// A node started.
    Started(u64),
    /// The factory could not build a node; it will be asked again.
    Refused(u64),
    /// A node died.
    Crashed(u64),
    /// A client gets an answer.
    Reply {
        /// The client, as given to [`World::request`].
        client: u64,
        /// The number that [`World::request`] returned.
        request: u64,
        /// The node that answered.
        from: u64,
        /// Its answer.
        reply: R,
    },
    /// An alarm of [`World::alarm`] went off.
    Alarm(u64),
    /// Something of the plan began or ended.
    Fault,
    /// The plan's faults have ended.
    Quiet,
}

impl<N: Node> World<N> {
    /// A world without nodes. The factory builds a node each time that one starts; `None` says
    /// that it cannot start from what is on its disk now, and it is asked again later.
    pub fn new(plan: Plan, factory: impl FnMut(Boot<'_, N::Disk>) -> Option<N> + 'static) -> Self {
        let lines = runner::trace_lines().unwrap_or(plan.limits.trace_lines);
        let rng = Rng::stream(plan.seed, u64::from_le_bytes(*b"workload"));
        let injector = Injector::new(&plan);
        let mut kernel = Kernel::new(plan, lines);
        kernel.trace.keep(runner::window());
        injector.begin(&mut kernel);
        Self {
            kernel,
            nodes: Vec::new(),
            disks: Vec::new(),
            injector,
            factory: Box::new(factory),
            requests: 0,
            rng,
        }
    }

    /// Adds a node, which starts now.
    ///
    /// # Panics
    /// If there is a node `id` already, or if the event limit is reached.
    pub fn add_node(&mut self, id: u64, disk: N::Disk) {
        let at = self.kernel.add_site(id);
        self.nodes.push(None);
        self.disks.push(disk);
        self.kernel.queue.push(self.kernel.now, Happening::Start { node: at as u32 });
    }

    /// Does the next thing that is due; `None` when nothing is due before the end of the plan.
    ///
    /// # Panics
    /// If a limit of the plan is exceeded, or if a node panics.
    pub fn step(&mut self) -> Option<Step<N::Reply>> {
        self.step_until(self.kernel.plan.end_ns)
    }

    /// Does the next thing that is due at `until` (true time in ns) or before. When there is
    /// none it is `until`, and the answer is `None`.
    ///
    /// # Panics
    /// If a limit of the plan is exceeded, or if a node panics.
    pub fn step_until(&mut self, until: u64) -> Option<Step<N::Reply>> {
        loop {
            let Some((at, due)) = self.kernel.queue.pop(until) else {
                self.kernel.now = self.kernel.now.max(until);
                return None;
            };
            self.kernel.now = at;
            self.kernel.steps += 1;
            let limit = self.kernel.plan.limits.steps;
            assert!(self.kernel.steps <= limit, "more than {limit} events in one run");
            if let Some(step) = self.happen(due) {
                return Some(step);
            }
        }
    }

    fn happen(&mut self, due: Happening<N>) -> Option<Step<N::Reply>> {
        match due {
            Happening::Start { node } => self.start(node as usize),
            Happening::Alarm { token } => {
                self.kernel.trace.event(self.kernel.now, Kind::Alarm, 0, token, 0);
                Some(Step::Alarm(token))
            }
            Happening::Reply { node, id, reply } => {
                let from = self.kernel.sites[node as usize].id;
                let (client, request) = (id.client(), id.number());
                self.kernel.trace.event(self.kernel.now, Kind::Reply, from, client, request);
                Some(Step::Reply { client, request, from, reply })
            }
            Happening::Strike(class) => self.strike(class).then_some(Step::Fault),
            Happening::Mend(class) => self.mend(class).then_some(Step::Fault),
            Happening::FlapTurn { down } => self.flap(down).then_some(Step::Fault),
            Happening::Quiet => {
                self.quiet();
                Some(Step::Quiet)
            }
            Happening::Resume { node } => self.resume(node as usize),
            Happening::Message { to: node, .. }
            | Happening::Timer { node, .. }
            | Happening::Own { node, .. }
            | Happening::Request { node, .. } => self.handle(node as usize, due),
        }
    }

    /// An input of a node: handled, put off while the node is paused, or lost if it is down.
    fn handle(&mut self, at: usize, due: Happening<N>) -> Option<Step<N::Reply>> {
        let site = &mut self.kernel.sites[at];
        // Behind what a pause has put off, also when the pause is over: inputs stay in order.
        if site.up && (self.kernel.now < site.paused_until || !site.put_off.is_empty()) {
            let is_stale_timer =
                matches!(due, Happening::Timer { .. }) && site.armed_at != Some(self.kernel.now);
            if !is_stale_timer && !is_of_earlier_life(&due, site.incarnation) {
                site.put_off.push_back(due);
                self.kernel.counts.hit(crate::FaultClass::Pause);
                self.kernel.arm_resume(at);
            }
            return None;
        }
        self.handle_now(at, due)
    }

    /// Handles the oldest input that was put off, if the pause is over.
    fn resume(&mut self, at: usize) -> Option<Step<N::Reply>> {
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        if site.resume_at != Some(now) {
            return None;
        }
        site.resume_at = None;
        if now < site.paused_until {
            // The pause was extended.
            self.kernel.arm_resume(at);
            return None;
        }
        let due = site.put_off.pop_front()?;
        if let Happening::Timer { .. } = due {
            // The time at which the timer was due has passed.
            site.armed_at = Some(now);
        }
        self.kernel.arm_resume(at);
        self.handle_now(at, due)
    }

    /// An input of a node that is not paused: handled, or lost if the node is down.
    fn handle_now(&mut self, at: usize, due: Happening<N>) -> Option<Step<N::Reply>> {
        let site = &mut self.kernel.sites[at];
        let (id, now) = (site.id, self.kernel.now);
        if !site.up {
            if let Happening::Message { .. } | Happening::Request { .. } = due {
                self.kernel.trace.event(now, Kind::Absent, id, 0, 0);
            }
            return None;
        }
        if is_of_earlier_life(&due, site.incarnation) {
            return None;
        }
        match due {
            Happening::Message { from, number, body, .. } => {
                let from_place = from as usize;
                let from = self.kernel.sites[from_place].id;
                self.kernel.trace.event(now, Kind::Deliver, id, from, body.len() as u64);
                let Kernel { links, counts, .. } = &mut self.kernel;
                links.arrived(from_place, at, number, counts);
                self.act(at, |node, ctx| node.message(ctx, from, body));
            }
            Happening::Timer { .. } => {
                if !self.kernel.timer_due(at) {
                    return None;
                }
                self.kernel.trace.event(now, Kind::Timer, id, 0, 0);
                self.act(at, N::timer);
            }
            Happening::Own { event, .. } => {
                self.kernel.trace.event(now, Kind::Own, id, 0, 0);
                self.act(at, |node, ctx| node.event(ctx, event));
            }
            Happening::Request { id: request_id, request, .. } => {
                let (client, number) = (request_id.client(), request_id.number());
                self.kernel.trace.event(now, Kind::Request, id, client, number);
                self.act(at, |node, ctx| node.request(ctx, request_id, request));
            }
            _ => return None,
        }
        Some(self.after(at))
    }

    /// Runs a handler of a node that is up.
    fn act<R>(
        &mut self,
        at: usize,
        handler: impl FnOnce(&mut N, &mut Context<'_, N>) -> R,
    ) -> Option<R> {
        let node = self.nodes[at].as_mut()?;
        let mut ctx = Context { kernel: &mut self.kernel, disk: &mut self.disks[at], at };
        Some(handler(node, &mut ctx))
    }

    /// What a handler has led to: the node is there, or has ended itself.
    fn after(&mut self, at: usize) -> Step<N::Reply> {
        let id = self.kernel.sites[at].id;
        if !std::mem::take(&mut self.kernel.exiting) {
            return Step::Node(id);
        }
        self.kernel.trace.event(self.kernel.now, Kind::Exit, id, 0, 0);
        self.kill(at, Crash::Process);
        self.restart_later(at);
        Step::Crashed(id)
    }

    fn start(&mut self, at: usize) -> Option<Step<N::Reply>> {
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        if site.up || site.held_down {
            return None;
        }
        site.incarnation += 1;
        let boot = Boot {
            id: site.id,
            incarnation: site.incarnation,
            now: site.clock.local(now),
            seed: site.rng.next_u64(),
            disk: &mut self.disks[at],
        };
        let (id, incarnation) = (site.id, site.incarnation);
        self.nodes[at] = (self.factory)(boot);
        if self.nodes[at].is_none() {
            self.kernel.trace.event(now, Kind::Refused, id, incarnation, 0);
            self.restart_later(at);
            return Some(Step::Refused(id));
        }
        let site = &mut self.kernel.sites[at];
        site.up = true;
        if site.clock.is_skewed() {
            self.kernel.counts.hit(crate::FaultClass::ClockSkew);
        }
        self.kernel.trace.event(now, Kind::Start, id, incarnation, 0);
        self.act(at, N::start);
        match self.after(at) {
            Step::Node(id) => Some(Step::Started(id)),
            step => Some(step),
        }
    }

    fn restart_later(&mut self, at: usize) {
        let pause = self.kernel.restart_rng.between(10_000_000, 500_000_000);
        let due = self.kernel.now.saturating_add(pause);
        self.kernel.queue.push(due, Happening::Start { node: at as u32 });
    }

    fn kill(&mut self, at: usize, kind: Crash) {
        let site = &mut self.kernel.sites[at];
        site.up = false;
        (site.paused_until, site.resume_at) = (0, None);
        (site.timer, site.armed_at) = (None, None);
        let lost = std::mem::take(&mut site.put_off);
        let label = match kind {
            Crash::Process => "crashes",
            Crash::Power => "loses power",
        };
        self.kernel.trace.labelled(
            self.kernel.now,
            Kind::Crash,
            site.id,
            lost.len() as u64,
            0,
            label,
        );
        if let Some(node) = self.nodes[at].take() {
            node.crash(&mut self.disks[at], kind, &mut site.rng);
        }
    }
}

/// Was an input meant for an earlier incarnation of its node?
fn is_of_earlier_life<N: Node>(due: &Happening<N>, current: u64) -> bool {
    match due {
        Happening::Timer { incarnation, .. } | Happening::Own { incarnation, .. } => {
            *incarnation != current
        }
        _ => false,
    }
}

impl<N: Node> Drop for World<N> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            runner::deposit(self.failure("panicked"));
        }
    }
}

impl<N: Node> fmt::Debug for World<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("now", &self.kernel.now)
            .field("steps", &self.kernel.steps)
            .field("plan", &self.kernel.plan)
            .finish_non_exhaustive()
    }
}

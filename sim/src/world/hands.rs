//! What the caller of a world may see and do between two steps.

use super::World;
use crate::core::links::BY_HAND;
use crate::core::trace::Kind;
use crate::kernel::{Ailment, Happening};
use crate::node::{Context, Crash, DiskFault, Node, RequestId};
use crate::report::{Failure, Report};
use crate::{Counts, Plan, Rng};

/// Looking on and taking part.
impl<N: Node> World<N> {
    /// True time, in ns from the start of the run.
    pub fn now(&self) -> u64 {
        self.kernel.now
    }

    /// The plan of the run.
    pub fn plan(&self) -> &Plan {
        &self.kernel.plan
    }

    /// The ids of all nodes, up or down, in the order they were added.
    pub fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.kernel.sites.iter().map(|site| site.id)
    }

    /// A node, if it is up.
    pub fn node(&self, id: u64) -> Option<&N> {
        self.nodes.get(self.kernel.place(id)?)?.as_ref()
    }

    /// The nodes that are up, with their ids.
    pub fn nodes(&self) -> impl Iterator<Item = (u64, &N)> + '_ {
        let pairs = self.kernel.sites.iter().zip(&self.nodes);
        pairs.filter_map(|(site, node)| Some((site.id, node.as_ref()?)))
    }

    /// The disk of a node, up or down.
    pub fn disk(&self, id: u64) -> Option<&N::Disk> {
        self.disks.get(self.kernel.place(id)?)
    }

    /// The disk of a node, up or down, to damage or replace it.
    pub fn disk_mut(&mut self, id: u64) -> Option<&mut N::Disk> {
        self.disks.get_mut(self.kernel.place(id)?)
    }

    /// Acts on a node as one of its own handlers would; `None` if it is down.
    pub fn with_node<R>(
        &mut self,
        id: u64,
        handler: impl FnOnce(&mut N, &mut Context<'_, N>) -> R,
    ) -> Option<R> {
        let at = self.kernel.place(id)?;
        self.nodes[at].as_ref()?;
        self.kernel.trace.event(self.kernel.now, Kind::Poke, id, 0, 0);
        let result = self.act(at, handler);
        self.after(at);
        result
    }

    /// Sends a request of `client` to the node `to` and returns its number. Request and answer
    /// take time and may be lost: set an [`alarm`](World::alarm) to give up.
    pub fn request(&mut self, client: u64, to: u64, request: N::Request) -> u64 {
        self.requests += 1;
        if let Some(at) = self.kernel.place(to) {
            let id = RequestId { client, number: self.requests };
            self.kernel.request(at, id, request);
        }
        self.requests
    }

    /// Has [`step`](World::step) return [`Step::Alarm`](crate::Step::Alarm) with `token` in
    /// `delay_ns`.
    pub fn alarm(&mut self, delay_ns: u64, token: u64) {
        let due = self.kernel.now.saturating_add(delay_ns);
        self.kernel.queue.push(due, Happening::Alarm { token });
    }

    /// A generator for the workload, seeded by the run.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// How often each class of faults has had an effect so far.
    pub fn counts(&self) -> &Counts {
        &self.kernel.counts
    }

    /// The hash over everything that has happened.
    pub fn trace_hash(&self) -> u64 {
        self.kernel.trace.hash()
    }

    /// The last lines of the trace.
    pub fn trace(&self) -> String {
        self.kernel.trace.text()
    }

    /// The report of a run that went well so far.
    pub fn report(&self) -> Report {
        Report::new(
            self.kernel.plan.seed,
            self.trace_hash(),
            self.kernel.steps,
            self.kernel.now,
            self.kernel.counts,
        )
    }

    /// The failure of this run, with its plan and trace.
    pub fn failure(&self, message: impl Into<String>) -> Failure {
        Failure::in_world(message.into(), self.report(), self.kernel.plan.clone(), self.trace())
    }
}

/// Faults by hand. They stay until they are taken back by hand.
impl<N: Node> World<N> {
    /// Kills a node; it stays down until [`restart`](World::restart). False if it was not up.
    pub fn crash(&mut self, id: u64, kind: Crash) -> bool {
        let Some(at) = self.kernel.place(id) else { return false };
        let was_up = self.kernel.sites[at].up;
        self.kernel.sites[at].held_down = true;
        if was_up {
            self.kill(at, kind);
        }
        was_up
    }

    /// Starts a node that is down, now.
    pub fn restart(&mut self, id: u64) {
        if let Some(at) = self.kernel.place(id) {
            self.kernel.sites[at].held_down = false;
            self.kernel.queue.push(self.kernel.now, Happening::Start { node: at as u32 });
        }
    }

    /// Has a node stand still for `for_ns`: its inputs wait, its clock goes on.
    pub fn pause(&mut self, id: u64, for_ns: u64) {
        if let Some(at) = self.kernel.place(id) {
            let site = &mut self.kernel.sites[at];
            site.paused_until = self.kernel.now.saturating_add(for_ns);
            site.paused_by_plan = false;
        }
    }

    /// Cuts the link from one node to another; the way back stays as it is.
    pub fn cut(&mut self, from: u64, to: u64) {
        if let (Some(from), Some(to)) = (self.kernel.place(from), self.kernel.place(to)) {
            self.kernel.links.cut(from, to, BY_HAND);
        }
    }

    /// Cuts all links, both ways, between the nodes in `group` and the others.
    pub fn partition(&mut self, group: &[u64]) {
        let ids: Vec<u64> = self.ids().collect();
        for &inside in ids.iter().filter(|id| group.contains(id)) {
            for &outside in ids.iter().filter(|id| !group.contains(id)) {
                self.cut(inside, outside);
                self.cut(outside, inside);
            }
        }
    }

    /// Takes back every cut by hand.
    pub fn heal(&mut self) {
        self.kernel.links.mend_all(BY_HAND);
    }

    /// Sets the speed of a link in bytes per second; 0 is unlimited.
    pub fn set_speed(&mut self, from: u64, to: u64, bytes_s: u64) {
        if let (Some(from), Some(to)) = (self.kernel.place(from), self.kernel.place(to)) {
            self.kernel.links.set_speed(from, to, bytes_s, true);
        }
    }

    /// Has a node's clocks run fast (or slow) by so many millionths; at most 500,000 either way.
    pub fn set_clock_rate(&mut self, id: u64, rate_ppm: i32) {
        if let Some(at) = self.kernel.place(id) {
            let rate = i64::from(rate_ppm).clamp(-500_000, 500_000);
            self.kernel.sites[at].clock.set_rate(self.kernel.now, rate);
            self.rearm(at);
        }
    }

    /// Has a node's clocks jump ahead by `by_ns`.
    pub fn jump_clock(&mut self, id: u64, by_ns: u64) {
        if let Some(at) = self.kernel.place(id) {
            self.kernel.sites[at].clock.jump(self.kernel.now, by_ns);
            self.rearm(at);
        }
    }

    /// Changes the health of a disk by hand. [`Rot`](DiskFault::Rot) and
    /// [`Lost`](DiskFault::Lost) are for disks of nodes that are down.
    pub fn set_disk(&mut self, id: u64, fault: DiskFault) {
        let Some(at) = self.kernel.place(id) else { return };
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        match fault {
            DiskFault::Slow { factor } => site.disk.factor = factor.max(1),
            DiskFault::Stall { for_ns } => site.disk.stalled_until = now.saturating_add(for_ns),
            DiskFault::Fail => site.disk.failing = true,
            DiskFault::Full => site.disk.full = true,
            DiskFault::Rot | DiskFault::Lost => site.ruined = true,
            DiskFault::Healed => site.disk = Ailment { factor: 1, ..Ailment::default() },
        }
        N::disk_fault(&mut self.disks[at], fault, &mut site.rng);
    }

    pub(super) fn rearm(&mut self, at: usize) {
        self.kernel.sites[at].armed_at = None;
        self.kernel.arm(at);
    }
}

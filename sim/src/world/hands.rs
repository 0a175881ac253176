//! What the caller of a world may see and do between two steps.

use std::fmt;

use super::World;
use crate::core::links::BY_HAND;
use crate::core::trace::{EVERYBODY, Kind};
use crate::kernel::{Ailment, HAND_MADE, Happening};
use crate::node::{Context, Crash, DiskFault, Node, RequestId};
use crate::report::{Failure, Report, Traced};
use crate::{CheckError, Counts, Plan, Rng};

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
        let at = self.kernel.place(id)?;
        self.by_hand(id, 0, 0, "disk acted on");
        self.disks.get_mut(at)
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
        let trace = Traced { last: self.trace(), around: self.kernel.trace.around() };
        Failure::in_world(message.into(), self.report(), self.kernel.plan.clone(), trace)
    }

    /// The failure of this run whose history was not found linearizable. Its report shows the
    /// trace of the time of the violation.
    pub fn not_linearizable<K: fmt::Debug>(&self, error: &CheckError<K>) -> Failure {
        let failure = self.failure(error.to_string());
        match error.span_ns() {
            Some((from_ns, to_ns)) => failure.around(from_ns, to_ns),
            None => failure,
        }
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
            self.by_hand(id, 0, 0, "restart");
            self.kernel.sites[at].held_down = false;
            self.kernel.queue.push(self.kernel.now, Happening::Start { node: at as u32 });
        }
    }

    /// Has a node stand still for `for_ns`: its inputs wait, its clock goes on.
    pub fn pause(&mut self, id: u64, for_ns: u64) {
        if let Some(at) = self.kernel.place(id) {
            self.by_hand(id, for_ns, 0, "pause in ns");
            let site = &mut self.kernel.sites[at];
            site.paused_until = self.kernel.now.saturating_add(for_ns);
            site.paused_by_plan = false;
            // A shorter pause than the one that went on ends earlier.
            self.kernel.arm_resume(at);
        }
    }

    /// Cuts the link from one node to another; the way back stays as it is.
    pub fn cut(&mut self, from: u64, to: u64) {
        if let (Some(from_at), Some(to_at)) = (self.kernel.place(from), self.kernel.place(to)) {
            self.by_hand(from, to, 0, "link cut to node");
            self.kernel.links.cut(from_at, to_at, BY_HAND);
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
        self.by_hand(EVERYBODY, 0, 0, "all cuts healed");
        self.kernel.links.mend_all(BY_HAND);
    }

    /// Sets the speed of a link in bytes per second; 0 is unlimited. Messages that the link has
    /// taken on stay as late as they are, unless it becomes unlimited.
    pub fn set_speed(&mut self, from: u64, to: u64, bytes_s: u64) {
        if let (Some(from_at), Some(to_at)) = (self.kernel.place(from), self.kernel.place(to)) {
            self.by_hand(from, to, bytes_s, "link speed, to node and in bytes a second");
            self.kernel.links.set_speed(from_at, to_at, bytes_s, true);
            if bytes_s == 0 {
                self.kernel.free_links(|from, to| (from, to) == (from_at, to_at));
            }
        }
    }

    /// Has a node's clocks run fast (or slow) by so many millionths; at most 500,000 either way.
    pub fn set_clock_rate(&mut self, id: u64, rate_ppm: i32) {
        if let Some(at) = self.kernel.place(id) {
            let rate = i64::from(rate_ppm).clamp(-500_000, 500_000);
            self.by_hand(id, rate.cast_unsigned(), 0, "clock rate in ppm");
            self.kernel.sites[at].clock.set_rate(self.kernel.now, rate);
            self.rearm(at);
        }
    }

    /// Has a node's clocks jump ahead by `by_ns`.
    pub fn jump_clock(&mut self, id: u64, by_ns: u64) {
        if let Some(at) = self.kernel.place(id) {
            self.by_hand(id, by_ns, 0, "clock jump in ns");
            self.kernel.sites[at].clock.jump(self.kernel.now, by_ns);
            self.rearm(at);
        }
    }

    /// Changes the health of a disk by hand. What is set so stays until
    /// [`Healed`](DiskFault::Healed) by hand, whatever the plan does to the same disk; of the two
    /// the worse counts. [`Rot`](DiskFault::Rot) and [`Lost`](DiskFault::Lost) are for disks of
    /// nodes that are down.
    pub fn set_disk(&mut self, id: u64, fault: DiskFault) {
        let Some(at) = self.kernel.place(id) else { return };
        let (amount, label) = match fault {
            DiskFault::Slow { factor } => (factor, "disk slow by factor"),
            DiskFault::Stall { for_ns } => (for_ns, "disk stalls for ns"),
            DiskFault::Fail => (0, "disk fails"),
            DiskFault::Full => (0, "disk full"),
            DiskFault::Rot => (0, "disk rots"),
            DiskFault::Lost => (0, "disk lost"),
            DiskFault::Healed => (0, "disk healed"),
        };
        self.by_hand(id, amount, 0, label);
        let now = self.kernel.now;
        let site = &mut self.kernel.sites[at];
        let disk = &mut site.disk[HAND_MADE];
        match fault {
            DiskFault::Slow { factor } => disk.factor = factor.max(1),
            DiskFault::Stall { for_ns } => disk.stalled_until = now.saturating_add(for_ns),
            DiskFault::Fail => disk.failing = true,
            DiskFault::Full => disk.full = true,
            DiskFault::Rot | DiskFault::Lost => site.ruined = true,
            DiskFault::Healed => {
                *disk = Ailment::NONE;
                return self.tell_disk(at);
            }
        }
        N::disk_fault(&mut self.disks[at], fault, &mut site.rng);
    }

    /// Puts what the caller does to the world into the trace.
    fn by_hand(&mut self, who: u64, a: u64, b: u64, label: &'static str) {
        self.kernel.trace.labelled(self.kernel.now, Kind::Hand, who, a, b, label);
    }

    pub(super) fn rearm(&mut self, at: usize) {
        self.kernel.sites[at].armed_at = None;
        self.kernel.arm(at);
    }
}

//! Clients of a world: they call, wait, give up, and record what they were told.

use crate::{CallId, Failure, History, MILLISECOND, Node, Rng, SECOND, Step, World};

/// Alarms with this bit belong to [`Clients`]; the others are the caller's.
pub const CLIENT_ALARMS: u64 = 1 << 63;

/// What clients ask, and what the answers mean.
pub trait Workload {
    /// What a call asks: the request of the node, and the operation in the history.
    type Op: Clone;
    /// The result of a call in the history.
    type Ret;
    /// The reply of the node.
    type Reply;

    /// Draws the next call of `client`; `turn` counts its calls from 1.
    fn next_op(&mut self, client: u64, turn: u64, rng: &mut Rng) -> Self::Op;

    /// What the reply says about the call. Replies that come after the client gave up are dropped.
    fn answer(&mut self, client: u64, op: &Self::Op, reply: Self::Reply) -> Answer<Self::Ret>;
}

/// What a reply says about a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<R> {
    /// The call took effect, with this result.
    Ok(R),
    /// The call did not take effect and never will. The client asks the node `redirect` next, or
    /// a random node.
    NotApplied {
        /// The node to ask next.
        redirect: Option<u64>,
    },
    /// The call may have taken effect, or may yet do so.
    Unknown,
}

/// How clients behave, and when a run ends. Times are nanoseconds of virtual time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientsConfig {
    /// How many clients there are. Default: 4. Each has one call under way at a time.
    pub clients: u64,
    /// The least and the greatest time a client waits for an answer. Default: 100 ms to 1 s.
    pub patience_ns: (u64, u64),
    /// The greatest pause between an answer and the next call. Default: 60 ms.
    pub max_pause_ns: u64,
    /// How likely a client asks a random node instead of the one that answered last, in
    /// millionths. Default: 250,000.
    pub stray_ppm: u32,
    /// How soon after the last fault a call has to succeed. Default: 5 s.
    pub max_recovery_ns: u64,
    /// How long the clients go on after the last fault, at least. Default: 1 s.
    pub calm_ns: u64,
    /// How long the clients are silent at the end, so that every node can catch up. Default: 2 s.
    pub rest_ns: u64,
}

impl Default for ClientsConfig {
    fn default() -> Self {
        Self {
            clients: 4,
            patience_ns: (100 * MILLISECOND, SECOND),
            max_pause_ns: 60 * MILLISECOND,
            stray_ppm: 250_000,
            max_recovery_ns: 5 * SECOND,
            calm_ns: SECOND,
            rest_ns: 2 * SECOND,
        }
    }
}

impl ClientsConfig {
    /// The least [`Config::settle_ns`](crate::Config::settle_ns) of a plan under these clients.
    pub fn settle_ns(&self) -> u64 {
        self.max_recovery_ns.max(self.calm_ns).saturating_add(self.rest_ns)
    }
}

#[derive(Debug)]
struct Client {
    target: u64,
    /// Counts calls, so that an alarm of an earlier call is ignored.
    turn: u64,
    /// The call under way, and the number of its request.
    call: Option<(CallId, u64)>,
}

/// Clients in a closed loop: each has one call under way, gives it up when its patience ends
/// (the outcome is then unknown), and calls again after a pause. All calls enter a [`History`], in
/// which a client is a process.
#[derive(Debug)]
pub struct Clients<W: Workload> {
    /// The workload, for figures of its own.
    pub workload: W,
    config: ClientsConfig,
    all: Vec<Client>,
    history: History<W::Op, W::Ret>,
    /// Time from the end of faults to the first success after it.
    recovery_ns: Option<u64>,
    is_stopped: bool,
}

impl<W: Workload> Clients<W> {
    /// Clients that have not called yet.
    pub fn new(workload: W, config: ClientsConfig) -> Self {
        let history = History::new();
        Self { workload, config, all: Vec::new(), history, recovery_ns: None, is_stopped: false }
    }

    /// What was asked and answered so far.
    pub fn history(&self) -> &History<W::Op, W::Ret> {
        &self.history
    }

    /// Time from the end of the plan's faults to the first success after it, in ns.
    pub fn recovery_ns(&self) -> Option<u64> {
        self.recovery_ns
    }

    /// Plays the world to its end: until the clients have gone on for `calm_ns` after the last
    /// fault, have succeeded once, and have rested for `rest_ns`; at most to the end of the plan.
    /// `watch` sees each step before the clients do, and may act on the world.
    ///
    /// # Errors
    /// What `watch` answers; or that no call succeeded within `max_recovery_ns` after the last
    /// fault.
    ///
    /// # Panics
    /// As [`World::step`]; or if the world has no nodes.
    pub fn run<N>(
        &mut self,
        world: &mut World<N>,
        mut watch: impl FnMut(&mut World<N>, &Step<N::Reply>) -> Result<(), Failure>,
    ) -> Result<(), Failure>
    where
        N: Node<Request = W::Op, Reply = W::Reply>,
    {
        self.start(world);
        let (quiet, mut end) = (world.plan().quiet_ns, world.plan().end_ns);
        while let Some(step) = world.step_until(end) {
            watch(world, &step)?;
            if let Some(recovery) = self.recovery_ns {
                let calm = recovery.max(self.config.calm_ns);
                end = end.min(quiet.saturating_add(calm).saturating_add(self.config.rest_ns));
            }
            self.is_stopped |= world.now().saturating_add(self.config.rest_ns) >= end;
            self.handle(world, step);
        }
        match self.recovery_ns {
            Some(recovery) if recovery <= self.config.max_recovery_ns => Ok(()),
            other => {
                let text = format!("liveness: first success {other:?} ns after the last fault");
                Err(world.failure(text))
            }
        }
    }

    /// Starts every client within the first 100 ms; for callers with a loop of their own around
    /// [`World::step`].
    ///
    /// # Panics
    /// If the world has no nodes.
    pub fn start<N>(&mut self, world: &mut World<N>)
    where
        N: Node<Request = W::Op, Reply = W::Reply>,
    {
        let ids: Vec<u64> = world.ids().collect();
        assert!(!ids.is_empty(), "clients need a node to ask");
        for client in 0..self.config.clients {
            let target = ids[client as usize % ids.len()];
            self.all.push(Client { target, turn: 0, call: None });
            let pause = world.rng().below(100 * MILLISECOND);
            world.alarm(pause, alarm_of(client, 0));
        }
    }

    /// No client begins another call.
    pub fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Handles a step of the world; steps that are not about these clients are ignored.
    pub fn handle<N>(&mut self, world: &mut World<N>, step: Step<N::Reply>)
    where
        N: Node<Request = W::Op, Reply = W::Reply>,
    {
        match step {
            Step::Reply { client, request, reply, .. } => {
                self.replied(world, client, request, reply);
            }
            Step::Alarm(alarm) if alarm & CLIENT_ALARMS != 0 => self.alarm(world, alarm),
            _ => {}
        }
    }

    fn replied<N>(&mut self, world: &mut World<N>, client: u64, request: u64, reply: W::Reply)
    where
        N: Node<Request = W::Op, Reply = W::Reply>,
    {
        let now = world.now();
        let pause = world.rng().below(self.config.max_pause_ns.saturating_add(1));
        let Some(state) = self.all.get_mut(client as usize) else { return };
        let Some((call, _)) = state.call.take_if(|(_, waits)| *waits == request) else { return };
        let op = self.history.calls()[call.index()].op.clone();
        match self.workload.answer(client, &op, reply) {
            Answer::Ok(ret) => {
                self.history.ok(call, ret, now);
                if let Some(since) = now.checked_sub(world.plan().quiet_ns) {
                    self.recovery_ns.get_or_insert(since);
                }
            }
            Answer::NotApplied { redirect } => {
                self.history.fail(call, now);
                state.target = redirect.unwrap_or_else(|| another_node(world, state.target));
            }
            Answer::Unknown => {
                self.history.unknown(call, now);
            }
        }
        state.turn += 1;
        world.alarm(pause, alarm_of(client, state.turn));
    }

    /// A pause or the patience of a client is over.
    fn alarm<N>(&mut self, world: &mut World<N>, alarm: u64)
    where
        N: Node<Request = W::Op, Reply = W::Reply>,
    {
        let client = (alarm & !CLIENT_ALARMS) >> 32;
        let Some(state) = self.all.get_mut(client as usize) else { return };
        if alarm != alarm_of(client, state.turn) {
            return;
        }
        if let Some((call, _)) = state.call.take() {
            self.history.unknown(call, world.now());
            state.target = another_node(world, state.target);
        }
        if self.is_stopped {
            return;
        }
        state.turn += 1;
        let op = self.workload.next_op(client, state.turn, world.rng());
        let call = self.history.invoke(client, op.clone(), world.now());
        let is_stray = world.rng().chance(self.config.stray_ppm);
        let target = if is_stray { random_node(world) } else { state.target };
        state.call = Some((call, world.request(client, target, op)));
        let (least, most) = self.config.patience_ns;
        let patience = world.rng().scaled(least, most);
        world.alarm(patience, alarm_of(client, state.turn));
    }
}

fn random_node<N: Node>(world: &mut World<N>) -> u64 {
    let ids: Vec<u64> = world.ids().collect();
    let at = world.rng().below(ids.len() as u64);
    ids[at as usize]
}

/// Who is asked after `last` has not answered, or has sent the client away.
fn another_node<N: Node>(world: &mut World<N>, last: u64) -> u64 {
    let others: Vec<u64> = world.ids().filter(|id| *id != last).collect();
    if others.is_empty() {
        return last;
    }
    let at = world.rng().below(others.len() as u64);
    others[at as usize]
}

fn alarm_of(client: u64, turn: u64) -> u64 {
    CLIENT_ALARMS | (client << 32) | (turn & u64::from(u32::MAX))
}

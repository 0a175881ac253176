//! One seed: a cluster, clients, faults, and the judgement.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use voussoir_sim::{
    CallId, Failure, FaultSet, History, Kv, KvOp, KvRet, MILLISECOND, Profile, Report, Rng, SECOND,
    Step, World, check,
};

use super::disk::Disk;
use super::machine::Reply;
use super::memory::MemoryDisk;
use super::node::RaftNode;
use super::oracle::Oracle;
use crate::config::Config;
use crate::core::Mutant;
use crate::types::Role;

/// How long a client waits at least and at most before it gives up a call.
const PATIENCE_NS: (u64, u64) = (100 * MILLISECOND, SECOND);
/// How soon after the last fault a command has to go through.
const RECOVERY_NS: u64 = 5 * SECOND;
/// How long the clients go on after that, at least.
const CALM_NS: u64 = SECOND;
/// How long a hunted leader is cut off, and left alone, at least and at most.
const HUNT_NS: (u64, u64) = (30 * MILLISECOND, SECOND);
/// The alarm of the hunt. Those of clients have a client's number in their upper half.
const HUNT: u64 = u64::MAX;
/// How long the clients rest at the end, so that every node can catch up.
const REST_NS: u64 = 2 * SECOND;
/// Steps of the linearizability check, per key.
const CHECK_STEPS: u64 = 5_000_000;

/// What [`run`] plays.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How many voters; 0: three or five, by the seed.
    pub voters: u64,
    /// Which classes of faults may occur.
    pub faults: FaultSet,
    /// How likely each of them is to be part of one seed's plan, in millionths.
    pub enable_ppm: u32,
    /// How likely it is that leaders are hunted: cut off with a minority time and again, so that
    /// they write what others overwrite. In millionths.
    pub hunt_ppm: u32,
    /// How long faults go on, ns of virtual time.
    pub faults_ns: u64,
    /// A deliberately broken core.
    pub mutant: Option<Mutant>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            voters: 0,
            faults: FaultSet::ALL,
            enable_ppm: 500_000,
            hunt_ppm: 200_000,
            faults_ns: 8 * SECOND,
            mutant: None,
        }
    }
}

/// Plays `seed` over disks in memory.
///
/// # Errors
/// [`Failure`] with the first property that did not hold.
pub fn run(seed: u64, options: &Options) -> Result<Report, Failure> {
    run_on(seed, options, |_| MemoryDisk::default())
}

/// Plays `seed` over disks of the caller's, made by the id of their node.
///
/// # Errors
/// As [`run`].
pub fn run_on<D: Disk>(
    seed: u64,
    options: &Options,
    mut disk: impl FnMut(u64) -> D,
) -> Result<Report, Failure> {
    let mut rng = Rng::stream(seed, u64::from_le_bytes(*b"the raft"));
    let count = match options.voters {
        0 => 3 + 2 * rng.below(2),
        count => count,
    };
    let voters: Vec<u64> = (1..=count).collect();
    let mut profile = Profile::default();
    profile.faults = options.faults;
    profile.enable_ppm = options.enable_ppm;
    profile.faults_ns = options.faults_ns;
    profile.settle_ns = RECOVERY_NS + REST_NS;
    let plan = profile.plan(seed).map_err(|error| Failure::new(error.to_string()))?;
    let oracle = Rc::new(RefCell::new(Oracle::new(&voters)));
    let config = draw_config(&voters, options, &mut rng);
    let hunts = rng.chance(options.hunt_ppm).then_some(0);
    let judge = Rc::clone(&oracle);
    let mut world = World::<RaftNode<D>>::new(plan, move |boot| {
        let mut config = config.clone();
        (config.id, config.seed) = (boot.id, boot.seed);
        RaftNode::boot(config, boot.disk, boot.seed, boot.now, Rc::clone(&judge))
    });
    for id in &voters {
        world.add_node(*id, disk(*id));
    }
    Run {
        world,
        oracle,
        voters,
        history: History::new(),
        clients: Vec::new(),
        ok_after_quiet: None,
        hunts,
    }
    .play(&mut rng)
}

/// Limits so small that windows slide, batches fill, logs are cut and snapshots sent all the time.
fn draw_config(voters: &[u64], options: &Options, rng: &mut Rng) -> Config {
    let mut config = Config::new(1, voters);
    config.group = 7;
    config.max_append_entries = rng.scaled(1, 64) as usize;
    config.max_append_bytes = rng.scaled(64, 8192);
    config.max_inflight_appends = rng.scaled(1, 64) as usize;
    config.max_inflight_bytes = rng.scaled(256, 1 << 20);
    config.max_window_bytes = rng.scaled(256, 1 << 16);
    config.max_persist_bytes = rng.scaled(128, 1 << 16);
    config.max_uncommitted_bytes = rng.scaled(2048, 1 << 20);
    config.max_persists = rng.scaled(1, 16) as usize;
    config.max_applying = rng.scaled(1, 256);
    config.max_reads = rng.scaled(2, 256) as usize;
    config.snapshot_after_entries = rng.scaled(8, 300);
    config.keep_entries = rng.below(40);
    config.max_snapshots_sending = rng.between(1, 3) as usize;
    config.disk_stall = Duration::from_millis(rng.between(400, 1500));
    config.__mutant = options.mutant;
    config
}

struct Client {
    key: u64,
    target: u64,
    /// The call under way, and the request that carries it.
    call: Option<(CallId, u64)>,
    /// Counts calls, so that an alarm of an earlier one is known as such.
    turn: u64,
    /// The value last written or read, for compare-and-set.
    seen: Option<u64>,
}

struct Run<D: Disk> {
    world: World<RaftNode<D>>,
    oracle: Rc<RefCell<Oracle>>,
    voters: Vec<u64>,
    history: History<KvOp<u64, u64>, KvRet<u64>>,
    clients: Vec<Client>,
    ok_after_quiet: Option<u64>,
    /// How often a leader was cut off, if leaders are hunted. Even: none is cut off now.
    hunts: Option<u64>,
}

impl<D: Disk> Run<D> {
    fn play(mut self, rng: &mut Rng) -> Result<Report, Failure> {
        let (quiet, mut end) = (self.world.plan().quiet_ns, self.world.plan().end_ns);
        let keys = rng.between(2, 4);
        for client in 0..rng.between(2, 6) {
            let target = 1 + client % self.voters.len() as u64;
            let key = client % keys;
            self.clients.push(Client { key, target, call: None, turn: 0, seen: None });
            self.world.alarm(rng.below(100 * MILLISECOND), token(client, 0));
        }
        if self.hunts.is_some() {
            self.world.alarm(HUNT_NS.0, HUNT);
        }
        while let Some(step) = self.world.step_until(end) {
            if let Some(violation) = self.oracle.borrow().violation() {
                return Err(self.world.failure(violation));
            }
            let now = self.world.now();
            match step {
                Step::Reply { client, request, reply, .. } => {
                    self.replied(client, request, reply, now, quiet);
                    if let Some(recovery) = self.ok_after_quiet {
                        end = end.min(quiet + recovery.max(CALM_NS) + REST_NS);
                    }
                }
                Step::Alarm(HUNT) => self.hunt(now < quiet),
                Step::Alarm(alarm) => self.alarm(alarm, now, now < end - REST_NS),
                _ => {}
            }
        }
        self.judge()
    }

    /// Cuts the leader off with as many as are no majority, or ends that.
    fn hunt(&mut self, go_on: bool) {
        let Some(hunts) = &mut self.hunts else { return };
        self.world.heal();
        if !go_on {
            return;
        }
        *hunts += 1;
        if *hunts % 2 == 1 {
            let status = self.world.nodes().map(|(_, node)| node.status());
            let leaders = status.filter(|status| status.role == Role::Leader);
            let leader = leaders.max_by_key(|status| status.term).map_or(1, |status| status.id);
            let mut others = self.voters.clone();
            others.retain(|id| *id != leader);
            self.world.rng().shuffle(&mut others);
            others.truncate(self.voters.len() / 2 - 1);
            others.push(leader);
            self.world.partition(&others);
        }
        let pause = self.world.rng().scaled(HUNT_NS.0, HUNT_NS.1);
        self.world.alarm(pause, HUNT);
    }

    fn alarm(&mut self, alarm: u64, now: u64, go_on: bool) {
        let (client, turn) = (alarm >> 32, alarm & u64::from(u32::MAX));
        let state = &mut self.clients[client as usize];
        if state.turn & u64::from(u32::MAX) != turn {
            return;
        }
        if let Some((call, _)) = state.call.take() {
            // It may still happen, at any time.
            self.history.unknown(call, now);
            state.target = 1 + self.world.rng().below(self.voters.len() as u64);
        }
        if go_on {
            self.call(client, now);
        }
    }

    fn call(&mut self, client: u64, now: u64) {
        let roll = self.world.rng().below(100);
        let anybody = 1 + self.world.rng().below(self.voters.len() as u64);
        let stray = self.world.rng().below(4) == 0;
        let state = &mut self.clients[client as usize];
        state.turn += 1;
        // Values occur once, which makes violations easy to see.
        let value = (client << 32) | state.turn;
        let key = state.key;
        let op = match roll {
            0..45 => KvOp::Get { key },
            45..75 => KvOp::Put { key, value },
            75..95 => KvOp::Cas { key, expect: state.seen, value },
            _ => KvOp::Delete { key },
        };
        let call = self.history.invoke((client << 32) | state.turn, op.clone(), now);
        // Now and then not the leader: whoever believes to lead, or forwards reads, is asked too.
        let target = if stray { anybody } else { state.target };
        let request = self.world.request(client, target, op);
        state.call = Some((call, request));
        let patience = self.world.rng().scaled(PATIENCE_NS.0, PATIENCE_NS.1);
        self.world.alarm(patience, token(client, state.turn));
    }

    fn replied(&mut self, client: u64, request: u64, reply: Reply, now: u64, quiet: u64) {
        let others = self.voters.len() as u64;
        let pause = self.world.rng().below(60 * MILLISECOND);
        let elsewhere = 1 + self.world.rng().below(others);
        let state = &mut self.clients[client as usize];
        let Some((call, _)) = state.call.take_if(|(_, waits)| *waits == request) else { return };
        match reply {
            Reply::Ok(ret) => {
                if let KvRet::Value(value) = ret {
                    state.seen = value;
                }
                self.history.ok(call, ret, now);
                if now >= quiet {
                    self.ok_after_quiet.get_or_insert(now - quiet);
                }
            }
            Reply::NotApplied { leader } => {
                self.history.fail(call, now);
                state.target = leader.unwrap_or(elsewhere);
            }
            Reply::Unknown => {
                self.history.unknown(call, now);
            }
        }
        state.turn += 1;
        self.world.alarm(pause, token(client, state.turn));
    }

    fn judge(self) -> Result<Report, Failure> {
        let recovery = match self.ok_after_quiet {
            Some(recovery) if recovery <= RECOVERY_NS => recovery,
            other => {
                let text = format!("liveness: first success {other:?} ns after the last fault");
                return Err(self.world.failure(text));
            }
        };
        let mut states = self.world.nodes().map(|(_, node)| node.machine());
        let first = states.next();
        let is_ruined = |id: &&u64| self.world.disk(**id).is_some_and(|disk| disk.ruin().is_some());
        let ruined = self.voters.iter().filter(is_ruined).count();
        if self.world.nodes().count() + ruined != self.voters.len() {
            return Err(self.world.failure("liveness: a node is still down"));
        }
        if states.any(|state| Some(state) != first) {
            let all: Vec<_> = self.world.nodes().map(|(_, node)| node.status()).collect();
            return Err(self.world.failure(format!("the nodes did not converge: {all:#?}")));
        }
        if let Err(error) = check(&Kv::new(), &self.history, CHECK_STEPS) {
            return Err(self.world.not_linearizable(&error));
        }
        let (ok, failed, unknown) = self.history.outcomes();
        let oracle = self.oracle.borrow();
        let report = self.world.report();
        let situations = oracle.situations();
        let report = situations.fold(report, |report, (name, count)| report.with(name, count));
        Ok(report
            .with("calls ok", ok)
            .with("calls failed", failed)
            .with("calls unknown", unknown)
            .with("elections", oracle.elections)
            .with("entries", oracle.committed())
            .with("truncations", oracle.truncations)
            .with("leaders hunted", self.hunts.unwrap_or(0).div_ceil(2))
            .with("snapshots installed", oracle.installs)
            .with("damage reported", oracle.damage_reported)
            .with("damage harmless", oracle.damage_harmless)
            .with("lost disks refused", oracle.losses_refused)
            .with("recovery ms", recovery / MILLISECOND))
    }
}

fn token(client: u64, turn: u64) -> u64 {
    (client << 32) | (turn & u64::from(u32::MAX))
}

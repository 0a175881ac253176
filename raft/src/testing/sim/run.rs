//! One seed: a cluster, clients, faults, and the judgement.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use voussoir_journal::testing::SimDisk;
use voussoir_sim::{
    Answer, Clients, ClientsConfig, Config as SimConfig, Failure, FaultClass, FaultSet, Intensity,
    Kv, KvOp, KvRet, MILLISECOND, Plan, Report, Rng, SECOND, Step, Workload, World, check,
};

use super::churn::Churn;
use super::host::{self, Host, INTERVAL, Shelf};
use super::hunt::{HUNT_NS, Hunt};
use super::machine::Reply;
use super::node::RaftNode;
use super::oracle::Oracle;
use super::rot::Rot;
use crate::config::Config;
use crate::membership::Membership;
use crate::types::{Role, Status};

/// The alarm of the hunt.
const HUNT: u64 = 1;
/// The alarm of the changes of the membership.
const CHURN: u64 = 2;
/// The alarm of the questions to a hunted leader.
const ASK: u64 = 3;
/// The alarm of groups that are stopped by themselves.
const STOP: u64 = 4;
/// The alarm of entries that rot.
const ROT: u64 = 5;
/// How long messages take where round trips are long, at least and at most, in ns. Elections start
/// after a silence of 200 ms at least.
const LONG_DELAY_NS: (u64, u64) = (30 * MILLISECOND, 140 * MILLISECOND);
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
    /// Whether the membership changes too: voters, learners and outsiders trade places.
    pub changes: bool,
    /// The bound on the drift of clocks that nodes rely on, in millionths; `None`: no lease reads.
    pub max_clock_drift_ppm: Option<u32>,
    /// Whether the group stands in a process of many, and quiesces while nothing happens.
    pub quiesces: bool,
    /// How far clocks drift at most, in millionths.
    pub skew_ppm: u32,
    /// The least and the greatest time that a message takes without faults, ns.
    pub delay_ns: (u64, u64),
    /// Whether entries rot on the disks of running nodes, one node after the other.
    pub rots: bool,
    /// Whether queues hold next to nothing: one message, write and command at a time, two reads.
    pub is_tight: bool,
    /// How long faults go on, ns of virtual time.
    pub faults_ns: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            voters: 0,
            faults: FaultSet::ALL,
            enable_ppm: 500_000,
            hunt_ppm: 200_000,
            changes: false,
            max_clock_drift_ppm: None,
            quiesces: false,
            skew_ppm: SimConfig::default().skew_ppm,
            delay_ns: SimConfig::default().delay_ns,
            rots: false,
            is_tight: false,
            faults_ns: 8 * SECOND,
        }
    }
}

impl Options {
    /// The defaults, and changes of the membership.
    pub fn changing() -> Self {
        Self { changes: true, ..Self::default() }
    }

    /// The defaults, and groups that quiesce, under clients that pause for longer than that takes.
    pub fn quiescing() -> Self {
        Self { quiesces: true, ..Self::default() }
    }

    /// The defaults, and lease reads, with clocks that drift by as much as nodes rely on. Clocks do
    /// not jump: no lease bears that. Leaders are hunted rather often, so that one leads on while
    /// the others elect the next.
    pub fn leasing(max_clock_drift_ppm: u32) -> Self {
        Self {
            max_clock_drift_ppm: Some(max_clock_drift_ppm),
            skew_ppm: max_clock_drift_ppm,
            faults: FaultSet::ALL.without(FaultClass::ClockJump),
            hunt_ppm: 600_000,
            ..Self::default()
        }
    }

    /// The defaults, and entries that rot: each time the node starts again and is repaired. Disks
    /// are ruined in no other way, so that a majority is always sound.
    pub fn rotting() -> Self {
        let ruins = [FaultClass::BitRot, FaultClass::DiskLoss];
        let faults = ruins.into_iter().fold(FaultSet::ALL, FaultSet::without);
        Self { rots: true, faults, ..Self::default() }
    }

    /// Any of: lease reads, groups that quiesce, round trips that are longer than most elections
    /// wait, tight queues; by the four lowest bits of the seed. In every third seed the membership
    /// changes.
    pub fn together(seed: u64) -> Self {
        let [leases, quiesces, is_long, is_tight] = [0, 1, 2, 3].map(|bit| seed >> bit & 1 == 1);
        let drift = 1000 << (seed / 16 % 9);
        let mut options = if leases { Self::leasing(drift) } else { Self::default() };
        (options.quiesces, options.is_tight) = (quiesces, is_tight);
        options.changes = seed.is_multiple_of(3);
        if is_long {
            options.delay_ns = LONG_DELAY_NS;
        }
        options
    }

    /// Whether messages take so long that a round trip may be longer than an election waits.
    fn is_long(&self) -> bool {
        self.delay_ns.1 >= LONG_DELAY_NS.1
    }
}

/// Plays `seed`.
///
/// # Errors
/// [`Failure`] with the first property that did not hold.
pub fn run(seed: u64, options: &Options) -> Result<Report, Failure> {
    run_on(seed, options, |id| SimDisk::new(seed ^ id.rotate_left(40)))
}

/// Plays `seed` over disks of the caller's, made by the id of their node: with faults of the
/// caller's own.
///
/// # Errors
/// As [`run`].
pub fn run_on(
    seed: u64,
    options: &Options,
    mut disk: impl FnMut(u64) -> SimDisk,
) -> Result<Report, Failure> {
    let mut rng = Rng::stream(seed, u64::from_le_bytes(*b"the raft"));
    let count = match options.voters {
        0 => 3 + 2 * rng.below(2),
        count => count,
    };
    // Of four nodes one disk is ruined at most, of which three voters bear one. Of five it may be
    // two; where none is, any number of voters will do. A node that is repaired does not vote.
    let is_spared = options.changes && rng.chance(500_000) && !options.rots;
    let count = if options.changes { 4 + u64::from(is_spared) } else { count };
    let voters: Vec<u64> = (1..=count).collect();
    let begun = if options.changes { 3 } else { count };
    let clients = draw_clients(options, &mut rng);
    let faults = faults_of(options, is_spared, clients.settle_ns());
    let plan = plan_of(seed, &faults, options)?;
    let oracle = Rc::new(RefCell::new(Oracle::new(&voters, options.changes)));
    let mut config = draw_config(&voters, options, &mut rng);
    let suspect_after = options.quiesces.then(|| draw_rest(&mut config, &mut rng));
    let is_hunted = rng.chance(options.hunt_ppm);
    let watcher = Rc::clone(&oracle);
    let shelf = Shelf::default();
    let shelf_of_world = Rc::clone(&shelf);
    let mut world = World::<RaftNode>::new(plan, move |boot| {
        let mut config = config.clone();
        (config.id, config.seed) = (boot.id, Some(boot.seed));
        config.voters.retain(|id| *id <= begun);
        if boot.id > begun {
            config.voters.clear();
        }
        let stopped = shelf_of_world.borrow_mut().remove(&boot.id);
        let new = |after| Host::new(INTERVAL, after, boot.seed, boot.now);
        let host = suspect_after.map(|after| stopped.unwrap_or_else(|| new(after)));
        RaftNode::boot(config, boot.disk, boot.seed, boot.now, Rc::clone(&watcher), host)
    });
    for id in &voters {
        world.add_node(*id, disk(*id));
    }
    let slow = options.max_clock_drift_ppm.map(|_| drift(&mut world, options.skew_ppm, &mut rng));
    if options.quiesces && !options.faults.is_empty() && rng.chance(500_000) {
        world.alarm(HUNT_NS.0, STOP);
    }
    if is_hunted {
        world.alarm(HUNT_NS.0, HUNT);
    }
    if is_hunted && slow.is_some() {
        world.alarm(HUNT_NS.0, ASK);
    }
    let mut rot = Rot::begin(&mut world, options.rots.then_some(ROT));
    let churn = options.changes.then(|| Churn::new(voters.clone(), if is_spared { 1 } else { 3 }));
    if churn.is_some() {
        world.alarm(HUNT_NS.1, CHURN);
    }
    let mut hunt = Hunt::new(&voters, is_hunted, slow);
    let is_read_mostly = options.max_clock_drift_ppm.is_some();
    let workload = KvWorkload { keys: rng.between(2, 4), is_read_mostly, seen: BTreeMap::new() };
    let mut clients = Clients::new(workload, clients);
    clients.run(&mut world, |world, step| {
        if let Step::Alarm(alarm) = step {
            let pause = match *alarm {
                HUNT => hunt.turn(world),
                ASK => hunt.ask(world),
                STOP => host::stop_alone(world, &shelf),
                ROT => rot.turn(world, &mut oracle.borrow_mut()),
                CHURN => churn.as_ref().and_then(|churn| churn.turn(world)),
                _ => None,
            };
            if let Some(pause) = pause {
                world.alarm(pause, *alarm);
            }
        }
        oracle.borrow().violation().map_or(Ok(()), |text| Err(world.failure(text)))
    })?;
    judge(&world, &clients, &oracle.borrow(), hunt.hunts)
}

/// The faults of `seed`.
fn plan_of(seed: u64, faults: &SimConfig, options: &Options) -> Result<Plan, Failure> {
    let plan = faults.plan(seed).map_err(|error| Failure::new(error.to_string()))?;
    if options.max_clock_drift_ppm.is_none() {
        return Ok(plan);
    }
    // Drifts that are drawn are mostly small, and only great ones are a trial for leases.
    let drift = Intensity::new(0, 0, u64::from(options.skew_ppm));
    Ok(plan.with(FaultClass::ClockSkew, drift))
}

/// Has half of the clocks run as slowly as they may, and the others as fast, which is the hardest
/// trial for leases. Returns the slow ones; a majority is fast.
fn drift(world: &mut World<RaftNode>, skew_ppm: u32, rng: &mut Rng) -> Vec<u64> {
    let mut slow: Vec<u64> = world.ids().collect();
    rng.shuffle(&mut slow);
    let fast = slow.split_off((slow.len() - 1) / 2);
    let skew = skew_ppm.cast_signed();
    for (ids, rate) in [(&slow, -skew), (&fast, skew)] {
        for id in ids {
            world.set_clock_rate(*id, rate);
        }
    }
    slow
}

/// Which faults there may be. Where disks are spared, none is ruined.
fn faults_of(options: &Options, is_spared: bool, settle_ns: u64) -> SimConfig {
    let mut faults = SimConfig::default();
    faults.faults = options.faults;
    if is_spared {
        let ruins = [FaultClass::BitRot, FaultClass::DiskLoss];
        faults.faults = ruins.into_iter().fold(faults.faults, FaultSet::without);
    }
    faults.enable_ppm = options.enable_ppm;
    faults.skew_ppm = options.skew_ppm;
    faults.faults_ns = options.faults_ns;
    faults.delay_ns = options.delay_ns;
    faults.settle_ns = settle_ns;
    faults
}

/// Clients that are busy, or one or two that pause for longer than it takes to come to rest.
fn draw_clients(options: &Options, rng: &mut Rng) -> ClientsConfig {
    let mut clients = ClientsConfig::default();
    clients.clients = rng.between(2, 6);
    if options.quiesces {
        clients.clients = rng.between(1, 2);
        clients.max_pause_ns = rng.scaled(500 * MILLISECOND, 2 * SECOND);
        // So few calls may well all go to nodes whose disks are gone.
        clients.max_recovery_ns = 15 * SECOND;
    }
    if options.is_long() {
        clients.patience_ns = (500 * MILLISECOND, 4 * SECOND);
        clients.max_recovery_ns = 15 * SECOND;
        // Where an entry takes a round trip, so does each that a node is behind.
        clients.rest_ns = if options.is_tight { 20 * SECOND } else { 6 * SECOND };
    }
    clients
}

/// Has the group rest soon. Returns the silence after which a node is suspected, in ns.
fn draw_rest(config: &mut Config, rng: &mut Rng) -> u64 {
    config.quiesce_after = Some(Duration::from_millis(rng.scaled(50, 400)));
    rng.between(3 * INTERVAL, 12 * INTERVAL)
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
    if options.is_tight {
        tighten(&mut config);
    }
    config.dynamic = options.changes;
    config.max_clock_drift_ppm = options.max_clock_drift_ppm;
    config
}

/// Next to no room in any queue.
fn tighten(config: &mut Config) {
    (config.max_inflight_appends, config.max_inflight_bytes) = (1, 1);
    (config.max_append_entries, config.max_append_bytes) = (2, 1);
    (config.max_persists, config.max_persist_bytes) = (1, 1);
    (config.max_applying, config.max_applying_bytes) = (1, 1);
    (config.max_undecided, config.max_uncommitted_bytes) = (2, 256);
    (config.max_reads, config.max_window_bytes) = (2, 1);
}

/// Reads, writes, compare-and-set and deletes; each client has one key, which it may share.
struct KvWorkload {
    keys: u64,
    /// Whether 85 of 100 calls are reads, and not 45.
    is_read_mostly: bool,
    /// The value last read by each client, for compare-and-set.
    seen: BTreeMap<u64, Option<u64>>,
}

impl Workload for KvWorkload {
    type Op = KvOp<u64, u64>;
    type Ret = KvRet<u64>;
    type Reply = Reply;

    fn next_op(&mut self, client: u64, turn: u64, rng: &mut Rng) -> KvOp<u64, u64> {
        // Values occur once, which makes violations easy to see.
        let (key, value) = (client % self.keys, (client << 32) | turn);
        if self.is_read_mostly && rng.chance(727_000) {
            return KvOp::Get { key };
        }
        match rng.below(100) {
            0..45 => KvOp::Get { key },
            45..75 => KvOp::Put { key, value },
            75..95 => {
                let expect = self.seen.get(&client).copied().flatten();
                KvOp::Cas { key, expect, value }
            }
            _ => KvOp::Delete { key },
        }
    }

    fn answer(&mut self, client: u64, _: &KvOp<u64, u64>, reply: Reply) -> Answer<KvRet<u64>> {
        match reply {
            Reply::Ok(ret) => {
                if let KvRet::Value(value) = ret {
                    self.seen.insert(client, value);
                }
                Answer::Ok(ret)
            }
            Reply::NotApplied { leader } => Answer::NotApplied { redirect: leader },
            Reply::Unknown => Answer::Unknown,
        }
    }
}

/// What has to hold at the end.
fn judge(
    world: &World<RaftNode>,
    clients: &Clients<KvWorkload>,
    oracle: &Oracle,
    hunts: Option<u64>,
) -> Result<Report, Failure> {
    // Who is no member at the end has not heard of it all.
    let ended = world.nodes().map(|(_, node)| node).max_by_key(|node| node.status().commit);
    let members = ended.map(|node| node.members().clone()).unwrap_or_default();
    if members.is_joint() {
        return Err(world.failure("liveness: the membership is still joint"));
    }
    let are_members = world.nodes().filter(|(id, _)| members.contains(*id));
    let mut states = are_members.map(|(_, node)| node.machine());
    let first = states.next();
    let is_ruined = |id: &u64| world.disk(*id).is_some_and(|disk| disk.ruin().is_some());
    let ruined = world.ids().filter(is_ruined).count();
    if world.nodes().count() + ruined != world.ids().count() {
        return Err(world.failure("liveness: a node is still down"));
    }
    let is_recovering =
        |id: u64, node: &RaftNode| members.contains(id) && node.status().recovering.is_some();
    if let Some((id, node)) = world.nodes().find(|(id, node)| is_recovering(*id, node)) {
        let status = node.status();
        return Err(world.failure(format!("liveness: node {id} is not repaired: {status:#?}")));
    }
    if states.any(|state| Some(state) != first) {
        let all: Vec<_> = world.nodes().map(|(_, node)| node.status()).collect();
        return Err(world.failure(format!("the nodes did not converge: {all:#?}")));
    }
    check_rest(world, &members)?;
    let history = clients.history();
    if let Err(error) = check(&Kv::new(), history, CHECK_STEPS) {
        return Err(world.not_linearizable(&error));
    }
    let (ok, failed, unknown) = history.outcomes();
    let report = world.report();
    let report = oracle.situations().fold(report, |report, (name, n)| report.with(name, n));
    Ok(report
        .with("calls ok", ok)
        .with("calls failed", failed)
        .with("calls unknown", unknown)
        .with("elections", oracle.elections)
        .with("entries", oracle.committed())
        .with("truncations", oracle.truncations)
        .with("leaders hunted", hunts.unwrap_or(0).div_ceil(2))
        .with("snapshots installed", oracle.installs)
        .with("damage reported", oracle.damage_reported)
        .with("damage harmless", oracle.damage_harmless)
        .with("lost disks refused", oracle.losses_refused)
        .with("recovery ms", clients.recovery_ns().unwrap_or(0) / MILLISECOND))
}

/// Where nothing happens any more, nobody rests on a node that does not lead, and no member is left
/// alone.
fn check_rest(world: &World<RaftNode>, members: &Membership) -> Result<(), Failure> {
    let is_watched = |id: u64, node: &RaftNode| {
        node.host.is_some() && (node.status().is_quiesced || members.contains(id))
    };
    for (id, node) in world.nodes().filter(|(id, node)| is_watched(*id, node)) {
        let status = node.status();
        let leader = status.leader.and_then(|leader| world.node(leader)).map(RaftNode::status);
        let leads = |at: &Status| at.role == Role::Leader && at.term == status.term;
        if !leader.as_ref().is_some_and(leads) {
            let text = format!("liveness: node {id} is without a leader: {status:#?}, {leader:#?}");
            return Err(world.failure(text));
        }
    }
    Ok(())
}

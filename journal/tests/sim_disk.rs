//! Journals in a world of `voussoir-sim`: what was acknowledged survives all that the world does to
//! a disk, or its loss is reported.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds are played, `VOUSSOIR_SEED` plays one.
#![cfg(feature = "testing")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_journal::testing::{Ruin, SimDisk};
use voussoir_journal::{
    Commit, Config, Durability, Health, Journal, Log, OpenError, ReadError, Work,
};
use voussoir_sim::{
    Answer, Clients, ClientsConfig, Config as WorldConfig, Context, Crash, DiskFault, Failure,
    Node, Report, RequestId, Rng, Runner, SECOND, Situations, Workload, World,
};

/// The requests that have ended, and with which result.
type Ended = Arc<Mutex<Vec<(RequestId, Option<usize>)>>>;

const COMMAND: &str = "cargo test -p voussoir-journal --features testing --test sim_disk";

static SITUATIONS: [&str; 6] = [
    "records that were not acknowledged are gone",
    "records that were not acknowledged are there",
    "damage is reported",
    "a flipped bit does no harm",
    "a lost disk is empty",
    "the disk does not work",
];

/// The records of one node, in the order in which they were submitted.
#[derive(Default)]
struct Known {
    submitted: Vec<u64>,
    /// Invariant: at most as many as were submitted.
    acknowledged: usize,
}

/// Judges what nodes find on their disks.
#[derive(Default)]
struct Oracle {
    nodes: BTreeMap<u64, Known>,
    reached: BTreeMap<&'static str, u64>,
    violation: Option<String>,
}

impl Oracle {
    /// `None`: the node does not start.
    fn open(&mut self, id: u64, disk: &mut SimDisk) -> Option<(Journal, Log)> {
        let mut config = Config::manual();
        (config.segment_bytes, config.max_bytes) = (64 << 10, 256 << 20);
        config.identity = Some(id.into());
        let opened = disk.open(config).map(|journal| {
            let log = journal.log("records", 1).unwrap();
            (journal, log)
        });
        let found = match &opened {
            Err(OpenError::Io(_)) => return self.out("the disk does not work"),
            Err(error) => Err(error.to_string()),
            Ok((_, log)) if log.health() != Health::Intact => Err(format!("{:?}", log.health())),
            Ok((_, log)) => match log.read_range(0..log.end(), usize::MAX) {
                Err(ReadError::Io(_)) => return self.out("the disk does not work"),
                Ok(read) if read.len() as u64 == log.end() => Ok(read),
                read => Err(format!("{} records: {:?}", log.end(), read.map(|read| read.len()))),
            },
        };
        match (found, disk.ruin()) {
            (Ok(found), Some(Ruin::Lost)) if found.is_empty() => self.out("a lost disk is empty"),
            (Err(_), Some(Ruin::Rotten)) => self.out("damage is reported"),
            (Ok(found), ruin @ (None | Some(Ruin::Rotten))) => {
                self.compare(id, &found);
                if ruin.is_some() {
                    *self.reached.entry("a flipped bit does no harm").or_default() += 1;
                    disk.absolve();
                }
                disk.set_used();
                opened.ok()
            }
            (found, ruin) => {
                let found = found.map(|found| found.len());
                self.violation = Some(format!("node {id} finds {found:?}, its disk is {ruin:?}"));
                None
            }
        }
    }

    fn out<T>(&mut self, situation: &'static str) -> Option<T> {
        *self.reached.entry(situation).or_default() += 1;
        None
    }

    /// All acknowledged records are there, and no others but some that were submitted.
    fn compare(&mut self, id: u64, found: &[Bytes]) {
        let known = self.nodes.entry(id).or_default();
        let number =
            |record: &Bytes| record.first_chunk().map(|number| u64::from_le_bytes(*number));
        let found: Vec<u64> = found.iter().filter_map(number).collect();
        let (acknowledged, rest) = known.submitted.split_at(known.acknowledged);
        let mut rest = rest.iter();
        let begins = found.starts_with(acknowledged);
        let others = found.get(acknowledged.len()..).unwrap_or_default();
        if !begins || !others.iter().all(|number| rest.any(|submitted| submitted == number)) {
            self.violation = Some(format!(
                "node {id} has {} records, {} of {} submitted ones were acknowledged",
                found.len(),
                known.acknowledged,
                known.submitted.len()
            ));
        }
        let (is_gone, is_there) = (found.len() < known.submitted.len(), !others.is_empty());
        // What was found has been synced before the journal opened.
        *known = Known { acknowledged: found.len(), submitted: found };
        *self.reached.entry(SITUATIONS[0]).or_default() += u64::from(is_gone);
        *self.reached.entry(SITUATIONS[1]).or_default() += u64::from(is_there);
    }
}

/// Appends what clients ask for, and answers once it is durable.
struct Recorder {
    journal: Journal,
    log: Log,
    oracle: Rc<RefCell<Oracle>>,
    /// Commits that have ended, each with the number of records up to it, or failed.
    ended: Ended,
    works: bool,
}

impl Node for Recorder {
    type Disk = SimDisk;
    type Event = ();
    type Request = u64;
    type Reply = bool;

    fn start(&mut self, _: &mut Context<'_, Self>) {}
    fn timer(&mut self, _: &mut Context<'_, Self>) {}
    fn message(&mut self, _: &mut Context<'_, Self>, _: u64, _: Bytes) {}

    fn request(&mut self, ctx: &mut Context<'_, Self>, id: RequestId, request: u64) {
        let ended = Arc::clone(&self.ended);
        let record = [&request.to_le_bytes()[..], &[0; 400]].concat();
        let commit = Commit::new().append(&self.log, [record]);
        let submitted = self.journal.submit(commit, move |outcome| {
            let end = outcome.ok().and_then(|receipt| Some(receipt.positions().first()?.end));
            ended.lock().push((id, end.map(|end| end as usize)));
        });
        if submitted.is_err() {
            return ctx.reply(id, false);
        }
        let mut oracle = self.oracle.borrow_mut();
        oracle.nodes.entry(ctx.id()).or_default().submitted.push(request);
        if !std::mem::replace(&mut self.works, true) {
            let delay = ctx.disk_delay();
            ctx.schedule(delay, ());
        }
    }

    fn event(&mut self, ctx: &mut Context<'_, Self>, (): ()) {
        self.works = false;
        while self.journal.work(ctx.now()) != Work::Idle {}
        for (id, end) in std::mem::take(&mut *self.ended.lock()) {
            let Some(end) = end else { return ctx.exit() };
            let mut oracle = self.oracle.borrow_mut();
            let known = oracle.nodes.entry(ctx.id()).or_default();
            known.acknowledged = known.acknowledged.max(end);
            ctx.reply(id, true);
        }
    }

    fn crash(self, disk: &mut SimDisk, kind: Crash, _: &mut Rng) {
        disk.crash(kind, self);
    }

    fn disk_fault(disk: &mut SimDisk, fault: DiskFault, rng: &mut Rng) {
        disk.fault(fault, rng);
    }
}

/// Each call asks for a record of its own.
struct Records;

impl Workload for Records {
    type Op = u64;
    type Ret = ();
    type Reply = bool;

    fn next_op(&mut self, client: u64, turn: u64, _: &mut Rng) -> u64 {
        client << 32 | turn
    }

    fn answer(&mut self, _: u64, _: &u64, reply: bool) -> Answer<()> {
        if reply { Answer::Ok(()) } else { Answer::NotApplied { redirect: None } }
    }
}

fn play(seed: u64) -> Result<Report, Failure> {
    let mut clients = ClientsConfig::default();
    clients.max_pause_ns /= 20;
    let mut config = WorldConfig::default();
    (config.faults_ns, config.settle_ns) = (8 * SECOND, clients.settle_ns());
    let oracle = Rc::new(RefCell::new(Oracle::default()));
    let judge = Rc::clone(&oracle);
    let mut world = World::new(config.plan(seed).unwrap(), move |boot| {
        let (journal, log) = judge.borrow_mut().open(boot.id, boot.disk)?;
        let oracle = Rc::clone(&judge);
        Some(Recorder { journal, log, oracle, ended: Arc::default(), works: false })
    });
    for id in 1..=3 {
        world.add_node(id, SimDisk::new(seed ^ id.rotate_left(40)));
    }
    Clients::new(Records, clients).run(&mut world, |world, _| {
        oracle.borrow().violation.as_ref().map_or(Ok(()), |text| Err(world.failure(text.clone())))
    })?;
    let reached = oracle.borrow().reached.clone();
    Ok(reached.into_iter().fold(world.report(), |report, (name, n)| report.with(name, n)))
}

#[test]
fn what_was_acknowledged_survives_or_its_loss_is_reported() {
    let runner = Runner::new(format!("{COMMAND} what_was")).seeds(100);
    let summary = runner.run(play).unwrap();
    println!("{summary}");
    if std::env::var_os("VOUSSOIR_SEED").is_none() {
        let situations = Situations::new(&SITUATIONS);
        for name in SITUATIONS {
            situations.add(name, summary.figure(name));
        }
        situations.assert_all_reached();
    }
}

/// What a process had written and not synced, and what it had not even written, when it dies.
#[test]
fn a_power_loss_takes_what_was_not_synced_and_a_dying_process_writes_nothing() {
    let (mut lost, mut kept) = (0, 0);
    for (seed, kind) in (0..40).flat_map(|seed| [(seed, Crash::Power), (seed, Crash::Process)]) {
        let mut disk = SimDisk::new(seed);
        let journal = disk.open(Config::manual()).unwrap();
        let log = journal.log("records", 1).unwrap();
        journal.commit_blocking(Commit::new().append(&log, ["synced"])).unwrap();
        let written = Commit::new().append(&log, ["written"]).durability(Durability::Written);
        journal.commit_blocking(written).unwrap();
        journal.submit(Commit::new().append(&log, ["submitted"]), |_| ()).unwrap();
        disk.crash(kind, (journal, log));
        let end = disk.open(Config::manual()).unwrap().log("records", 1).unwrap().end();
        match (kind, end) {
            (Crash::Power, 1) => lost += 1,
            (_, 2) => kept += u64::from(kind == Crash::Power),
            _ => panic!("seed {seed}, {kind:?}: {end} records"),
        }
    }
    assert!(lost > 0 && kept > 0, "{lost} lost, {kept} kept");
}

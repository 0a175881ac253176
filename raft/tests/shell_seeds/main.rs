//! The whole node under seeds: the real driver, applier, mailbox and stores on paused tokio time,
//! with networks, disks, machines, clocks and callers that misbehave.
//!
//! What is checked: no task panics; no node stops by itself; every read is linearizable and ends
//! by its deadline; every call ends; nothing that was acknowledged is lost; what a dropped future
//! held comes back; a node keeps no more bytes alive than its limits allow; and when the faults
//! end, every node catches up.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds are played, `VOUSSOIR_SEED` plays one with a longer trace.

mod clients;
mod disk;
mod draw;
mod gate;
mod held;
mod judge;
mod machine;
mod notes;
mod trouble;
mod wire;
mod world;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use voussoir_sim::{Failure, Report, Rng, Runner, Situations};

use self::draw::Setup;
use self::notes::{Notes, collecting_panics, thread_name};
use self::trouble::Troubles;
use self::world::World;

const COMMAND: &str = "cargo test -p voussoir-raft --all-features --test shell_seeds";

/// What has to happen in some of the seeds, or they prove nothing about it.
static SITUATIONS: [&str; 47] = [
    "single voter",
    "group of two",
    "group of four",
    "leader reads back entries for a follower behind its window",
    "probe below the leader's window",
    "entries for a follower released before they were read",
    "machine behind the window: entries read back",
    "entries for the machine released before they were read",
    "machine behind by more bytes than the window holds",
    "entries truncated",
    "snapshot of a peer installed",
    "snapshot installed while a read waits",
    "snapshot installed while a confirmed read waits for the machine",
    "chunk of a snapshot sent again",
    "transfer of a snapshot resumed",
    "read of a follower confirmed",
    "read waits for a leader and is answered",
    "read dropped while it waits",
    "read dropped between confirmation and answer",
    "reads dropped at the limit, and the next one gets in",
    "proposal dropped while it waits",
    "vote asked for while an own write is under way",
    "power lost with writes under way",
    "all nodes down at once",
    "restart on an empty disk refused",
    "node stopped by its failed disk and replaced",
    "disk hangs on the leader",
    "disk hangs on a follower",
    "single voter with a slow disk",
    "single voter with a hung disk",
    "leader cut off",
    "leader cut off in one direction",
    "message dropped at a full inbox",
    "clock jumps",
    "leadership moves",
    "node asked to campaign leads",
    "messages of strangers refused",
    "clocks that drift apart by more than a hundredth",
    "node rebuilt on the disk that it had lost",
    "no leases",
    "no leases, small inbox",
    "no leases, long round trips",
    "no leases, small inbox, long round trips",
    "leases",
    "leases, small inbox",
    "leases, long round trips",
    "leases, small inbox, long round trips",
];

/// How long virtual time may stand still, in real time, before a node is taken to loop without an
/// end. Long, for a busy machine.
const STANDSTILL: Duration = Duration::from_secs(20);

/// Plays one seed.
fn run(seed: u64, situations: &Situations) -> Result<Report, Failure> {
    let setup = Setup::draw(seed);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).thread_name(thread_name(seed));
    let runtime = runtime.max_blocking_threads(1).build().map_err(|e| e.to_string())?;
    let notes = runtime.block_on(async { Arc::new(Notes::new()) });
    let world = World::new(setup.clone(), Arc::clone(&notes));
    let watchdog = Watchdog::start(&world);
    let (verdict, panics) =
        collecting_panics(seed, || runtime.block_on(play(Arc::clone(&world), situations)));
    drop(runtime);
    if watchdog.end() {
        return Err(format!("a node loops without letting time pass\n{setup}").into());
    }
    let verdict = match panics.first() {
        Some(panic) => Err(format!("a task panicked: {panic}")),
        None => verdict,
    };
    let (hash, events) = notes.hash();
    match verdict {
        Ok(virtual_ns) => {
            let mut report = Report::of(seed);
            (report.trace_hash, report.events, report.virtual_ns) = (hash, events, virtual_ns);
            Ok(report)
        }
        Err(text) => Err(format!(
            "{text}\n{setup}\ntrace hash {hash:016x} after {events} events; its last lines:\n{}",
            notes.trace()
        )
        .into()),
    }
}

/// A thread that stops the nodes of a run whose virtual time stands still.
struct Watchdog {
    over: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watchdog {
    fn start(world: &Arc<World>) -> Self {
        let (over, running) = channel::<()>();
        let world = Arc::clone(world);
        let watch = move || {
            let mut last = 0;
            while running.recv_timeout(STANDSTILL) == Err(RecvTimeoutError::Timeout) {
                let now = world.notes.last();
                if now == last {
                    world.stop_all();
                    return true;
                }
                last = now;
            }
            false
        };
        Self { over, thread: std::thread::spawn(watch) }
    }

    /// Whether it had to stop the nodes.
    fn end(self) -> bool {
        drop(self.over);
        self.thread.join().unwrap_or(true)
    }
}

async fn play(world: Arc<World>, situations: &Situations) -> Result<u64, String> {
    let notes = Arc::clone(&world.notes);
    match world.setup.voters.len() {
        1 => notes.reached("single voter"),
        2 => notes.reached("group of two"),
        4 => notes.reached("group of four"),
        _ => {}
    }
    let drifts = world.setup.drift_ppm.iter();
    let apart = drifts.clone().max().zip(drifts.min()).map_or(0, |(fast, slow)| fast - slow);
    if apart > 10_000 {
        notes.reached("clocks that drift apart by more than a hundredth");
    }
    tokio::spawn(Arc::clone(&world.wire).run());
    for id in world.setup.voters.clone() {
        world.start(id).await;
    }
    let client = |id| {
        let rng = Rng::stream(world.setup.seed, 0xc11e_0000 + id);
        tokio::spawn(clients::client(Arc::clone(&world), id, rng))
    };
    let clients = (0..world.setup.clients).map(client).collect();
    let mut troubles = Troubles::new(&world);
    troubles.go().await;
    troubles.end().await;
    let verdict = match notes.violation() {
        Some(violation) => Err(violation),
        None => judge::judge(&world, clients).await,
    };
    if verdict.is_ok() {
        world.note_features();
    }
    for (name, count) in SITUATIONS.iter().zip(notes.counts()) {
        situations.add(name, count);
    }
    verdict.map(|()| notes.now())
}

#[test]
fn the_shell_keeps_its_promises() {
    let situations = Situations::new(&SITUATIONS);
    let runner = Runner::new(format!("{COMMAND} the_shell")).seeds(1500).twice(5);
    let summary = runner.run(|seed| run(seed, &situations)).unwrap();
    println!("{summary}");
    if std::env::var_os("VOUSSOIR_SEED").is_some() {
        println!("{situations}");
    } else {
        situations.assert_all_reached();
    }
}

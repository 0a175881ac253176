//! Histories of real processes: three nodes over TCP with journals, and clients that lock, write to
//! a resource that checks tokens, and release. Nodes and clients are killed without warning, and
//! paused for longer than a session lives. What every client saw is checked at the end.
//!
//! `VOUSSOIR_LOCK_OPERATIONS=100000 VOUSSOIR_LOCK_FAULTS=10` is the long form: so many operations,
//! and so many kills and so many pauses.
//!
//! A process is this test binary, told by its environment to be a node or a client.

mod check;
mod client;
mod node;
mod processes;
mod resource;

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use voussoir_lock::{BootClock, Clock};
use voussoir_sim::{Rng, Situations};

use check::History;
use processes::{Kind, Processes};
use resource::Resource;

const NODES: [u64; 3] = [1, 2, 3];
const CLIENTS: usize = 4;
const LOCKS: u64 = 16;
const LOCK_SERVICE: u16 = 2;
/// Time to live of the sessions.
const TTL: Duration = Duration::from_secs(2);
/// How long a process is paused: a session has ended by then, and a leader was followed.
const PAUSE: Duration = Duration::from_secs(3);
/// How long it may take until enough operations are done.
const PATIENCE: Duration = Duration::from_secs(1_200);

fn name_of(lock: u64) -> String {
    format!("lock-{lock}")
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// The first six are reached in every run.
static SITUATIONS: [&str; 8] = [
    "node killed",
    "node paused",
    "client killed",
    "client paused",
    "session lost",
    "late write refused",
    "lock not free in time",
    "operation unknown",
];

#[test]
fn histories_of_killed_and_paused_processes_are_correct() {
    let operations = number("VOUSSOIR_LOCK_OPERATIONS", 600);
    let faults = number("VOUSSOIR_LOCK_FAULTS", 2);
    let situations = Situations::new(&SITUATIONS);
    let (resource, mut processes) = (Resource::serve(), Processes::new());
    for id in NODES {
        processes.start_node(id);
    }
    for client in 0..CLIENTS {
        processes.start_client(client, resource.address());
    }
    let mut rng = Rng::new(operations);
    let began = Instant::now();
    let wait_for = |processes: &mut Processes, wanted: u64| {
        // Ends: the clients have done so much, or are too slow.
        while processes.operations() < wanted {
            processes.no_crash();
            assert!(began.elapsed() < PATIENCE, "{} operations", processes.operations());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    // Faults are spread over the operations: of 2 × `faults` parts one follows each.
    for fault in 0..2 * faults {
        wait_for(&mut processes, operations * (fault + 1) / (2 * faults + 1));
        let kind = if fault / 2 % 2 == 0 { Kind::Client } else { Kind::Node };
        let at = rng.below(if kind == Kind::Node { NODES.len() } else { CLIENTS } as u64) as usize;
        if fault % 2 == 0 {
            match kind {
                Kind::Node => {
                    processes.pause(kind, at);
                    std::thread::sleep(PAUSE);
                }
                Kind::Client => pause_a_holder(&mut processes, &resource, at),
            }
            let refused = resource.refused();
            processes.resume(kind, at);
            if kind == Kind::Client {
                // Before the next fault, which may kill it.
                resource.wait_for_a_refusal_after(refused);
            }
            situations.reached(if kind == Kind::Node { "node paused" } else { "client paused" });
        } else {
            processes.kill(kind, at);
            std::thread::sleep(Duration::from_millis(rng.below(1_000)));
            match kind {
                Kind::Node => processes.start_node(NODES[at]),
                Kind::Client => processes.start_client(at, resource.address()),
            }
            situations.reached(if kind == Kind::Node { "node killed" } else { "client killed" });
        }
    }
    wait_for(&mut processes, operations);
    let took = began.elapsed();
    processes.end_clients();
    let last = client::every_lock_is_granted(&processes);
    let history = History::read(&processes.histories());
    println!("{history} in {took:.1?}; {resource}");
    for (situation, times) in history.situations() {
        situations.add(situation, times);
    }
    situations.add("late write refused", resource.refused());
    let tokens = history.check().unwrap_or_else(|error| panic!("{error}"));
    assert!(tokens < last, "token {last} was granted after {tokens}");
    assert!(history.unknown() * 20 <= history.operations(), "more than 5 % are unknown: {history}");
    assert!(history.operations() >= operations, "{history}");
    resource.check();
    if faults >= 10 {
        situations.assert_all_reached();
    } else {
        let (missed, always) = (situations.missed(), &SITUATIONS[..6]);
        assert!(always.iter().all(|name| !missed.contains(name)), "{situations}");
    }
}

/// Pauses a client that holds a lock, and writes when it goes on, until the next one has the lock.
fn pause_a_holder(processes: &mut Processes, resource: &Resource, at: usize) {
    let held = resource.hold(processes.number(at));
    processes.pause(Kind::Client, at);
    resource.let_go();
    std::thread::sleep(PAUSE);
    resource.wait_for_a_token_after(held);
}

/// The process of a node or of a client: runs until it is killed or told to end.
#[test]
fn a_process_when_the_environment_says_so() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match std::env::var(processes::ROLE).as_deref() {
        Ok("node") => runtime().expect("a runtime").block_on(node::run()),
        Ok("client") => runtime().expect("a runtime").block_on(client::run()),
        _ => {}
    }
}

/// Where a client writes what it sees: a line in one write for each event, so that what precedes a
/// kill is kept. Times are in ns of a clock that all processes share.
#[derive(Debug)]
struct Recorder {
    file: File,
}

impl Recorder {
    fn record(&self, event: std::fmt::Arguments<'_>) {
        let line = format!("{event} {}\n", BootClock.now());
        (&self.file).write_all(line.as_bytes()).expect("the history is written");
    }
}

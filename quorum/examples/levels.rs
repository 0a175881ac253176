//! What R and W cost and guarantee, measured in virtual time: three replicas, one writer, two
//! readers, messages of 0.1 to 1 ms and now and then 20 ms, and answers of the disk after 0.2 ms.
//! `cargo run -p voussoir-quorum --example levels`

use std::collections::BTreeMap;
use std::time::Duration;

use voussoir_quorum::Bytes;
use voussoir_quorum::table::*;
use voussoir_quorum::version::{Actor, DotSource, VersionVector};

const US: u64 = 1_000;
const OPERATIONS: usize = 4_000;

enum Event {
    Request { client: usize, call: u64, to: u64, request: Request },
    Synced { replica: u64, id: u64 },
    Answer { client: usize, call: u64, reply: Reply },
    Begin { client: usize },
}

struct Run {
    rng: fastrand::Rng,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    replicas: Vec<Replica>,
    /// The writer, and two readers.
    clients: Vec<Coordinator>,
    /// When the operation of each client began, and what was acknowledged by then.
    began: Vec<(u64, VersionVector)>,
    acknowledged: VersionVector,
    read_ns: Vec<u64>,
    write_ns: Vec<u64>,
    stale: usize,
}

impl Run {
    fn new(read: Level, write: Level) -> Self {
        let mut config = TableConfig::with_replicas([0, 1, 2]);
        (config.read, config.write) = (read, write);
        (config.read_repair, config.require) = (ReadRepair::Off, Guarantee::Eventual);
        config.hedge_after = Duration::from_secs(1);
        let replica =
            |node| Replica::recover(DotSource::recover(Actor::new(node, 1), 0, []), [], true);
        let client = |_| Coordinator::new(config.clone()).expect("it is valid");
        let mut run = Self {
            rng: fastrand::Rng::with_seed(7),
            now: 0,
            events: BTreeMap::new(),
            next_event: 0,
            replicas: (0..3).map(replica).collect(),
            clients: (0..3).map(client).collect(),
            began: vec![(0, VersionVector::new()); 3],
            acknowledged: VersionVector::new(),
            read_ns: Vec::new(),
            write_ns: Vec::new(),
            stale: 0,
        };
        (0..3).for_each(|client| run.schedule(client as u64, Event::Begin { client }));
        run
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + delay, self.next_event), event);
    }

    fn delay(&mut self) -> u64 {
        let is_slow = self.rng.u32(..100) < 2;
        if is_slow {
            self.rng.u64(5_000 * US..20_000 * US)
        } else {
            self.rng.u64(100 * US..1_000 * US)
        }
    }

    fn run(&mut self) {
        while self.read_ns.len() < OPERATIONS {
            let Some(((at, _), event)) = self.events.pop_first() else { return };
            self.now = at;
            match event {
                Event::Begin { client } => self.begin(client),
                Event::Request { client, call, to, request } => {
                    let id = call * 4 + client as u64;
                    self.replicas[to as usize].request(id, request).expect("few requests wait");
                    self.drain(to);
                }
                Event::Synced { replica, id } => {
                    self.replicas[replica as usize].step(ReplicaInput::Persisted { id });
                    self.drain(replica);
                }
                Event::Answer { client, call, reply } => {
                    self.clients[client].step(at, CoordinatorInput::Reply { call, reply });
                    self.pump(client);
                }
            }
        }
    }

    fn begin(&mut self, client: usize) {
        self.began[client] = (self.now, self.acknowledged.clone());
        let (now, key, coordinator) =
            (self.now, Bytes::from_static(b"k"), &mut self.clients[client]);
        let begun = if client == 0 {
            coordinator.put(now, key, self.acknowledged.clone(), Bytes::from_static(b"v"))
        } else {
            coordinator.get(now, key, VersionVector::new())
        };
        begun.expect("a client has one operation at a time");
        self.pump(client);
    }

    fn drain(&mut self, replica: u64) {
        while let Some(output) = self.replicas[replica as usize].poll_output() {
            match output {
                ReplicaOutput::Persist { id, .. } => {
                    self.schedule(200 * US, Event::Synced { replica, id });
                }
                ReplicaOutput::Reply { id, reply } => {
                    let (client, call) = ((id % 4) as usize, id / 4);
                    let delay = self.delay();
                    self.schedule(delay, Event::Answer { client, call, reply });
                }
                _ => {}
            }
        }
    }

    fn pump(&mut self, client: usize) {
        while let Some(output) = self.clients[client].poll_output() {
            match output {
                CoordinatorOutput::Call { id: call, to, request } => {
                    let delay = self.delay();
                    self.schedule(delay, Event::Request { client, call, to, request });
                }
                CoordinatorOutput::Done { result, .. } => {
                    self.done(client, &result.expect("no message is lost"));
                    let pause = self.rng.u64(..2_000 * US);
                    self.schedule(pause, Event::Begin { client });
                }
                _ => {}
            }
        }
    }

    fn done(&mut self, client: usize, value: &Value) {
        let (began, acknowledged) = &self.began[client];
        if client == 0 {
            self.write_ns.push(self.now - began);
            self.acknowledged.merge(value.context());
        } else {
            self.read_ns.push(self.now - began);
            self.stale += usize::from(!value.context().covers(acknowledged));
        }
    }
}

fn percentile(times: &mut [u64], share: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e6
}

fn main() {
    println!(
        "N = 3, {OPERATIONS} reads; a stale read misses a write that was acknowledged before."
    );
    println!(
        "{:>2} {:>2}  {:<12} {:>12} {:>12} {:>12} {:>12} {:>9}",
        "W",
        "R",
        "guarantee",
        "write p50 ms",
        "write p99 ms",
        "read p50 ms",
        "read p99 ms",
        "stale %"
    );
    let levels = [(1, Level::One), (2, Level::Two), (3, Level::All)];
    for (w, write) in levels {
        for (r, read) in levels {
            let mut run = Run::new(read, write);
            run.run();
            let guarantee = format!("{:?}", run.clients[0].config().guarantee());
            let stale = run.stale as f64 * 100.0 / run.read_ns.len() as f64;
            println!(
                "{w:>2} {r:>2}  {guarantee:<12} {:>12.2} {:>12.2} {:>12.2} {:>12.2} {stale:>9.2}",
                percentile(&mut run.write_ns, 0.5),
                percentile(&mut run.write_ns, 0.99),
                percentile(&mut run.read_ns, 0.5),
                percentile(&mut run.read_ns, 0.99),
            );
            assert!(w + r <= 3 || run.stale == 0, "R + W > N and a stale read");
        }
    }
    println!("R + W > N: no stale read. W = 1 or R = 1 is fast until a replica is slow.");
}

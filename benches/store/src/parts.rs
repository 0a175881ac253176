//! The rows.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use crate::Error;
use crate::clients::Clients;
use crate::etcd::Etcd;
use crate::ours::Ours;
use crate::report::{Figure, Report};

/// Rounds of each subject, in turn.
const ROUNDS: usize = 5;
const PERIOD: Duration = Duration::from_secs(2);
/// Of the floor in a round.
const SYNCS: usize = 500;
const BLOCK: usize = 4096;

/// Of each round, in us: the wall time of a put of all clients together, its latency, and the
/// processor time of the three nodes for it.
#[derive(Default)]
struct Measured {
    times: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
}

impl Measured {
    /// One round.
    fn add(
        &mut self,
        clients: &mut Clients,
        cpu: impl Fn() -> Result<Duration, Error>,
    ) -> Result<(), Error> {
        let (before, begun) = (cpu()?, Instant::now());
        let done = clients.run(PERIOD)?;
        self.times.push(begun.elapsed().as_secs_f64() * 1e6 / done.count as f64);
        self.cpu.push((cpu()? - before).as_secs_f64() * 1e6 / done.count as f64);
        self.p50.push(done.p50);
        self.p99.push(done.p99);
        Ok(())
    }
}

pub async fn puts(report: &mut Report) -> Result<(), Error> {
    let (ours, etcd) = (Ours::start()?, Etcd::start()?);
    let (leader, other) = (ours.leader().await?, etcd.leader().await?);
    let mut first = 0;
    for (processes, each) in [(1, 1), (4, 16), (4, 64)] {
        let mut clients = Clients::start("ours", first, processes, each, leader)?;
        let mut rivals = Clients::start("etcd", first, processes, each, other)?;
        first += processes * each;
        let (mut own, mut theirs) = (Measured::default(), Measured::default());
        for _ in 0..ROUNDS {
            own.add(&mut clients, || ours.cpu())?;
            theirs.add(&mut rivals, || Ok(etcd.cpu()?.into_iter().sum()))?;
        }
        let count = processes * each;
        let bar = if count == 1 { "" } else { " (bar 5x)" };
        let mut row = |name: &str, own, theirs| {
            report.beside(name, Figure::from(own), "etcd put", Figure::from(theirs), "us");
        };
        row(&format!("put, {count} clients{bar}"), own.times, theirs.times);
        row("- p50", own.p50, theirs.p50);
        row("- p99 (bar 2.9x)", own.p99, theirs.p99);
        row("- CPU of the three nodes (bar 5x)", own.cpu, theirs.cpu);
    }
    Ok(())
}

/// A round trip of 128 bytes over loopback and a sync of 4 KiB, one after the other on one thread,
/// in turn with one client. A put has a round trip more, from the leader to a follower.
pub async fn floor(report: &mut Report) -> Result<(), Error> {
    let ours = Ours::start()?;
    let mut client = Clients::start("ours", 0, 1, 1, ours.leader().await?)?;
    let folder = tempfile::tempdir()?;
    let file = File::create(folder.path().join("floor"))?;
    file.write_all_at(&vec![0; SYNCS * BLOCK], 0)?;
    file.sync_all()?;
    let mut stream = echo()?;
    let (mut floors, mut own) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut times = Vec::new();
        for at in 0..SYNCS {
            let begun = Instant::now();
            let mut bytes = [0; 128];
            stream.write_all(&bytes)?;
            stream.read_exact(&mut bytes)?;
            file.write_all_at(&[at as u8; BLOCK], (at * BLOCK) as u64)?;
            file.sync_data()?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        floors.push(times[times.len() / 2]);
        own.push(client.run(PERIOD)?.p50);
    }
    report.beside(
        "put, one client, p50 (bar 0.625x)",
        Figure::from(own),
        "floor",
        Figure::from(floors),
        "us",
    );
    Ok(())
}

/// A connection that is answered by what it sends.
fn echo() -> Result<TcpStream, Error> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (mut other, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    other.set_nodelay(true)?;
    std::thread::spawn(move || {
        let mut bytes = [0; 128];
        // Ends: the connection does.
        while other.read_exact(&mut bytes).and_then(|()| other.write_all(&bytes)).is_ok() {}
    });
    Ok(stream)
}

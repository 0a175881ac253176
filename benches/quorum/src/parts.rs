//! The rows.

use std::time::{Duration, Instant};

use crate::Error;
use crate::clients::{Clients, Op};
use crate::etcd::Etcd;
use crate::ours::Ours;
use crate::report::{Figure, Report};

/// Rounds of each subject, in turn.
const ROUNDS: usize = 5;
const PERIOD: Duration = Duration::from_secs(2);
/// Clients of the rows with many, in how many processes.
const CLIENTS: usize = 64;
const PROCESSES: usize = 4;
/// Pairs of rounds with and without a slow replica.
const PAIRS: usize = 7;

/// Time of the wall and CPU of the nodes for one operation, in us, of each round.
#[derive(Default)]
struct Measured {
    times: Vec<f64>,
    cpu: Vec<f64>,
}

impl Measured {
    /// One round.
    fn add(
        &mut self,
        clients: &mut Clients,
        op: Op,
        cpu: impl Fn() -> Result<Duration, Error>,
    ) -> Result<(), Error> {
        let (before, begun) = (cpu()?, Instant::now());
        let done = clients.run(op, PERIOD, Duration::ZERO)?.count as f64;
        self.times.push(begun.elapsed().as_secs_f64() * 1e6 / done);
        self.cpu.push((cpu()? - before).as_secs_f64() * 1e6 / done);
        Ok(())
    }
}

/// All that etcd does, too.
pub async fn beside_etcd(report: &mut Report, wants: impl Fn(&str) -> bool) -> Result<(), Error> {
    let (ours, etcd) = (Ours::start()?, Etcd::start()?);
    let leader = [etcd.leader().await?];
    let mut first = 0;
    for (processes, each) in [(PROCESSES, CLIENTS / PROCESSES), (1, 1)] {
        let mut clients = Clients::start("ours", first, processes, each, &ours.addresses)?;
        let mut rivals = Clients::start("etcd", first, processes, each, &leader)?;
        first += processes * each;
        let bars = if each == 1 { ["1.5x", "2x", "3x"] } else { ["2x", "2x", "3x"] };
        let rows = [
            ("cas", Op::Cas, "compare-and-set", "etcd txn", bars[0]),
            ("reads", Op::Read, "linearizable read", "etcd range", bars[1]),
            ("puts", Op::Put, "put, W = 2", "etcd put", bars[2]),
        ];
        for (part, op, name, rival, bar) in rows {
            if !wants(part) {
                continue;
            }
            let (mut own, mut theirs) = (Measured::default(), Measured::default());
            for _ in 0..ROUNDS {
                own.add(&mut clients, op, || ours.cpu())?;
                theirs.add(&mut rivals, op, || Ok(etcd.cpu()?.into_iter().sum()))?;
            }
            let count = processes * each;
            let name = format!("{name}, {count} clients (bar {bar})");
            report.beside(&name, Figure::from(own.times), rival, Figure::from(theirs.times), "us");
            let (own, theirs) = (Figure::from(own.cpu), Figure::from(theirs.cpu));
            report.beside("- CPU of the three nodes", own, rival, theirs, "us");
        }
    }
    Ok(())
}

/// One replica gets every request 50 ms late: two sets of clients of the same nodes, in pairs of
/// rounds, at a third of what the healthy ones reach in a row.
pub fn slow(report: &mut Report) -> Result<(), Error> {
    let ours = Ours::start()?;
    let each = CLIENTS / PROCESSES;
    let mut healthy = Clients::start("ours", 0, PROCESSES, each, &ours.addresses)?;
    let mut slow = Clients::start("slow", CLIENTS, PROCESSES, each, &ours.addresses)?;
    for (op, name) in [(Op::Cas, "compare-and-set"), (Op::Put, "put, W = 2")] {
        let full = healthy.run(op, PERIOD, Duration::ZERO)?.count as f64 / PERIOD.as_secs_f64();
        let every = Duration::from_secs_f64(3.0 * CLIENTS as f64 / full);
        let (mut own, mut others, mut worse) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let without = healthy.run(op, PERIOD, every)?.p99;
            let with = slow.run(op, PERIOD, every)?.p99;
            own.push(without);
            others.push(with);
            // What is left of the bar: below 1 it is met.
            worse.push(with / (1.5 * without + 1_000.0));
        }
        report.alone(&format!("{name}, a third of capacity, p99"), Figure::from(own), "us");
        report.alone("- one replica 50 ms slow, p99", Figure::from(others), "us");
        report.alone("- of 1.5x + 1 ms (bar 1)", Figure::from(worse), "x");
    }
    Ok(())
}

//! The demonstration: two cash machines withdraw from one account, one is cut off, and refuses.

mod process;
mod script;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Error;
use crate::args::Demo;
use crate::cluster::TIMEOUT;

use process::Process;
use script::{Event, Script};

/// Machines stand at the first and the last node.
const NODES: [u64; 3] = [1, 2, 3];
/// What is on the account at first, in cents: less than people would like to have.
const DEPOSIT: u64 = 100_000;
/// Of one withdrawal, in cents.
const CENTS: u64 = 100;
/// Time between two customers of a machine.
const EVERY: Duration = Duration::from_millis(30);
/// Time between two lines.
const PERIOD: Duration = Duration::from_millis(500);
/// How long a majority may take to be found when nodes have just started or a partition has ended.
const SETTLE: Duration = Duration::from_secs(20);
/// A partition that lasts so long must have been met by customers of both machines: each refusal
/// takes the time-out of an operation.
const MET: Duration = TIMEOUT.saturating_mul(4);

/// What the customers of one machine have seen.
#[derive(Default)]
struct Till {
    paid_cents: AtomicU64,
    declined: AtomicU64,
    refused: AtomicU64,
    /// Withdrawals whose outcome was not known, and was found out.
    settled: AtomicU64,
}

impl Till {
    fn paid(&self) -> u64 {
        self.paid_cents.load(Ordering::Relaxed)
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

pub(crate) async fn run(demo: &Demo) -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let nodes = process::start(&NODES, folder.path()).await?;
    for node in &nodes {
        ask_until(node, "balance account").await?;
    }
    nodes[0].ask(&format!("deposit account {DEPOSIT}")).await??;
    println!("two machines and one account of {DEPOSIT} cents; type p, h or q and Enter:");
    println!("p cuts machine 3 off, h ends the partition, q ends the demonstration\n");
    println!("   s   machine 1: paid refused   machine 3: paid refused   balance");
    let is_over = Arc::new(AtomicBool::new(false));
    let tills = [Arc::new(Till::default()), Arc::new(Till::default())];
    let mut customers = JoinSet::new();
    for (machine, till) in [&nodes[0], &nodes[2]].into_iter().zip(&tills) {
        let (machine, till) = (Arc::clone(machine), Arc::clone(till));
        customers.spawn(withdraw(machine, till, Arc::clone(&is_over)));
    }
    let seen = play(demo, &nodes, &tills).await?;
    process::heal(&nodes).await?;
    is_over.store(true, Ordering::Relaxed);
    while let Some(customer) = customers.join_next().await {
        customer??;
    }
    let balance: u64 = ask_until(&nodes[1], "balance account").await?.parse()?;
    for node in &nodes {
        node.end().await?;
    }
    let [paid_1, paid_3] = [tills[0].paid(), tills[1].paid()];
    let settled: u64 = tills.iter().map(|till| till.settled.load(Ordering::Relaxed)).sum();
    let declined: u64 = tills.iter().map(|till| till.declined.load(Ordering::Relaxed)).sum();
    println!("{settled} withdrawals of unknown outcome settled, {declined} declined");
    if seen.is_wrong() {
        return Err("a machine that is cut off refuses, and the other one goes on".into());
    }
    if balance + paid_1 + paid_3 != DEPOSIT {
        return Err(format!("{balance} left, {paid_1} and {paid_3} paid, of {DEPOSIT}").into());
    }
    println!("exact: {balance} left, {paid_1} and {paid_3} paid: together the {DEPOSIT} deposited");
    Ok(())
}

/// What was seen of the partitions.
#[derive(Default)]
struct Seen {
    /// In one of them machine 3 refused nobody, or machine 1 paid nothing.
    unmet: bool,
    /// The most that machine 3 paid in one of them, in cents. A withdrawal that had been accepted
    /// when it began may still be told.
    paid_by_3: u64,
}

impl Seen {
    fn is_wrong(&self) -> bool {
        self.unmet || self.paid_by_3 > CENTS
    }
}

async fn play(demo: &Demo, nodes: &[Arc<Process>], tills: &[Arc<Till>; 2]) -> Result<Seen, Error> {
    let mut script = Script::new(Duration::from_secs(demo.seconds));
    let (began, mut note) = (Instant::now(), "all reach each other");
    let (mut cut, mut seen, mut next_line) = (None, Seen::default(), Duration::ZERO);
    let now = || (Instant::now(), tills[1].refused(), tills[0].paid(), tills[1].paid());
    // Ends with the script, which ends by itself.
    loop {
        let event = script.poll();
        match event {
            Some(Event::Partition) => {
                process::partition(nodes).await?;
                note = "machine 3 is cut off, and refuses";
                cut = cut.or(Some(now()));
            }
            Some(Event::Heal | Event::End) => {
                if let Some((at, refused, paid, paid_by_3)) = cut.take() {
                    let (_, refused_now, paid_now, by_3_now) = now();
                    let is_met = refused_now > refused && paid_now > paid;
                    seen.unmet |= at.elapsed() >= MET && !is_met;
                    seen.paid_by_3 = seen.paid_by_3.max(by_3_now - paid_by_3);
                }
                process::heal(nodes).await?;
                note = "the partition has ended";
            }
            None => {}
        }
        if event == Some(Event::End) {
            return Ok(seen);
        }
        if began.elapsed() >= next_line {
            next_line = began.elapsed() + PERIOD;
            // Node 2 is on the side of the majority.
            let balance = nodes[1].ask("balance account").await?;
            let balance = balance.unwrap_or_else(|_| "?".to_owned());
            println!(
                "{:>5.1} {:>16} {:>7} {:>17} {:>7} {balance:>9}   {note}",
                began.elapsed().as_secs_f64(),
                tills[0].paid(),
                tills[0].refused(),
                tills[1].paid(),
                tills[1].refused(),
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Customers of one machine, one after the other.
async fn withdraw(
    machine: Arc<Process>,
    till: Arc<Till>,
    is_over: Arc<AtomicBool>,
) -> Result<(), Error> {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !is_over.load(Ordering::Relaxed) {
        ticks.tick().await;
        match machine.ask(&format!("withdraw account {CENTS}")).await? {
            Ok(said) => till.count(&said)?,
            Err(_) => {
                till.refused.fetch_add(1, Ordering::Relaxed);
                // Nothing is open in most cases.
                if let Ok(settled) = machine.ask("settle").await? {
                    till.settle(&settled)?;
                }
            }
        }
    }
    till.settle(&ask_until(&machine, "settle").await?)
}

/// Asks a node until a majority answers it.
async fn ask_until(node: &Process, command: &str) -> Result<String, Error> {
    let until = Instant::now() + SETTLE;
    // Ends when it has answered, or when the time is over.
    loop {
        match node.ask(command).await? {
            Ok(said) => return Ok(said),
            Err(error) if Instant::now() >= until => return Err(error.into()),
            Err(_) => tokio::time::sleep(EVERY).await,
        }
    }
}

impl Till {
    fn count(&self, said: &str) -> Result<(), Error> {
        match said.strip_prefix("paid ") {
            Some(cents) => {
                self.paid_cents.fetch_add(cents.parse::<u64>()?, Ordering::Relaxed);
            }
            None => {
                self.declined.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn settle(&self, said: &str) -> Result<(), Error> {
        if said == "nothing" {
            return Ok(());
        }
        self.settled.fetch_add(1, Ordering::Relaxed);
        self.count(said)
    }
}

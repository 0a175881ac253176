//! The demonstration: three processes count likes, one is cut off, and all go on counting.

mod process;
mod script;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Error;
use crate::args::Demo;

use process::Process;
use script::{Event, Script};

const NODES: [u64; 3] = [1, 2, 3];
/// Time between two likes at a node.
const EVERY: Duration = Duration::from_millis(25);
/// Time between two lines.
const PERIOD: Duration = Duration::from_millis(500);
/// How long the nodes may take to agree when the partition has ended.
const CONVERGE: Duration = Duration::from_secs(20);

/// What people have done so far.
#[derive(Default)]
struct Crowd {
    /// Likes less unlikes that a node has taken.
    sum: AtomicI64,
    taken: AtomicI64,
    failed: AtomicI64,
    is_over: AtomicBool,
}

pub(crate) async fn run(demo: &Demo) -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let nodes = process::start(&NODES, folder.path()).await?;
    println!("three processes count the likes of one post; type p, h or q and Enter:");
    println!("p cuts node 3 off, h ends the partition, q ends the demonstration\n");
    println!("   s   node 1  node 2  node 3");
    let crowd = Arc::new(Crowd::default());
    let mut people = JoinSet::new();
    for node in &nodes {
        people.spawn(like(Arc::clone(node), Arc::clone(&crowd)));
    }
    let mut script = Script::new(Duration::from_secs(demo.seconds));
    let (began, mut note, mut most) = (Instant::now(), "all reach each other", 0);
    let (mut is_cut, mut was_cut, mut next_line) = (false, false, Duration::ZERO);
    // Ends with the script, which ends by itself.
    loop {
        match script.poll() {
            Some(Event::Partition) => {
                process::partition(&nodes).await?;
                (is_cut, was_cut, note) = (true, true, "node 3 is cut off, and goes on counting");
            }
            Some(Event::Heal) => {
                process::heal(&nodes).await?;
                (is_cut, note) = (false, "the partition has ended");
            }
            Some(Event::End) => break,
            None => {}
        }
        if began.elapsed() >= next_line {
            next_line = began.elapsed() + PERIOD;
            let counts = counts(&nodes).await?;
            if is_cut {
                most = most.max((counts[0] - counts[2]).abs());
            }
            line(began, &counts, note);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    crowd.is_over.store(true, Ordering::Relaxed);
    while let Some(person) = people.join_next().await {
        person??;
    }
    process::heal(&nodes).await?;
    let sum = i128::from(crowd.sum.load(Ordering::Relaxed));
    converge(&nodes, began, sum).await?;
    for node in &nodes {
        node.end().await?;
    }
    let failed = crowd.failed.load(Ordering::Relaxed);
    let taken = crowd.taken.load(Ordering::Relaxed);
    println!("{taken} likes and unlikes taken, {failed} refused, apart by {most} at most");
    if failed > 0 || (was_cut && most == 0) {
        return Err("a node that is cut off takes likes, and the counts differ meanwhile".into());
    }
    println!("exact: each node counts {sum}, which is what it was told and the others were told");
    Ok(())
}

/// People at one node: four likes, and one that is taken back.
async fn like(node: Arc<Process>, crowd: Arc<Crowd>) -> Result<(), Error> {
    let mut ticks = tokio::time::interval(EVERY);
    let mut count = 0;
    while !crowd.is_over.load(Ordering::Relaxed) {
        ticks.tick().await;
        count += 1;
        let (command, n) = if count % 5 == 0 { ("unlike post", -1) } else { ("like post", 1) };
        match node.ask(command).await? {
            Ok(_) => {
                crowd.sum.fetch_add(n, Ordering::Relaxed);
                crowd.taken.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                crowd.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

async fn counts(nodes: &[Arc<Process>]) -> Result<Vec<i128>, Error> {
    let mut counts = Vec::new();
    for node in nodes {
        counts.push(node.ask("show post").await??.parse()?);
    }
    Ok(counts)
}

fn line(began: Instant, counts: &[i128], note: &str) {
    let shown: Vec<String> = counts.iter().map(|count| format!("{count:>8}")).collect();
    println!("{:>5.1} {}   {note}", began.elapsed().as_secs_f64(), shown.concat());
}

/// Waits until every node counts what all of them were told.
async fn converge(nodes: &[Arc<Process>], began: Instant, sum: i128) -> Result<(), Error> {
    let until = Instant::now() + CONVERGE;
    // Ends when they agree, or when the time is over.
    loop {
        let counts = counts(nodes).await?;
        line(began, &counts, "no more likes: the nodes tell each other");
        if counts.iter().all(|count| *count == sum) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(format!("the nodes count {counts:?} after {CONVERGE:?}, not {sum}").into());
        }
        tokio::time::sleep(PERIOD / 2).await;
    }
}

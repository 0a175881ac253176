//! The demonstration: two regions of three processes fill one cart, are cut apart, and go on.

mod ledger;
mod process;
mod script;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Error;
use crate::args::Demo;

use ledger::{ITEMS, Ledger, taken_out_by};
use process::Process;
use script::{Event, Script};

/// Time between two changes in a region.
const EVERY: Duration = Duration::from_millis(80);
/// Time between two lines.
const PERIOD: Duration = Duration::from_millis(500);
/// How long the regions may take to agree when the partition has ended.
const CONVERGE: Duration = Duration::from_secs(20);
/// How long they are watched after that: comparisons and collections of tombstones go on.
const WATCHED: Duration = Duration::from_secs(3);
/// Removed on each side while they are apart; nobody puts them in again.
const GONE: [&str; 2] = ["old-east", "old-west"];

/// People who shop, until it is over.
struct Shoppers {
    ledger: Ledger,
    is_over: AtomicBool,
}

pub(crate) async fn run(demo: &Demo) -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let nodes = process::start(folder.path()).await?;
    let (east, west) = (Arc::clone(&nodes[0]), Arc::clone(&nodes[3]));
    println!("two regions of three processes fill one cart; type p, h or q and Enter:");
    println!("p cuts the regions apart, h ends the partition, q ends the demonstration\n");
    reach_each_other(&nodes).await?;
    let shoppers = Arc::new(Shoppers { ledger: Ledger::default(), is_over: false.into() });
    for (node, item) in [(&east, GONE[0]), (&west, GONE[1])] {
        shoppers.ledger.record(item, node.ask(&format!("add ann {item} 9")).await?);
    }
    agree(&nodes, &shoppers.ledger.expected()).await?;
    let mut people = JoinSet::new();
    for (node, is_east) in [(&east, true), (&west, false)] {
        people.spawn(shop(Arc::clone(node), is_east, Arc::clone(&shoppers)));
    }
    let mut script = Script::new(Duration::from_secs(demo.seconds));
    let (began, mut note, mut next_line) = (Instant::now(), "all reach each other", Duration::ZERO);
    let (mut is_cut, mut was_cut, mut have_differed) = (false, false, false);
    // Ends with the script, which ends by itself.
    loop {
        match script.poll() {
            Some(Event::Partition) => {
                process::partition(&nodes).await?;
                if !was_cut {
                    // Each side removes what both have.
                    for (node, item) in [(&east, GONE[0]), (&west, GONE[1])] {
                        let removed = node.ask(&format!("remove ann {item}")).await?;
                        shoppers.ledger.record(item, removed);
                    }
                }
                (is_cut, was_cut) = (true, true);
                note = "the regions are cut apart, and both go on";
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
            let carts = [show(&east).await?, show(&west).await?];
            have_differed |= is_cut && carts[0] != carts[1];
            line(began, &carts, note);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shoppers.is_over.store(true, Ordering::Relaxed);
    while let Some(person) = people.join_next().await {
        person??;
    }
    process::heal(&nodes).await?;
    finish(&nodes, &shoppers.ledger, was_cut && !have_differed).await
}

/// The regions agree on what people were told, and go on to do so.
async fn finish(nodes: &[Arc<Process>], ledger: &Ledger, is_idle: bool) -> Result<(), Error> {
    let (expected, began) = (ledger.expected(), Instant::now());
    agree(nodes, &expected).await?;
    println!("both regions agree after {:.1} s: {expected}", began.elapsed().as_secs_f64());
    tokio::time::sleep(WATCHED).await;
    for node in nodes {
        let cart = show(node).await?;
        if cart != expected {
            return Err(format!("node {} shows {cart}, not {expected}", node.id).into());
        }
    }
    for node in nodes {
        node.end().await?;
    }
    let (changes, refused, merged) = ledger.counts();
    println!("{changes} changes, {refused} refused; siblings were merged {merged} times");
    if refused > 0 || is_idle {
        return Err("a region that is cut off takes changes, and the carts differ".into());
    }
    println!("exact: nothing that was added is lost, and nothing that was removed came back");
    Ok(())
}

/// People in one region: they add items, and now and then take one out.
async fn shop(node: Arc<Process>, is_east: bool, shoppers: Arc<Shoppers>) -> Result<(), Error> {
    let mut ticks = tokio::time::interval(EVERY);
    let mut count = usize::from(is_east);
    while !shoppers.is_over.load(Ordering::Relaxed) {
        ticks.tick().await;
        count += 1;
        let (item, command) = if count.is_multiple_of(7) {
            let items = taken_out_by(is_east);
            let item = items[count / 7 % items.len()];
            (item, format!("remove ann {item}"))
        } else {
            let item = ITEMS[count % ITEMS.len()];
            (item, format!("add ann {item} {}", 1 + count % 3))
        };
        shoppers.ledger.record(item, node.ask(&command).await?);
    }
    Ok(())
}

/// Waits until every node reaches a quorum of its region.
async fn reach_each_other(nodes: &[Arc<Process>]) -> Result<(), Error> {
    let until = Instant::now() + CONVERGE;
    for node in nodes {
        // Ends when it does, or when the time is over.
        while let Err(error) = node.ask("show ann").await? {
            if Instant::now() >= until {
                return Err(format!("node {} after {CONVERGE:?}: {error}", node.id).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn show(node: &Process) -> Result<String, Error> {
    Ok(node.ask("show ann").await??)
}

fn line(began: Instant, carts: &[String; 2], note: &str) {
    println!("{:>5.1} s  {note}", began.elapsed().as_secs_f64());
    println!("    east: {}\n    west: {}", carts[0], carts[1]);
}

/// Waits until every node shows the cart as it must be.
async fn agree(nodes: &[Arc<Process>], expected: &str) -> Result<(), Error> {
    let until = Instant::now() + CONVERGE;
    // Ends when they agree, or when the time is over.
    loop {
        let mut carts = Vec::new();
        for node in nodes {
            carts.push(show(node).await?);
        }
        if carts.iter().all(|cart| cart == expected) {
            return Ok(());
        }
        if Instant::now() >= until {
            let error = format!("after {CONVERGE:?} the nodes show {carts:?}, not {expected}");
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

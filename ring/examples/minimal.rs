//! A ring over three zones, a node that joins, and the plan that brings it in.
//!
//! `cargo run --example ring-minimal`

use std::sync::Arc;

use voussoir_ring::{
    HashRing, Input, Node, Output, Partitioner, Plan, PlanConfig, Published, Rebalance, Topology,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let zones = ["eu-a", "eu-b", "eu-c"];
    let nodes = (1..=9).map(|id| Node::new(id).in_zone(zones[id as usize % 3]));
    let before = Topology::new(1, nodes)?;
    let published = Published::new(before.epoch(), HashRing::new(&before)?);
    let mut reader = published.reader();

    for key in ["user:1", "user:2", "user:3"] {
        let owners = reader.get().owners(key.as_bytes(), 3);
        println!("{key} lives on {owners:?}");
    }

    let after = before.with(Node::new(10).in_zone("eu-a"))?;
    let ring = HashRing::new(&after)?;
    let (old, new) = (reader.get().placement(3), ring.placement(3));
    let mut config = PlanConfig::default();
    config.moves_per_node = 64;
    let plan = Arc::new(Plan::new(&old, &new, &config)?);
    println!(
        "node 10 joins: {} moves in {} steps, {:.1} % of all replicas (the least is {:.1} %)",
        plan.moves().len(),
        plan.steps().len(),
        plan.moved() / 3.0 * 100.0,
        plan.least() / 3.0 * 100.0,
    );

    // The executor says what to do and is told what was done; here everything succeeds at once.
    let mut rebalance = Rebalance::new(plan, 1);
    rebalance.step(0, Input::Tick);
    while let Some(output) = rebalance.poll_output() {
        match output {
            Output::Copy { op, .. } | Output::Remove { op, .. } => {
                rebalance.step(0, Input::Done(op));
            }
            Output::StepDone { step } => {
                let progress = rebalance.progress();
                println!("step {step}: {} of {} moves", progress.moves_done, progress.moves);
            }
            Output::Finished(_) => published.publish(after.epoch(), ring.clone())?,
            _ => {}
        }
    }

    let owners = reader.get().owners(b"user:1", 3);
    println!("epoch {}: user:1 lives on {owners:?}", reader.epoch());
    Ok(())
}

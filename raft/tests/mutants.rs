//! Tests of the tests: each deliberately broken core is caught in the simulation. Needs the
//! feature `testing`.
//!
//! `VOUSSOIR_MUTANT_SEEDS` sets how many seeds each mutant may take (default 600).
#![cfg(feature = "testing")]

mod common;

use voussoir_raft::Config;
use voussoir_raft::testing::Mutant;
use voussoir_raft::testing::sim::{Options, run};
use voussoir_sim::Runner;

#[test]
fn every_mutant_is_caught() {
    let limit = std::env::var("VOUSSOIR_MUTANT_SEEDS").ok().and_then(|text| text.parse().ok());
    let limit = limit.unwrap_or(600);
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    println!("{:<28} {:>6}  what was seen", "mutant", "seeds");
    for mutant in Mutant::ALL {
        let name = format!("{mutant:?}");
        if let Some(scenario) = scenario(mutant) {
            match scenario {
                Err(seen) => println!("{name:<28} script  {seen}"),
                Ok(()) => survivors.push(name),
            }
            continue;
        }
        let mut options = Options::default();
        options.mutant = Some(mutant);
        let runner = Runner::new("cargo test -p voussoir-raft --features testing --test mutants");
        let result = runner.seeds(limit).twice(0).run(|seed| run(seed, &options));
        match result {
            Err(broken) => {
                let seen = broken.failure.message().lines().next().unwrap_or_default();
                println!("{name:<28} {:>6}  {seen:.90}", broken.seed + 1);
            }
            Ok(_) => {
                println!("{name:<28} {limit:>5}+  nothing");
                survivors.push(name);
            }
        }
    }
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}

/// Plays a mutant that needs too rare a schedule for chance through a written one.
fn scenario(mutant: Mutant) -> Option<Result<(), String>> {
    let tweak = move |config: &mut Config| config.__mutant = Some(mutant);
    match mutant {
        Mutant::CommitOlderTermByCount => Some(common::scenarios::figure_8(tweak)),
        Mutant::AcceptStaleAcks => Some(common::scenarios::stale_ack(tweak)),
        Mutant::ForgetReadNonce => Some(common::scenarios::read_nonce(tweak)),
        _ => None,
    }
}

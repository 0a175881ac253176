//! voussoir-journal and its rivals over one file system that loses power and fails syncs.
//!
//! `cargo xtask bench faults [-- CHAINS [SUBJECT [FAULT [SEED]]]]`. Each chain is a disk of its own
//! with five lives that end by a loss of power and a last one without faults. Needs Linux, root
//! (or `fusermount3`) and `/dev/fuse`.

mod child;
mod disk;
mod lives;
mod mount;
mod record;
mod subjects;

use std::path::Path;
use std::process::ExitCode;

use lives::{Chain, Fault};

const CHAINS: u64 = 40;
const HEAD: &str = "| fault | log | disks | acknowledged | disks that lost some (records) | \
    found, then gone | wrong, or hung | refused to open | panics | acknowledged after an error | \
    losses of power, writes lost, torn, names lost, syncs failed |";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("child") => run_child(&args[1..]),
        _ => run_all(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn run_child(args: &[String]) -> Result<(), Failure> {
    let [name, folder, first, appends] = args else { return Err("four arguments".into()) };
    Ok(child::run(name, Path::new(folder), first.parse()?, appends.parse()?)?)
}

fn run_all(args: &[String]) -> Result<(), Failure> {
    let chains = args.first().map_or(Ok(CHAINS), |chains| chains.parse())?;
    let first: u64 = args.get(3).map_or(Ok(0), |seed| seed.parse())?;
    let folder = tempfile::tempdir()?;
    println!("{HEAD}\n|{}", "---|".repeat(HEAD.matches('|').count() - 1));
    for fault in Fault::ALL {
        for name in subjects::NAMES {
            let is_asked =
                |at: usize, own: &str| args.get(at).is_none_or(|arg| arg == own || arg == "all");
            if is_asked(1, name) && is_asked(2, fault.name()) {
                let run = |seed| lives::chain(name, fault, seed, folder.path()).map(|c| (seed, c));
                let all = (first..first + chains).map(run).collect::<Result<Vec<_>, _>>()?;
                print_row(name, fault, &all);
            }
        }
    }
    Ok(())
}

fn print_row(name: &str, fault: Fault, all: &[(u64, Chain)]) {
    let sum = |of: fn(&Chain) -> u64| all.iter().map(|(_, chain)| of(chain)).sum::<u64>();
    let disks = |of: fn(&Chain) -> bool| all.iter().filter(|(_, chain)| of(chain)).count();
    println!(
        "| {} | {name} | {} | {} | {} ({}) | {} | {} | {} | {} | {} | {}, {}, {}, {}, {} |",
        fault.name(),
        all.len(),
        sum(|chain| chain.acknowledged),
        disks(|chain| chain.lost > 0),
        sum(|chain| chain.lost),
        disks(|chain| chain.gone > 0),
        disks(|chain| chain.wrong + chain.hung > 0),
        disks(|chain| chain.refused.is_some()),
        sum(|chain| chain.panics),
        sum(|chain| chain.acknowledged_after_failed_sync),
        sum(|chain| chain.met.losses),
        sum(|chain| chain.met.writes_lost),
        sum(|chain| chain.met.writes_torn),
        sum(|chain| chain.met.names_lost),
        sum(|chain| chain.met.syncs_failed),
    );
    for (seed, chain) in all.iter().filter(|(_, chain)| !chain.is_sound()).take(3) {
        eprintln!(
            "{name}, {}, seed {seed}: {} of {} lost, {} gone, {} wrong, {} hung, refused: {:?}; \
             again: cargo xtask bench faults -- 1 {name} {} {seed}",
            fault.name(),
            chain.lost,
            chain.acknowledged,
            chain.gone,
            chain.wrong,
            chain.hung,
            chain.refused,
            fault.name(),
        );
    }
}

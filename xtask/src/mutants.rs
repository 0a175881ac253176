//! `cargo xtask mutants [CRATE] [NAME]`: puts deliberate defects into a copy of the workspace, one
//! at a time, and demands that the named test fails.
//!
//! A crate lists its mutants in `mutants.toml` (format: [`table`]). The copy and its build folder
//! stay under `target/mutants`, so that a later run rebuilds only what changed. The output of each
//! trial stays in `target/mutants/log`.

use std::time::{Duration, Instant};

use crate::sample::{fnv1a, head};

mod copy;
mod named;
mod table;
#[cfg(test)]
mod tests;
mod trial;

pub(crate) use named::without_test;
pub(crate) use table::problems;

use copy::Copy;
use table::Mutant;
use trial::{Outcome, Verdict};

/// CI starts no further mutant after this long.
const SAMPLE_TIME: Duration = Duration::from_secs(120);

/// Runs every mutant, those of one crate, or a single one.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let root = crate::root();
    let (crate_name, name) = match args {
        [] => (None, None),
        [crate_name] => (Some(crate_name.as_str()), None),
        [crate_name, name] => (Some(crate_name.as_str()), Some(name.as_str())),
        _ => return Err("usage: cargo xtask mutants [CRATE] [NAME]".to_owned()),
    };
    let mutants = select(table::load(&root)?, crate_name, name)?;
    report(Copy::new(&root)?, &mutants, None)
}

/// Runs as many mutants as fit into [`SAMPLE_TIME`], in an order drawn from the hash of `HEAD`.
/// Repeating CI on one commit repeats the order. The mutants of a crate follow each other, because
/// changing the crate costs a build.
pub(crate) fn sample() -> Result<(), String> {
    let root = crate::root();
    let head = head()?;
    let mut mutants = table::load(&root)?;
    if mutants.is_empty() {
        return Ok(());
    }
    mutants.sort_by_cached_key(|mutant| {
        let of_crate = fnv1a(&[&head, &mutant.folder]);
        (of_crate, fnv1a(&[&head, &mutant.folder, &mutant.test]), fnv1a(&[&head, &mutant.name]))
    });
    report(Copy::new(&root)?, &mutants, Some(SAMPLE_TIME))
}

/// The mutants of `crate_name` (folder or package) named `name`; all where these are absent.
fn select(
    mutants: Vec<Mutant>,
    crate_name: Option<&str>,
    name: Option<&str>,
) -> Result<Vec<Mutant>, String> {
    let of_crate = |mutant: &Mutant| {
        let last = mutant.folder.rsplit('/').next();
        crate_name.is_none_or(|wanted| {
            wanted == mutant.folder || Some(wanted) == last || wanted == mutant.package
        })
    };
    let mut known: Vec<String> = mutants.iter().map(|mutant| mutant.folder.clone()).collect();
    known.dedup();
    let of_crate: Vec<Mutant> = mutants.into_iter().filter(of_crate).collect();
    if of_crate.is_empty() {
        let wanted = crate_name.unwrap_or("the workspace");
        return Err(format!("{wanted} has no mutants.toml; these have: {}", known.join(", ")));
    }
    let named = |mutant: &&Mutant| name.is_none_or(|wanted| wanted == mutant.name);
    let found: Vec<Mutant> = of_crate.iter().filter(named).cloned().collect();
    if found.is_empty() {
        let names: Vec<&str> = of_crate.iter().map(|mutant| mutant.name.as_str()).collect();
        let wanted = name.unwrap_or_default();
        return Err(format!("no mutant {wanted}; there are {}", names.join(", ")));
    }
    Ok(found)
}

/// Tries the mutants, prints a line for each as it ends, and a table of all at the end.
fn report(mut copy: Copy, mutants: &[Mutant], time: Option<Duration>) -> Result<(), String> {
    copy.start_services();
    let start = Instant::now();
    let until = time.map(|time| start + time);
    let outcomes = trial::run_all(&copy, mutants, until, &mut |outcome| {
        eprintln!("{}", line(outcome));
    })?;
    println!("\n{:<10} {:<34} {:<60} {:>8}", "crate", "mutant", "verdict", "seconds");
    for outcome in &outcomes {
        println!("{}", line(outcome));
    }
    let caught = outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Caught(_))).count();
    println!(
        "{caught} of {} mutants caught, {} not tried, {:.0} s",
        outcomes.len(),
        mutants.len() - outcomes.len(),
        start.elapsed().as_secs_f64()
    );
    if caught < outcomes.len() {
        return Err(format!(
            "{} mutants were not caught; the output of each trial is in {}",
            outcomes.len() - caught,
            copy.logs().display()
        ));
    }
    Ok(())
}

fn line(outcome: &Outcome) -> String {
    let verdict = match &outcome.verdict {
        Verdict::Caught(by) => format!("caught by {by}"),
        Verdict::Survived => "SURVIVED".to_owned(),
        Verdict::Unusable(why) => format!("ERROR: {why}"),
    };
    let folder = outcome.folder.rsplit('/').next().unwrap_or_default();
    format!("{folder:<10} {:<34} {verdict:<60} {:>8.1}", outcome.name, outcome.time.as_secs_f64())
}

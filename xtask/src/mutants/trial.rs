//! One trial: the named test without the mutant, which must pass, and with it, which must fail.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use super::copy::Copy;
use super::table::{Mutant, applied};

/// A test that passes takes less than this.
const PASS_TIME_MAX: Duration = Duration::from_secs(600);
/// A mutant may slow its test down by this factor, and by [`SLACK`], before it counts as hung.
const SLOWER: u32 = 4;
/// Added to the time limit of each trial.
const SLACK: Duration = Duration::from_secs(30);

/// What became of a mutant.
pub(crate) struct Outcome {
    pub(crate) folder: String,
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    /// Build and test together.
    pub(crate) time: Duration,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The test failed, as it must. Names what failed.
    Caught(String),
    /// The test passed all the same.
    Survived,
    /// The trial proves nothing: the mutant does not apply or compile, or the test fails without.
    Unusable(String),
}

/// Tries each mutant; those with the same test follow each other. Starts none after `until`, but at
/// least one.
pub(crate) fn run_all(
    copy: &Copy,
    mutants: &[Mutant],
    until: Option<Instant>,
    done: &mut dyn FnMut(&Outcome),
) -> Result<Vec<Outcome>, String> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut tests: Vec<(&str, &str)> = Vec::new();
    for mutant in mutants {
        let test = (mutant.package.as_str(), mutant.test.as_str());
        if !tests.contains(&test) {
            tests.push(test);
        }
    }
    let late = || until.is_some_and(|until| Instant::now() >= until);
    for test in tests {
        let of_test = |m: &&Mutant| (m.package.as_str(), m.test.as_str()) == test;
        let mut unmutated = None;
        for mutant in mutants.iter().filter(of_test) {
            if late() && !outcomes.is_empty() {
                return Ok(outcomes);
            }
            let began = Instant::now();
            let passes = match &unmutated {
                Some(known) => known,
                None => unmutated.insert(without(copy, mutant)?),
            };
            let verdict = match passes {
                Ok(time) => with(copy, mutant, *time)?,
                Err(why) => Verdict::Unusable(why.clone()),
            };
            let (folder, name) = (mutant.folder.clone(), mutant.name.clone());
            let outcome = Outcome { folder, name, verdict, time: began.elapsed() };
            done(&outcome);
            outcomes.push(outcome);
        }
    }
    Ok(outcomes)
}

/// Runs the test of `mutant` on the unchanged copy. Returns how long it took, or why it proves
/// nothing.
fn without(copy: &Copy, mutant: &Mutant) -> Result<Result<Duration, String>, String> {
    let log = format!("{}-without", mutant.name);
    if !build(copy, mutant, &log)?.0.success() {
        return Ok(Err(format!("does not compile without the mutant (log/{log}.txt)")));
    }
    let began = Instant::now();
    let (status, text) = test(copy, mutant, &log, PASS_TIME_MAX)?;
    let time = began.elapsed();
    Ok(match status {
        None => Err(format!("the test takes over {} s without the mutant", time.as_secs())),
        Some(status) if !status.success() => {
            Err(format!("the test fails without the mutant (log/{log}.txt)"))
        }
        Some(_) if passed(&text) == 0 => Err(format!("no test matches `{}`", mutant.test)),
        Some(_) => Ok(time),
    })
}

/// Runs the test of `mutant` with the mutant in the copy, and takes the mutant out again.
fn with(copy: &Copy, mutant: &Mutant, usual: Duration) -> Result<Verdict, String> {
    let original = copy.read(&mutant.file)?;
    let mutated = match applied(&original, &mutant.from, &mutant.to) {
        Ok(mutated) => mutated,
        Err(why) => return Ok(Verdict::Unusable(why)),
    };
    copy.write(&mutant.file, mutated.as_bytes())?;
    let verdict = judge(copy, mutant, usual);
    copy.write(&mutant.file, original.as_bytes())?;
    verdict
}

fn judge(copy: &Copy, mutant: &Mutant, usual: Duration) -> Result<Verdict, String> {
    let log = &mutant.name;
    if !build(copy, mutant, log)?.0.success() {
        return Ok(Verdict::Unusable(format!("does not compile (log/{log}.txt)")));
    }
    let limit = usual * SLOWER + SLACK;
    let (status, text) = test(copy, mutant, log, limit)?;
    Ok(match status {
        None => Verdict::Caught(format!("its time limit of {} s", limit.as_secs())),
        Some(status) if status.success() => Verdict::Survived,
        Some(status) => Verdict::Caught(failed(&text).unwrap_or_else(|| status.to_string())),
    })
}

fn build(copy: &Copy, mutant: &Mutant, log: &str) -> Result<(ExitStatus, String), String> {
    let (status, text) = run(copy, mutant, &["--no-run"], &format!("{log}-build"), None)?;
    status.map(|status| (status, text)).ok_or_else(|| "a build without limit ended".to_owned())
}

fn test(
    copy: &Copy,
    mutant: &Mutant,
    log: &str,
    limit: Duration,
) -> Result<(Option<ExitStatus>, String), String> {
    run(copy, mutant, &[], log, Some(limit))
}

/// Runs `cargo test` for the mutant's test. Returns its status, `None` where it was killed at the
/// time limit, and what it printed.
fn run(
    copy: &Copy,
    mutant: &Mutant,
    options: &[&str],
    log: &str,
    limit: Option<Duration>,
) -> Result<(Option<ExitStatus>, String), String> {
    let mut command = copy.cargo(&["test", "--locked", "-p", &mutant.package, "--all-features"]);
    command.args(options).args(mutant.test.split_whitespace());
    let path = copy.logs().join(format!("{log}.txt"));
    let named = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::create(&path).map_err(named)?;
    command.stderr(file.try_clone().map_err(named)?).stdout(file).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("cargo: {error}"))?;
    let end = limit.map(|limit| Instant::now() + limit);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            break Some(status);
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            // The test is a child of cargo: the whole process group has to end.
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-9", "--", &group]).status();
            child.wait().map_err(|error| error.to_string())?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = std::fs::read(&path).map_err(named)?;
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// How many tests passed, over all binaries.
fn passed(text: &str) -> u64 {
    let results = text.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// The names of the failed tests, the first of them if there are many.
fn failed(text: &str) -> Option<String> {
    let name = |line: &'_ str| -> Option<String> {
        Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned())
    };
    let names: Vec<String> = text.lines().filter_map(name).collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        [first, rest @ ..] => Some(format!("{first} and {} more", rest.len())),
    }
}

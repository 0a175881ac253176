//! Counts test results by crate, from what `cargo test` prints.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;

/// The test binaries of a build, by their file names.
#[derive(Debug, Default)]
pub(crate) struct Artifacts(BTreeMap<String, Binary>);

/// A program that runs tests.
#[derive(Debug)]
pub(crate) struct Binary {
    /// The folder of its package, which is an absolute path.
    pub(crate) package: PathBuf,
    /// As cargo has it: `lib`, `bin`, `test` or `example`.
    pub(crate) kind: String,
    /// The name of the target.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
}

/// One line of cargo's JSON.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
    message: Option<Diagnostic>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Diagnostic {
    rendered: Option<String>,
}

impl Artifacts {
    /// Reads the messages of `cargo test --no-run --message-format=json`.
    pub(crate) fn parse(json: &str) -> Self {
        let messages = json.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let binary = |message: Line| {
            message.profile.filter(|profile| profile.test)?;
            let package = message.manifest_path.parent()?.to_owned();
            let (target, program) = (message.target?, message.executable?);
            let file = program.file_name()?.to_string_lossy().into_owned();
            let kind = target.kind.into_iter().next()?;
            Some((file, Binary { package, kind, name: target.name, program }))
        };
        Self(messages.filter_map(binary).collect())
    }

    /// All of them.
    pub(crate) fn binaries(&self) -> impl Iterator<Item = &Binary> {
        self.0.values()
    }

    /// The name of the folder of the package of `file`.
    fn package_of(&self, file: &str) -> Option<&str> {
        self.0.get(file)?.package.file_name()?.to_str()
    }
}

/// What the compiler said, as it would have printed it.
pub(crate) fn compiler_messages(json: &str) -> impl Iterator<Item = String> {
    let messages = json.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    messages.filter_map(|message| message.message?.rendered)
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    /// Carries `#[ignore]`, and was not asked for.
    left_out: u64,
    time: Duration,
}

/// The counts of all crates.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    crates: BTreeMap<String, Counts>,
    /// The binary that runs now, or the documentation whose tests run.
    running: Option<Running>,
    /// Commands that failed although each binary reported success.
    broken: Vec<String>,
}

#[derive(Debug)]
struct Running {
    crate_name: String,
    since: Instant,
    has_result: bool,
}

impl Summary {
    /// Takes one line of what `cargo test` prints.
    pub(crate) fn read(&mut self, line: &str, artifacts: &Artifacts) {
        let line = line.trim_start();
        if let Some(binary) = running_binary(line) {
            self.begins(artifacts.package_of(binary).unwrap_or("?"));
        } else if let Some(library) = line.strip_prefix("Doc-tests ") {
            self.begins(&folder_of(library));
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        }
    }

    /// The command has ended.
    pub(crate) fn ended(&mut self, success: bool, command: &str) {
        let failed_before = self.total().failed;
        self.finish();
        if !success && failed_before == 0 && self.total().failed == 0 {
            self.broken.push(command.to_owned());
        }
    }

    /// An example was run.
    pub(crate) fn example(&mut self, crate_name: &str, passed: bool, time: Duration) {
        let counts = self.crates.entry(crate_name.to_owned()).or_default();
        counts.time += time;
        *(if passed { &mut counts.passed } else { &mut counts.failed }) += 1;
    }

    /// Whether everything passed.
    ///
    /// # Errors
    /// What did not.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        let Counts { passed, failed, .. } = self.total();
        match (self.broken.first(), failed) {
            (_, 1..) => Err(format!("{failed} tests failed")),
            (Some(command), 0) => Err(format!("{command} failed, without a failed test")),
            (None, 0) if passed == 0 => Err("no test was run".to_owned()),
            (None, 0) => Ok(()),
        }
    }

    fn begins(&mut self, crate_name: &str) {
        self.finish();
        let crate_name = crate_name.to_owned();
        self.running = Some(Running { crate_name, since: Instant::now(), has_result: false });
    }

    fn result(&mut self, text: &str) {
        let Some(running) = &mut self.running else { return };
        running.has_result = true;
        let counts = self.crates.entry(running.crate_name.clone()).or_default();
        let (_, list) = text.split_once(". ").unwrap_or_default();
        for part in list.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => counts.passed += number,
                "failed" => counts.failed += number,
                "ignored" => counts.left_out += number,
                _ => {}
            }
        }
    }

    /// The binary that ran has ended. Without a result it crashed, which counts as one failure.
    fn finish(&mut self) {
        if let Some(running) = self.running.take() {
            let counts = self.crates.entry(running.crate_name).or_default();
            counts.time += running.since.elapsed();
            counts.failed += u64::from(!running.has_result);
        }
    }

    fn total(&self) -> Counts {
        self.crates.values().fold(Counts::default(), |sum, counts| Counts {
            passed: sum.passed + counts.passed,
            failed: sum.failed + counts.failed,
            left_out: sum.left_out + counts.left_out,
            time: sum.time + counts.time,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<18} {:>7} {:>7} {:>9} {:>9}",
            "crate", "passed", "failed", "left out", "s"
        )?;
        let rows = self.crates.iter().map(|(name, counts)| (name.as_str(), *counts));
        for (name, counts) in rows.chain([("total", self.total())]) {
            let Counts { passed, failed, left_out, time } = counts;
            let time = time.as_secs_f64();
            writeln!(f, "{name:<18} {passed:>7} {failed:>7} {left_out:>9} {time:>9.1}")?;
        }
        Ok(())
    }
}

/// The file name in `Running tests/sim.rs (target/debug/deps/sim-0123456789abcdef)`.
fn running_binary(line: &str) -> Option<&str> {
    let path = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once('(')?.1;
    Some(path.rsplit(['/', '\\']).next().unwrap_or(path))
}

/// The folder of a library: `voussoir_raft` is in `raft`, `resilient_client` in `resilient-client`.
fn folder_of(library: &str) -> String {
    library.strip_prefix("voussoir_").unwrap_or(library).replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary_of(text: &str) -> Summary {
        let json = "{\"manifest_path\":\"/w/raft/Cargo.toml\",\
                    \"target\":{\"kind\":[\"test\"],\"name\":\"sim\"},\
                    \"profile\":{\"test\":true},\
                    \"executable\":\"/w/target/debug/deps/sim-12\"}\n{\"success\":true}";
        let artifacts = Artifacts::parse(json);
        let mut summary = Summary::default();
        for line in text.lines() {
            summary.read(line, &artifacts);
        }
        summary
    }

    #[test]
    fn results_are_counted_by_crate() {
        let mut summary = summary_of(
            "     Running tests/sim.rs (target/debug/deps/sim-12)\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; \
             finished in 1.00s\n   Doc-tests voussoir_raft\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.10s\n",
        );
        summary.ended(false, "cargo test");
        let raft = summary.crates["raft"];
        assert_eq!((raft.passed, raft.failed, raft.left_out), (4, 2, 1));
        assert_eq!(summary.verdict(), Err("2 tests failed".to_owned()));
        let table = summary.to_string();
        assert!(table.lines().last().unwrap().starts_with("total"), "{table}");
    }

    #[test]
    fn a_binary_that_ends_without_a_result_has_failed() {
        let running = "     Running tests/sim.rs (target/debug/deps/sim-12)\n";
        let mut summary = summary_of(&running.repeat(2));
        summary.ended(false, "cargo test");
        assert_eq!(summary.crates["raft"].failed, 2);
        assert!(summary.verdict().is_err());
    }

    #[test]
    fn a_failed_command_without_a_failed_test_is_an_error() {
        let mut summary = summary_of("");
        summary.example("raft", true, Duration::ZERO);
        assert_eq!(summary.verdict(), Ok(()));
        summary.ended(false, "cargo test --doc");
        assert!(summary.verdict().unwrap_err().contains("--doc"));
        assert!(Summary::default().verdict().is_err(), "a run without tests proves nothing");
    }
}

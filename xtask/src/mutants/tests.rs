//! The command over a small workspace: each kind of mutant gets the verdict that it deserves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::copy::Copy;
use super::table;
use super::trial::{Verdict, run_all};

const LIB: &str = "\
pub fn double(n: u32) -> u32 { n + n }
pub fn spins() -> bool { false }
#[test]
fn two_is_doubled() { assert_eq!(double(2), 4); }
";

fn row(name: &str, from: &str, to: &str, test: &str) -> String {
    format!(
        "[[mutant]]\nname = \"{name}\"\nfile = \"src/lib.rs\"\nfrom = '''{from}'''\n\
         to = '''{to}'''\ntest = \"{test}\"\nwhy = \"a reason\"\n"
    )
}

/// A workspace in a temporary folder below this package's build folder. Removed on drop.
struct Workspace(PathBuf);

impl Workspace {
    fn new(name: &str, mutants: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("toy/src")).unwrap();
        let workspace = Self(folder);
        workspace.write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"toy\"]\n");
        workspace.write(".gitignore", "target/\n");
        workspace
            .write("Cargo.lock", "version = 4\n[[package]]\nname = \"toy\"\nversion = \"0.1.0\"");
        let manifest = "[package]\nname = \"toy\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        workspace.write("toy/Cargo.toml", manifest);
        workspace.write("toy/src/lib.rs", LIB);
        workspace.write("toy/mutants.toml", mutants);
        let status = Command::new("git").args(["init", "-q"]).current_dir(&workspace.0).status();
        assert!(status.unwrap().success());
        workspace
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn verdicts(root: &Path) -> Vec<(String, Verdict)> {
    let mutants = table::load(root).unwrap();
    let copy = Copy::new(root).unwrap();
    let outcomes = run_all(&copy, &mutants, None, &mut |_| ()).unwrap();
    outcomes.into_iter().map(|outcome| (outcome.name, outcome.verdict)).collect()
}

#[test]
fn a_mutant_is_caught_survives_or_proves_nothing() {
    let rows = [
        row("caught", "n + n", "n + n + 1", "two_is"),
        row("survives", "false", "true", "two_is"),
        row("breaks_the_build", "n + n", "n + nobody", "two_is"),
        row("does_not_apply", "n", "m", "two_is"),
        row("has_no_test", "n + n", "0", "three_is"),
    ];
    let workspace = Workspace::new("verdicts", &rows.concat());
    let first = verdicts(&workspace.0);
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["caught", "survives", "breaks_the_build", "does_not_apply", "has_no_test"]);
    assert_eq!(first[0].1, Verdict::Caught("two_is_doubled".to_owned()));
    assert_eq!(first[1].1, Verdict::Survived);
    for (name, verdict) in &first[2..] {
        assert!(matches!(verdict, Verdict::Unusable(_)), "{name}: {verdict:?}");
    }
    // The copy holds no mutant any more, and the original never did.
    assert_eq!(fs::read_to_string(workspace.0.join("toy/src/lib.rs")).unwrap(), LIB);
    let copied = workspace.0.join("target/mutants/tree/toy/src/lib.rs");
    assert_eq!(fs::read_to_string(copied).unwrap(), LIB);
}

#[test]
fn a_test_that_fails_without_the_mutant_proves_nothing() {
    let workspace = Workspace::new("failing", &row("any", "n + n", "n + n + 1", "two_is"));
    workspace.write("toy/src/lib.rs", &LIB.replace(", 4", ", 5"));
    let verdicts = verdicts(&workspace.0);
    assert!(matches!(&verdicts[0].1, Verdict::Unusable(why) if why.contains("fails without")));
}

#[test]
fn a_table_is_checked_without_building_anything() {
    let twice = row("twice", "n + n", "n", "two_is");
    let rows = [
        row("Name", "n + n", "n", "two_is"),
        row("same", "n + n", "n + n", "two_is"),
        row("many", "double", "triple", "two_is"),
        row("untested", "n + n", "n", " "),
        twice.clone(),
        twice,
    ];
    let workspace = Workspace::new("table", &rows.concat());
    let problems = table::problems(&workspace.0).unwrap();
    let expected = [
        "Name: `name` must be",
        "same: `from` and `to` are the same",
        "many: `from` occurs 3 times",
        "untested: `test` is empty",
        "twice: the name is used twice",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(expected) {
        assert!(problem.starts_with(&format!("toy/mutants.toml: {start}")), "{problem}");
    }
    workspace.write("toy/mutants.toml", "[[mutant]]\nname = \"bare\"\n");
    assert_eq!(table::problems(&workspace.0).unwrap().len(), 1);
}

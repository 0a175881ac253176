//! The rules of STYLE.md that no compiler keeps.

use std::collections::BTreeSet;
use std::path::Path;

use crate::api::modules::Crate;
use crate::run::{cargo, output};

mod circles;
mod map;
mod readme;
mod source;

/// Lines of a source file, tests in the same file included.
const FILE_LINES_MAX: usize = 800;
/// Lines of a crate's `lib.rs`, which holds re-exports only.
const LIB_LINES_MAX: usize = 120;
/// Lines of `examples/minimal.rs`.
const MINIMAL_LINES_MAX: usize = 80;
/// Characters of a line.
const COLUMNS_MAX: usize = 100;
/// Other crates that a library may pull in with its default features.
const WEIGHT_MAX: usize = 35;
/// A library that may pull in more, and why it does: see STYLE.md.
const HEAVIER: &[(&str, usize)] = &[("raft", 36), ("quorum", 36), ("txn", 39)];
/// The same without any feature, for a library whose default features are adapters to others.
const BARE_WEIGHT_MAX: usize = 20;
/// As [`HEAVIER`], without any feature.
const HEAVIER_BARE: &[(&str, usize)] = &[("txn", 28), ("queue", 25), ("quorum", 22)];

/// Modules of a crate that import from each other in a circle.
const CIRCLE_MAX: usize = 5;

/// What each library may use of the others when its default features are on. Every other edge is
/// an adapter behind a feature of its own.
const MAY_USE: &[(&str, &[&str])] = &[
    ("journal", &[]),
    ("net", &[]),
    ("sim", &[]),
    ("queue", &["journal"]),
    ("ring", &[]),
    ("breaker", &[]),
    ("limit", &[]),
    ("cache", &[]),
    ("lb", &[]),
    ("txn", &["journal"]),
    ("quorum", &["journal", "net"]),
    ("lock", &[]),
    ("raft", &["journal", "net"]),
];

/// The libraries of the workspace.
pub(crate) fn libraries() -> impl Iterator<Item = &'static str> {
    MAY_USE.iter().map(|(name, _)| *name)
}

pub(crate) fn run() -> Result<(), String> {
    let root = crate::root();
    let mut problems = crate::mutants::problems(&root)?;
    let files = crate::run::files(&root)?;
    for file in files.iter().filter(|file| is_rust(file)) {
        let text = std::fs::read_to_string(root.join(file)).map_err(|e| format!("{file}: {e}"))?;
        check_file(file, &text, &mut problems);
    }
    for (name, allowed) in MAY_USE {
        check_dependencies(name, allowed, &mut problems)?;
        check_skeleton(&root, name, &mut problems);
        let readme = std::fs::read_to_string(root.join(name).join("README.md"));
        problems.extend(readme::problems(name, &readme.unwrap_or_default()));
        let sources = Crate::parse(&root.join(name).join("src"))?;
        problems.extend(crate::api::problems(&root, name, &sources)?);
        check_circles(name, &sources, &mut problems);
    }
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md"));
    let architecture = architecture.map_err(|error| format!("ARCHITECTURE.md: {error}"))?;
    problems.extend(map::problems(&root, &architecture, libraries()));
    if problems.is_empty() {
        eprintln!("tidy: {} files, {} libraries", files.len(), MAY_USE.len());
        return Ok(());
    }
    for problem in &problems {
        eprintln!("{problem}");
    }
    Err(format!("{} untidy places", problems.len()))
}

fn is_rust(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "rs")
}

fn check_file(file: &str, text: &str, problems: &mut Vec<String>) {
    let count = text.lines().count();
    let is_member_lib = file.ends_with("/src/lib.rs");
    let max = if is_member_lib {
        LIB_LINES_MAX
    } else if file.ends_with("examples/minimal.rs") {
        MINIMAL_LINES_MAX
    } else {
        FILE_LINES_MAX
    };
    if count > max {
        problems.push(format!("{file}: {count} lines, at most {max}"));
    }
    for (number, line) in text.lines().enumerate() {
        let width = line.chars().count();
        if width > COLUMNS_MAX && !source::cannot_be_broken(line) {
            problems.push(format!("{file}:{}: {width} columns", number + 1));
        }
    }
    if MAY_USE.iter().any(|(name, _)| file.starts_with(&format!("{name}/src/"))) {
        problems.extend(source::undocumented_cancel_safety(file, text));
    }
    problems.extend(source::reasonless(file, text));
    // The documentation of a `lib.rs` is the crate's README.
    if !text.starts_with("//!") && !text.starts_with("#![doc = include_str!(") {
        problems.push(format!("{file}: does not begin with `//!`, which says what it is for"));
    }
    let library = file.split_once("/src/").map(|(library, _)| library);
    if library.is_some_and(|name| libraries().any(|l| l == name))
        && text.to_lowercase().contains("mutant")
    {
        problems.push(format!("{file}: speaks of mutants, which live in mutants.toml"));
    }
}

/// No long circles of imports.
fn check_circles(name: &str, sources: &Crate, problems: &mut Vec<String>) {
    let circle = circles::longest(sources);
    if circle.len() > CIRCLE_MAX {
        let (count, modules) = (circle.len(), circle.join(", "));
        problems.push(format!(
            "{name}: {count} modules import in a circle, at most {CIRCLE_MAX}: {modules}"
        ));
    }
}

/// The direction and the weight of a library's dependencies.
fn check_dependencies(
    name: &str,
    allowed: &[&str],
    problems: &mut Vec<String>,
) -> Result<(), String> {
    let package = format!("voussoir-{name}");
    let tree = |extra: &[&str]| -> Result<BTreeSet<String>, String> {
        let args = ["tree", "--locked", "--package", &package, "--prefix", "none"];
        let args = [&args[..], &["--edges", "normal"], extra].concat();
        let text = output(&mut cargo(&args))?;
        let first_two = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let others = |line: &String| !line.is_empty() && !line.starts_with(&format!("{package} "));
        Ok(text.lines().map(first_two).filter(others).collect())
    };
    let default = tree(&[])?;
    for used in default.iter().filter_map(|line| line.strip_prefix("voussoir-")) {
        let used = used.split(' ').next().unwrap_or_default();
        if !allowed.contains(&used) {
            problems.push(format!("{name}: must not depend on {used} by default"));
        }
    }
    let heavier = HEAVIER.iter().find(|(library, _)| *library == name);
    let max = heavier.map_or(WEIGHT_MAX, |(_, max)| *max);
    if default.len() > max {
        problems.push(format!("{name}: pulls in {} crates, at most {max}", default.len()));
    }
    let bare = tree(&["--no-default-features"])?;
    let heavier = HEAVIER_BARE.iter().find(|(library, _)| *library == name);
    let max = heavier.map_or(BARE_WEIGHT_MAX, |(_, max)| *max);
    if !allowed.is_empty() && bare.len() > max {
        problems.push(format!("{name}: {} crates bare, at most {max}", bare.len()));
    }
    eprintln!("{name:>8}: {:2} crates, {:2} without features", default.len(), bare.len());
    Ok(())
}

/// What every library has at the same place.
fn check_skeleton(root: &Path, name: &str, problems: &mut Vec<String>) {
    for part in ["README.md", "src/lib.rs", "tests/api.rs", "examples/minimal.rs"] {
        if !root.join(name).join(part).is_file() {
            problems.push(format!("{name}: lacks {part}"));
        }
    }
    let manifest = std::fs::read_to_string(root.join(name).join("Cargo.toml")).unwrap_or_default();
    if !manifest.contains("[lints]\nworkspace = true") {
        problems.push(format!("{name}: does not take the lints of the workspace"));
    }
}

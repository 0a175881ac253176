//! `cargo xtask new PATH FROM`: copies a template (a folder of `examples`) to `PATH`, as a package
//! of its own.
//!
//! What the template inherits from this workspace is written out in the copy's manifest
//! ([`manifest`]). The copy gets this workspace's `Cargo.lock`, so that it builds with the versions
//! that are tested here, and its formatter's and linter's configuration. A template whose nodes
//! talk to each other gets a `CLUSTER` number of its own.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::run::files;

mod manifest;
#[cfg(test)]
mod tests;

/// Files of a template that only this workspace uses.
const NOT_COPIED: &[&str] = &["Cargo.toml", "mutants.toml", "api.txt"];
/// Files at the root of this workspace that a copy takes along.
const TAKEN_ALONG: &[&str] = &["Cargo.lock", "rustfmt.toml", "clippy.toml"];

/// The command.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let [path, from] = args else {
        return Err(format!(
            "usage: cargo xtask new PATH FROM; FROM is one of {}",
            templates()?.join(", ")
        ));
    };
    let folder = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
    copy(&folder, from)?;
    println!("{from} copied to {}", folder.display());
    println!("  cd {path} && cargo test");
    println!("Our crates are taken by path. Remove `path` to take the published version.");
    Ok(())
}

/// The names of all templates.
pub(crate) fn templates() -> Result<Vec<String>, String> {
    let name = |file: &String| {
        let name = file.strip_prefix("examples/")?.strip_suffix("/Cargo.toml")?;
        (!name.contains('/')).then(|| name.to_owned())
    };
    Ok(files(&crate::root())?.iter().filter_map(name).collect())
}

/// Copies the template `from` to `folder`, which must not exist or be empty.
///
/// # Errors
/// There is no such template, the folder is not empty, or a file cannot be read or written.
pub(crate) fn copy(folder: &Path, from: &str) -> Result<(), String> {
    let root = crate::root();
    let known = templates()?;
    if !known.iter().any(|name| name == from) {
        return Err(format!("no template named {from}; there are {}", known.join(", ")));
    }
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(format!("{} is not empty", folder.display()));
    }
    let template = Path::new("examples").join(from);
    let cluster = drawn();
    let mut text = manifest::written_out(&root, &template)?;
    if let Some(outer) = workspace_around(folder) {
        let note = format!(
            "\n# Keeps this package apart from the workspace {}; remove it to become a member.\n\
             [workspace]\n",
            outer.display()
        );
        text.push_str(&note);
    }
    write(&folder.join("Cargo.toml"), text.as_bytes())?;
    for name in TAKEN_ALONG {
        write(&folder.join(name), &read(&root.join(name))?)?;
    }
    for file in files(&root)? {
        let Ok(inner) = Path::new(&file).strip_prefix(&template) else { continue };
        if !NOT_COPIED.iter().any(|name| inner == Path::new(name)) {
            let bytes = read(&root.join(&file))?;
            write(&folder.join(inner), &with_own_cluster(bytes, cluster))?;
        }
    }
    Ok(())
}

/// What a constant begins with that keeps nodes of one cluster from talking to those of another.
const CLUSTER: &str = "const CLUSTER: u128 = ";

/// A source file with a cluster number of its own, if it has one. With the same number as every
/// other copy of the template, a node that is given a wrong address would be taken for one of
/// theirs.
fn with_own_cluster(bytes: Vec<u8>, cluster: u128) -> Vec<u8> {
    let own = |line: &str| match line.split_once(CLUSTER) {
        Some((before, rest)) if rest.ends_with(";\n") => {
            format!("{before}{CLUSTER}0x{cluster:032x};\n")
        }
        _ => line.to_owned(),
    };
    match std::str::from_utf8(&bytes) {
        Ok(text) if text.contains(CLUSTER) => {
            text.split_inclusive('\n').map(own).collect::<String>().into_bytes()
        }
        _ => bytes,
    }
}

/// A number that no other copy has: the keys of a hasher are random.
fn drawn() -> u128 {
    let half = || u128::from(RandomState::new().hash_one(SystemTime::now()));
    half() << 64 | half()
}

/// The closest folder above `folder` whose manifest begins a workspace.
fn workspace_around(folder: &Path) -> Option<PathBuf> {
    let is_workspace = |above: &&Path| {
        let text = fs::read_to_string(above.join("Cargo.toml")).unwrap_or_default();
        text.lines().any(|line| line.starts_with("[workspace"))
    };
    folder.ancestors().skip(1).find(is_workspace).map(Path::to_path_buf)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path);
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(path, bytes));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

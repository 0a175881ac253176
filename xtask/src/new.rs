//! `cargo xtask new PATH FROM`: copies a template (a folder of `examples`) to `PATH`, as a package
//! of its own.
//!
//! What the template inherits from this workspace is written out in the copy's manifest
//! ([`manifest`]). The copy gets this workspace's `Cargo.lock`, so that it builds with the versions
//! that are tested here, and its formatter's and linter's configuration.

use std::fs;
use std::path::{Path, PathBuf};

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
            write(&folder.join(inner), &read(&root.join(&file))?)?;
        }
    }
    Ok(())
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

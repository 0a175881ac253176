//! The file `mutants.toml` beside a crate:
//!
//! ```toml
//! [[mutant]]
//! name = "short_snake_name"
//! file = "src/core/commit.rs"          # relative to the crate
//! from = '''text that occurs exactly once in the file'''
//! to = '''replacement'''
//! test = "--test sim safety"           # after `cargo test -p PACKAGE --all-features`
//! why = "which guarantee it breaks"
//! ```

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

/// A deliberate defect.
#[derive(Debug, Clone)]
pub(crate) struct Mutant {
    /// Folder of the crate, relative to the workspace.
    pub(crate) folder: String,
    /// Name of the crate's package.
    pub(crate) package: String,
    pub(crate) name: String,
    /// The file to change, relative to the workspace.
    pub(crate) file: String,
    pub(crate) from: String,
    pub(crate) to: String,
    /// Arguments of the test that must fail, separated by spaces.
    pub(crate) test: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    mutant: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    file: String,
    from: String,
    to: String,
    test: String,
    why: String,
}

#[derive(Deserialize)]
struct Manifest {
    package: Package,
}

#[derive(Deserialize)]
struct Package {
    name: String,
}

/// Every mutant of the workspace at `root`, in the order of crates and files.
pub(crate) fn load(root: &Path) -> Result<Vec<Mutant>, String> {
    let mut mutants = Vec::new();
    for folder in folders(root)? {
        let path = root.join(&folder).join("Cargo.toml");
        let manifest: Manifest = parse(&path)?;
        let table: Table = parse(&root.join(&folder).join("mutants.toml"))?;
        mutants.extend(table.mutant.into_iter().map(|row| Mutant {
            package: manifest.package.name.clone(),
            file: format!("{folder}/{}", row.file),
            folder: folder.clone(),
            name: row.name,
            from: row.from,
            to: row.to,
            test: row.test,
        }));
    }
    Ok(mutants)
}

/// What is wrong with the tables: fields, names, and texts that do not occur exactly once.
pub(crate) fn problems(root: &Path) -> Result<Vec<String>, String> {
    let mut problems = Vec::new();
    for folder in folders(root)? {
        let path = format!("{folder}/mutants.toml");
        let table: Table = match parse(&root.join(&path)) {
            Ok(table) => table,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let mut names = BTreeSet::new();
        for row in &table.mutant {
            let said = row_problems(root, &folder, row);
            problems.extend(said.into_iter().map(|said| format!("{path}: {}: {said}", row.name)));
            if !names.insert(&row.name) {
                problems.push(format!("{path}: {}: the name is used twice", row.name));
            }
        }
    }
    Ok(problems)
}

fn row_problems(root: &Path, folder: &str, row: &Row) -> Vec<String> {
    let mut problems = Vec::new();
    let snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if row.name.is_empty() || !row.name.chars().all(snake) {
        problems.push("`name` must be of lower-case letters, digits and underscores".to_owned());
    }
    for (field, text) in [("from", &row.from), ("test", &row.test), ("why", &row.why)] {
        if text.trim().is_empty() {
            problems.push(format!("`{field}` is empty"));
        }
    }
    if row.from == row.to {
        problems.push("`from` and `to` are the same".to_owned());
    }
    match std::fs::read_to_string(root.join(folder).join(&row.file)) {
        Ok(text) => problems.extend(applied(&text, &row.from, &row.to).err()),
        Err(error) => problems.push(format!("{}: {error}", row.file)),
    }
    problems
}

/// `text` with the only occurrence of `from` replaced.
pub(crate) fn applied(text: &str, from: &str, to: &str) -> Result<String, String> {
    match text.matches(from).count() {
        1 => Ok(text.replacen(from, to, 1)),
        count => Err(format!("`from` occurs {count} times in the file, and must occur once")),
    }
}

/// The folders that hold a `mutants.toml`.
fn folders(root: &Path) -> Result<Vec<String>, String> {
    let files = crate::run::files(root)?;
    let folder = |file: &String| file.strip_suffix("/mutants.toml").map(str::to_owned);
    Ok(files.iter().filter_map(folder).collect())
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
    toml::from_str(&text).map_err(|error| named(&error))
}

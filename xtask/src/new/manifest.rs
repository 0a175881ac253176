//! Writes out what a member's manifest inherits from its workspace.

use std::fs;
use std::path::Path;

use toml_edit::{Array, DocumentMut, InlineTable, Item, RawString, TableLike, Value};

/// The tables of a manifest that list dependencies.
const DEPENDENCIES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// The manifest of the member in `root/member`, such that it holds outside the workspace: inherited
/// fields, lints, versions and profiles stand in it, and paths are absolute.
///
/// # Errors
/// A manifest cannot be read, or inherits what the workspace does not have.
pub(crate) fn written_out(root: &Path, member: &Path) -> Result<String, String> {
    let workspace = parse(&root.join("Cargo.toml"))?;
    let mut manifest = parse(&root.join(member).join("Cargo.toml"))?;
    let shared = Shared { workspace: &workspace, root, folder: &root.join(member) };
    shared.package(&mut manifest)?;
    if is_inherited(manifest.get("lints")) {
        manifest["lints"] = unplaced(shared.get(&["lints"])?);
    }
    shared.dependencies(manifest.as_table_mut())?;
    if let Some(targets) = manifest.get_mut("target").and_then(Item::as_table_like_mut) {
        for (_, target) in targets.iter_mut() {
            if let Some(target) = target.as_table_like_mut() {
                shared.dependencies(target)?;
            }
        }
    }
    if let Some(profiles) = workspace.get("profile") {
        manifest["profile"] = unplaced(profiles);
    }
    Ok(manifest.to_string())
}

/// What the members of a workspace share.
struct Shared<'a> {
    workspace: &'a DocumentMut,
    root: &'a Path,
    /// The member's folder.
    folder: &'a Path,
}

impl Shared<'_> {
    /// An entry of the table `workspace`.
    fn get(&self, path: &[&str]) -> Result<&Item, String> {
        let start = self.workspace.get("workspace");
        let found = path.iter().fold(start, |item, key| item.and_then(|item| item.get(key)));
        found.ok_or_else(|| format!("Cargo.toml of the workspace has no {}", path.join(".")))
    }

    fn package(&self, manifest: &mut DocumentMut) -> Result<(), String> {
        let package = manifest.get_mut("package").and_then(Item::as_table_like_mut);
        for (key, item) in package.ok_or("Cargo.toml has no package")?.iter_mut() {
            if is_inherited(Some(item)) {
                let value = self.get(&["package", key.get()])?.as_value();
                *item = Item::Value(value.ok_or("a field that is no value")?.clone());
            }
        }
        Ok(())
    }

    fn dependencies(&self, tables: &mut dyn TableLike) -> Result<(), String> {
        for name in DEPENDENCIES {
            let Some(table) = tables.get_mut(name).and_then(Item::as_table_like_mut) else {
                continue;
            };
            for (mut name, item) in table.iter_mut() {
                if is_inherited(Some(item)) {
                    if let Some(above) = comment_above(item) {
                        name.leaf_decor_mut().set_prefix(above);
                    }
                    let shared = self.get(&["dependencies", name.get()])?;
                    *item = Item::Value(self.merged(shared, item));
                } else if let Some(table) = item.as_table_like_mut() {
                    make_absolute(table, self.folder);
                }
            }
        }
        Ok(())
    }

    /// The workspace's entry for a dependency, with what the member adds to it.
    fn merged(&self, shared: &Item, own: &Item) -> Value {
        let mut merged = InlineTable::new();
        if let Some(version) = shared.as_str() {
            merged.insert("version", version.into());
        } else if let Some(table) = shared.as_table_like() {
            for (key, item) in table.iter() {
                if let Some(value) = item.as_value() {
                    merged.insert(key, value.clone());
                }
            }
        }
        make_absolute(&mut merged, self.root);
        let features = |item: &Item| item.get("features").and_then(Item::as_array).cloned();
        let mut all: Array = features(shared).unwrap_or_default();
        all.extend(features(own).unwrap_or_default().iter().filter_map(Value::as_str));
        if !all.is_empty() {
            merged.insert("features", Value::Array(all));
        }
        for key in ["default-features", "optional"] {
            if let Some(value) = own.get(key).and_then(Item::as_value) {
                merged.insert(key, value.clone());
            }
        }
        match merged.get("version") {
            Some(version) if merged.len() == 1 => version.clone(),
            _ => {
                merged.fmt();
                Value::InlineTable(merged)
            }
        }
    }
}

/// What stands above `name.workspace = true`: blank lines and comments.
fn comment_above(item: &Item) -> Option<RawString> {
    let table = item.as_table().filter(|table| table.is_dotted())?;
    let (first, _) = table.iter().next()?;
    table.key(first)?.leaf_decor().prefix().cloned()
}

/// Whether it is `{ workspace = true, … }`.
fn is_inherited(item: Option<&Item>) -> bool {
    item.and_then(|item| item.get("workspace")).and_then(Item::as_bool) == Some(true)
}

/// Makes the path of a dependency in the manifest of `folder` absolute.
fn make_absolute(dependency: &mut dyn TableLike, folder: &Path) {
    let path = dependency.get("path").and_then(Item::as_str).map(|path| folder.join(path));
    if let Some(path) = path {
        let path = path.canonicalize().unwrap_or(path);
        dependency.insert("path", toml_edit::value(path.to_string_lossy().as_ref()));
    }
}

/// A copy for another document: without comments, and its tables where they are put.
fn unplaced(item: &Item) -> Item {
    let mut item = item.clone();
    if let Item::Table(table) = &mut item {
        unplace(table);
    }
    item
}

fn unplace(table: &mut toml_edit::Table) {
    table.set_position(None);
    table.decor_mut().set_prefix("\n");
    for (mut key, inner) in table.iter_mut() {
        key.leaf_decor_mut().clear();
        if let Item::Table(inner) = inner {
            unplace(inner);
        }
    }
}

fn parse(path: &Path) -> Result<DocumentMut, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| named(&error))?;
    text.parse().map_err(|error: toml_edit::TomlError| named(&error))
}

//! The public interface of each library, one item a line, in `<crate>/api.txt`.
//!
//! `cargo xtask tidy` compares it with the sources, so that a change of the interface is seen in
//! review; `UPDATE=1 cargo xtask tidy` rewrites it. The lines are read from the sources: what can
//! be reached from `lib.rs` through `pub mod` and `pub use`, under its shortest path, with the
//! features that it needs. Items made by macros are not seen.

use std::fs;
use std::path::Path;

mod lines;
pub(crate) mod modules;
#[cfg(test)]
mod tests;

/// What differs between `<library>/api.txt` and the sources. With `UPDATE` set, the file is written
/// instead.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn problems(
    root: &Path,
    library: &str,
    sources: &modules::Crate,
) -> Result<Vec<String>, String> {
    let text = lines::of(sources);
    let path = root.join(library).join("api.txt");
    let known = fs::read_to_string(&path).unwrap_or_default();
    if text == known {
        return Ok(Vec::new());
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(Vec::new());
    }
    let only = |here: &str, there: &str, sign: char| -> Vec<String> {
        let there: std::collections::BTreeSet<&str> = there.lines().collect();
        let lines = here.lines().filter(|line| !there.contains(line));
        lines.take(5).map(|line| format!("    {sign} {line}")).collect()
    };
    let changes = [only(&known, &text, '-'), only(&text, &known, '+')].concat().join("\n");
    let help = "`UPDATE=1 cargo xtask tidy` rewrites it";
    Ok(vec![format!("{library}/api.txt: the public interface has changed; {help}:\n{changes}")])
}

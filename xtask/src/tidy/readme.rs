//! The first example of a crate's README builds with the dependencies that the README shows.
//!
//! The example is compiled as a test of the documentation, where the crate's own dependencies for
//! tests are there too: what is missing for a reader does not show.

use std::collections::BTreeSet;

/// The roots of paths that are no dependency.
const BUILT_IN: &[&str] = &["alloc", "core", "crate", "self", "std", "super"];
/// What of tokio is behind a feature, as far as the examples use it.
const TOKIO: &[(&str, &str)] = &[
    ("tokio::fs", "fs"),
    ("tokio::main", "macros"),
    ("tokio::main", "rt"),
    ("tokio::net", "net"),
    ("tokio::runtime", "rt"),
    ("tokio::select", "macros"),
    ("tokio::signal", "signal"),
    ("tokio::spawn", "rt"),
    ("tokio::sync", "sync"),
    ("tokio::test", "macros"),
    ("tokio::test", "rt"),
    ("tokio::time", "time"),
];

/// What the first example of the README of `name` needs and the dependencies shown do not have.
pub(super) fn problems(name: &str, readme: &str) -> Vec<String> {
    let shown = block(readme, |language| language == "toml").unwrap_or_default();
    let is_rust = |language: &str| language.is_empty() || language.starts_with("rust");
    let example = block(readme, is_rust).unwrap_or_default();
    let line_of = |krate: &str| {
        let is_it = |line: &&str| line.split([' ', '=', '.']).next() == Some(krate);
        shown.lines().find(is_it)
    };
    let mut problems = Vec::new();
    for root in roots(&example) {
        if line_of(&root.replace('_', "-")).is_none() && line_of(&root).is_none() {
            problems.push(format!(
                "{name}/README.md: the example uses {root}, which the dependencies shown lack"
            ));
        }
    }
    if let Some(tokio) = line_of("tokio") {
        for (path, feature) in TOKIO {
            // `rt-multi-thread` brings `rt`.
            let has = |name: &str| tokio.contains(&format!("\"{name}"));
            let has = has(&format!("{feature}\"")) || has("full\"") || has(&format!("{feature}-"));
            if example.contains(path) && !has {
                problems.push(format!(
                    "{name}/README.md: the example uses {path}, and the tokio that is shown lacks \
                     the feature {feature}"
                ));
            }
        }
    }
    problems
}

/// The text of the first block in one of these languages.
fn block(readme: &str, is_wanted: impl Fn(&str) -> bool) -> Option<String> {
    let mut lines = readme.lines();
    // Ends: with the text.
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else { continue };
        let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if is_wanted(language) {
            return Some(text.join("\n"));
        }
    }
    None
}

/// The crates that an example names: where its `use` lines begin, and tokio anywhere.
fn roots(example: &str) -> BTreeSet<String> {
    let lines = example.lines().map(|line| line.strip_prefix("# ").unwrap_or(line).trim_start());
    let used = lines.filter_map(|line| line.strip_prefix("use ")?.split([':', ';', ' ']).next());
    let mut roots: BTreeSet<String> = used.map(str::to_owned).collect();
    if example.contains("tokio::") {
        roots.insert("tokio".to_owned());
    }
    roots.retain(|root| !BUILT_IN.contains(&root.as_str()));
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readme(dependencies: &str, example: &str) -> String {
        format!(
            "# one\n\n```toml\n[dependencies]\n{dependencies}\n```\n\n```rust\n{example}\n```\n"
        )
    }

    #[test]
    fn what_an_example_uses_and_nobody_was_told_to_add_is_named() {
        let ours = "voussoir-one = \"0.1\"   # bytes and tokio are words here";
        let plain = "use std::sync::Arc;\nuse voussoir_one::One;";
        assert_eq!(problems("one", &readme(ours, plain)), [""; 0]);
        let bytes = problems("one", &readme(ours, &format!("use bytes::Bytes;\n{plain}")));
        assert!(matches!(&bytes[..], [one] if one.contains("uses bytes")), "{bytes:?}");
        let hidden = format!("{plain}\n# #[tokio::main(flavor = \"current_thread\")]");
        let tokio = problems("one", &readme(ours, &hidden));
        assert!(matches!(&tokio[..], [one] if one.contains("uses tokio")), "{tokio:?}");
        let with = format!("{ours}\ntokio = {{ version = \"1\", features = [\"rt\"] }}");
        let macros = problems("one", &readme(&with, &hidden));
        assert!(matches!(&macros[..], [one] if one.contains("feature macros")), "{macros:?}");
        let all = with.replace("\"rt\"", "\"macros\", \"rt\"");
        assert_eq!(problems("one", &readme(&all, &hidden)), [""; 0]);
    }

    #[test]
    fn the_first_block_of_each_kind_is_looked_at() {
        let text = "```text\nuse nothing::at_all;\n```\n```rust,no_run\nuse a::B;\n```\n\
                    ```toml\na = \"1\"\n```\n```rust\nuse c::D;\n```\n";
        assert_eq!(problems("one", text), [""; 0]);
    }
}

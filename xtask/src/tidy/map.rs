//! The code map of ARCHITECTURE.md.

use std::path::Path;

/// The heading of the map. Each line below it that begins with a path in backquotes says what is
/// there.
const HEADING: &str = "## Code map";

/// Paths of the map that do not exist, and folders of `libraries` that it lacks.
pub(crate) fn problems<'a>(
    root: &Path,
    text: &str,
    libraries: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let Some((_, map)) = text.split_once(HEADING) else {
        return vec![format!("ARCHITECTURE.md: no `{HEADING}`")];
    };
    let map = map.split("\n## ").next().unwrap_or_default();
    let path = |line: &'_ str| -> Option<String> {
        let start = line.trim_start().trim_start_matches("- ").strip_prefix('`')?;
        Some(start.split('`').next()?.to_owned())
    };
    let paths: Vec<String> = map.lines().filter_map(path).collect();
    let absent = paths.iter().filter(|path| !root.join(path).exists());
    let mut problems: Vec<String> =
        absent.map(|path| format!("ARCHITECTURE.md: the code map names {path}")).collect();
    for library in libraries {
        let folders = std::fs::read_dir(root.join(library).join("src")).into_iter().flatten();
        for folder in folders.flatten().filter(|entry| entry.path().is_dir()) {
            let name = format!("{library}/src/{}/", folder.file_name().to_string_lossy());
            if !paths.contains(&name) {
                problems.push(format!("ARCHITECTURE.md: the code map lacks {name}"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_gone_and_a_folder_that_is_new_are_found() {
        let root = crate::root();
        let text = "# A\n## Code map\n- `xtask/src/api/`: one\n- `xtask/src/gone.rs`: two\n\
                    ## Next\n- `not/a/map`\n";
        let found = problems(&root, text, ["xtask"].into_iter());
        assert_eq!(found[0], "ARCHITECTURE.md: the code map names xtask/src/gone.rs");
        assert!(found.contains(&"ARCHITECTURE.md: the code map lacks xtask/src/tidy/".to_owned()));
        assert!(
            !found.iter().any(|problem| problem.contains("/api/") || problem.contains("not/a"))
        );
        assert_eq!(problems(&root, "# A\n", ["xtask"].into_iter()).len(), 1);
    }
}

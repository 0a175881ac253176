//! Whether the tests that mutants name are there: a test that was renamed or has moved would be
//! noticed only when its mutant is tried.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::process::Command;

use super::table::load;
use crate::run::output;
use crate::test::Binary;

/// The mutants of the workspace at `root` whose test none of `binaries` has.
pub(crate) fn without_test<'a>(
    root: &Path,
    binaries: impl Iterator<Item = &'a Binary>,
) -> Result<Vec<String>, String> {
    let binaries: Vec<&Binary> = binaries.collect();
    let mut listed: BTreeMap<&Path, String> = BTreeMap::new();
    let mut missing = Vec::new();
    for mutant in load(root)? {
        let wanted = Wanted::parse(&mutant.test);
        let package = root.join(&mutant.folder);
        let mut is_there = false;
        for binary in binaries.iter().filter(|binary| binary.package == package) {
            if !wanted.is_in(binary) {
                continue;
            }
            // A program without the harness would run instead of listing its tests.
            let has_one = wanted.filters.is_empty()
                || match listed.entry(&binary.program) {
                    Entry::Occupied(list) => wanted.is_among(list.get()),
                    Entry::Vacant(place) => {
                        let list = output(Command::new(&binary.program).arg("--list"))?;
                        wanted.is_among(place.insert(list))
                    }
                };
            is_there |= has_one;
        }
        if !is_there {
            missing.push(format!("{}: {}: `{}`", mutant.folder, mutant.name, mutant.test));
        }
    }
    Ok(missing)
}

/// What the arguments of `cargo test` ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted<'a> {
    /// The kind and the name of the target; a library needs no name.
    target: Option<(&'a str, Option<&'a str>)>,
    /// Parts of names: a test that has one of them runs. All run where there is none.
    filters: Vec<&'a str>,
}

impl<'a> Wanted<'a> {
    fn parse(args: &'a str) -> Self {
        let mut wanted = Self::default();
        let mut words = args.split_whitespace();
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some("lib") => wanted.target = Some(("lib", None)),
                Some(kind @ ("test" | "bin" | "example")) => {
                    wanted.target = Some((kind, words.next()));
                }
                Some("features") => drop(words.next()),
                Some(_) => {}
                None => wanted.filters.push(word),
            }
        }
        wanted
    }

    fn is_in(&self, binary: &Binary) -> bool {
        self.target.is_none_or(|(kind, name)| {
            binary.kind == kind && name.is_none_or(|name| name == binary.name)
        })
    }

    /// Whether a test of `list`, as the harness prints it, would run.
    fn is_among(&self, list: &str) -> bool {
        let mut names = list.lines().filter_map(|line| line.strip_suffix(": test"));
        names.any(|name| self.filters.iter().any(|filter| name.contains(filter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_there(args: &str, kind: &str, target: &str) -> bool {
        let (kind, name) = (kind.to_owned(), target.to_owned());
        let binary = Binary { package: "/w".into(), kind, name, program: "/p".into() };
        let wanted = Wanted::parse(args);
        wanted.is_in(&binary) && wanted.is_among("rules::one: test\nrules::two: benchmark\n")
    }

    #[test]
    fn a_test_is_known_by_its_target_and_by_a_part_of_its_name() {
        assert!(is_there("--test power rules::on", "test", "power"));
        assert!(is_there("--features a,b --test power -- --include-ignored one", "test", "power"));
        assert!(is_there("--lib one", "lib", "voussoir_journal"));
        assert!(is_there("one", "bin", "any"));
        assert!(!is_there("--test power one", "test", "tower"));
        assert!(!is_there("--lib one", "test", "lib"));
        assert!(!is_there("--test power two", "test", "power"), "a benchmark is no test");
        assert!(!is_there("--test power rules::three", "test", "power"));
    }
}

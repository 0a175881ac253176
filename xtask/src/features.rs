//! Each library with no feature, and with each of its features alone: a combination that only
//! `--all-features` makes whole is broken for those who take one.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::run::{cargo, check};

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    features: BTreeMap<String, Vec<String>>,
}

pub(crate) fn run() -> Result<(), String> {
    for library in crate::tidy::libraries() {
        for set in sets(library)? {
            let args = ["clippy", "--locked", "--lib", "--no-default-features", "--features"];
            let package = format!("voussoir-{library}");
            check(cargo(&args).args([&set, "-p", &package, "--", "-D", "warnings"]))?;
        }
    }
    Ok(())
}

/// The sets of features to be tried: none, each alone, and the default ones.
fn sets(library: &str) -> Result<Vec<String>, String> {
    let path = crate::root().join(library).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let manifest: Manifest = toml::from_str(&text).map_err(|e| format!("{library}: {e}"))?;
    Ok([String::new()].into_iter().chain(manifest.features.into_keys()).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_feature_stands_alone_once_and_none_too() {
        let sets = super::sets("cache").unwrap();
        assert_eq!(sets.first().map(String::as_str), Some(""));
        for feature in ["default", "journal", "redis"] {
            assert_eq!(sets.iter().filter(|set| *set == feature).count(), 1, "{feature}");
        }
    }
}

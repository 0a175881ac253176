//! What the README says of defaults and of tests is true.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use voussoir_raft::Config;

const README: &str = include_str!("../README.md");

/// The rows of the first table under `heading`, without its head.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = README.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// What stands in a `Some`.
fn some(value: &str) -> &str {
    value.strip_prefix("Some(").and_then(|value| value.strip_suffix(')')).unwrap_or(value)
}

/// A default as the README has it, in the words of `Debug`.
fn plain(told: &str) -> String {
    let number = |text: &str| text.replace(',', "").parse::<u64>().unwrap();
    let amount = |text: &str| {
        let (count, unit) = text.split_once(' ').unwrap_or((text, ""));
        match unit {
            "" => number(count).to_string(),
            "KiB" => (number(count) << 10).to_string(),
            "MiB" => (number(count) << 20).to_string(),
            "ms" | "s" => format!("{count}{unit}"),
            _ => panic!("an unknown unit: {text}"),
        }
    };
    match told.split_once(" less ") {
        Some((more, less)) => (number(&amount(more)) - number(&amount(less))).to_string(),
        None if told == "none" || told == "false" => told.to_owned(),
        None => amount(told),
    }
}

#[test]
fn the_tuning_table_has_every_field_with_its_default() {
    let text = format!("{:?}", Config::default());
    let fields = text.strip_prefix("Config { ").unwrap().strip_suffix(" }").unwrap();
    let defaults: BTreeMap<&str, String> = fields
        .split(", ")
        .map(|field| field.split_once(": ").unwrap())
        .map(|(name, value)| (name, value.replace("[]", "none").replace("None", "none")))
        .map(|(name, value)| (name, some(&value).to_owned()))
        .collect();
    let rows = rows("Tuning");
    let told: BTreeMap<&str, String> =
        rows.iter().map(|row| (row[0].trim_matches('`'), plain(row[1]))).collect();
    assert_eq!(rows.len(), told.len(), "a field has two rows");
    assert_eq!(told, defaults);
}

#[test]
fn every_guarantee_names_tests_that_exist() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let read = |file: &str| fs::read_to_string(tests.join(file)).unwrap_or_default();
    let mut named = BTreeSet::new();
    for row in rows("Guarantees") {
        let [guarantee, kept_by] = row[..] else { panic!("two columns: {row:?}") };
        let mut source = String::new();
        for name in kept_by.split('`').skip(1).step_by(2) {
            if name.contains('.') {
                source = read(name);
                assert!(source.contains("#[test]") || source.contains("::test"), "no {name}");
            } else {
                let function = format!("fn {name}(");
                assert!(source.contains(&function), "{name} is not where it is said: {guarantee}");
            }
            named.insert(name);
        }
        assert!(!source.is_empty(), "no test for: {guarantee}");
    }
    assert!(named.len() > 25, "{named:?}");
}

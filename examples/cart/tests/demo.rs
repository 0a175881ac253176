//! The demonstration as a user runs it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cart"))
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    said
}

#[test]
fn carts_differ_during_the_partition_and_are_merged_afterwards() {
    let output = program().args(["--seconds", "6"]).stdin(Stdio::null()).output().unwrap();
    let said = said(&output);
    for event in ["the regions are cut apart", "the partition has ended", "exact: nothing that"] {
        assert!(said.contains(event), "{event} is missing in {said}");
    }
    let merged = said.lines().find(|line| line.contains("siblings were merged")).unwrap();
    assert!(!merged.contains("merged 0 times"), "{said}");
    let agreed = said.lines().find(|line| line.contains("both regions agree")).unwrap();
    assert!(!agreed.contains("old-"), "what was removed is gone: {agreed}");
}

/// Somebody types: the partition comes and goes when they say so, and stays until the end.
#[test]
fn the_partition_comes_when_it_is_typed() {
    let mut child = program().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = String::new();
    let steps = [
        ("all reach each other", "p\n"),
        ("the regions are cut apart", "h\n"),
        ("the partition has ended", "p\n"),
        ("the regions are cut apart", "q\n"),
    ];
    for (wanted, typed) in steps {
        let mut find = || lines.by_ref().map(Result::unwrap).find(|line| line.contains(wanted));
        said += &find().unwrap_or_else(|| panic!("no {wanted} after {said}"));
        input.write_all(typed.as_bytes()).unwrap();
    }
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success(), "{said}\n{rest:?}");
    assert!(rest.iter().any(|line| line.starts_with("exact: ")), "{rest:?}");
}

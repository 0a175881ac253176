//! The demonstration as a user runs it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_account"))
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    said
}

#[test]
fn the_machine_in_the_minority_refuses_and_no_cent_is_lost() {
    let output = program().args(["--seconds", "6"]).stdin(Stdio::null()).output().unwrap();
    let said = said(&output);
    for event in ["machine 3 is cut off", "the partition has ended", "exact: "] {
        assert!(said.contains(event), "{event} is missing in {said}");
    }
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
        ("machine 3 is cut off", "h\n"),
        ("the partition has ended", "p\n"),
        ("machine 3 is cut off", "q\n"),
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

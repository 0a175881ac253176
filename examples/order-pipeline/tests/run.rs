//! The commands as a user runs them.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_order-pipeline"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn said(output: &Output) -> String {
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    said
}

fn run(folder: &Path, mode: &str, input: &str) -> String {
    let mut command = program();
    command.arg(mode).arg("--data").arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    said(&child.wait_with_output().unwrap())
}

#[test]
fn orders_are_taken_from_the_input_and_done_once_across_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let orders = "{\"id\": 1, \"customer\": \"ada\", \"article\": \"teapot\"}\n\
                  {\"id\": 2, \"customer\": \"ada\", \"article\": \"kettle\"}\n";
    let said = run(folder.path(), "run", orders);
    assert!(said.contains("order 2 is taken"), "{said}");
    assert!(said.contains("2 orders taken, 0 dead letters"), "{said}");
    assert_eq!(run(folder.path(), "dead-letters", ""), "");
    assert!(run(folder.path(), "redrive", "").contains("0 dead letters are delivered again"));
    let mut direct = program();
    let mut direct = direct.arg("direct").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let direct = direct.as_mut().unwrap();
    direct.stdin.take().unwrap().write_all(orders.as_bytes()).unwrap();
    let mut done = String::new();
    direct.stdout.take().unwrap().read_to_string(&mut done).unwrap();
    assert!(direct.wait().unwrap().success() && done.contains("order 2 is done"), "{done}");
    // The operator's commands, while it runs; and a line that is neither costs no other one.
    let mixed = "dead-letters\nredrive\nno order\n{\"id\": 3}\npurge\n\
                 {\"id\": 4, \"customer\": \"ada\", \"article\": \"kettle\"}\n";
    let said = run(folder.path(), "run", mixed);
    assert!(said.contains("0 dead letters are delivered again"), "{said}");
    assert!(said.contains("0 dead letters are discarded"), "{said}");
    assert!(said.contains("order 4 is taken\n1 orders taken, 0 dead letters"), "{said}");
    assert!(run(folder.path(), "purge", "").contains("0 dead letters are discarded"));
    // What was done is not done again.
    assert!(run(folder.path(), "run", "").contains("0 orders taken, 0 dead letters"));
}

//! The program as a user runs it: its demonstration, and its commands.

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

/// Numbers of the line that begins with `name`.
fn numbers(said: &str, name: &str) -> Vec<f64> {
    let line = said.lines().find(|line| line.trim_start().starts_with(name));
    let words = line.unwrap_or_else(|| panic!("no {name} in {said}")).split([' ', ',', ':']);
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn every_accepted_order_is_done_while_services_are_slow_and_dead() {
    let said = said(&program().args(["--seconds", "8"]).output().unwrap());
    assert!(said.contains("exact: each service has done each of the"), "{said}");
    for event in ["payment takes 250 ms", "shipping is dead", "notification has new workers"] {
        assert!(said.contains(event), "{event} is missing in {said}");
    }
    // Orders, p50, p99, failed.
    let (queued, waited) = (numbers(&said, "queued: "), numbers(&said, "synchronous: "));
    assert!(queued[3] == 0.0 && waited[3] > 0.0, "{said}");
    assert!(queued[2] * 2.0 < waited[2], "who is answered at once waits for no service: {said}");
    let notification = numbers(&said, "notification: ");
    assert!(notification[2] > 0.0, "killed workers had orders in their hands: {said}");
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
    // What was done is not done again.
    assert!(run(folder.path(), "run", "").contains("0 orders taken, 0 dead letters"));
}

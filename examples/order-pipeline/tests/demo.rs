//! The demonstration as a user runs it.

use std::process::{Command, Output};

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

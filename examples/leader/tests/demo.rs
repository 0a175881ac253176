//! The demonstration as a user runs it, and the commands that refuse.

use std::process::{Command, Output};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_leader"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn said(output: &Output) -> String {
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    said
}

/// Whole numbers of the line that begins with `name`.
fn numbers(said: &str, name: &str) -> Vec<u64> {
    let line = said.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {said}"));
    line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn the_next_takes_over_and_the_late_write_is_refused() {
    let said = said(&program().args(["--rounds", "1"]).output().unwrap());
    assert!(numbers(&said, "late lines refused")[0] >= 1, "{said}");
    let exact = numbers(&said, "exact: ");
    assert!(exact[0] >= 60, "{said}");
    assert!(exact[1] >= 4, "each event has a term of its own: {said}");
    // A process that was killed or paused holds its lock to the end of its session.
    let [killed, paused, resigned] =
        ["Killed: ", "Paused: ", "Resigned: "].map(|name| numbers(&said, name)[0]);
    assert!(resigned < killed.min(paused), "who resigns is not waited for: {said}");
}

#[test]
fn a_process_without_data_does_not_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let serve = |data: &std::path::Path| {
        let mut command = program();
        command.args(["serve", "--id", "1", "--listen", "127.0.0.1:0"]);
        command.args(["--ledger", "127.0.0.1:1", "--data"]).arg(data).output().unwrap()
    };
    let refused = serve(&data);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("no data; create it first"), "{refused:?}");
    let create = || {
        let mut command = program();
        command.args(["create", "--id", "1", "--data"]).arg(&data).output().unwrap()
    };
    said(&create());
    let again = create();
    assert!(!again.status.success());
    assert!(text(&again.stderr).contains("a process was created here before"), "{again:?}");
}

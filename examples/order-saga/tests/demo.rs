//! The program as a user runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_order-saga")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `VOUSSOIR_KILLS` sets how often the process that takes orders is killed in each form (default
/// 5).
#[test]
fn every_order_is_done_at_all_services_or_at_none() {
    let kills = std::env::var("VOUSSOIR_KILLS").unwrap_or("5".to_owned());
    let output = run(&["--kills", &kills, "--seed", "3"]);
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    println!("{said}\n{errors}");
    assert!(output.status.success(), "{}", output.status);
    let (_, forms) = said.split_once("== orchestrated").expect("the first form");
    let (orchestrated, choreographed) = forms.split_once("== choreographed").expect("the other");
    for form in [orchestrated, choreographed] {
        assert!(form.contains("every order is done at all services or at none"), "{form}");
        // Compensations in reverse, at each step.
        for calls in [
            "order refused\n",
            "order, stock refused, undo order\n",
            "order, stock, payment refused, undo stock, undo order\n",
            "order, stock, payment, shipping refused, undo payment, undo stock, undo order\n",
            "order, stock, payment, shipping, confirm\n",
        ] {
            assert!(form.contains(calls), "{calls}: {form}");
        }
        assert!(form.contains(r#""state":"stuck","steps":[{"call":"undo","step":"stock""#));
        check_kills(form);
    }
    for (clients, name) in [("1 client", "orchestrated"), ("12 clients", "choreographed")] {
        let row = said.lines().find(|row| row.contains(clients) && row.contains(name));
        assert!(row.is_some_and(|row| row.contains("p99")), "no {clients} {name}");
    }
}

/// The kills found orders under way, and clients asked again.
fn check_kills(said: &str) {
    let number = |words: &str| -> u64 {
        let before = said.split_once(words).unwrap_or_else(|| panic!("no `{words}`")).0;
        before.trim_end().rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(number(" orders were under way") > 0);
    assert!(number(" attempts repeated") > 0);
    assert!(number(" orders completed") > 0 && number(" undone\n          ") > 0);
}

/// A request that hangs is waited for, but not after a second signal.
#[test]
fn a_second_signal_ends_the_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_order-saga"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (_, address) = line.split_once("http://").unwrap();
    let (address, _) = address.split_once(',').unwrap();
    let mut hanging = TcpStream::connect(address).unwrap();
    let head = "POST /orders HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                content-length: 9\r\nexpect: 100-continue\r\n\r\n";
    hanging.write_all(head.as_bytes()).unwrap();
    // It is under way: the service asks for its body.
    hanging.read_exact(&mut [0; 25]).unwrap();
    let pid = process.id().to_string();
    let signal = |name: &str| Command::new("kill").args([name, &pid]).status().unwrap();
    assert!(signal("-TERM").success());
    // Ends: the service closes its listener, or does not listen any more because it has ended.
    while TcpStream::connect(address).is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(signal("-INT").success());
    let mut said = String::new();
    process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("second signal: not waiting any longer"), "{said}");
}

#[test]
fn a_wrong_command_line_is_status_2_and_help_is_status_0() {
    let wrong: [(&[&str], &str); 4] = [
        (&["--kills", "0"], "0 is not in 1..=10000"),
        (&["--minutes", "1"], "unexpected argument '--minutes'"),
        (&["serve", "--attempts", "0"], "0 is not in 1..=1000"),
        (&["services", "--listen", "80"], "invalid socket address"),
    ];
    for (arguments, error) in wrong {
        let output = run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(error), "{arguments:?}: {said}");
    }
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--kills <COUNT>"), "{}", text(&help.stdout));
}

//! Servers of the table, run for real where the machine has them.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::fetch;
use super::server::Running;
use super::table::{SERVICES, named};

fn port_of(address: &str) -> u16 {
    let after = address.rsplit_once("127.0.0.1:").unwrap().1;
    after.split('/').next().unwrap().parse().unwrap()
}

fn is_open(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn a_server_answers_until_it_is_dropped_and_leaves_nothing() {
    for service in SERVICES.iter().filter(|service| service.server.is_some()) {
        let Some(program) = fetch::find(service) else {
            eprintln!("left out: no {} on this machine", service.name);
            continue;
        };
        let mut first = Running::start(service, &program).unwrap();
        let second = Running::start(service, &program).unwrap();
        let ports = [port_of(&first.address.1), port_of(&second.address.1)];
        assert!(ports.iter().all(|port| is_open(*port)), "{}", service.name);
        assert!(!first.has_ended());
        let folders = [first.data.clone(), second.data.clone()];
        drop(first);
        assert!(!is_open(ports[0]), "{} was not stopped", service.name);
        assert!(is_open(ports[1]), "{} stopped its neighbour", service.name);
        drop(second);
        assert!(!is_open(ports[1]), "{} was not stopped", service.name);
        assert!(folders.iter().all(|folder| !folder.exists()), "{}", service.name);
    }
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let service = named("nats").unwrap();
    let program = fetch::Program { path: "/bin/false".into(), fetched_into: None };
    let error = Running::start(service, &program).unwrap_err();
    assert!(error.starts_with("nats: ended 5 times"), "{error}");
    let program = fetch::Program { path: "/bin/ls".into(), fetched_into: None };
    let error = Running::start(service, &program).unwrap_err();
    assert!(error.contains("invalid option"), "the log is shown: {error}");
}

/// A process that is killed cannot stop its servers: their keepers do.
#[test]
fn servers_end_with_a_killed_process() {
    let Some(name) =
        ["redis", "nginx"].into_iter().find(|n| fetch::find(named(n).unwrap()).is_some())
    else {
        eprintln!("left out: neither redis nor nginx on this machine");
        return;
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args(["run", "--quiet", "--locked", "--package", "xtask", "--", "services", "up", name])
        .current_dir(crate::root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = port_of(line.trim_end());
    assert!(is_open(port), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while is_open(port) {
        assert!(Instant::now() < until, "{name} outlives the process that started it");
        std::thread::sleep(Duration::from_millis(20));
    }
}

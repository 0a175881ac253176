//! Nodes as a user runs them.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

struct Node {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Node {
    fn start(folder: &Path, nodes: &str, id: u64, create: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_account"))
            .args(["serve", "--id", &id.to_string(), "--nodes", nodes, "--data"])
            .arg(folder.join(id.to_string()))
            .args(create)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(output.next().unwrap().unwrap(), format!("= node {id} is ready"));
        Self { child, input, output }
    }

    fn ask(&mut self, command: &str) -> String {
        self.input.as_mut().unwrap().write_all(format!("{command}\n").as_bytes()).unwrap();
        self.output.next().unwrap().unwrap()
    }

    /// Asks again while no majority answers: the nodes are finding each other.
    fn ask_until(&mut self, command: &str) -> String {
        let until = Instant::now() + Duration::from_secs(20);
        // Ends: at the latest when the time is over.
        loop {
            let answer = self.ask(command);
            if !answer.starts_with("! no majority") || Instant::now() >= until {
                return answer;
            }
        }
    }

    /// Withdraws as a machine on a slow disk does: what is not known is settled first.
    fn withdraw(&mut self, key: &str, cents: u64) -> String {
        let until = Instant::now() + Duration::from_secs(20);
        // Ends: at the latest when the time is over.
        loop {
            let mut answer = self.ask(&format!("withdraw {key} {cents}"));
            if answer.starts_with('!') {
                answer = self.ask_until("settle");
            }
            if answer != "= nothing" || Instant::now() >= until {
                return answer;
            }
        }
    }

    fn end(&mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The nodes with their addresses, which nobody else gets while the sockets are held.
fn nodes() -> (String, Vec<TcpSocket>) {
    let place = |_| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket
    };
    let places: Vec<_> = (1..=3).map(place).collect();
    let address = |(id, one): (usize, &TcpSocket)| format!("{id}={}", one.local_addr().unwrap());
    let nodes = (1..).zip(&places).map(address).collect::<Vec<_>>().join(",");
    (nodes, places)
}

/// A majority pays, a single node refuses, and what was paid stays paid after a restart of all.
#[test]
fn a_majority_pays_and_a_single_node_refuses() {
    let (folder, (nodes, _places)) = (tempfile::tempdir().unwrap(), nodes());
    let start = |id, create: &[&str]| Node::start(folder.path(), &nodes, id, create);
    let mut one = start(1, &["--create"]);
    assert!(one.ask("deposit a 500").starts_with("! no majority"), "two of three are not there");
    let mut two = start(2, &["--create"]);
    assert_eq!(one.ask_until("deposit a 500"), "= 500");
    assert_eq!(two.withdraw("a", 200), "= paid 200");
    assert_eq!(one.withdraw("a", 301), "= declined, the balance is 300");
    assert_eq!(one.ask_until("balance a"), "= 300");
    assert_eq!(one.ask("settle"), "= nothing");
    two.ask("cut 1");
    one.ask("cut 2");
    for node in [&mut one, &mut two] {
        let refused = node.ask("withdraw a 100");
        assert!(refused.starts_with("! no majority"), "{refused}");
        assert!(node.ask("balance a").starts_with("! no majority"));
    }
    two.ask("heal");
    one.ask("heal");
    assert_eq!(two.ask_until("balance a"), "= 300", "what was refused was not made");
    one.end();
    two.end();
    let (mut one, mut three) = (start(1, &[]), start(3, &["--create"]));
    assert_eq!(three.ask_until("balance a"), "= 300");
    assert_eq!(one.withdraw("a", 300), "= paid 300");
    one.end();
    three.end();
}

/// A node on an empty folder may be one whose disk was lost: it is not begun by mistake.
#[test]
fn an_empty_folder_is_refused_without_create() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_account"))
        .args(["serve", "--id", "1", "--nodes", &nodes().0, "--data"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains("node 1 has no data here"), "{errors}");
}

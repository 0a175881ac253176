//! Nodes as a user runs them.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tokio::net::TcpSocket;

struct Node {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Node {
    fn start(folder: &Path, nodes: &str, id: u64, create: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_likes"))
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

/// Alone, a node takes likes; what it took is there when it has been started again, and likes that
/// it takes then are added to it.
#[test]
fn a_node_that_is_alone_counts_and_keeps_what_it_counted() {
    let (folder, (nodes, _places)) = (tempfile::tempdir().unwrap(), nodes());
    let mut node = Node::start(folder.path(), &nodes, 1, &["--create"]);
    assert_eq!(node.ask("like post"), "= 1");
    assert_eq!(node.ask("like post"), "= 2");
    assert_eq!(node.ask("like other"), "= 1");
    assert_eq!(node.ask("unlike post"), "= 1");
    assert!(node.ask("dislike post").starts_with("! no command"));
    node.end();
    let mut node = Node::start(folder.path(), &nodes, 1, &[]);
    assert_eq!(node.ask("show post"), "= 1");
    assert_eq!(node.ask("like post"), "= 2");
    assert_eq!(node.ask("show other"), "= 1");
    node.end();
}

/// A node on an empty folder may be one whose disk was lost: it is not begun by mistake.
#[test]
fn an_empty_folder_is_refused_without_create() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_likes"))
        .args(["serve", "--id", "1", "--nodes", &nodes().0, "--data"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains("node 1 has no data here"), "{errors}");
}

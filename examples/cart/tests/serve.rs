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

/// Where the nodes 1 to 3 in the east and 4 to 6 in the west listen.
struct Places {
    east: String,
    west: String,
    /// While they are held nobody else gets the addresses.
    _held: Vec<TcpSocket>,
}

impl Places {
    fn new() -> Self {
        let hold = |_| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket
        };
        let held: Vec<_> = (1..=6).map(hold).collect();
        let place = |(id, one): (usize, &TcpSocket)| format!("{id}={}", one.local_addr().unwrap());
        let places: Vec<String> = (1..).zip(&held).map(place).collect();
        Self { east: places[..3].join(","), west: places[3..].join(","), _held: held }
    }
}

impl Node {
    fn start(folder: &Path, places: &Places, id: u64, create: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cart"))
            .args(["serve", "--id", &id.to_string(), "--east", &places.east])
            .args(["--west", &places.west, "--data"])
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

    fn until(&mut self, command: &str, wanted: &str) {
        let ends = Instant::now() + Duration::from_secs(30);
        let mut said = String::new();
        // Ends: by the deadline.
        while said != wanted {
            assert!(Instant::now() < ends, "{command}: {said}, not {wanted}");
            said = self.ask(command);
            std::thread::sleep(Duration::from_millis(20));
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

/// A region alone takes changes; they are there when its nodes have been started again, and reach
/// the other region when that comes.
#[test]
fn a_region_that_is_alone_goes_on_and_tells_the_other_one_later() {
    let (folder, places) = (tempfile::tempdir().unwrap(), Places::new());
    let start = |id, create: &[&str]| Node::start(folder.path(), &places, id, create);
    let mut east: Vec<Node> = (1..=3).map(|id| start(id, &["--create"])).collect();
    // Once the nodes reach each other.
    for node in &mut east {
        node.until("show ann", "= ");
    }
    assert_eq!(east[0].ask("add ann milk 2"), "= added 2 merged 0");
    assert_eq!(east[1].ask("add ann milk 1"), "= added 1 merged 1");
    assert_eq!(east[2].ask("add ann tea 4"), "= added 4 merged 1");
    assert_eq!(east[0].ask("remove ann milk"), "= removed 3 merged 1");
    assert_eq!(east[0].ask("add ann milk 5"), "= added 5 merged 1");
    assert!(east[0].ask("add ann milk 1001").starts_with("! 1001 is not from 1 to 1000"));
    assert!(east[0].ask("drop ann milk").starts_with("! no command"));
    east.iter_mut().for_each(Node::end);
    let mut east: Vec<Node> = (1..=3).map(|id| start(id, &[])).collect();
    for node in &mut east {
        node.until("show ann", "= milk 5, tea 4");
    }
    assert_eq!(east[1].ask("add ann milk 1"), "= added 1 merged 1");
    let mut west: Vec<Node> = (4..=6).map(|id| start(id, &["--create"])).collect();
    for node in &mut west {
        node.until("show ann", "= milk 6, tea 4");
    }
    assert_eq!(west[0].ask("remove ann tea"), "= removed 4 merged 1");
    for node in &mut east {
        node.until("show ann", "= milk 6");
    }
    west[0].until("lag", "= 0");
    east.iter_mut().chain(&mut west).for_each(Node::end);
}

/// Two regions that are cut apart change one cart: both changes are there afterwards.
#[test]
fn what_both_sides_of_a_partition_have_changed_is_merged() {
    let (folder, places) = (tempfile::tempdir().unwrap(), Places::new());
    let start = |id| Node::start(folder.path(), &places, id, &["--create"]);
    let mut nodes: Vec<Node> = (1..=6).map(start).collect();
    for node in &mut nodes {
        node.until("show ann", "= ");
    }
    assert_eq!(nodes[0].ask("add ann milk 3"), "= added 3 merged 0");
    assert_eq!(nodes[0].ask("add ann bread 1"), "= added 1 merged 1");
    nodes[3].until("show ann", "= bread 1, milk 3");
    for (at, node) in nodes.iter_mut().enumerate() {
        assert_eq!(node.ask(if at < 3 { "cut 4 5 6" } else { "cut 1 2 3" }), "= cut");
    }
    assert_eq!(nodes[0].ask("remove ann milk"), "= removed 3 merged 1");
    assert_eq!(nodes[3].ask("add ann milk 2"), "= added 2 merged 1");
    assert_eq!(nodes[4].ask("remove ann bread"), "= removed 1 merged 1");
    assert_eq!(nodes[1].ask("show ann"), "= bread 1");
    assert_eq!(nodes[5].ask("show ann"), "= milk 5");
    for node in &mut nodes {
        assert_eq!(node.ask("heal"), "= healed");
    }
    for node in &mut nodes {
        node.until("show ann", "= milk 2");
        node.until("lag", "= 0");
    }
    // Who has written nothing itself replaces what both sides have written.
    let said = nodes[2].ask("add ann tea 1");
    assert!(said.starts_with("= added 1 "), "{said}");
    for node in &mut nodes {
        node.until("show ann", "= milk 2, tea 1");
    }
}

/// A node on an empty folder may be one whose disk was lost: it is not begun by mistake.
#[test]
fn an_empty_folder_is_refused_without_create() {
    let (folder, places) = (tempfile::tempdir().unwrap(), Places::new());
    let output = Command::new(env!("CARGO_BIN_EXE_cart"))
        .args(["serve", "--id", "1", "--east", &places.east, "--west", &places.west, "--data"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains("node 1 has no data here"), "{errors}");
}

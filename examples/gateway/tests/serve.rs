//! The process: exit statuses, SIGHUP, SIGTERM, the administrative address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::{Backend, PATIENCE, ask, get_ok, until};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

mod support;

/// A gateway process and its log.
struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Process {
    fn start(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.toml");
        std::fs::write(&file, text).expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_gateway"))
            .arg("--config")
            .arg(&file)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let log = BufReader::new(child.stderr.take().expect("piped")).lines();
        Self { child, log, file, _folder: folder }
    }

    /// The next line of the log with `word`.
    async fn line(&mut self, word: &str) -> String {
        let next = async {
            // Ends with the line, or with the log.
            loop {
                let line = self.log.next_line().await.expect("the log");
                let line = line.unwrap_or_else(|| panic!("the log ends without `{word}`"));
                if line.contains(word) {
                    return line;
                }
            }
        };
        timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("no line with `{word}`"))
    }

    /// The address in the next line with `word`.
    async fn address(&mut self, word: &str) -> SocketAddr {
        let line = self.line(word).await;
        let (_, address) = line.split_once("address=").expect("an address");
        address.trim().parse().expect("an address")
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs") as i32;
        kill_process(Pid::from_raw(id).expect("an id"), signal).expect("sent");
    }

    async fn status(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("waited for").code()
    }
}

fn file(backend: &Backend) -> String {
    format!(
        "[server]\nadmin = \"127.0.0.1:0\"\n\n[[listeners]]\naddress = \"127.0.0.1:0\"\n\n\
         [[routes]]\nname = \"all\"\npool = \"web\"\n\n[pools.web]\nendpoints = [\"{}\"]\n\
         strategy = \"round-robin\"\n",
        backend.address
    )
}

/// Runs the gateway with a file to its end.
async fn run(text: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, text).expect("written");
    run_with(&file, arguments).await
}

async fn run_with(file: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.arg("--config").arg(file).args(arguments).kill_on_drop(true);
    timeout(PATIENCE, command.output()).await.expect("it ends").expect("it runs")
}

#[tokio::test]
async fn a_file_that_cannot_be_used_ends_with_status_2_and_says_where_and_what() {
    let good = file(&Backend::start("a").await);
    let bad = good.replace("\"round-robin\"", "\"round\"");
    for arguments in [&[][..], &["--check"]] {
        let ended = run(&bad, arguments).await;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{said}");
        for word in ["gateway.toml: line 13, column 12", "`round`", "`round-robin`", "`peak-ewma`"]
        {
            assert!(said.contains(word), "{word} in: {said}");
        }
    }
    let missing = run_with(Path::new("/nonexistent/gateway.toml"), &[]).await;
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent/gateway.toml"));
    let checked = run(&good, &["--check"]).await;
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let tls = "address = \"127.0.0.1:0\"\ntls = { certificate = \"c.pem\", key = \"k.pem\" }";
    let no_certificate = good.replacen("address = \"127.0.0.1:0\"", tls, 1);
    for arguments in [&[][..], &["--check"]] {
        let ended = run(&no_certificate, arguments).await;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains("TLS of the listener") && said.contains("c.pem"), "{said}");
    }
}

#[tokio::test]
async fn a_listener_that_cannot_be_opened_ends_with_status_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = taken.local_addr().expect("bound").to_string();
    let text = file(&Backend::start("a").await);
    let text = text.replacen("address = \"127.0.0.1:0\"", &format!("address = \"{address}\""), 1);
    let ended = run(&text, &[]).await;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
}

#[tokio::test]
async fn requests_under_way_end_after_sigterm_and_the_status_is_0() {
    let a = Backend::start("a").await;
    let mut process = Process::start(&file(&a));
    let _admin = process.address("administrative address").await;
    let address = process.address("listening").await;
    assert_eq!(get_ok(address, "/x").await, "a /x");
    let slow = tokio::spawn(async move { get_ok(address, "/slow").await });
    until("the slow request is under way", || a.requests() == 2).await;
    process.signal(Signal::TERM);
    process.line("draining").await;
    assert_eq!(slow.await.expect("answered"), "a /slow");
    assert_eq!(process.status().await, Some(0));
    assert!(ask(address, "/x", "").await.is_err(), "nobody listens any more");
}

/// A request that hangs is waited for, but not after a second signal.
#[tokio::test]
async fn a_second_signal_ends_the_waiting() {
    let hanging = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let mut backend = Backend::start("a").await;
    backend.address = hanging.local_addr().expect("bound");
    let mut process = Process::start(&file(&backend));
    let _admin = process.address("administrative address").await;
    let address = process.address("listening").await;
    let asking = tokio::spawn(async move { ask(address, "/x", "").await });
    let (mut taken, _) = timeout(PATIENCE, hanging.accept()).await.expect("asked").expect("taken");
    let mut line = [0; 6];
    taken.read_exact(&mut line).await.expect("a request");
    assert_eq!(&line, b"GET /x");
    process.signal(Signal::TERM);
    process.line("draining").await;
    process.signal(Signal::INT);
    process.line("second signal: not waiting any longer").await;
    assert_eq!(process.status().await, Some(0));
    assert!(!asking.await.expect("ended").is_ok_and(|answer| answer.status == 200));
}

/// The new pools have no healthy backend: the reload waits for their checks, and the signal does
/// not wait for the reload.
#[tokio::test]
async fn a_signal_during_a_reload_ends_the_process() {
    let a = Backend::start("a").await;
    let mut process = Process::start(&file(&a));
    let _admin = process.address("administrative address").await;
    let address = process.address("listening").await;
    let silent = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("loopback"));
    let mut text = file(&a);
    for (nth, silent) in silent.iter().enumerate() {
        text += &format!(
            "\n[[routes]]\nname = \"silent{nth}\"\npath = \"/silent{nth}\"\n\
             pool = \"silent{nth}\"\n\n[pools.silent{nth}]\nendpoints = [\"{}\"]\n\
             health = {{ timeout_ms = 60000, interval_ms = 60000 }}\n",
            silent.local_addr().expect("bound"),
        );
    }
    std::fs::write(&process.file, text).expect("written");
    // The reload has begun, and checks both at once.
    for silent in silent {
        silent.set_nonblocking(true).expect("set");
        let silent = tokio::net::TcpListener::from_std(silent).expect("taken");
        timeout(PATIENCE, silent.accept()).await.expect("checked").expect("accepted");
    }
    process.signal(Signal::TERM);
    process.line("draining in the middle of a reload").await;
    assert_eq!(process.status().await, Some(0));
    assert!(ask(address, "/x", "").await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn the_file_is_read_again_when_it_changes_and_on_sighup() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let mut process = Process::start(&file(&a));
    let admin = process.address("administrative address").await;
    let address = process.address("listening").await;
    let broken = file(&a).replace("pool = \"web\"", "pool = \"wbe\"");
    std::fs::write(&process.file, &broken).expect("written");
    let line = process.line("rejected").await;
    assert!(line.contains("line 9, column 8: there is no pool `wbe`"), "{line}");
    assert_eq!(get_ok(address, "/x").await, "a /x");
    std::fs::write(&process.file, file(&b)).expect("written");
    process.line("the new configuration is in use").await;
    assert_eq!(get_ok(address, "/x").await, "b /x");
    process.signal(Signal::HUP);
    process.line("the new configuration is in use").await;
    let metrics = get_ok(admin, "/metrics").await;
    for row in [
        "gateway_reloads_total{result=\"applied\"} 2".to_owned(),
        "gateway_reloads_total{result=\"rejected\"} 1".to_owned(),
        format!("gateway_backend_picks_total{{pool=\"web\",backend=\"{}\"}} 1", b.address),
    ] {
        assert!(metrics.lines().any(|line| line == row), "{row} in {metrics}");
    }
    assert_eq!(get_ok(admin, "/health").await, "ok\n");
    assert_eq!(get_ok(admin, "/ready").await, "ready\n");
    let status = get_ok(admin, "/status").await;
    assert!(status.contains(&format!("\"address\":\"{}\"", b.address)), "{status}");
    process.signal(Signal::INT);
    assert_eq!(process.status().await, Some(0));
}

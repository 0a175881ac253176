//! The program as a user runs it: its demonstration, its service over HTTP, and its command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_write-behind"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check_demo(output: &Output) -> String {
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    assert!(said.contains("exact: every counter of the table is what was acknowledged"), "{said}");
    assert_eq!(said.matches("the service was killed (kill -9)").count(), 2, "{said}");
    said
}

#[test]
#[ignore = "needs postgresql"]
fn the_table_has_exactly_what_was_acknowledged() {
    let said = check_demo(&program().args(["--seconds", "8"]).output().unwrap());
    assert!(said.contains("the table is renamed away"), "{said}");
    assert!(said.contains("the table is back"), "{said}");
}

#[test]
#[ignore = "needs postgresql"]
fn without_database_url_the_demo_runs_and_kills_a_server_of_its_own() {
    let began = Instant::now();
    let mut command = program();
    command.args(["--seconds", "8"]).env_remove("DATABASE_URL");
    let said = check_demo(&command.output().unwrap());
    assert!(said.contains("the database is killed"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let folder = said.lines().next().unwrap().rsplit_once(" in ").unwrap().1;
    assert!(folder.contains("postgresql-"), "{said}");
    assert!(!std::path::Path::new(folder).exists(), "{folder} is left");
}

/// A running service, killed when a test fails.
struct Service {
    process: Child,
    address: String,
    first_line: String,
}

impl Service {
    fn start(folder: &std::path::Path, table: &str) -> Self {
        let mut command = program();
        command.args(["serve", "--exit-with-parent", "--listen", "127.0.0.1:0", "--table", table]);
        Self::spawn(command.arg("--data").arg(folder).stdin(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut first_line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut first_line).unwrap();
        let address = first_line.trim().strip_prefix("listening on http://").unwrap();
        let address = address.split(',').next().unwrap().to_owned();
        Self { process, address, first_line }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = text(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    fn report(&self, page: &str, body: &str) -> (u16, serde_json::Value) {
        self.ask("POST", &format!("/views/{page}"), body)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs postgresql"]
fn reports_over_http_are_counted_rejected_and_flushed_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let table = format!("write_behind_test_{}", std::process::id());
    let created = program().args(["create", "--table", &table]).status().unwrap();
    assert!(created.success());
    let mut service = Service::start(folder.path(), &table);
    assert!(!service.address.ends_with(":0"), "{}", service.first_line);
    let body = r#"{"edge": 3, "sequence": 1, "views": 5}"#;
    for _ in 0..2 {
        let counted = serde_json::json!({ "views": 5, "sequence": 1 });
        assert_eq!(service.report("7", body), (200, counted));
    }
    let other = r#"{"edge": 4, "sequence": 1, "views": 2}"#;
    assert_eq!(service.report("7", other).0, 200);
    let wrong = [
        ("7", r#"{"edge": 3, "sequence": 3, "views": 5}"#, 409, "report 3 does not follow 1"),
        ("7", r#"{"edge": 16, "sequence": 1, "views": 5}"#, 422, "edge 16: must be from 0 to 15"),
        ("7", r#"{"edge": 3, "sequence": 2, "views": 0}"#, 422, "must be from 1 to 1000000"),
        ("7", r#"{"edge": 3, "sequence": 2}"#, 422, "missing field `views`"),
        ("7", r#"{"edge": 3, "sequence": 2, "views": 1, "x": 1}"#, 422, "unknown field `x`"),
        ("7", "{", 400, "EOF"),
        ("-1", body, 400, "page -1: must be a number from 0 to 9223372036854775807"),
        ("9223372036854775808", body, 400, "must be a number"),
        ("7", &" ".repeat(1_025), 413, "more than 1024 bytes"),
    ];
    for (page, body, status, error) in wrong {
        let (found, said) = service.report(page, body);
        assert_eq!(found, status, "{page} {body}: {said}");
        assert!(said["error"].as_str().unwrap().contains(error), "{body}: {said}");
        assert_eq!(said["outcome"], "not_applied", "{said}");
    }
    let views = serde_json::json!({ "page": 7, "views": 7 });
    assert_eq!(service.ask("GET", "/views/7", ""), (200, views));
    assert_eq!(service.ask("GET", "/health", "").0, 200);
    // The end of standard input ends it, flushed.
    drop(service.process.stdin.take());
    assert!(service.process.wait().unwrap().success());
    let service = Service::start(folder.path(), &table);
    assert!(service.first_line.ends_with(", 0 counters to flush\n"), "{}", service.first_line);
    assert_eq!(service.ask("GET", "/views/7", "").1["views"], 7);
    drop(service);
    let dropped = format!("DROP TABLE {table}");
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let url = std::env::var("DATABASE_URL").unwrap();
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&dropped).await.unwrap();
    });
}

/// A request that hangs is waited for, but not after a second signal.
#[test]
fn a_second_signal_ends_the_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(folder.path()).env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres");
    let mut service = Service::spawn(command.stderr(Stdio::piped()));
    let mut hanging = TcpStream::connect(&service.address).unwrap();
    let head = "POST /views/7 HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                content-length: 9\r\nexpect: 100-continue\r\n\r\n";
    hanging.write_all(head.as_bytes()).unwrap();
    // It is under way: the service asks for its body.
    hanging.read_exact(&mut [0; 25]).unwrap();
    let pid = service.process.id().to_string();
    let signal = |name: &str| Command::new("kill").args([name, &pid]).status().unwrap();
    assert!(signal("-TERM").success());
    // Ends: the service closes its listener, or does not listen any more because it has ended.
    while TcpStream::connect(&service.address).is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(signal("-INT").success());
    let mut said = String::new();
    service.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(service.process.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("second signal: not waiting any longer"), "{said}");
}

#[test]
fn a_wrong_command_line_is_status_2_and_help_is_status_0() {
    let run = |arguments: &[&str], url: &str| {
        program().args(arguments).env("DATABASE_URL", url).output().unwrap()
    };
    let good = "postgres://postgres@127.0.0.1:1/postgres";
    let wrong: [(&[&str], &str, &str); 6] = [
        (&["--seconds", "7"], good, "7 is not in 8..=50"),
        (&["--minutes", "1"], good, "unexpected argument '--minutes'"),
        (&["serve", "--max-backlog", "0"], good, "0 is not in 1..=10000000"),
        (&["serve"], "", "DATABASE_URL is not set: expected one such as postgres://"),
        (&["create"], "", "DATABASE_URL is not set"),
        (&["serve"], "http://x", "DATABASE_URL: invalid connection string"),
    ];
    for (arguments, url, error) in wrong {
        let output = run(arguments, url);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(error), "{arguments:?}: {said}");
    }
    let help = run(&["--help"], "");
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--seconds <SECONDS>"), "{}", text(&help.stdout));
    // A server that is not there: a message, and not a hang or a panic.
    let output = run(&["create"], good);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("refused"), "{}", text(&output.stderr));
}

//! The program as a user runs it: its demonstration, its service over HTTP, and its command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_transfer"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
#[ignore = "needs postgresql"]
fn at_a_given_server_the_demo_kills_the_coordinator_and_leaves_nothing() {
    let output = program().args(["--first", "4", "--rounds", "10"]).output().unwrap();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    assert!(said.contains("exact: both banks hold what was acknowledged"), "{said}");
    // 10 rounds, the last of which kills a start too, and the coordinator that stays dead.
    assert!(said.contains("kills:  12 of the coordinator, 0 of a database"), "{said}");
    assert!(said.contains("dead for"), "{said}");
    let name = said.split_once("the database ").unwrap().1.split_once("_east").unwrap().0;
    let left = sql(None, &format!("SELECT FROM pg_database WHERE starts_with(datname, '{name}_')"));
    assert_eq!(left, 0, "its databases are left: {said}");
}

#[test]
#[ignore = "needs postgresql"]
fn a_group_lets_go_what_its_leader_leaves_prepared() {
    let output = program().args(["--replicated", "--rounds", "4"]).output().unwrap();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    assert!(said.contains("exact: both banks hold what was acknowledged"), "{said}");
    // Beside it, a single coordinator blocks them for as long as it is dead.
    let number = |after: &str, before: &str| -> u64 {
        let (_, rest) = said.split_once(after).unwrap_or_else(|| panic!("no `{after}`: {said}"));
        rest.split_once(before).unwrap().0.trim().parse().unwrap()
    };
    assert!(number("single: ", " branches and ") > 0, "{said}");
    assert!(said.contains("group:  3 leaders killed and 1 paused, "), "{said}");
    assert!(number(" and 1 paused, ", " branches and ") > 0, "{said}");
    let (last, limit) = (number("was free within ", " ms "), number("away, the limit is ", " ms"));
    assert!(last <= limit, "{said}");
}

/// Executes statements at the server of `DATABASE_URL`; returns the rows of the last one.
fn sql(database: Option<&str>, statements: &str) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config: tokio_postgres::Config =
            std::env::var("DATABASE_URL").unwrap().parse().unwrap();
        if let Some(database) = database {
            config.dbname(database);
        }
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let (mut rows, all) = (0, client.simple_query(statements).await.unwrap());
        for message in all {
            if let tokio_postgres::SimpleQueryMessage::CommandComplete(count) = message {
                rows = count as usize;
            }
        }
        rows
    })
}

/// Two databases of a test's own, and the service over them.
struct Stage {
    name: String,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new(test: &str) -> Self {
        let name = format!("transfer_test_{test}_{}", std::process::id());
        for bank in ["east", "west"] {
            sql(None, &format!("CREATE DATABASE {name}_{bank}"));
        }
        let stage = Self { name, folder: tempfile::tempdir().unwrap() };
        for _ in 0..2 {
            // Again, it changes nothing.
            let mut create = stage.program();
            let created = create.args(["create", "--accounts", "3", "--cents", "1000"]).status();
            assert!(created.unwrap().success());
        }
        stage
    }

    fn program(&self) -> Command {
        let url = std::env::var("DATABASE_URL").unwrap();
        let separator = match (url.contains("://"), url.contains('?')) {
            (false, _) => ' ',
            (true, false) => '?',
            (true, true) => '&',
        };
        let mut command = program();
        for (variable, bank) in [("EAST_DATABASE_URL", "east"), ("WEST_DATABASE_URL", "west")] {
            command.env(variable, format!("{url}{separator}dbname={}_{bank}", self.name));
        }
        command
    }

    fn database(&self, bank: &str) -> String {
        format!("{}_{bank}", self.name)
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for bank in ["east", "west"] {
            sql(None, &format!("DROP DATABASE {} WITH (FORCE)", self.database(bank)));
        }
    }
}

/// A running service, killed when a test fails.
struct Service {
    process: Child,
    address: String,
    first_line: String,
    /// Kept open: the service prints when it stops.
    _stdout: BufReader<ChildStdout>,
}

impl Service {
    fn start(stage: &Stage) -> Self {
        Self::start_with(stage, |_| {})
    }

    fn start_with(stage: &Stage, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = stage.program();
        command
            .args(["serve", "--exit-with-parent", "--listen", "127.0.0.1:0"])
            .args(["--name", &stage.name, "--recover-every-ms", "200", "--data"])
            .arg(stage.folder())
            .stdin(Stdio::piped());
        change(&mut command);
        Self::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut first_line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut first_line).unwrap();
        let address = first_line.trim().strip_prefix("listening on http://").unwrap();
        let address = address.split(',').next().unwrap().to_owned();
        Self { process, address, first_line, _stdout: stdout }
    }

    fn ask(&self, method: &str, path: &str, key: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let key =
            if key.is_empty() { String::new() } else { format!("idempotency-key: {key}\r\n") };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{key}\
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

    fn transfer(&self, key: &str, from: &str, to: &str, cents: i64) -> (u16, Value) {
        let body = json!({ "from": from, "to": to, "cents": cents }).to_string();
        self.ask("POST", "/transfers", key, &body)
    }

    fn cents(&self, account: &str) -> Value {
        self.ask("GET", &format!("/accounts/{account}"), "", "").1["cents"].clone()
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
fn transfers_over_http_are_done_once_or_rejected() {
    let stage = Stage::new("http");
    let mut service = Service::start(&stage);
    assert!(service.first_line.ends_with(", 0 transfers to apply\n"), "{}", service.first_line);
    for repeated in [false, true, true] {
        let done = json!({ "id": "a", "repeated": repeated });
        assert_eq!(service.transfer("a", "east/0", "west/1", 300), (200, done));
    }
    assert_eq!(service.transfer("b", "west/1", "west/2", 100).0, 200);
    let (status, said) = service.transfer("a", "east/0", "west/1", 301);
    assert_eq!((status, &said["outcome"]), (422, &json!("not_applied")), "{said}");
    let refused = [
        (("east/0", "west/0", 701), "east/0 does not hold that much"),
        (("west/0", "east/0", 1_001), "west/0 does not hold that much"),
        (("east/0", "west/3", 1), "west/3 does not exist"),
        (("east/3", "west/0", 1), "east/3 does not exist"),
    ];
    for ((from, to, cents), error) in refused {
        let (status, said) = service.transfer("c", from, to, cents);
        assert_eq!(status, 409, "{said}");
        assert_eq!(said, json!({ "error": error, "outcome": "not_applied" }));
    }
    let wrong = [
        ("", r#"{"from": "east/0", "to": "west/0", "cents": 1}"#, 400, "Idempotency-Key"),
        ("a b", r#"{"from": "east/0", "to": "west/0", "cents": 1}"#, 400, "Idempotency-Key"),
        ("d", r#"{"from": "east/0", "to": "west/0", "cents": 0}"#, 422, "must be from 1"),
        ("d", r#"{"from": "east/0", "to": "east/0", "cents": 1}"#, 422, "two accounts"),
        ("d", r#"{"from": "north/0", "to": "east/0", "cents": 1}"#, 422, "`north/0` is no account"),
        ("d", r#"{"from": "east/0", "to": "west/0"}"#, 422, "missing field `cents`"),
        ("d", "{", 400, "EOF"),
        ("d", &" ".repeat(1_025), 413, "more than 1024 bytes"),
    ];
    for (key, body, status, error) in wrong {
        let (found, said) = service.ask("POST", "/transfers", key, body);
        assert_eq!(found, status, "{body}: {said}");
        assert!(said["error"].as_str().unwrap().contains(error), "{body}: {said}");
        assert_eq!(said["outcome"], "not_applied", "{said}");
    }
    let held = ["east/0", "west/0", "west/1", "west/2"].map(|account| service.cents(account));
    assert_eq!(held, [700, 1000, 1200, 1100].map(Value::from));
    assert_eq!(service.ask("GET", "/accounts/east/3", "", "").0, 404);
    assert_eq!(service.ask("GET", "/accounts/east/-1", "", "").0, 400);
    assert_eq!(service.ask("GET", "/health", "", "").0, 200);
    let stats = service.ask("GET", "/stats", "", "").1;
    assert_eq!((&stats["done"], &stats["repeated"]), (&json!(2), &json!(2)), "{stats}");
    assert_eq!(service.ask("GET", "/heuristics", "", ""), (200, json!([])));
    assert_eq!(service.ask("DELETE", "/heuristics/x", "", "").0, 400);
    // The end of standard input ends it.
    drop(service.process.stdin.take());
    assert!(service.process.wait().unwrap().success());
}

/// An operator who ends a prepared transaction by hand against its decision is told, until somebody
/// has dealt with it.
#[test]
#[ignore = "needs postgresql"]
fn a_transaction_that_was_ended_by_hand_is_listed_until_it_is_forgotten() {
    let stage = Stage::new("hand");
    let mut service = Service::start(&stage);
    let mut stdin = service.process.stdin.take().unwrap();
    stdin.write_all(b"stop 0 before west commits\n").unwrap();
    assert_eq!(service.transfer("a", "east/0", "west/0", 300).0, 200);
    let prepared =
        format!("SELECT FROM pg_prepared_xacts WHERE database = '{}'", stage.database("west"));
    let gid = until("west is prepared alone", || {
        let gid = format!("vs1:{}:1:0:1", stage.name);
        (sql(None, &prepared) == 1).then_some(gid)
    });
    sql(Some(&stage.database("west")), &format!("ROLLBACK PREPARED '{gid}'"));
    stdin.write_all(b"go\n").unwrap();
    let listed = until("the outcome is listed", || {
        let (_, listed) = service.ask("GET", "/heuristics", "", "");
        (listed != json!([])).then_some(listed)
    });
    let did = "rolled back or lost though the transaction committed";
    assert_eq!(listed, json!([{ "gid": gid, "bank": "west", "did": did }]));
    assert_eq!(service.cents("east/0"), 700);
    assert_eq!(service.cents("west/0"), 1000, "the money is lost, and the service says where");
    drop(stdin);
    drop(service);
    let service = Service::start(&stage);
    assert_eq!(service.ask("GET", "/heuristics", "", "").1, listed, "also after a restart");
    assert_eq!(service.ask("DELETE", &format!("/heuristics/{gid}"), "", "").0, 204);
    assert_eq!(service.ask("GET", "/heuristics", "", ""), (200, json!([])));
}

/// A bank that is away keeps neither the process nor the other bank waiting, and what was left
/// prepared there is let go. A password that is wrong is no bank that is away.
#[test]
#[ignore = "needs postgresql"]
fn a_bank_that_is_away_does_not_keep_the_process_from_serving_the_other() {
    let stage = Stage::new("away");
    let mut service = Service::start(&stage);
    let mut stdin = service.process.stdin.take().unwrap();
    // East is prepared, and the process ends before the decision.
    stdin.write_all(b"stop 0 before west prepares\n").unwrap();
    std::thread::scope(|scope| {
        let service = &service;
        scope.spawn(move || {
            let mut stream = TcpStream::connect(&service.address).unwrap();
            let body = r#"{"from": "east/0", "to": "west/0", "cents": 1}"#;
            let head = "POST /transfers HTTP/1.1\r\nhost: a\r\nidempotency-key: a";
            let kind = "content-type: application/json";
            let length = body.len();
            write!(stream, "{head}\r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
            let _ = stream.read(&mut [0; 64]);
        });
        let prepared = east_prepared(&stage);
        until("east is prepared", || (sql(None, &prepared) == 1).then_some(()));
        Command::new("kill").args(["-9", &service.process.id().to_string()]).status().unwrap();
    });
    drop(service);
    let nowhere = "postgres://postgres@127.0.0.1:1/postgres";
    let again = Service::start_with(&stage, |command| {
        command.env("WEST_DATABASE_URL", nowhere);
    });
    assert_eq!(again.ask("GET", "/health", "", "").0, 200);
    let prepared = east_prepared(&stage);
    until("east is let go", || (sql(None, &prepared) == 0).then_some(()));
    assert_eq!(again.transfer("b", "east/0", "east/1", 1).0, 200);
    let (status, said) = again.transfer("c", "east/0", "west/1", 1);
    assert_eq!((status, &said["outcome"]), (503, &json!("unknown")), "{said}");
    drop(again);
    let mut missing = stage.program();
    let database = std::env::var("DATABASE_URL").unwrap();
    let separator = if database.contains('?') { '&' } else { '?' };
    missing.env("WEST_DATABASE_URL", format!("{database}{separator}dbname=transfer_never_was"));
    missing.args(["serve", "--listen", "127.0.0.1:0", "--name", &stage.name, "--data"]);
    let output = missing.arg(stage.folder()).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("west") && said.contains("does not exist"), "{said}");
}

fn east_prepared(stage: &Stage) -> String {
    format!("SELECT FROM pg_prepared_xacts WHERE database = '{}'", stage.database("east"))
}

fn until<T>(what: &str, found: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A request that hangs is waited for, but not after a second signal.
#[test]
fn a_second_signal_ends_the_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = "postgres://postgres@127.0.0.1:1/postgres";
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(folder.path()).env("EAST_DATABASE_URL", nowhere).env("WEST_DATABASE_URL", nowhere);
    let mut service = Service::spawn(command.stderr(Stdio::piped()));
    let mut hanging = TcpStream::connect(&service.address).unwrap();
    let head = "POST /transfers HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
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
    let run = |arguments: &[&str], east: &str, west: &str| {
        program()
            .args(arguments)
            .env("EAST_DATABASE_URL", east)
            .env("WEST_DATABASE_URL", west)
            .output()
            .unwrap()
    };
    let good = "postgres://postgres@127.0.0.1:1/postgres";
    let wrong: [(&[&str], &str, &str, &str); 6] = [
        (&["--rounds", "0"], good, good, "0 is not in 1..=100000"),
        (&["--minutes", "1"], good, good, "unexpected argument '--minutes'"),
        (&["serve", "--max-transfers", "0"], good, good, "0 is not in 1..=10000"),
        (&["serve"], "", good, "EAST_DATABASE_URL is not set: expected one such as postgres://"),
        (&["create"], good, "", "WEST_DATABASE_URL is not set"),
        (&["serve"], good, "http://x", "the address of a database: invalid connection string"),
    ];
    for (arguments, east, west, error) in wrong {
        let output = run(arguments, east, west);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(error), "{arguments:?}: {said}");
    }
    let help = run(&["--help"], "", "");
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--rounds <COUNT>"), "{}", text(&help.stdout));
    // A server that is not there: a message, and not a hang or a panic.
    let output = run(&["create"], good, good);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("refused"), "{}", text(&output.stderr));
}

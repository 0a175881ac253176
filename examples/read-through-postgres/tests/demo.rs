//! The program as a user runs it: its demonstration, its service over HTTP, and its command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_read-through-postgres"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of the table that begin with `strategy`.
fn lines<'a>(said: &'a str, strategy: &str) -> Vec<&'a str> {
    said.lines().filter(|line| line.starts_with(strategy)).collect()
}

fn check_demo(output: &Output, svg: &std::path::Path) -> String {
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    let loads = |line: &str, readers: &str, loads: &str| {
        line.split_whitespace().collect::<Vec<_>>().windows(2).any(|pair| pair == [readers, loads])
    };
    let stampede = lines(&said, "stampede on a cold key");
    assert_eq!(stampede.len(), 2, "{said}");
    assert!(loads(stampede[0], "1000", "1000") && loads(stampede[1], "1000", "1"), "{said}");
    let negative = lines(&said, "negative caching");
    assert!(loads(negative[0], "200", "200") && loads(negative[1], "200", "1"), "{said}");
    assert!(said.contains("200 of 200 new prices"), "{said}");
    let shared = lines(&said, "two processes");
    assert!(loads(shared[0], "200", "200"), "{said}");
    assert!(said.contains("the second process loads nothing"), "{said}");
    assert!(said.contains("until the end of its TTL") && said.contains("until NOTIFY"), "{said}");
    let picture = std::fs::read_to_string(svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"), "{picture}");
    said
}

#[test]
#[ignore = "needs postgresql"]
fn each_strategy_does_what_it_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("stampede.svg");
    let mut command = program();
    command.args(["--readers", "1000", "--svg"]).arg(&svg);
    let said = check_demo(&command.output().unwrap(), &svg);
    assert!(said.starts_with("database: the PostgreSQL of DATABASE_URL\n"), "{said}");
    // No server of others is stopped.
    assert!(said.contains("table renamed away"), "{said}");
    if std::env::var_os("REDIS_URL").is_some() {
        assert!(said.contains("second level: the Redis of REDIS_URL\n"), "{said}");
        assert!(said.contains("not ours to stop"), "{said}");
    }
}

#[test]
#[ignore = "needs postgresql"]
fn without_their_addresses_the_demo_runs_servers_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("stampede.svg");
    let began = Instant::now();
    let mut command = program();
    command.args(["--readers", "1000", "--svg"]).arg(&svg);
    command.env_remove("DATABASE_URL").env_remove("REDIS_URL");
    let said = check_demo(&command.output().unwrap(), &svg);
    assert!(said.contains("Redis is back, empty"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    for line in said.lines().take(2) {
        let data = line.rsplit_once(" in ").unwrap().1;
        assert!(!std::path::Path::new(data).exists(), "{data} is left");
    }
}

/// A running service, killed when a test fails.
struct Service {
    process: Child,
    address: String,
}

impl Service {
    fn start(table: &str, options: &[&str]) -> Self {
        let mut command = program();
        command.args(["serve", "--exit-with-parent", "--listen", "127.0.0.1:0", "--table", table]);
        Self::spawn(command.args(options).stdin(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap().to_owned();
        assert!(!address.ends_with(":0"), "{address}");
        Self { process, address }
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

    fn cents(&self, id: u64) -> serde_json::Value {
        let (status, product) = self.ask("GET", &format!("/products/{id}"), "");
        assert_eq!(status, 200, "{product}");
        product["cents"].clone()
    }

    fn count(&self, key: &str) -> u64 {
        self.ask("GET", "/stats", "").1[key].as_u64().unwrap()
    }

    /// Reads a product until it is answered from memory: the bus is up then.
    fn read_until_kept(&self, id: u64) {
        let until = Instant::now() + Duration::from_secs(20);
        let before = self.count("hits");
        while self.count("hits") == before {
            assert!(Instant::now() < until, "product {id} is not kept");
            self.cents(id);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn execute(statements: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = std::env::var("DATABASE_URL").unwrap();
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(statements).await.unwrap();
    });
}

#[test]
#[ignore = "needs postgresql"]
fn products_over_http_are_read_changed_and_told_of() {
    let table = format!("read_through_test_{}", std::process::id());
    for _ in 0..2 {
        assert!(program().args(["create", "--table", &table]).status().unwrap().success());
    }
    execute(&format!(
        "INSERT INTO {table} VALUES (1, 'a', 'tools', 1000), (2, 'b', 'tools', 2000), \
         (3, 'c', 'toys', 3000)"
    ));
    // Without a listener: what this process has changed, it drops by itself.
    let service = Service::start(&table, &["--no-listen"]);
    let product = serde_json::json!(
        { "id": 1, "name": "a", "category": "tools", "cents": 1000, "version": 1 }
    );
    assert_eq!(service.ask("GET", "/products/1", ""), (200, product));
    assert_eq!((service.cents(2), service.cents(3)), (2000.into(), 3000.into()));
    let (status, listed) = service.ask("GET", "/products?ids=3,9,1", "");
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(|each| each["id"].clone()).collect();
    assert_eq!((status, ids), (200, vec![3.into(), 1.into()]));
    assert_eq!(service.ask("PUT", "/products/1/price", r#"{"cents": 1500}"#).0, 204);
    assert_eq!(service.cents(1), 1500, "after the answer every reader sees the new price");
    let (status, changed) = service.ask("POST", "/categories/tools/discount", r#"{"percent": 10}"#);
    assert_eq!((status, &changed["products"]), (200, &2.into()));
    let all = (service.cents(1), service.cents(2), service.cents(3));
    assert_eq!(all, (1350.into(), 1800.into(), 3000.into()));
    let wrong = [
        ("GET", "/products/9", "", 404, "no product 9"),
        ("GET", "/products/x", "", 400, "Cannot parse"),
        ("GET", "/products", "", 400, "missing field `ids`"),
        ("GET", "/products?ids=1,,2", "", 400, "must be 1 to 200 numbers"),
        ("PUT", "/products/9/price", r#"{"cents": 1}"#, 404, "no product 9"),
        ("PUT", "/products/1/price", r#"{"cents": -1}"#, 422, "cents -1: must be at least 0"),
        ("PUT", "/products/1/price", r#"{"dollars": 1}"#, 422, "unknown field `dollars`"),
        ("PUT", "/products/1/price", &" ".repeat(1_025), 413, "more than 1024 bytes"),
        ("POST", "/categories/tools/discount", r#"{"percent": 91}"#, 422, "must be from 1 to 90"),
    ];
    for (method, path, body, status, error) in wrong {
        let (found, said) = service.ask(method, path, body);
        assert_eq!(found, status, "{path} {body}: {said}");
        assert!(said["error"].as_str().unwrap().contains(error), "{path} {body}: {said}");
    }
    drop(service);
    // Another program changes a row: the TTL is a minute, so only NOTIFY can make it seen.
    let mut service = Service::start(&table, &[]);
    let until = Instant::now() + Duration::from_secs(20);
    while service.ask("GET", "/stats", "").1["listening"] != true {
        assert!(Instant::now() < until, "the listener does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(service.cents(3), 3000);
    execute(&format!("UPDATE {table} SET cents = 3333 WHERE id = 3"));
    while service.cents(3) != 3333 {
        assert!(Instant::now() < until, "the change is not seen");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(service.process.stdin.take());
    assert!(service.process.wait().unwrap().success());
    execute(&format!("DROP TABLE {table}; DROP FUNCTION {table}_tell, {table}_next_version"));
}

#[test]
#[ignore = "needs postgresql and redis"]
fn two_processes_share_what_they_have_read_and_tell_each_other_of_changes() {
    assert!(std::env::var_os("REDIS_URL").is_some(), "REDIS_URL is not set");
    let table = format!("read_through_shared_{}", std::process::id());
    assert!(program().args(["create", "--table", &table]).status().unwrap().success());
    let insert = format!("INSERT INTO {table} SELECT id, 'p', 'c', id FROM");
    execute(&format!("{insert} generate_series(1, 2000) AS id"));
    let first = Service::start(&table, &["--no-listen"]);
    first.read_until_kept(7);
    (1..=2_000).for_each(|id| assert_eq!(first.cents(id), id));
    // A process that starts, with a listener, leaves what the others have in Redis.
    let second = Service::start(&table, &[]);
    let until = Instant::now() + Duration::from_secs(20);
    while second.ask("GET", "/stats", "").1["listening"] != true {
        assert!(Instant::now() < until, "the listener does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    second.read_until_kept(7);
    // What was read while a call of Redis was late is from the database: one fifty of forty counts.
    let is_shared = (1..=1_951).step_by(50).any(|start| {
        let before = second.count("redis_hits");
        (start..start + 50).for_each(|id| assert_eq!(second.cents(id), id));
        second.count("redis_hits") == before + 50
    });
    let stats = [&first, &second].map(|service| service.ask("GET", "/stats", "").1);
    assert!(is_shared, "the second process has asked the database: {stats:?}");
    // A change through one process is seen by the other, which has no listener.
    first.read_until_kept(7);
    assert_eq!(second.ask("PUT", "/products/7/price", r#"{"cents": 7000}"#).0, 204);
    assert_eq!(second.cents(7), 7000);
    while first.cents(7) != 7000 {
        assert!(Instant::now() < until, "the first process does not see the change");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop((first, second));
    execute(&format!("DROP TABLE {table}; DROP FUNCTION {table}_tell, {table}_next_version"));
}

/// A request that hangs is waited for, but not after a second signal.
#[test]
fn a_second_signal_ends_the_waiting() {
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--no-listen"]);
    command.env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres").env_remove("REDIS_URL");
    let mut service = Service::spawn(command.stderr(Stdio::piped()));
    let mut hanging = TcpStream::connect(&service.address).unwrap();
    let head = "PUT /products/1/price HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
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
        (&["--readers", "99"], good, "99 is not in 100..=20000"),
        (&["--minutes", "1"], good, "unexpected argument '--minutes'"),
        (&["serve", "--ttl-seconds", "0"], good, "a number from 1 to 86400"),
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
    let output = program()
        .arg("create")
        .env("DATABASE_URL", good)
        .env("REDIS_URL", "http://x")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("REDIS_URL: "), "{said}");
    let help = run(&["--help"], "");
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--readers <COUNT>"), "{}", text(&help.stdout));
    // A server that is not there: a message, and not a hang or a panic.
    let output = run(&["create"], good);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("refused"), "{}", text(&output.stderr));
}

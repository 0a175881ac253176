//! Configurations that follow one another while requests are served.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gateway::gateway::{ApplyError, Gateway};
use gateway::reload::Watched;
use parking_lot::Mutex;
use tokio::net::UdpSocket;

use support::{Backend, ask, get_ok, until};

mod support;

const NOWHERE: &str = "/nonexistent";

/// A file with one listener, `routes`, and `pools`.
fn file(routes: &str, pools: &str) -> String {
    format!("[[listeners]]\naddress = \"127.0.0.1:0\"\n\n{routes}\n{pools}\n")
}

const ALL: &str = "[[routes]]\nname = \"all\"\npool = \"web\"\n";

/// The pool `web` over these backends, with `more` settings.
fn web(backends: &[&Backend], more: &str) -> String {
    let list: Vec<_> = backends.iter().map(|found| format!("\"{}\"", found.address)).collect();
    format!("[pools.web]\nendpoints = [{}]\n{more}\n", list.join(", "))
}

const CHECKED: &str = "health = { interval_ms = 20, timeout_ms = 2_000, rise = 1, fall = 1 }\n";

async fn start(text: &str) -> (Gateway, SocketAddr) {
    let gateway = Gateway::start(text, Path::new(NOWHERE)).await.expect("it starts");
    let address = gateway.addresses()[0];
    (gateway, address)
}

/// Whether a backend of the pool `web` is healthy, and its picks.
fn found(gateway: &Gateway, backend: &Backend) -> (bool, u64) {
    let pools = gateway.overview().read().pools();
    let web = pools.into_iter().find(|pool| pool.name == "web").expect("the pool");
    let name = backend.address.to_string();
    let found = web.balancer.endpoints.into_iter().find(|found| found.name == name);
    let found = found.expect("the backend");
    (found.healthy, found.picks)
}

#[tokio::test]
async fn an_invalid_file_keeps_the_old_configuration() {
    let a = Backend::start("a").await;
    let good = file(ALL, &web(&[&a], ""));
    let (mut gateway, address) = start(&good).await;
    assert_eq!(get_ok(address, "/x").await, "a /x");
    for (from, to, word) in [
        ("pool = \"web\"", "pool = \"wbe\"", "there is no pool `wbe`"),
        ("[pools.web]", "[pools.web]\nstrategy = \"best\"", "unknown variant `best`"),
        ("[[listeners]]", "[server]\nmax_connections = 5\n[[listeners]]", "restart"),
        ("127.0.0.1:0", "192.0.2.1:80", "cannot listen on 192.0.2.1:80"),
        ("127.0.0.1:0\"", "127.0.0.1:0\"\ntls = { certificate = \"c\", key = \"k\" }", "TLS"),
    ] {
        let bad = good.replace(from, to);
        let error = gateway.apply(&bad, Path::new(NOWHERE)).await.expect_err(to);
        assert!(error.to_string().contains(word), "{word} in {error}");
        assert_eq!(gateway.addresses(), [address], "the listener stays");
        assert_eq!(get_ok(address, "/x").await, "a /x");
    }
    let overview = gateway.overview();
    let counts = (overview.read().reloads, overview.read().rejected_reloads);
    assert_eq!(counts, (0, 5));
    gateway.apply(&good, Path::new(NOWHERE)).await.expect("good");
    assert_eq!(overview.read().reloads, 1);
}

#[tokio::test]
async fn health_is_carried_over_by_a_reload_of_the_set_and_of_the_settings() {
    let (a, b, c) =
        (Backend::start("a").await, Backend::start("b").await, Backend::start("c").await);
    let (mut gateway, address) = start(&file(ALL, &web(&[&a, &b], CHECKED))).await;
    until("b is checked", || found(&gateway, &b).0).await;
    b.set_status(503);
    until("b is down", || !found(&gateway, &b).0).await;
    let asked = b.requests();
    // The set grows, the settings stay: the pool stays.
    gateway
        .apply(&file(ALL, &web(&[&a, &b, &c], CHECKED)), Path::new(NOWHERE))
        .await
        .expect("good");
    assert!(!found(&gateway, &b).0, "b is still down");
    until("c is checked", || found(&gateway, &c).0).await;
    // The strategy changes: a new pool, whose first check of b has not run yet.
    let slow = CHECKED.replace("interval_ms = 20", "interval_ms = 60_000");
    let settings = format!("strategy = \"round-robin\"\n{slow}");
    gateway
        .apply(&file(ALL, &web(&[&a, &b, &c], &settings)), Path::new(NOWHERE))
        .await
        .expect("good");
    assert!(!found(&gateway, &b).0, "b is down in the new pool");
    assert!(found(&gateway, &a).0 && found(&gateway, &c).0, "the others are healthy at once");
    for _ in 0..30 {
        get_ok(address, "/x").await;
    }
    assert_eq!(b.requests(), asked, "the backend that is down got a request");
    assert!(a.requests() >= 10 && c.requests() >= 10, "{} {}", a.requests(), c.requests());
}

#[tokio::test]
async fn a_route_moves_to_a_pool_of_new_backends_without_a_failed_request() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let (mut gateway, address) = start(&file(ALL, &web(&[&a], CHECKED))).await;
    let asking = tokio::spawn(async move {
        let mut seen = Vec::new();
        // Ends when b has answered: at the latest after 20 s.
        for _ in 0..20_000 {
            seen.push(get_ok(address, "/x").await);
            if seen.last().is_some_and(|body| body == "b /x") {
                return seen.len();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("b never answers");
    });
    until("a is asked", || a.requests() > 5).await;
    gateway.apply(&file(ALL, &web(&[&b], CHECKED)), Path::new(NOWHERE)).await.expect("good");
    assert!(asking.await.expect("no request failed") > 5);
}

/// A rolling reload: the old backend drains as the new one joins, or the only one that stays is
/// down. The check of each backend takes a second.
#[tokio::test]
async fn a_reload_that_keeps_no_backend_in_use_waits_for_the_new_one() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let down = std::net::TcpListener::bind("127.0.0.1:0").and_then(|tcp| tcp.local_addr());
    let down = down.expect("a port of nobody");
    let slow = "health = { path = \"/slow\", interval_ms = 200, timeout_ms = 5_000 }";
    let pool = |list: String| file(ALL, &format!("[pools.web]\nendpoints = [{list}]\n{slow}\n"));
    let (old, new) = (a.address, b.address);
    for (before, after) in [
        (format!("\"{old}\""), format!("{{ address = \"{old}\", draining = true }}, \"{new}\"")),
        (format!("\"{down}\", \"{old}\""), format!("\"{down}\", \"{new}\"")),
    ] {
        let (mut gateway, address) = start(&pool(before)).await;
        assert_eq!(get_ok(address, "/x").await, "a /x");
        let asking = tokio::spawn(async move {
            // Ends when b has answered: at the latest after 20 s.
            for _ in 0..20_000 {
                if get_ok(address, "/x").await == "b /x" {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            panic!("b never answers");
        });
        gateway.apply(&pool(after), Path::new(NOWHERE)).await.expect("good");
        asking.await.expect("no request failed");
    }
}

/// Each of them is waited for, for two checks: 2 s. They are waited for together.
#[tokio::test]
async fn pools_without_a_healthy_backend_are_waited_for_side_by_side() {
    let a = Backend::start("a").await;
    let (mut gateway, address) = start(&file(ALL, &web(&[&a], ""))).await;
    let mut silent = Vec::new();
    let (mut routes, mut pools) = (ALL.to_owned(), web(&[&a], ""));
    for nth in 0..5 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let backend = listener.local_addr().expect("bound");
        routes += &format!("[[routes]]\nname = \"r{nth}\"\npath = \"/{nth}\"\npool = \"p{nth}\"\n");
        pools += &format!(
            "[pools.p{nth}]\nendpoints = [\"{backend}\"]\nhealth = {{ timeout_ms = 1000 }}\n"
        );
        silent.push(listener);
    }
    let began = std::time::Instant::now();
    gateway.apply(&file(&routes, &pools), Path::new(NOWHERE)).await.expect("good");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2), "nobody was waited for: {took:?}");
    assert!(took < Duration::from_secs(8), "one after the other: {took:?}");
    assert_eq!(get_ok(address, "/x").await, "a /x");
}

#[tokio::test]
async fn a_limit_rejects_and_goes_on_counting_after_a_reload() {
    let a = Backend::start("a").await;
    let limited = |requests| {
        let limit =
            format!("limit = {{ requests = {requests}, per_ms = 60_000, by = \"header:k\" }}\n");
        file(&format!("{ALL}{limit}"), &web(&[&a], ""))
    };
    let (mut gateway, address) = start(&limited(2)).await;
    let status = async |key: &str| ask(address, "/x", key).await.expect("an answer").status;
    assert_eq!((status("k: 1\r\n").await, status("k: 1\r\n").await), (200, 200));
    let third = ask(address, "/x", "k: 1\r\n").await.expect("an answer");
    assert_eq!(third.status, 429);
    assert!(third.head.contains("retry-after: "), "{}", third.head);
    assert_eq!(status("k: 2\r\n").await, 200, "another key");
    gateway.apply(&limited(2), Path::new(NOWHERE)).await.expect("good");
    assert_eq!(status("k: 1\r\n").await, 429, "the reload forgot the count");
    gateway.apply(&limited(3), Path::new(NOWHERE)).await.expect("good");
    assert_eq!(status("k: 1\r\n").await, 200, "a new limit begins anew");
    assert_eq!(a.requests(), 4);
    assert_eq!(gateway.overview().read().limits(), [("all".to_owned(), 0)]);
}

#[tokio::test]
async fn a_breaker_answers_for_backends_that_fail_and_closes_again() {
    let a = Backend::start("a").await;
    let settings = "outliers = { enabled = false }\nretry = { max_attempts = 1 }\n\
                    breaker = { failure_percent = 50, min_requests = 5, open_ms = 300 }\n";
    let (_gateway, address) = start(&file(ALL, &web(&[&a], settings))).await;
    a.set_status(500);
    for _ in 0..5 {
        assert_eq!(ask(address, "/x", "").await.expect("an answer").status, 500);
    }
    let rejected = ask(address, "/x", "").await.expect("an answer");
    assert_eq!(rejected.status, 503);
    assert!(rejected.head.contains("retry-after: 1") && rejected.body.contains("breaker"));
    assert_eq!(a.requests(), 5, "the backend is left alone");
    a.set_status(200);
    // Ends when the breaker has closed: at the latest after 20 s.
    for _ in 0..2_000 {
        if ask(address, "/x", "").await.expect("an answer").status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the breaker stays open");
}

#[tokio::test]
async fn listeners_come_and_go() {
    let a = Backend::start("a").await;
    let one = file(ALL, &web(&[&a], ""));
    let (mut gateway, first) = start(&one).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|tcp| tcp.local_addr());
    let free = free.expect("a free port");
    let two = format!("[[listeners]]\naddress = \"{free}\"\n\n{one}");
    gateway.apply(&two, Path::new(NOWHERE)).await.expect("good");
    assert_eq!(get_ok(free, "/x").await, "a /x");
    assert_eq!(get_ok(first, "/x").await, "a /x");
    gateway.apply(&one, Path::new(NOWHERE)).await.expect("good");
    assert_eq!(gateway.addresses(), [first]);
    assert!(ask(free, "/x", "").await.is_err(), "the listener is closed");
    assert_eq!(get_ok(first, "/x").await, "a /x");
    let switched = one.replace(
        "address = \"127.0.0.1:0\"",
        &format!("address = \"{first}\"\ntls = {{ certificate = \"c\", key = \"k\" }}"),
    );
    let error = gateway.apply(&switched, Path::new(NOWHERE)).await.expect_err("no certificate");
    assert!(matches!(error, ApplyError::Tls { .. }), "{error}");
}

/// A name server that answers one question by `answer`: an address, or a failure.
async fn name_server(answer: Arc<Mutex<Option<[u8; 4]>>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut bytes = [0; 512];
        // Ends with the test.
        loop {
            let (length, client) = socket.recv_from(&mut bytes).await.expect("a question");
            // Header, the question as it came (without what follows it), and an A record with a
            // TTL of one second whose name points at the question (RFC 1035 §4).
            let name = bytes[12..length].iter().position(|byte| *byte == 0).expect("a name");
            let mut reply = bytes[..12 + name + 5].to_vec();
            let found = *answer.lock();
            let code = if found.is_some() { 0x80 } else { 0x82 };
            reply[2..12].copy_from_slice(&[
                0x81,
                code,
                0,
                1,
                0,
                found.is_some().into(),
                0,
                0,
                0,
                0,
            ]);
            if let Some(found) = found {
                reply.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                reply.extend(found);
            }
            socket.send_to(&reply, client).await.expect("sent");
        }
    });
    address
}

#[tokio::test]
async fn a_pool_follows_its_name_and_keeps_its_backends_when_lookups_fail() {
    let a = Backend::start("a").await;
    let b = Backend::start_at("b", SocketAddr::from(([127, 0, 0, 2], a.address.port()))).await;
    let found = Arc::new(Mutex::new(Some([127, 0, 0, 1])));
    let server = name_server(Arc::clone(&found)).await;
    let port = a.address.port();
    let dns = format!(
        "dns = {{ addresses = \"web.test.:{port}\", servers = [\"{server}\"], family = \"v4\" }}"
    );
    let pool = format!("[pools.web]\n{dns}\n");
    let (mut gateway, address) = start(&file(ALL, &pool)).await;
    assert_eq!(get_ok(address, "/x").await, "a /x", "the first lookup is waited for");
    *found.lock() = None;
    let lookups = |gateway: &Gateway| {
        let pools = gateway.overview().read().pools();
        pools[0].discovery.clone().expect("looked up")
    };
    until("a lookup fails", || lookups(&gateway).failed > 0).await;
    assert_eq!(get_ok(address, "/x").await, "a /x", "the backend stays");
    // New settings while lookups fail: the backends of the pool before serve.
    let settings = format!("{pool}strategy = \"round-robin\"\n");
    gateway.apply(&file(ALL, &settings), Path::new(NOWHERE)).await.expect("good");
    assert_eq!(get_ok(address, "/x").await, "a /x", "the backend is carried over");
    *found.lock() = Some([127, 0, 0, 2]);
    until("the lookup succeeds", || lookups(&gateway).updates > 0).await;
    assert_eq!(get_ok(address, "/x").await, "b /x");
    assert_eq!(b.requests(), 1);
    let error = gateway
        .apply(&file(ALL, &pool.replace("web.test.", "no..name")), Path::new(NOWHERE))
        .await
        .expect_err("no name");
    assert!(error.to_string().contains("must be a DNS name"), "{error}");
}

/// The wait is dropped whenever something else happens in the loop of the process, such as the
/// table of `--view`, also between the signal and the text of the file.
#[tokio::test]
async fn a_signal_is_not_lost_with_the_wait_that_took_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.toml");
    std::fs::write(&path, "as it was").expect("written");
    let mut watched = Watched::new(&path, "as it was").expect("a handler");
    for round in 0..20 {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::HUP).expect("sent");
        let asked = async {
            // Waits that are dropped as soon as they can, then later ones.
            for wait in 0_u64.. {
                tokio::select! {
                    biased;
                    text = watched.changed() => return text,
                    () = tokio::time::sleep(Duration::from_micros(wait * 20)) => {}
                }
            }
            unreachable!("a wait ends it")
        };
        let text = tokio::time::timeout(Duration::from_secs(10), asked).await;
        assert_eq!(text.as_deref(), Ok("as it was"), "round {round}");
    }
}

//! What an operator does to running nodes, and what they tell him.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use store::client::Client;
use store::cluster::Cluster;

use support::{Raw, Slow, ask, ask_until, metric, program, wait_until};

struct Store {
    cluster: Cluster,
    client: Client,
    _folder: tempfile::TempDir,
}

impl Store {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::new(program(), folder.path(), 3).unwrap();
        cluster.start_all().unwrap();
        let client = cluster.client();
        cluster.leader(&client).await.unwrap();
        Self { cluster, client, _folder: folder }
    }

    fn http(&self, id: u64) -> SocketAddr {
        self.cluster.addresses()[id as usize - 1].1
    }

    async fn leader(&self) -> u64 {
        self.cluster.leader(&self.client).await.unwrap().id
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_answers_what_is_under_way_and_ends_with_status_0() {
    let mut store = Store::start().await;
    let victim = store.leader().await;
    let node = store.http(victim);
    let (cut_off, acknowledged) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                scope.spawn(move || {
                    let mut acknowledged = Vec::new();
                    for number in 0.. {
                        let key = format!("/kv/{writer}/{number}");
                        match ask(node, "PUT", &key, "", "x") {
                            Some(raw) if raw.status == 204 => acknowledged.push(key),
                            // As a load balancer does, this client turns to another node.
                            Some(raw) if raw.status == 503 => break,
                            Some(raw) => return Err(raw),
                            None => return Ok((1, acknowledged)),
                        }
                    }
                    Ok((0, acknowledged))
                })
            })
            .collect();
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| {
            runtime.block_on(async {
                wait_until("200 proposals", || {
                    metric(node, "store_proposals_total") >= Some(200.0)
                });
                store.cluster.end(victim).await.unwrap();
            });
        });
        let log = || store.cluster.log(victim);
        let joined = writers.into_iter().map(|writer| {
            writer.join().unwrap().unwrap_or_else(|raw| panic!("{raw:?}\n{}", log()))
        });
        joined.fold((0, Vec::new()), |(sum, mut all), (cut_off, keys)| {
            all.extend(keys);
            (sum + cut_off, all)
        })
    });
    assert_eq!(cut_off, 0, "requests without an answer");
    assert!(acknowledged.len() > 100);
    let log = store.cluster.log(victim);
    assert!(log.contains("ending: taking no new requests"), "{log}");
    assert!(!log.contains("ERROR"), "{log}");

    // The others elect a leader, and the node comes back with all that it had.
    store.leader().await;
    store.cluster.start(victim).unwrap();
    store.cluster.caught_up(&store.client).await.unwrap();
    let keys = ask_until(node, "/kv?prefix=7/&limit=1000", |raw| raw.status == 200).body;
    for key in acknowledged.iter().filter(|key| key.starts_with("/kv/7/")).take(1000) {
        let key = key.strip_prefix("/kv/").unwrap();
        assert!(keys.contains(&format!("\"{key}\"")), "{key} is lost");
    }
}

/// A client that uploads slowly is waited for; those that write are not kept waiting with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_ends_hands_over_before_it_waits_for_a_slow_client() {
    let mut store = Store::start().await;
    let victim = store.leader().await;
    let others: Vec<u64> = store.cluster.ids().into_iter().filter(|id| *id != victim).collect();
    let others: Vec<SocketAddr> = others.into_iter().map(|id| store.http(id)).collect();
    let slow = Slow::put(store.http(victim), "/kv/slow");
    let began = Instant::now();
    let writing = tokio::task::spawn_blocking(move || {
        wait_until("a write at another node", || {
            others.iter().any(|node| {
                ask(*node, "PUT", "/kv/a", "", "1").is_some_and(|raw| raw.status == 204)
            })
        });
        (began.elapsed(), slow.finish())
    });
    let (ended, written) = tokio::join!(store.cluster.end(victim), writing);
    ended.unwrap();
    let (took, answer) = written.unwrap();
    assert!(took < Duration::from_secs(3), "nobody led for {took:?}; --drain is 5 s");
    assert!(answer.starts_with("HTTP/1.1 307"), "the slow one was in flight: {answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_wait_for_a_slow_client() {
    for options in [&["--drain=1440m"][..], &["--drain=1440m", "--shards=1"]] {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::new(program(), folder.path(), 1).unwrap();
        cluster.set_options(options);
        cluster.start_all().unwrap();
        let node = cluster.addresses()[0].1;
        ask_until(node, "/ready", |raw| raw.status == 200);
        let slow = Slow::put(node, "/kv/slow");
        cluster.terminate(1).unwrap();
        ask_until(node, "/kv/a", |raw| raw.body.contains("the node is shutting down"));
        // With status 0.
        cluster.end(1).await.unwrap();
        let log = cluster.log(1);
        assert!(log.contains("second signal: not waiting any longer"), "{options:?}: {log}");
        drop(slow);
    }
}

/// As much as the journal has room for, and then no node has died, and there is a way back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_full_takes_deletes_and_answers_reads() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(program(), folder.path(), 3).unwrap();
    cluster.set_options(&[
        "--segment-bytes=4MiB",
        "--max-bytes=96MiB",
        "--snapshot-after=1MiB",
        "--keep-entries=4",
    ]);
    cluster.start_all().unwrap();
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap().id;
    let node = cluster.addresses()[leader as usize - 1].1;
    let value = "v".repeat(128 << 10);
    let put = |key: usize| ask(node, "PUT", &format!("/kv/{key}"), "", &value).unwrap();
    // A third of the journal.
    for key in 0..255 {
        assert_eq!(put(key).status, 204, "{key}");
    }
    for key in 0..20 {
        let refused = put(255 + key);
        assert_eq!(refused.status, 507, "{refused:?}");
        assert!(refused.body.contains("not_applied") && refused.body.contains("delete some keys"));
        assert_eq!(ask(node, "GET", &format!("/kv/{key}"), "", "").unwrap().status, 200);
        assert_eq!(ask(node, "DELETE", &format!("/kv/{key}"), "", "").unwrap().status, 204);
        assert_eq!(put(255 + key).status, 204);
    }
    assert!(metric(node, "store_stored_bytes") <= metric(node, "store_max_data_bytes"));
    assert!(cluster.crashed().is_empty(), "a journal was full: {}", cluster.log(leader));
    cluster.end_all().await.unwrap();
}

/// What is on its way when a write comes counts as what is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_not_filled_beyond_its_limit_by_many_writes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(program(), folder.path(), 1).unwrap();
    cluster.set_options(&["--max-bytes=64MiB", "--snapshot-after=2MiB", "--keep-entries=4"]);
    cluster.start_all().unwrap();
    cluster.leader(&cluster.client()).await.unwrap();
    let node = cluster.addresses()[0].1;
    let value = "v".repeat(512 << 10);
    let put = |key: usize| ask(node, "PUT", &format!("/kv/{key}"), "", &value).unwrap().status;
    // Of 42 that fit.
    for key in 0..36 {
        assert_eq!(put(key), 204, "{key}");
    }
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let writers: Vec<_> = (36..76).map(|key| scope.spawn(move || put(key))).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| [204, 507].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&204) && statuses.contains(&507), "{statuses:?}");
    let value = |name| metric(node, name).unwrap();
    let (stored, max) = (value("store_stored_bytes"), value("store_max_data_bytes"));
    assert!(stored <= max, "{stored} bytes of at most {max}");
    cluster.end_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_redirect_names_a_leader_that_is_known_to_be_gone() {
    let mut store = Store::start().await;
    let dead = store.leader().await;
    let follower = store.cluster.ids().into_iter().find(|id| *id != dead).unwrap();
    let node = store.http(follower);
    let raw = ask(node, "PUT", "/kv/a", "", "1").unwrap();
    assert_eq!(raw.status, 307);
    assert_eq!(raw.headers["location"], format!("http://{}/kv/a", store.http(dead)));

    store.cluster.kill(dead).await.unwrap();
    let gauge = format!("store_peer_up{{peer=\"{dead}\"}}");
    wait_until("the dead leader is known to be gone", || metric(node, &gauge) == Some(0.0));
    for number in 0..20 {
        let raw = ask(node, "PUT", &format!("/kv/{number}"), "", "x").unwrap();
        match raw.status {
            204 => {}
            307 => assert!(!raw.headers["location"].contains(&store.http(dead).to_string())),
            // With the reason, and a word on when to come again.
            status => assert_eq!((status, raw.headers["retry-after"].as_str()), (503, "1")),
        }
    }
    let led = ask(node, "PUT", "/kv/last", "", "x").unwrap();
    assert!(led.status == 204 || led.status == 307, "after a second there is a leader: {led:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_majority_is_alive_and_not_ready() {
    let mut store = Store::start().await;
    for id in 1..=3 {
        ask_until(store.http(id), "/ready", |raw| raw.status == 200);
    }
    store.cluster.kill(1).await.unwrap();
    store.cluster.kill(2).await.unwrap();
    let node = store.http(3);
    let raw = ask_until(node, "/ready", |raw| raw.status == 503);
    assert!(raw.body.contains("\"ready\":false") && raw.body.contains("reason"), "{raw:?}");
    assert_eq!(ask(node, "GET", "/health", "", "").unwrap().status, 200);
    wait_until("the log says: no leader is known", || {
        assert!(store.cluster.crashed().is_empty());
        store.cluster.log(3).contains("no leader is known")
    });
    let log = store.cluster.log(3);
    assert!(log.contains("a peer is lost"), "{log}");

    store.cluster.start(1).unwrap();
    ask_until(node, "/ready", |raw| raw.status == 200);
    wait_until("the log says: the cluster has a leader again", || {
        assert!(store.cluster.crashed().is_empty());
        store.cluster.log(3).contains("the cluster has a leader again")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_answer_says_how_far_it_is_and_how_old_it_may_be() {
    let mut store = Store::start().await;
    let node = store.http(3);
    let led = store.http(store.leader().await);
    let put = ask(led, "PUT", "/kv/a", "", "1").unwrap();
    let version: u64 = put.headers["etag"].trim_matches('"').parse().unwrap();
    // With a majority the age stays low without any other reader.
    for path in ["/kv/a?consistency=stale", "/kv?consistency=stale", "/kv/b?consistency=stale"] {
        let fresh = |raw: &Raw| applied(raw) >= version && age(raw).is_some_and(|ms| ms < 1000);
        ask_until(node, path, fresh);
    }
    let linearizable = ask(node, "GET", "/kv/a", "", "").unwrap();
    assert_eq!((linearizable.status, age(&linearizable)), (200, None));

    store.cluster.kill(1).await.unwrap();
    store.cluster.kill(2).await.unwrap();
    let path = "/kv/a?consistency=stale";
    let old = ask_until(node, path, |raw| age(raw).is_some_and(|ms| ms > 1500));
    assert_eq!((old.status, old.body.as_str()), (200, "1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_restarted_alone_shows_what_it_knew_to_be_committed() {
    let mut store = Store::start().await;
    let node = store.http(3);
    let led = store.http(store.leader().await);
    let put = |key: &str| -> u64 {
        let put = ask(led, "PUT", key, "", "1").unwrap();
        put.headers["etag"].trim_matches('"').parse().unwrap()
    };
    let kept = put("/kv/kept");
    let reached = |name: &str, index: u64| metric(node, name) >= Some(index as f64);
    wait_until("node 3 has applied the key", || reached("store_applied_index", kept));
    // Node 3 knows that the key is committed. It stores that with a later write, at least 100 ms
    // later.
    let began = Instant::now();
    let mut last = kept;
    while began.elapsed() < Duration::from_millis(500) {
        last = put("/kv/other");
    }
    wait_until("the last write is durable", || reached("store_durable_index", last));

    for id in 1..=3 {
        store.cluster.kill(id).await.unwrap();
    }
    store.cluster.start(3).unwrap();
    for path in ["/kv/kept", "/kv?prefix=ke"] {
        // 503 says that the node still starts; every other answer shows the key.
        let stale = format!("{path}?consistency=stale").replace("ke?", "ke&");
        let raw = ask_until(node, &stale, |raw| raw.status != 503);
        assert_eq!(raw.status, 200, "{stale}: {raw:?}");
        assert!(raw.body == "1" || raw.body.contains("\"kept\""), "{stale}: {raw:?}");
        assert!(applied(&raw) >= kept, "{stale}: {raw:?}");
        // It has reached nobody since its start, so it does not know how old its state is.
        assert_eq!(raw.headers["store-age-ms"], "unknown");
    }
    let raw = ask_until(node, "/kv/never?consistency=stale", |raw| raw.status != 503);
    assert_eq!((raw.status, applied(&raw) >= kept), (404, true), "{raw:?}");
    assert_eq!(ask(node, "GET", "/ready", "", "").unwrap().status, 503);

    // With a majority the age is known again.
    store.cluster.start(1).unwrap();
    ask_until(node, "/kv/kept?consistency=stale", |raw| age(raw).is_some_and(|ms| ms < 1000));
}

/// The last command that a stale answer shows.
fn applied(raw: &Raw) -> u64 {
    raw.headers.get("store-applied-index").map_or(0, |index| index.parse().unwrap())
}

/// The age of a stale answer, in ms, if the node knows it.
fn age(raw: &Raw) -> Option<u64> {
    raw.headers.get("store-age-ms").and_then(|age| age.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_show_elections_disk_memory_and_requests() {
    let store = Store::start().await;
    let id = store.leader().await;
    let node = store.http(id);
    for number in 0..50 {
        assert_eq!(ask(node, "PUT", &format!("/kv/{number}"), "", "12345").unwrap().status, 204);
    }
    let value = |name: &str| metric(node, name).unwrap_or_else(|| panic!("{name} is missing"));
    assert!((value("store_is_leader") - 1.0).abs() < f64::EPSILON);
    assert!(value("store_elections_total") >= 1.0);
    assert!(value("store_disk_write_seconds_count") >= 50.0);
    assert!(value("store_disk_write_seconds_sum") > 0.0);
    assert!(value("store_memory_bytes") > 1e6);
    assert!(value("store_keys") >= 50.0);
    assert!(value("store_data_bytes") >= 300.0);
    assert!(value("store_request_seconds_count{method=\"PUT\"}") >= 50.0);
    assert!(value("store_requests_total{status=\"2xx\"}") >= 50.0);
    assert!(value("store_journal_syncs_total") >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_show_how_far_each_follower_is() {
    let mut store = Store::start().await;
    let led = store.leader().await;
    let node = store.http(led);
    let followers: Vec<u64> = store.cluster.ids().into_iter().filter(|id| *id != led).collect();
    let value = |peer: u64, name: &str, state: Option<&str>| {
        let state = state.map_or(String::new(), |state| format!(",state=\"{state}\""));
        let name = format!("store_follower_{name}{{peer=\"{peer}\"{state}}}");
        metric(node, &name).unwrap_or_else(|| panic!("{name} is missing"))
    };
    let is = |value: f64, wanted: f64| (value - wanted).abs() < f64::EPSILON;
    let put = |key: &str| assert_eq!(ask(node, "PUT", key, "", "1").unwrap().status, 204);
    let all_here = |peer| is(value(peer, "lag_entries", None), 0.0);
    put("/kv/first");
    for peer in &followers {
        wait_until("each follower has all entries", || all_here(*peer));
        assert!(is(value(*peer, "state", Some("replicating")), 1.0));
        assert!(is(value(*peer, "state", Some("lost")), 0.0));
        assert!(value(*peer, "matched_index", None) >= 2.0);
        wait_until("no message is in flight", || is(value(*peer, "inflight_messages", None), 0.0));
        wait_until("no bytes are in flight", || is(value(*peer, "inflight_bytes", None), 0.0));
        assert!(value(*peer, "round_trip_seconds", None) < 5.0);
    }

    let (dead, alive) = (followers[0], followers[1]);
    let matched = value(dead, "matched_index", None);
    store.cluster.kill(dead).await.unwrap();
    for number in 0..20 {
        put(&format!("/kv/{number}"));
    }
    wait_until("the dead follower lags", || value(dead, "lag_entries", None) >= 20.0);
    assert!(value(dead, "matched_index", None) < matched + 20.0);
    wait_until("it is silent", || value(dead, "silent_seconds", None) >= 0.5);
    wait_until("the running follower has all entries", || all_here(alive));
    store.cluster.start(dead).unwrap();
    wait_until("the restarted follower has all entries", || all_here(dead));
    wait_until("the restarted follower replicates", || {
        is(value(dead, "state", Some("replicating")), 1.0)
    });

    // A follower knows nothing of the others.
    let name = format!("store_follower_lag_entries{{peer=\"{dead}\"}}");
    assert!(metric(store.http(alive), &name).unwrap().is_nan());
    assert_eq!(store.leader().await, led, "the leader changed, so its gauges say nothing");
}

/// `store up`, as a user starts it.
struct Up(Child);

impl Up {
    fn start(folder: &std::path::Path, port: u16) -> Self {
        let log = std::fs::File::create(folder.join("up.txt")).unwrap();
        let child = Command::new(program())
            .args(["up", "--http-port", &port.to_string()])
            .arg(folder.join("data"))
            .stdout(log)
            .spawn();
        Self(child.unwrap())
    }

    /// The process of node `id`.
    fn node(&self, id: u64) -> u32 {
        let parent = self.0.id().to_string();
        let out = Command::new("ps").args(["-o", "pid=,args=", "--ppid", &parent]).output();
        let text = String::from_utf8(out.unwrap().stdout).unwrap();
        let line = text.lines().find(|line| line.contains(&format!(" --id {id} "))).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_node_that_is_alone_names_the_peers_that_it_misses() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(program(), folder.path(), 3).unwrap();
    cluster.create().unwrap();
    cluster.start(1).unwrap();
    for peer in [2, 3] {
        let wanted = format!("a peer was not reached yet peer={peer}");
        wait_until(&wanted, || cluster.log(1).contains(&wanted));
    }
}

fn three_free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if (1..3).all(|next| TcpListener::bind(("127.0.0.1", first.saturating_add(next))).is_ok()) {
            return first;
        }
    }
}

fn kill(signal: &str, process: u32) {
    let status = Command::new("kill").args([signal, &process.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn up_keeps_its_ports_and_its_folder_and_starts_a_dead_node_again() {
    let folder = tempfile::tempdir().unwrap();
    let port = three_free_ports();
    let node = |id: u16| SocketAddr::from(([127, 0, 0, 1], port + id - 1));
    let mut up = Up::start(folder.path(), port);
    for id in 1..=3 {
        ask_until(node(id), "/ready", |raw| raw.status == 200);
    }

    // A second one on the same folder says so at once.
    let began = Instant::now();
    let second =
        Command::new(program()).arg("up").arg(folder.path().join("data")).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && began.elapsed() < Duration::from_secs(5));
    assert!(said.contains("in use") && said.contains(&up.0.id().to_string()), "{said}");

    // A third, elsewhere, cannot have the ports, and says so.
    let elsewhere = tempfile::tempdir().unwrap();
    let third = Up::start(elsewhere.path(), port);
    let said = || std::fs::read_to_string(elsewhere.path().join("up.txt")).unwrap();
    wait_until("the third cluster leads", || said().contains("leads"));
    assert!(said().contains(&format!("ATTENTION: node 1 gets another port, {}", node(1))));
    drop(third);

    kill("-9", up.node(2));
    ask_until(node(1), "/ready", |raw| raw.status == 200);
    ask_until(node(2), "/ready", |raw| raw.status == 200);
    assert!(up.0.try_wait().unwrap().is_none(), "one dead node ended the cluster");
    let said = std::fs::read_to_string(folder.path().join("up.txt")).unwrap();
    assert!(said.contains("node 2 ended by itself (signal: 9"), "{said}");

    kill("-TERM", up.0.id());
    assert!(up.0.wait().unwrap().success());
    assert!(ask(node(1), "GET", "/health", "", "").is_none());
}

#[test]
fn data_that_exists_and_addresses_in_use_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = TcpListener::bind(taken).unwrap();
    let mut create = Command::new(program());
    create.args(["create", "--id", "1", "--data"]).arg(folder.path());
    assert!(create.status().unwrap().success());
    let again = create.output().unwrap();
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(!again.status.success() && said.contains("was created here before"), "{said}");
    for (listen, http, option) in [
        ("127.0.0.1:0".parse().unwrap(), taken, "--http"),
        (taken, "127.0.0.1:0".parse::<SocketAddr>().unwrap(), "--listen"),
    ] {
        let output = Command::new(program())
            .args(["serve", "--id", "1", "--data", folder.path().to_str().unwrap()])
            .args(["--listen", &listen.to_string(), "--http", &http.to_string()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected = format!("cannot listen on {taken} ({option})");
        assert!(said.contains(&expected) && said.contains("in use"), "{said}");
    }
    drop(holder);
}

/// A node without peers in `folder`, on free ports.
fn serve_alone(folder: &std::path::Path, options: &[&str]) -> Command {
    let mut create = Command::new(program());
    create.args(["create", "--id", "1", "--data"]).arg(folder);
    assert!(create.status().unwrap().success());
    let mut serve = Command::new(program());
    serve.args(["serve", "--id", "1", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    serve.args(options).arg("--data").arg(folder).stdin(Stdio::null());
    serve
}

#[test]
fn options_that_the_journal_rejects_are_status_2() {
    for (options, rule) in [
        (["--segment-bytes", "1KiB"], "`segment_bytes` must be 64 KiB to 1 GiB"),
        (["--max-bytes", "16MiB"], "less than 16 segments of 4194304 bytes (--segment-bytes)"),
        (["--snapshot-after", "2GiB"], "more than a third of --max-bytes"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = serve_alone(folder.path(), &options).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {said}");
        assert!(said.contains(rule), "{options:?}: {said}");
    }
}

#[test]
fn port_0_takes_a_free_port_that_the_log_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = serve_alone(folder.path(), &[]).stderr(Stdio::piped()).spawn().unwrap();
    let log = std::io::BufRead::lines(std::io::BufReader::new(node.stderr.take().unwrap()));
    let mut lines = log.map_while(Result::ok);
    let line = lines.find(|line| line.contains("the node serves")).unwrap_or_default();
    let port = |name: &str| -> Option<u16> {
        line.split(&format!("{name}=127.0.0.1:")).nth(1)?.split(' ').next()?.parse().ok()
    };
    let ports = (port("http"), port("peers"));
    let answer =
        ports.0.and_then(|http| ask(([127, 0, 0, 1], http).into(), "GET", "/health", "", ""));
    node.kill().unwrap();
    node.wait().unwrap();
    assert_eq!(answer.map(|answer| answer.status), Some(200), "{line}");
    assert!(ports.1.is_some_and(|peers| peers > 0), "{line}");
}

#[test]
fn help_is_printed() {
    for words in [&["--help"][..], &["help"], &["serve", "--help"], &["up", "--help"]] {
        let output = Command::new(program()).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("Usage: store"), "{words:?}");
    }
}

//! Nodes come and go while the cluster serves.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use store::client::Client;
use store::cluster::Cluster;
#[cfg(feature = "demo")]
use store::demo::{
    check,
    load::{Load, Shape},
};
#[cfg(feature = "demo")]
use store::members::{self, Placed, Wanted};

use support::{ask, ask_until, program, wait_until};

async fn put(client: &Client, key: &str) {
    let value = Bytes::from_static(b"kept");
    let put = client.send(Method::PUT, key, None, value).await.unwrap();
    assert_eq!(put.status, StatusCode::NO_CONTENT, "{key}");
}

/// Runs `store …`, which talks to running nodes.
fn store(words: &[&str]) -> Output {
    std::process::Command::new(program()).args(words).output().unwrap()
}

fn started(folder: &Path) -> Cluster {
    let mut cluster = Cluster::new(program(), folder, 3).unwrap();
    cluster.start_all().unwrap();
    cluster
}

/// The words that name node `id` on the command line.
fn words(cluster: &Cluster, id: u64) -> [String; 6] {
    let (_, http) = cluster.addresses().into_iter().find(|(node, _)| *node == id).unwrap();
    let peers = cluster.peer_address(id).unwrap();
    let [id, peers, http] = [id.to_string(), peers.to_string(), http.to_string()];
    ["--id".to_owned(), id, "--peers".to_owned(), peers, "--http".to_owned(), http]
}

/// A node whose disk was wiped never comes back under its id. A new one takes its place, by one
/// command, while the others serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_replaced_by_one_command() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = started(folder.path());
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap().id;
    for at in 0..50 {
        put(&client, &format!("/kv/before/{at}")).await;
    }
    let wiped = leader % 3 + 1;
    cluster.kill(wiped).await.unwrap();
    std::fs::remove_dir_all(cluster.folder(wiped)).unwrap();
    let new = cluster.join().unwrap();
    cluster.start(new).unwrap();
    let to = cluster.addresses()[leader as usize - 1].1.to_string();
    let old = wiped.to_string();
    let named = words(&cluster, new);
    let mut line = vec!["replace", "--to", &to, "--old", &old];
    line.extend(named.iter().map(String::as_str));
    let output = store(&line);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let http = cluster.addresses().last().unwrap().1;
    ask_until(http, "/status", |raw| raw.status == 200);
    let members = ask_until(http, "/members", |raw| raw.body.contains("\"outgoing\":[]"));
    let voters: Vec<String> =
        (1..=new).filter(|id| *id != wiped).map(|id| id.to_string()).collect();
    assert!(members.body.contains(&format!("\"voters\":[{}]", voters.join(","))), "{members:?}");
    // It counts: one of the two old ones goes, and the others are a majority.
    let third = (1..=3).find(|id| ![leader, wiped].contains(id)).unwrap();
    cluster.kill(third).await.unwrap();
    let client = cluster.client();
    put(&client, "/kv/after").await;
    for key in ["/kv/before/7", "/kv/after"] {
        assert_eq!(ask_until(http, key, |raw| raw.status == 200).body, "kept", "{key}");
    }
    // What was said once is so: asking again changes nothing.
    assert!(store(&line).status.success());
    // Restarted with the options of their first start, all know the members.
    cluster.end(new).await.unwrap();
    cluster.start(new).unwrap();
    cluster.start(third).unwrap();
    put(&client, "/kv/restarted").await;
    assert_eq!(ask_until(http, "/kv/restarted", |raw| raw.status == 200).body, "kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_added_and_removed_by_one_command_each() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = started(folder.path());
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap().id;
    put(&client, "/kv/a").await;
    let new = cluster.join().unwrap();
    cluster.start(new).unwrap();
    // Any node will do: it says who leads.
    let to = cluster.addresses()[(leader % 3) as usize].1.to_string();
    let named = words(&cluster, new);
    let mut line = vec!["add", "--to", &to];
    line.extend(named.iter().map(String::as_str));
    let output = store(&line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let http = cluster.addresses().last().unwrap().1;
    ask_until(http, "/members", |raw| raw.body.contains("\"voters\":[1,2,3,4]"));
    assert_eq!(ask_until(http, "/kv/a", |raw| raw.status == 200).body, "kept");
    // The leader goes, and is followed at once.
    let output = store(&["remove", "--to", &to, "--id", &leader.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    put(&client, "/kv/b").await;
    let refused = store(&["remove", "--to", "127.0.0.1:1", "--id", "x"]);
    assert_eq!(refused.status.code(), Some(2));
}

/// Runs `store VERB --to NODE … --id …`. What it said, and whether it has succeeded.
async fn run(verb: &str, to: &[SocketAddr], named: &[String]) -> (bool, String) {
    let mut command = tokio::process::Command::new(program());
    command.arg(verb).args(named).kill_on_drop(true);
    for node in to {
        command.args(["--to", &node.to_string()]);
    }
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
    let output = output.expect("the command ends within a minute").unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A slip of the number does not take a healthy node out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_add_does_not_move_a_member_and_a_move_can_be_corrected() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = started(folder.path());
    let leader = cluster.leader(&cluster.client()).await.unwrap().id;
    let follower = leader % 3 + 1;
    let http = |id: u64| cluster.addresses()[id as usize - 1].1;
    let elsewhere = |id: u64, http: &str| {
        let words = ["--id", &id.to_string(), "--peers", "127.0.0.1:1", "--http", http];
        words.map(str::to_owned)
    };
    let redirect = || ask(http(follower), "PUT", "/kv/a", "", "1").unwrap();
    let leads_at = |address: &str| {
        let raw = redirect();
        raw.status == 307 && raw.headers["location"] == format!("http://{address}/kv/a")
    };
    for id in [leader, follower] {
        let (done, said) = run("add", &[http(follower)], &elsewhere(id, "127.0.0.1:2")).await;
        assert!(!done && said.contains("409"), "{said}");
        assert!(said.contains(&format!("node {id} is a member at")), "{said}");
        // Asked again for what is so already.
        let (done, said) = run("add", &[http(follower)], &words(&cluster, id)).await;
        assert!(done, "{said}");
    }
    assert!(leads_at(&http(leader).to_string()), "{:?}", redirect());
    let (done, said) = run("move", &[http(follower)], &elsewhere(9, "127.0.0.1:2")).await;
    assert!(!done && said.contains("node 9 is no member"), "{said}");

    // The operator says so, and is wrong. The others send clients to where nobody is.
    let mut wrong = words(&cluster, leader);
    wrong[5] = "127.0.0.1:1".to_owned();
    let (done, said) = run("move", &[http(follower)], &wrong).await;
    assert!(done, "{said}");
    wait_until("the follower knows the new address", || leads_at("127.0.0.1:1"));
    let (done, said) = run("move", &[http(follower)], &words(&cluster, leader)).await;
    assert!(!done && said.contains("the leader is said to be at 127.0.0.1:1"), "{said}");
    // Any of those that were named may lead.
    let (done, said) = run("move", &[http(follower), http(leader)], &words(&cluster, leader)).await;
    assert!(done, "{said}");
    wait_until("the follower knows the old address", || leads_at(&http(leader).to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_moves_to_other_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = started(folder.path());
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap().id;
    let (moved, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.end(moved).await.unwrap();
    cluster.relocate(moved).unwrap();
    let to = cluster.addresses()[leader as usize - 1].1;
    let (done, said) = run("move", &[to], &words(&cluster, moved)).await;
    assert!(done, "{said}");
    cluster.start(moved).unwrap();
    let client = cluster.client();
    put(&client, "/kv/moved").await;
    // It counts: without the third node it is half of the majority.
    cluster.kill(third).await.unwrap();
    put(&client, "/kv/counts").await;
    let http = cluster.addresses()[moved as usize - 1].1;
    assert_eq!(ask_until(http, "/kv/counts", |raw| raw.status == 200).body, "kept");
}

/// One node after the other leaves and a new one takes its place, under load and with the leader
/// among them: no acknowledged write is lost, and the history is linearizable.
#[cfg(feature = "demo")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_replaced_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = started(folder.path());
    let client = cluster.client();
    cluster.leader(&client).await.unwrap();
    // The clients know the nodes of the end too: those of the beginning are all gone by then.
    let new: Vec<u64> = (0..3).map(|_| cluster.join().unwrap()).collect();
    for id in &new {
        cluster.start(*id).unwrap();
    }
    let client = cluster.client();
    let load = Load::start(&client, Shape::default());
    let mut led = 0;
    for (old, id) in (1..=3).zip(new) {
        let leader = cluster.leader(&client).await.unwrap().id;
        led += u32::from(leader == old);
        let http_of = |of: u64| cluster.addresses().into_iter().find(|(id, _)| *id == of);
        let (to, http) = (http_of(leader).unwrap().1, http_of(id).unwrap().1);
        let peers = cluster.peer_address(id).unwrap();
        let add = Some(Placed { id, peers, http: http.to_string() });
        let wanted = Wanted { add, remove: Some(old), ..Wanted::default() };
        let members = members::ask(&[to], &wanted).await.unwrap();
        assert!(members.voters.contains(&id) && !members.voters.contains(&old), "{members:?}");
        cluster.retire(old).await.unwrap();
        cluster.no_crash().unwrap();
    }
    assert!(led > 0, "the leader was replaced at least once: all that led at first have left");
    assert_eq!(cluster.ids(), [4, 5, 6]);
    let client = cluster.client();
    cluster.caught_up(&client).await.unwrap();
    let history = load.stop().await;
    cluster.caught_up(&client).await.unwrap();
    let checked = check::check(&cluster, &client, &history).await.unwrap();
    assert!(checked.nodes == 3 && checked.acknowledged > 100 && checked.kept > 10, "{checked:?}");
}

/// A leader that is told to end hands over first. Without that nobody would lead for 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_ends_hands_over_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(program(), folder.path(), 3).unwrap();
    cluster.set_options(&["--election-min", "5s", "--election-max", "7s", "--disk-stall", "8s"]);
    cluster.start_all().unwrap();
    let client = cluster.client();
    let first = cluster.leader(&client).await.unwrap();
    put(&client, "/kv/before").await;
    let asked = std::time::Instant::now();
    cluster.end(first.id).await.unwrap();
    let next = cluster.leader(&client).await.unwrap();
    assert!(asked.elapsed() < std::time::Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!((next.id == first.id, next.term), (false, first.term + 1));
    assert!(cluster.log(first.id).contains("another node leads now"), "{}", cluster.log(first.id));
    put(&client, "/kv/after").await;
}

//! A cluster whose nodes speak TLS: it fails over, renews certificates, replaces nodes, and takes
//! no node without.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use store::client::{Answered, Client};
use store::cluster::Cluster;
use store::demo::certs::{self, Authority};
use store::members::{self, Placed, Wanted};
use tokio::time::{Instant, sleep};

async fn put(client: &Client, key: &str) {
    let path = format!("/kv/{key}");
    let put = client.send(Method::PUT, &path, None, Bytes::from_static(b"kept")).await.unwrap();
    assert_eq!(put.status, StatusCode::NO_CONTENT);
}

/// Waits until the log of a node says `text`, `count` times.
async fn said(cluster: &Cluster, id: u64, text: &str, count: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    while cluster.log(id).matches(text).count() < count {
        assert!(Instant::now() < end, "node {id} never said {text}: {}", cluster.log(id));
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_over_tls_fails_over_and_renews_its_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_store"));
    let mut cluster = Cluster::new(program, folder.path(), 3).unwrap();
    let authority = certs::set_up(&mut cluster, folder.path()).unwrap();
    cluster.start_all().unwrap();
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap();
    put(&client, "one").await;

    for id in cluster.ids() {
        authority.issue(folder.path(), id).unwrap();
        cluster.hang_up(id).unwrap();
        said(&cluster, id, "certificates were reloaded", 1).await;
    }
    put(&client, "two").await;
    // The old certificates are still valid, so no connection had to end; a node that starts has
    // only the new one.
    cluster.kill(leader.id).await.unwrap();
    cluster.leader(&client).await.unwrap();
    put(&client, "three").await;
    cluster.start(leader.id).unwrap();
    cluster.caught_up(&client).await.unwrap();

    // Files that cannot be used change nothing.
    std::fs::write(folder.path().join("node-1.pem"), "garbage").unwrap();
    cluster.hang_up(1).unwrap();
    said(&cluster, 1, "certificates were not reloaded", 1).await;
    put(&client, "four").await;
    assert_eq!(cluster.crashed(), []);
    cluster.end_all().await.unwrap();
}

/// Waits until each of the nodes 1 and 2 has said that a connection, which only node 3 opens, ended
/// for `reason`.
async fn rejected(cluster: &Cluster, reason: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    for id in [1, 2] {
        let says = |line: &str| line.contains("a connection was rejected") && line.contains(reason);
        while !cluster.log(id).lines().any(says) {
            assert!(Instant::now() < end, "node {id} never rejected node 3: {}", cluster.log(id));
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Fails unless node 3 runs, knows no leader, and has nothing of what the others have committed.
async fn is_outside(cluster: &Cluster, client: &Client) {
    let end = Instant::now() + Duration::from_secs(20);
    let status = loop {
        let statuses = cluster.statuses(client).await;
        if let Some(status) =
            statuses.into_iter().find_map(|(id, status)| status.filter(|_| id == 3))
        {
            break status;
        }
        assert!(Instant::now() < end, "node 3 does not answer: {}", cluster.log(3));
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((status.leader, status.commit, status.applied, status.keys), (None, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_without_a_good_certificate_stay_outside() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_store"));
    let mut cluster = Cluster::new(program, folder.path(), 3).unwrap();
    certs::set_up(&mut cluster, folder.path()).unwrap();
    // Node 3 has a certificate of another authority, which it alone trusts.
    let other = tempfile::tempdir().unwrap();
    Authority::new().unwrap().issue(other.path(), 3).unwrap();
    let file = |name: &str| other.path().join(name).display().to_string();
    let (ca, certificate, key) = (file("ca.pem"), file("node-3.pem"), file("node-3.key"));
    let options = ["--tls-ca", &*ca, "--tls-cert", &*certificate, "--tls-key", &*key];
    cluster.set_node_options(3, &options);
    cluster.start_all().unwrap();
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap();
    assert_ne!(leader.id, 3);
    put(&client, "one").await;
    // Node 3 in its turn trusts nobody of them: its alert is `certificate_unknown`.
    rejected(&cluster, "sent TLS alert 46").await;
    put(&client, "two").await;
    is_outside(&cluster, &client).await;
    // The same without TLS.
    cluster.kill(3).await.unwrap();
    cluster.set_node_options(3, &[]);
    cluster.start(3).unwrap();
    rejected(&cluster, "does not speak TLS").await;
    put(&client, "three").await;
    is_outside(&cluster, &client).await;
    let leader = cluster.leader(&client).await.unwrap();
    assert_ne!(leader.id, 3);
    assert_eq!(cluster.crashed(), []);
}

/// A node that joins is let in by its certificate, at the address that came with the change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_replaced_over_tls_by_one_that_has_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_store"));
    let mut cluster = Cluster::new(program, folder.path(), 3).unwrap();
    let authority = certs::set_up(&mut cluster, folder.path()).unwrap();
    cluster.start_all().unwrap();
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap().id;
    put(&client, "before").await;

    let id = cluster.join().unwrap();
    let http_of = |of: u64| cluster.addresses().into_iter().find(|(id, _)| *id == of).unwrap().1;
    let (to, http) = (http_of(leader), http_of(id));
    let (peers, old) = (cluster.peer_address(id).unwrap(), leader % 3 + 1);
    // Its certificate is of an authority that the others do not know.
    let other = tempfile::tempdir().unwrap();
    Authority::new().unwrap().equip(&mut cluster, other.path(), id).unwrap();
    cluster.start(id).unwrap();
    let add = Some(Placed { id, peers, http: http.to_string() });
    let wanted = Wanted { add, remove: Some(old), ..Wanted::default() };
    let replaced = tokio::spawn(async move { members::ask(&[to], &wanted).await });
    said(&cluster, leader, &format!("peer={id}"), 1).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    let asked = client.send_to(to, &Method::GET, "/members", None, Bytes::new(), deadline).await;
    let Ok(Answered::Reply(reply)) = asked else { panic!("{asked:?}") };
    let body = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(body.contains("\"voters\":[1,2,3]"), "{body}");
    assert!(!replaced.is_finished());

    cluster.kill(id).await.unwrap();
    authority.equip(&mut cluster, folder.path(), id).unwrap();
    cluster.start(id).unwrap();
    let members = replaced.await.unwrap().unwrap();
    assert!(members.voters.contains(&id) && !members.voters.contains(&old), "{members:?}");
    cluster.retire(old).await.unwrap();
    // Its vote counts: without it the two that are left of the old ones are one short.
    let third = (1..=3).find(|id| ![leader, old].contains(id)).unwrap();
    cluster.kill(third).await.unwrap();
    let client = cluster.client();
    put(&client, "after").await;
    let deadline = Instant::now() + Duration::from_secs(5);
    let path = "/kv/before";
    let read = client.send_to(http, &Method::GET, path, None, Bytes::new(), deadline).await;
    assert!(matches!(&read, Ok(Answered::Reply(reply)) if reply.body == "kept"), "{read:?}");
    assert_eq!(cluster.crashed(), []);
}

//! A node whose disk was wiped does not come back, so what a majority acknowledged stays.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use store::cluster::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_stays_down_and_acknowledged_writes_stay() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_store"));
    let mut cluster = Cluster::new(program, folder.path(), 3).unwrap();
    cluster.start_all().unwrap();
    let client = cluster.client();
    cluster.leader(&client).await.unwrap();
    cluster.kill(3).await.unwrap();
    cluster.leader(&client).await.unwrap();
    for key in ["/kv/one", "/kv/two"] {
        let put = client.send(Method::PUT, key, None, Bytes::from_static(b"kept")).await.unwrap();
        assert_eq!(put.status, StatusCode::NO_CONTENT);
    }
    cluster.kill(1).await.unwrap();
    cluster.kill(2).await.unwrap();
    std::fs::remove_dir_all(cluster.folder(2)).unwrap();

    // Node 2 would vote for the empty log of node 3, and both keys would be gone.
    cluster.start(2).unwrap();
    cluster.start(3).unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while cluster.crashed().is_empty() {
        assert!(tokio::time::Instant::now() < end, "node 2 runs on an empty disk");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.crashed()[0].0, 2);
    assert_eq!(cluster.crashed()[0].1.code(), Some(3), "no supervisor should start it again");
    let said = cluster.log(2);
    assert!(said.contains("no data of node 2") && said.contains("its disk was lost"), "{said}");
    let _ = cluster.kill(2).await;

    cluster.start(1).unwrap();
    loop {
        assert!(tokio::time::Instant::now() < end, "nodes 1 and 3 are a majority");
        let get = client.send(Method::GET, "/kv/one", None, Bytes::new()).await;
        if get.is_ok_and(|reply| reply.body == "kept") {
            break;
        }
    }
    let get = client.send(Method::GET, "/kv/two", None, Bytes::new()).await.unwrap();
    assert_eq!(get.body, "kept");
}

/// Alone, without its peers, the node would lead in a term of theirs and acknowledge what they
/// never hear of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_started_without_its_peers_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_store"));
    let mut cluster = Cluster::new(program, folder.path(), 3).unwrap();
    cluster.start_all().unwrap();
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap().id;
    cluster.kill(leader).await.unwrap();
    let data = cluster.folder(leader);
    let alone = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--id"];
    let output = std::process::Command::new(program)
        .args(alone)
        .arg(leader.to_string())
        .arg("--data")
        .arg(&data)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("other voters") && said.contains("--peer"), "{said}");
    cluster.start(leader).unwrap();
    cluster.leader(&client).await.unwrap();
}

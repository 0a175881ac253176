//! Three processes under load, each killed with `kill -9` and started again in turn.
//!
//! `VOUSSOIR_KILL_ROUNDS` says how often each is killed (default 2).

use std::path::Path;

use store::cluster::Cluster;
use store::demo::check;
use store::demo::load::{Load, Shape};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_each_node_in_turn_loses_nothing() {
    let rounds = std::env::var("VOUSSOIR_KILL_ROUNDS");
    let rounds: u32 = rounds.ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2);
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_store"));
    let mut cluster = Cluster::new(program, folder.path(), 3).unwrap();
    cluster.start_all().unwrap();
    let client = cluster.client();
    cluster.leader(&client).await.unwrap();

    let load = Load::start(&client, Shape::default());
    for round in 0..rounds {
        for id in cluster.ids() {
            // Two of three must be up to go on: the last one killed has to be back first.
            cluster.caught_up(&client).await.unwrap();
            assert_eq!(cluster.crashed(), [], "round {round}");
            cluster.kill(id).await.unwrap();
            cluster.leader(&client).await.unwrap();
            cluster.start(id).unwrap();
        }
    }
    cluster.caught_up(&client).await.unwrap();
    let history = load.stop().await;
    cluster.caught_up(&client).await.unwrap();
    let checked = check::check(&cluster, &client, &history).await.unwrap();
    println!("{} kills: {checked:?}", rounds * 3);
    assert!(checked.acknowledged > 100, "{checked:?}");
    assert!(checked.kept > 10, "{checked:?}");
}

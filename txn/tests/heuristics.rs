//! Heuristic outcomes that another coordinator of the group has recorded.
#![cfg(feature = "raft")]

use std::sync::Arc;

use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{Config, Raft, Role};
use voussoir_txn::two_phase::raft::{DecisionMachine, Decisions, RaftLog};
use voussoir_txn::two_phase::{Coordinator, DecisionLog, Heuristic, HeuristicOutcome};

/// A coordinator that was replaced may find a branch that was ended by hand long after its
/// successor has read the log.
#[tokio::test(start_paused = true)]
async fn the_coordinator_that_serves_lists_what_an_earlier_one_recorded() {
    let decisions = Decisions::new();
    let machine = Box::new(DecisionMachine::new(decisions.clone()));
    let (store, transport) = (Arc::new(MemoryStore::new()), Network::new().node(1));
    let raft = Raft::start(Config::new(1, [1]), store, machine, transport).await;
    let raft = raft.expect("it starts");
    raft.status().wait_for(|status| status.role == Role::Leader).await.expect("it leads");
    let log = || RaftLog::new(raft.clone(), decisions.clone());
    let earlier = log();
    let epoch = earlier.open("transfers").await.expect("it leads").epoch;
    let serving = Coordinator::builder("transfers").open(log()).await.expect("it leads");
    let gid = format!("vs1:transfers:{epoch}:7:0").parse().expect("an id");
    let outcome = HeuristicOutcome::new(gid, "east".into(), Heuristic::Committed);
    earlier.report(&outcome).await.expect("it is recorded");
    serving.recover().await;
    assert_eq!(serving.heuristics(), std::slice::from_ref(&outcome));
    serving.forget_heuristic(&outcome.gid).await.expect("it leads");
    serving.recover().await;
    assert_eq!(serving.heuristics(), []);
}

//! Groups that share their nodes, while replicas and nodes come and go and messages are lost.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds are played, `VOUSSOIR_SEED` plays one.

mod hosts;
mod scenes;
mod troubles;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use voussoir_raft::{Change, Role};
use voussoir_sim::{Failure, Report, Rng, Runner, Situations};

use self::hosts::{Features, Group, Hosts};
use self::troubles::Troubles;

const COMMAND: &str = "cargo test -p voussoir-raft --all-features --test node_seeds";

/// Two groups on the same nodes, and one that alone joins node 4 to the others.
static GROUPS: [Group; 3] = [
    Group { id: 1, voters: &[1, 2, 3], learner: None },
    Group { id: 2, voters: &[1, 2, 3], learner: None },
    Group { id: 3, voters: &[2, 3, 4], learner: Some(1) },
];

/// What the seeds have to reach.
static SITUATIONS: [&str; 14] = [
    "leader stopped at rest while its node lives",
    "leader stopped at rest, and its word is lost",
    "follower stopped at rest",
    "learner stopped at rest",
    "peer forgotten and linked again in one life",
    "node dies at rest and is back at once",
    "node shut down at rest",
    "link cut one way while a leader rests",
    "node cut off while it leads at rest",
    "a group works while another one rests under the same leader",
    "messages are lost",
    "a leader has no room",
    "a proposal rejected for want of room",
    "read asked of a member at rest",
];

/// What may meet in one seed, by the four lowest bits of its number: seeds in which leases answered
/// reads and full inboxes dropped messages, where that is part of it, and did not where it is not.
static TOGETHER: [&str; 16] = [
    "rest",
    "rest, leases",
    "awake",
    "awake, leases",
    "rest, long round trips",
    "rest, leases, long round trips",
    "awake, long round trips",
    "awake, leases, long round trips",
    "rest, small inbox",
    "rest, leases, small inbox",
    "awake, small inbox",
    "awake, leases, small inbox",
    "rest, long round trips, small inbox",
    "rest, leases, long round trips, small inbox",
    "awake, long round trips, small inbox",
    "awake, leases, long round trips, small inbox",
];

/// The features of a seed.
fn features(seed: u64) -> Features {
    let [leases, is_awake, is_long, is_small, is_slow, is_narrow] =
        [0, 1, 2, 3, 4, 5].map(|bit| seed >> bit & 1 == 1);
    Features { leases, is_awake, is_long, is_small, is_slow, is_narrow }
}

fn run(seed: u64, situations: &[Situations; 2]) -> Result<Report, Failure> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(play(seed, situations)).map_err(Failure::new)?;
    Ok(Report::of(seed))
}

async fn play(seed: u64, [situations, together]: &[Situations; 2]) -> Result<(), String> {
    let features = features(seed);
    let mut hosts = Hosts::new(seed, &GROUPS, features).await;
    let mut rng = Rng::stream(seed, 1);
    for group in &GROUPS {
        let deadline = Instant::now() + features.patience(5000);
        // Ends: by the deadline. A leader may give way to another one before it is asked.
        loop {
            if !hosts.until(|hosts| hosts.leader(group.id).is_some()).await {
                return Err(format!("group {} has no leader at the start", group.id));
            }
            let Some(learner) = group.learner else { break };
            let raft = hosts.leader(group.id).and_then(|id| hosts.raft(id, group.id)).unwrap();
            match raft.change(Change::new().learner(learner), deadline).await {
                Ok(_) => break,
                Err(error) if error.is_retryable() && Instant::now() < deadline => {}
                Err(error) => return Err(format!("no learner: {error}")),
            }
        }
    }
    let mut troubles = Troubles::new(situations);
    for _ in 0..rng.between(15, 40) {
        troubles.one(&mut hosts, &mut rng).await;
        sleep(Duration::from_millis(rng.scaled(1, 3000))).await;
    }
    judge(&mut hosts, &troubles).await?;
    let sum = |of: fn(voussoir_raft::Stats) -> u64| -> u64 {
        hosts.lives.iter().map(|raft| of(raft.stats())).sum()
    };
    let (by_lease, dropped) = (sum(|it| it.lease_reads), sum(|it| it.messages_dropped));
    if (by_lease > 0, dropped > 0) == (features.leases, features.is_small) {
        together.reached(TOGETHER[(seed % 16) as usize]);
    }
    Ok(())
}

/// Nobody rests on a node that does not lead: it would do so until somebody asks.
fn check_rest(hosts: &Hosts) -> Result<(), String> {
    for (group, id) in members() {
        let Some(status) = hosts.status(id, group).filter(|status| status.is_quiesced) else {
            continue;
        };
        let leader = status.leader.and_then(|leader| hosts.status(leader, group));
        if !leader.is_some_and(|leader| leader.role == Role::Leader && leader.term == status.term) {
            return Err(format!("group {group}: node {id} rests on nobody: {status:#?}"));
        }
    }
    Ok(())
}

/// Every member follows a leader that leads in its term.
fn check_leaders(hosts: &Hosts) -> Result<(), String> {
    for (group, id) in members() {
        let status = hosts.status(id, group).ok_or("a replica is gone")?;
        let leader = status.leader.and_then(|leader| hosts.status(leader, group));
        let leads =
            leader.as_ref().is_some_and(|l| l.role == Role::Leader && l.term == status.term);
        if !leads {
            return Err(format!("group {group}: node {id} is left: {status:#?}, {leader:#?}"));
        }
    }
    Ok(())
}

/// What `check` asks for holds now; where leaderships move without faults, soon.
async fn settles(
    hosts: &Hosts,
    check: impl Fn(&Hosts) -> Result<(), String>,
) -> Result<(), String> {
    if hosts.features.moves_leaders() {
        hosts.until(|hosts| check(hosts).is_ok()).await;
    }
    check(hosts)
}

/// What has to hold when the faults are over: before anybody asks for anything, no member is left
/// without its leader, asleep or awake. Then every member answers, and all come to rest.
async fn judge(hosts: &mut Hosts, troubles: &Troubles<'_>) -> Result<(), String> {
    hosts.network.heal();
    hosts.faults.loss_ppm.store(0, Ordering::Relaxed);
    hosts.faults.full.store(0, Ordering::Relaxed);
    // First without those that do not run: they would wake the others.
    sleep(Duration::from_secs(5)).await;
    settles(hosts, check_rest).await?;
    hosts.start_all().await;
    sleep(Duration::from_secs(10)).await;
    settles(hosts, check_leaders).await?;
    for (group, id) in members() {
        let raft = hosts.raft(id, group).ok_or("a replica is gone")?;
        let read = raft.read(Instant::now() + hosts.features.patience(3000)).await;
        read.map_err(|error| format!("group {group}: node {id} answers no read: {error}"))?;
    }
    for group in &GROUPS {
        let has_leader = |hosts: &Hosts| match hosts.leader(group.id) {
            Some(_) => Ok(()),
            None => Err("a leader is gone".to_owned()),
        };
        settles(hosts, has_leader).await?;
        let leader = hosts.leader(group.id).and_then(|id| hosts.raft(id, group.id));
        let leader = leader.ok_or("a leader is gone")?;
        let answer =
            timeout(hosts.features.patience(5000), leader.propose(Bytes::from_static(b"x"))).await;
        let count = match troubles::number(&answer.map_err(|_| "a proposal hangs")?) {
            Some(count) => count,
            // It may have lost its leadership, and the proposal may come through all the same.
            None if hosts.features.moves_leaders() => continue,
            None => return Err("a proposal fails".to_owned()),
        };
        troubles.check(group.id, count)?;
    }
    let rests = |id, group| hosts.status(id, group).is_some_and(|status| status.is_quiesced);
    if hosts.features.is_awake {
        let resting = members().find(|(group, id)| rests(*id, *group));
        return resting.map_or(Ok(()), |at| Err(format!("a group may not rest, and does: {at:?}")));
    }
    if !hosts.until(Hosts::all_rest).await {
        let all: Vec<_> = members().map(|(group, id)| (group, hosts.status(id, group))).collect();
        return Err(format!("they do not come to rest: {all:#?}"));
    }
    Ok(())
}

/// Every group with each of its members.
fn members() -> impl Iterator<Item = (u64, u64)> {
    GROUPS.iter().flat_map(|group| group.members().map(|id| (group.id, id)))
}

#[test]
fn groups_that_share_nodes_are_never_left_alone() {
    let situations = [Situations::new(&SITUATIONS), Situations::new(&TOGETHER)];
    let runner = Runner::new(format!("{COMMAND} groups_that_share")).seeds(320).twice(0);
    let summary = runner.run(|seed| run(seed, &situations)).unwrap();
    println!("{summary}");
    for table in &situations {
        println!("{table}");
    }
    if std::env::var_os("VOUSSOIR_SEED").is_none() {
        situations.iter().for_each(Situations::assert_all_reached);
    }
}

//! Bits rot in the journal of one of three processes under load: the node is repaired by the
//! others, which go on meanwhile, and counts like any other afterwards.

mod support;

#[path = "support/bulk.rs"]
mod bulk;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use store::client::Client;
use store::cluster::Cluster;
use store::demo::check;
use store::demo::load::{Load, Shape};
use voussoir_journal::{Config, DiskFiles, Health, Journal, Problem, Report, Role, inspect};

use support::program;

const PATIENCE: Duration = Duration::from_secs(30);

fn journal_of(cluster: &Cluster, id: u64) -> PathBuf {
    cluster.folder(id).join("journal")
}

/// What is found in the journal of a node that does not run.
fn inspected(cluster: &Cluster, id: u64) -> Report {
    let files = DiskFiles::existing(journal_of(cluster, id)).unwrap();
    inspect(&files, &mut |_| {}).unwrap()
}

/// Records of raft's log that are damaged, and not released or deleted.
fn damaged_entries(report: &Report) -> Vec<&Problem> {
    let counts = |problem: &&Problem| match problem {
        Problem::Records { log, .. } => {
            log.as_ref().is_some_and(|log| log.namespace.starts_with("raft.log"))
        }
        _ => true,
    };
    report.problems.iter().filter(counts).collect()
}

/// Flips a bit in a stretch of padding of a value, in the middle of a file. Returns whether there
/// is one.
fn flip(file: &Path) -> bool {
    let content = std::fs::read(file).unwrap();
    let middle = content.len() / 3;
    let padding = |at: &usize| content[*at..].starts_with(&[b'.'; 256]);
    let Some(at) = (middle..content.len() - 256).find(padding) else { return false };
    let open = OpenOptions::new().write(true).open(file).unwrap();
    open.write_all_at(&[b'.' ^ 4], at as u64 + 128).unwrap();
    open.sync_all().unwrap();
    true
}

/// Waits until a node has brought back what it had lost.
async fn is_repaired(cluster: &mut Cluster, client: &Client, id: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        cluster.no_crash().unwrap();
        let statuses = cluster.statuses(client).await;
        let status = statuses.into_iter().find(|(of, _)| *of == id).and_then(|(_, status)| status);
        let log = cluster.log(id);
        if status.is_some_and(|status| status.recovering.is_none()) && log.contains("repaired") {
            assert!(log.contains("entries are lost"), "{log}");
            return;
        }
        assert!(Instant::now() < end, "node {id} is not repaired:\n{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every position of its log is there, and nothing of it is damaged. The node has ended.
fn is_whole(cluster: &Cluster, id: u64) {
    let report = inspected(cluster, id);
    assert!(damaged_entries(&report).is_empty(), "{:?}", report.problems);
    assert!(report.logs.iter().all(|log| log.health == Health::Intact), "{:?}", report.logs);
    let journal = Journal::open(journal_of(cluster, id), Config::default()).unwrap();
    let mut read = 0;
    for info in journal.logs().iter().filter(|log| log.name.namespace.starts_with("raft.log")) {
        let log = journal.log(&info.name.namespace, info.name.id).unwrap();
        for position in log.bounds() {
            log.read(position).unwrap();
            read += 1;
        }
    }
    assert!(read > 100, "{read} entries");
    journal.close().unwrap();
}

/// Has node `id` lead, by killing whoever else does.
async fn made_to_lead(cluster: &mut Cluster, client: &Client, id: u64) {
    for _ in 0..20 {
        let leader = cluster.leader(client).await.unwrap().id;
        if leader == id {
            return;
        }
        cluster.kill(leader).await.unwrap();
        cluster.leader(client).await.unwrap();
        cluster.start(leader).unwrap();
        cluster.caught_up(client).await.unwrap();
    }
    panic!("node {id} was never elected");
}

/// Three nodes with small segments, a client of theirs, and who leads.
async fn three_nodes(folder: &Path) -> (Cluster, Client, u64) {
    let mut cluster = Cluster::new(program(), folder, 3).unwrap();
    cluster.set_options(&["--segment-bytes", "1MiB"]);
    cluster.start_all().unwrap();
    let client = cluster.client();
    let leader = cluster.leader(&client).await.unwrap().id;
    (cluster, client, leader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_has_rotten_is_repaired_while_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mut cluster, client, leader) = three_nodes(folder.path()).await;
    let (victim, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let load = Load::start(
        &client,
        Shape { large_percent: 20, pause: Duration::from_millis(10), ..Shape::default() },
    );

    // Until it has full segments.
    let sealed: Vec<PathBuf> = loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.kill(victim).await.unwrap();
        let report = inspected(&cluster, victim);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        let sealed = report.segments.iter().filter(|segment| segment.role == Role::Sealed);
        let sealed = sealed.map(|segment| journal_of(&cluster, victim).join(&segment.name));
        let sealed: Vec<PathBuf> = sealed.collect();
        if sealed.len() >= 3 {
            break sealed;
        }
        cluster.start(victim).unwrap();
        cluster.caught_up(&client).await.unwrap();
    };
    let flipped = sealed.iter().filter(|file| flip(file)).take(2).count();
    assert_eq!(flipped, 2, "{sealed:?}");
    let report = inspected(&cluster, victim);
    assert_eq!(damaged_entries(&report).len(), flipped, "{:?}", report.problems);
    let done = || load.stats.done.load(Ordering::Relaxed);
    let before = done();
    cluster.start(victim).unwrap();
    is_repaired(&mut cluster, &client, victim).await;
    cluster.caught_up(&client).await.unwrap();
    assert!(done() > before, "the others went on");

    // Now commits need it, and then it leads.
    cluster.kill(other).await.unwrap();
    let before = done();
    let end = Instant::now() + PATIENCE;
    while done() < before + 100 {
        assert!(Instant::now() < end, "nothing is committed with node {victim}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.start(other).unwrap();
    cluster.caught_up(&client).await.unwrap();
    made_to_lead(&mut cluster, &client, victim).await;
    let before = done();
    while done() < before + 100 {
        assert!(Instant::now() < end, "nothing is committed by node {victim}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let history = load.stop().await;
    cluster.caught_up(&client).await.unwrap();
    let checked = check::check(&cluster, &client, &history).await.unwrap();
    println!("{checked:?}");
    assert!(checked.nodes == 3 && checked.acknowledged > 300 && checked.kept > 10, "{checked:?}");
    cluster.end_all().await.unwrap();
    is_whole(&cluster, victim);
}

/// A leader finds out while it runs, when it reads for a follower that is behind: it ends, another
/// node leads, and the one that is started again by whoever supervises it is repaired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_read_its_log_ends_and_is_repaired_when_it_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut cluster, client, leader) = three_nodes(folder.path()).await;
    let behind = leader % 3 + 1;
    cluster.kill(behind).await.unwrap();
    // More than a leader keeps in memory.
    let written = bulk::write(&client, 32_000_000, PATIENCE).await;
    assert_eq!(cluster.leader(&client).await.unwrap().id, leader);
    let mut files: Vec<_> = std::fs::read_dir(journal_of(&cluster, leader))
        .unwrap()
        .map(|file| file.unwrap())
        .filter(|file| file.file_name().to_string_lossy().starts_with("segment"))
        .map(|file| (file.metadata().unwrap().modified().unwrap(), file.path()))
        .collect();
    files.sort();
    // Those that are written now stay as they are.
    files.truncate(files.len().saturating_sub(6));
    let flipped = files.iter().filter(|(_, file)| flip(file)).count();
    assert!(flipped > 2, "{flipped} of {files:?}");
    cluster.start(behind).unwrap();
    let end = Instant::now() + PATIENCE;
    let (ended, status) = loop {
        if let Some(ended) = cluster.take_crashed().pop() {
            break ended;
        }
        assert!(Instant::now() < end, "the leader has read nothing that is damaged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((ended, status.code()), (leader, Some(1)), "{}", cluster.log(ended));
    cluster.leader(&client).await.unwrap();
    let later = bulk::write(&client, 1_000_000, PATIENCE).await;
    cluster.start(leader).unwrap();
    is_repaired(&mut cluster, &client, leader).await;
    cluster.caught_up(&client).await.unwrap();
    let mut all = written;
    all.written.extend(later.written);
    for (_, http) in cluster.addresses() {
        bulk::check(&client, http, &all).await;
    }
    cluster.end_all().await.unwrap();
    is_whole(&cluster, leader);
}

//! Three processes through one outage after the other, each while values of 8 KiB are written: a
//! killed follower, a slow link, a full disk, a wiped disk. No node dies, what can catch up does,
//! and what cannot says so.
//!
//! `VOUSSOIR_OUTAGE_MB` says how many MB are written in each outage (default 48, which is three
//! times what a leader keeps in memory for a follower; the long form is 1024).

mod support;

#[path = "support/bulk.rs"]
mod bulk;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use store::client::Client;
use store::cluster::Cluster;
use voussoir_net::testing::{Direction, Proxy};

use bulk::Bulk;
use support::program;

/// No client waits longer than this for an acknowledgement while a majority is up.
const PATIENCE: Duration = Duration::from_secs(30);

fn bytes() -> u64 {
    let given = std::env::var("VOUSSOIR_OUTAGE_MB").ok();
    given.map_or(48, |mb| mb.parse().expect("VOUSSOIR_OUTAGE_MB is a number of MB")) * 1_000_000
}

struct Store {
    cluster: Cluster,
    client: Client,
    /// Between node 3 and the others: whatever it sends and receives passes here.
    links: Vec<Proxy>,
    folder: tempfile::TempDir,
}

impl Store {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::new(program(), folder.path(), 3).unwrap();
        let mut links = Vec::new();
        for (from, to) in [(1, 3), (2, 3), (3, 1), (3, 2)] {
            let link = Proxy::start(cluster.peer_address(to).unwrap()).await.unwrap();
            cluster.set_link(from, to, link.address());
            links.push(link);
        }
        let client = cluster.client();
        Self { cluster, client, links, folder }
    }

    fn http(&self, id: u64) -> SocketAddr {
        self.cluster.addresses()[id as usize - 1].1
    }

    async fn write(&self, bytes: u64) -> Bulk {
        bulk::write(&self.client, bytes, PATIENCE).await
    }

    /// All nodes catch up, hold what was acknowledged, and none has died or complained.
    async fn in_order(&mut self, bulk: &Bulk, outage: &str) {
        let began = Instant::now();
        loop {
            match self.cluster.caught_up(&self.client).await {
                Ok(()) => break,
                Err(error) if began.elapsed() > 6 * PATIENCE => panic!("{outage}: {error}"),
                Err(_) => self.all_live(outage),
            }
        }
        println!("{outage}: caught up {} ms after the end", began.elapsed().as_millis());
        self.all_live(outage);
        for id in self.cluster.ids() {
            bulk::check(&self.client, self.http(id), bulk).await;
        }
    }

    fn all_live(&mut self, outage: &str) {
        if let Some((id, status)) = self.cluster.crashed().first() {
            panic!("{outage}: node {id} died, {status}:\n{}", self.cluster.log(*id));
        }
    }

    /// Waits until node `id` has ended by itself; returns its exit status and what it said.
    async fn ended(&mut self, id: u64) -> (Option<i32>, String) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some((crashed, status)) = self.cluster.take_crashed().pop() {
                assert_eq!(crashed, id, "another node died");
                return (status.code(), self.cluster.log(id));
            }
            assert!(Instant::now() < end, "node {id} goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether what node `id` said last of its room is that its disk is full.
    fn is_full(&self, id: u64) -> bool {
        let log = self.cluster.log(id);
        let of_room = |line: &&str| line.contains("room for");
        log.lines().rev().find(of_room).is_some_and(|line| line.contains("no room for a write"))
    }

    async fn says_that_its_disk_is_full(&mut self, id: u64) {
        let end = Instant::now() + PATIENCE;
        while !self.is_full(id) {
            self.all_live("a full disk");
            assert!(Instant::now() < end, "node {id} says nothing:\n{}", self.cluster.log(id));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_slow_and_wiped_follower_one_after_the_other() {
    let mut store = Store::start().await;
    store.cluster.start_all().unwrap();
    store.cluster.leader(&store.client).await.unwrap();

    store.cluster.kill(3).await.unwrap();
    let bulk = store.write(bytes()).await;
    store.cluster.start(3).unwrap();
    store.in_order(&bulk, "a killed follower").await;

    for link in &store.links {
        for direction in Direction::BOTH {
            link.set_delay(direction, Duration::from_millis(40));
            link.set_bytes_per_second(direction, NonZeroU64::new(500_000));
        }
    }
    let bulk = store.write(bytes()).await;
    for link in &store.links {
        for direction in Direction::BOTH {
            link.set_delay(direction, Duration::ZERO);
            link.set_bytes_per_second(direction, None);
        }
    }
    store.in_order(&bulk, "a slow link").await;

    // A node whose disk was lost says so, does not vote, and keeps nobody from writing.
    store.cluster.kill(3).await.unwrap();
    std::fs::remove_dir_all(store.cluster.folder(3)).unwrap();
    store.cluster.start(3).unwrap();
    let bulk = store.write(bytes() / 4).await;
    let (status, said) = store.ended(3).await;
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("no data of node 3") && said.contains("its disk was lost"), "{said}");
    for id in [1, 2] {
        bulk::check(&store.client, store.http(id), &bulk).await;
    }
    assert!(store.cluster.crashed().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_journal_reaches_its_limit_stays_behind_and_catches_up_with_more_room() {
    let mut store = Store::start().await;
    store.cluster.set_options(&["--segment-bytes", "1MiB"]);
    store.cluster.set_node_options(3, &["--max-bytes", "16MiB"]);
    // Node 3 follows: a leader rejects what is too much for it.
    store.cluster.create().unwrap();
    for id in [1, 2] {
        store.cluster.start(id).unwrap();
    }
    store.cluster.leader(&store.client).await.unwrap();
    store.cluster.start(3).unwrap();

    let bulk = store.write(bytes()).await;
    let end = Instant::now() + PATIENCE;
    while !store.cluster.log(3).contains("the store is short of room") {
        assert!(Instant::now() < end, "node 3 goes on: {}", store.cluster.log(3));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.all_live("a journal at its limit");

    store.cluster.end(3).await.unwrap();
    store.cluster.set_node_options(3, &[]);
    store.cluster.start(3).unwrap();
    store.in_order(&bulk, "a journal at its limit").await;
}

/// A file system of a few MiB in memory. `None` where it cannot be mounted, for want of rights.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder);
        let output = mount.output().ok()?;
        output.status.success().then(|| Self(folder.to_owned()))
    }

    /// A file of another program that takes all the room there is.
    fn fill(&self) {
        use std::io::Write;
        let mut ballast = std::fs::File::create(self.0.join("ballast")).unwrap();
        let mut piece = 1 << 20;
        while piece > 0 {
            if ballast.write_all(&vec![0; piece]).is_err() {
                piece /= 2;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disks_are_named_and_nodes_go_on_when_there_is_room() {
    let mut store = Store::start().await;
    let mut disks = Vec::new();
    for id in 1..=3 {
        let folder = store.folder.path().join(format!("disk-{id}"));
        let Some(disk) = Tmpfs::mount(&folder, "160m") else {
            println!("left out: a tmpfs cannot be mounted here");
            return;
        };
        store.cluster.set_folder(id, &folder);
        disks.push(disk);
    }
    // No snapshot within this test: a journal that recycles its files needs no new room.
    store.cluster.set_options(&["--segment-bytes", "1MiB"]);
    store.cluster.start_all().unwrap();
    store.cluster.leader(&store.client).await.unwrap();
    let bulk = store.write(4_000_000).await;

    // One disk: its node says so and waits, the others go on, and it catches up.
    disks[2].fill();
    let bulk_later = store.write(40_000_000).await;
    store.says_that_its_disk_is_full(3).await;
    disks[2].make_room();
    let mut written = bulk;
    written.written.extend(bulk_later.written);
    store.in_order(&written, "one full disk").await;

    // All disks: nothing can be written until there is room, and nothing is lost.
    disks.iter().for_each(Tmpfs::fill);
    let end = Instant::now() + PATIENCE;
    while (1..=3).filter(|id| store.is_full(*id)).count() < 2 {
        let path = "/kv/bulk/lost/1";
        let value = vec![b'x'; 100_000].into();
        let _ = store.client.send(hyper::Method::PUT, path, None, value).await;
        assert!(Instant::now() < end, "full disks go unnoticed");
    }
    store.all_live("three full disks");
    disks.iter().for_each(Tmpfs::make_room);
    store.in_order(&written, "three full disks").await;
    let bulk = store.write(1_000_000).await;
    store.in_order(&bulk, "after three full disks").await;
    // The disks are unmounted after the nodes have closed their files.
    store.cluster.end_all().await.unwrap();
}

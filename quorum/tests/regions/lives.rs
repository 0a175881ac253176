//! Long lives: regions cut, lost and back, nodes that crash and lose their disks, messages lost and
//! late, replicas that are added, removed and replaced, and a region that is taken out and comes
//! back empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use voussoir_quorum::region::{PeerState, RegionCollectError};
use voussoir_quorum::*;
use voussoir_sim::{Rng, Situations};

use super::changes::candidates;
use super::clients::{Client, Oracle};
use super::world::{REGIONS, Start, World, map_of, nodes_of, region_of};

static SITUATIONS: [&str; 36] = [
    "a key was shipped",
    "keys were shipped again after a failure",
    "an outbox overflowed",
    "a comparison repaired keys",
    "siblings were read",
    "siblings of two regions",
    "a client moved to another region",
    "a key was deleted",
    "a key was deleted while regions were cut",
    "two regions were cut",
    "a region was cut off",
    "a region was down",
    "a region was back",
    "a node crashed",
    "a disk was lost",
    "a lost disk was rebuilt",
    "a write reached each region",
    "a write did not reach each region in time",
    "tombstones were collected",
    "a collection waited for another region",
    "a region was taken out",
    "a region noticed that it was taken out",
    "a region came back empty",
    "messages were late",
    "a replica was added",
    "a replica was removed",
    "a replica was replaced",
    "a dead replica was replaced",
    "a change was refused",
    "a change was not in time",
    "a node crashed during a change",
    "a region was cut off during a change",
    "a disk was lost during a change",
    "nodes got another map during a change",
    "a removed node was added again",
    "a removed replica was told by another region",
];

const STEPS: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(120);
/// Within it a replica finds what the others have accepted of a change, if any: it looks every 64
/// rounds of its maintenance, which are 6.4 s here.
const UNHEARD: Duration = Duration::from_secs(12);

pub(super) struct Life {
    pub(super) world: Arc<World>,
    oracle: Arc<Oracle>,
    pub(super) counts: Arc<Situations>,
    pub(super) rng: Rng,
    /// The replica whose disk was lost, until it has been rebuilt or is none any more: another
    /// loss in its region meanwhile is one more than N - W.
    pub(super) lost: Option<u64>,
    /// It will never come back.
    pub(super) is_dead: bool,
    /// The region that was taken out.
    pub(super) out: Option<u64>,
    /// Regions all of whose nodes are down.
    pub(super) down: Vec<u64>,
    /// Nodes that were replicas.
    pub(super) former: BTreeSet<u64>,
    pub(super) operators: Vec<JoinHandle<()>>,
}

impl Life {
    async fn step(&mut self) {
        self.world.follow();
        match self.rng.below(19) {
            0 | 1 => {
                let (one, two) = *self.rng.pick(&[(1, 2), (1, 3), (2, 3)]).unwrap();
                self.world.cut(one, two);
                self.counts.reached("two regions were cut");
            }
            2 | 3 => {
                let region = *self.rng.pick(&REGIONS).unwrap();
                self.world.cut_off(region);
                self.counts.reached("a region was cut off");
                let is_changing = self.is_changing(region);
                self.counts.add("a region was cut off during a change", is_changing.into());
            }
            4 | 5 => self.crash(),
            7 if self.down.is_empty() => {
                let region = *self.rng.pick(&REGIONS).unwrap();
                for id in candidates(region) {
                    self.world.crash(id);
                }
                self.down.push(region);
                self.counts.reached("a region was down");
            }
            8 | 9 => self.collect().await,
            10 => self.change_map().await,
            11..=13 => self.change().await,
            14 => self.strand().await,
            6 | 15 | 16 => self.lose().await,
            _ => self.heal(),
        }
        sleep(Duration::from_millis(self.rng.below(1_500))).await;
        self.look();
        if self.rng.below(3) == 0 {
            self.restart().await;
        }
    }

    fn crash(&mut self) {
        let mut ids = self.world.running();
        self.rng.shuffle(&mut ids);
        for id in ids.into_iter().take(1 + self.rng.below(3) as usize) {
            self.count_stats(id);
            self.world.crash(id);
            self.counts.reached("a node crashed");
            let is_changing = self.is_changing(region_of(id));
            self.counts.add("a node crashed during a change", is_changing.into());
        }
    }

    pub(super) fn heal(&self) {
        self.world.heal();
        self.world.with(|state| state.alone.clear());
    }

    /// A replica loses its disk: one at a time, and not with another one of its region down. Some
    /// never come back.
    async fn lose(&mut self) {
        let mut changing = REGIONS.into_iter().find(|region| self.is_changing(*region));
        if changing.is_none() && self.lost.is_none() {
            changing = self.begin_change().await;
        }
        let changing = changing.filter(|_| self.rng.chance(700_000));
        let region = changing.unwrap_or(*self.rng.pick(&REGIONS).unwrap());
        let members = self.world.latest(region).ids();
        let Some(id) = self.rng.pick(&members).copied() else { return };
        // Removals of which no operator has heard leave a region two replicas, which lose none.
        let may_lose = self.is_full(region) && members.len() > 2;
        if self.lost.is_some() || !may_lose || self.out == Some(region) {
            return;
        }
        self.count_stats(id);
        self.world.crash(id);
        self.lost = Some(id);
        self.counts.reached("a disk was lost");
        let is_changing = self.is_changing(region);
        self.counts.add("a disk was lost during a change", is_changing.into());
        self.is_dead = !is_changing && self.rng.chance(400_000);
        if !self.is_dead {
            self.world.start(id, Start::Lost).await.unwrap();
        }
    }

    pub(super) async fn restart(&mut self) {
        self.world.follow();
        if let Some(region) = self.down.pop() {
            if self.rng.below(3) > 0 {
                self.down.push(region);
                return;
            }
            self.counts.reached("a region was back");
        }
        self.end_removed();
        for region in REGIONS.into_iter().filter(|region| self.is_there(*region)) {
            for id in candidates(region) {
                let is_running = self.world.host(id).is_some();
                if !is_running && self.world.has_disk(id) && self.dead() != Some(id) {
                    self.world.start(id, Start::Again).await.unwrap();
                }
            }
        }
    }

    /// Every region starts with the next map, node by node.
    async fn change_map(&mut self) {
        if !self.down.is_empty() {
            return;
        }
        if self.rng.chance(300_000) {
            self.change().await;
            sleep(Duration::from_millis(self.rng.below(100))).await;
        }
        if let Some(region) = self.out.take() {
            // It comes back empty.
            for id in candidates(region) {
                self.world.crash(id);
                self.world.wipe(id);
                self.former.remove(&id);
            }
            self.world.forget(region);
            self.world.with(|state| {
                // Its first membership is not one of before.
                let map = state.map.clone().with(region, nodes_of(region));
                let lineage = Lineage::new(100 * map.epoch + region);
                state.map = map.with_lineage(region, lineage);
            });
            self.roll(region).await;
            for id in nodes_of(region) {
                self.world.start(id, Start::Create).await.unwrap();
            }
            self.counts.reached("a region came back empty");
            return;
        }
        let region = *self.rng.pick(&REGIONS).unwrap();
        if self.lost.is_some_and(|id| region_of(id) == region) {
            return;
        }
        self.out = Some(region);
        self.world.with(|state| state.map = state.map.clone().without(region));
        self.oracle.forget_region(region);
        self.counts.reached("a region was taken out");
        self.roll(region).await;
    }

    /// Restarts the nodes of all regions but one with the map of now.
    async fn roll(&mut self, but: u64) {
        for region in REGIONS.into_iter().filter(|region| *region != but) {
            let is_changing = self.is_changing(region);
            self.counts.add("nodes got another map during a change", is_changing.into());
            for id in candidates(region) {
                if !self.world.has_disk(id) || self.dead() == Some(id) {
                    continue;
                }
                self.count_stats(id);
                self.world.crash(id);
                self.world.start(id, Start::Again).await.unwrap();
                sleep(Duration::from_millis(self.rng.below(300))).await;
            }
        }
    }

    async fn collect(&mut self) {
        if self.rng.below(2) == 0 {
            // So that every region can answer, if it is there.
            self.heal();
            self.restart().await;
            sleep(Duration::from_secs(1)).await;
        }
        let ids = self.world.running();
        let Some(host) = self.rng.pick(&ids).and_then(|id| self.world.host(*id)) else { return };
        let (region, map) = (host.region.clone(), host.region.config().own);
        drop(host);
        let collected = region.collect_tombstones();
        let Ok(collected) = tokio::time::timeout(Duration::from_secs(5), collected).await else {
            return;
        };
        match collected {
            Ok(count) => self.counts.add("tombstones were collected", (count > 0).into()),
            Err(RegionCollectError::Unacknowledged { region, .. }) if region != map => {
                self.counts.reached("a collection waited for another region");
            }
            Err(_) => {}
        }
    }

    /// Notices what has happened by itself.
    fn look(&mut self) {
        self.look_at_replicas();
        let Some(out) = self.out else { return };
        for id in candidates(out) {
            let Some(host) = self.world.host(id) else { continue };
            let is_out = host.region.stats().into_iter().any(|peer| {
                matches!(peer.state, PeerState::OtherMap { is_member: false, epoch }
                    if epoch > host.region.config().epoch)
            });
            self.counts.add("a region noticed that it was taken out", is_out.into());
        }
    }

    fn count_stats(&self, id: u64) {
        let Some(host) = self.world.host(id) else { return };
        for peer in host.region.stats() {
            self.counts.add("a key was shipped", peer.shipped_keys);
            self.counts.add("an outbox overflowed", (peer.dropped_keys > 0).into());
            self.counts.add("a comparison repaired keys", (peer.repaired_keys > 0).into());
            let is_again = peer.pending_keys > 0 && peer.state == PeerState::Away;
            self.counts.add("keys were shipped again after a failure", is_again.into());
        }
    }

    /// Faults have ended: every region is there, every change ends, and the replicas are whole.
    async fn settle(&mut self) {
        self.heal();
        self.world.with(|state| (state.loss, state.late) = (0, 0));
        self.down.clear();
        self.restart().await;
        if self.out.is_some() {
            self.change_map().await;
        }
        let ends = Instant::now() + PATIENCE;
        let mut settled_since = None;
        // Ends: by the deadline.
        loop {
            self.look();
            self.restart().await;
            self.replace_dead().await;
            let are_settled = REGIONS.into_iter().all(|region| self.is_settled(region));
            // An operator who is still at work may begin another change.
            let are_done = self.operators.iter().all(JoinHandle::is_finished);
            settled_since = (are_settled && are_done && self.dead().is_none())
                .then(|| settled_since.unwrap_or_else(Instant::now));
            // A change of which its operator has not heard may be decided by any replica.
            if settled_since.is_some_and(|since: Instant| since.elapsed() > UNHEARD) {
                break;
            }
            assert!(Instant::now() < ends, "not settled: {}", self.describe());
            sleep(Duration::from_millis(200)).await;
        }
        self.name_living_nodes().await;
        // Those that are no replicas hold what they held.
        for id in self.world.running() {
            if !self.world.latest(region_of(id)).contains(id) {
                self.world.crash(id);
            }
        }
    }

    /// Before nodes that were replaced are ended for good, whoever was given only those of a region
    /// is given others: the nodes that a map names for a region must include one that lives.
    async fn name_living_nodes(&mut self) {
        self.world.follow();
        for id in self.world.running() {
            let Some(host) = self.world.host(id) else { continue };
            if !self.world.latest(region_of(id)).contains(id) {
                continue;
            }
            let regions = host.region.config().regions.iter();
            let mut others = regions.filter(|member| member.id != region_of(id));
            let is_stale = others.any(|member| {
                let living = self.world.latest(member.id);
                !member.nodes.iter().any(|node| living.contains(*node))
            });
            drop(host);
            if is_stale {
                self.count_stats(id);
                self.world.crash(id);
                self.world.start(id, Start::Again).await.unwrap();
            }
        }
    }

    fn describe(&self) -> String {
        let one = |id| {
            let host = self.world.host(id)?;
            let membership = Arc::clone(&host.node.membership().borrow());
            let (epoch, ids) = (membership.epoch(), membership.ids());
            Some(format!("node {id} {:?} in {epoch} of {ids:?}", *host.node.status().borrow()))
        };
        let dead = self.dead();
        let nodes: Vec<String> = self.world.running().into_iter().filter_map(one).collect();
        format!("dead {dead:?}; {}", nodes.join(", "))
    }
}

async fn live(seed: u64, counts: Arc<Situations>) -> u64 {
    let mut map = map_of(&REGIONS);
    if seed % 2 == 1 {
        // Every other map names its regions.
        for region in REGIONS {
            map = map.with_lineage(region, Lineage::new(region));
        }
    }
    let world = World::new(seed, map);
    for id in REGIONS.into_iter().flat_map(nodes_of) {
        world.start(id, Start::Create).await.unwrap();
    }
    let mut rng = Rng::stream(seed, 1);
    let loss = *rng.pick(&[0, 0, 10_000]).unwrap();
    let late = *rng.pick(&[0, 20_000, 100_000]).unwrap();
    world.with(|state| (state.loss, state.late) = (loss, late));
    counts.add("messages were late", (late > 0).into());
    let oracle = Oracle::new();
    let mut clients = Vec::new();
    for (at, region) in REGIONS.into_iter().cycle().take(6).enumerate() {
        let client = Client {
            world: Arc::clone(&world),
            oracle: Arc::clone(&oracle),
            counts: Arc::clone(&counts),
            rng: Rng::stream(seed, 100 + at as u64),
            region,
            tables: BTreeMap::new(),
            tables_epoch: 0,
        };
        clients.push(tokio::spawn(client.run()));
    }
    let mut life = Life {
        world: Arc::clone(&world),
        oracle: Arc::clone(&oracle),
        counts,
        rng,
        lost: None,
        is_dead: false,
        out: None,
        down: Vec::new(),
        former: BTreeSet::new(),
        operators: Vec::new(),
    };
    for _ in 0..STEPS {
        life.step().await;
        // A failed client shows itself at once.
        for client in clients.iter_mut().filter(|client| client.is_finished()) {
            client.await.unwrap();
        }
        let (done, running): (Vec<_>, Vec<_>) =
            life.operators.drain(..).partition(JoinHandle::is_finished);
        life.operators = running;
        for operator in done {
            operator.await.unwrap();
        }
    }
    life.settle().await;
    for operator in life.operators.drain(..) {
        operator.await.unwrap();
    }
    oracle.is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    world.converge(PATIENCE).await;
    // What a node has noted is told as well, once it is time to try again.
    super::scenes::is_calm(&world).await;
    for id in world.running() {
        life.count_stats(id);
    }
    oracle.check(&world.states(world.running()[0]).await);
    oracle.done.load(Ordering::Relaxed)
}

#[test]
fn regions_converge_and_lose_nothing_in_long_lives() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (first, count) = (number("VOUSSOIR_SEED", 0), number("VOUSSOIR_LIVES", 10));
    let counts = Arc::new(Situations::new(&SITUATIONS));
    let (mut done, mut last) = (0, None);
    // The first one twice: a seed that fails can be played again.
    for seed in std::iter::once(first).chain(first..first + count) {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().start_paused(true).build().unwrap();
            runtime.block_on(live(seed, Arc::clone(&counts)))
        });
        match std::panic::catch_unwind(run) {
            Ok(operations) => {
                done += operations;
                let before = last.replace((seed, operations)).filter(|(before, _)| *before == seed);
                let lived = before.map_or(operations, |(_, operations)| operations);
                assert_eq!(lived, operations, "seed {seed} is lived in two ways");
            }
            Err(panic) => {
                eprintln!(
                    "seed {seed} fails; VOUSSOIR_SEED={seed} VOUSSOIR_LIVES=1 cargo test \
                     -p voussoir-quorum --test regions regions_converge"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{done} acknowledged writes\n{counts}");
    if count > 1 {
        counts.assert_all_reached();
    }
}

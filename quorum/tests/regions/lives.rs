//! Long lives: regions cut, lost and back, nodes that crash and lose their disks, messages lost and
//! late, and a region that is taken out and comes back empty.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::region::{PeerState, RegionCollectError};
use voussoir_quorum::*;
use voussoir_sim::{Rng, Situations};

use super::clients::{Client, Oracle};
use super::world::{REGIONS, Start, World, nodes_of, region_of};

static SITUATIONS: [&str; 24] = [
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
];

const STEPS: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(60);

struct Life {
    world: Arc<World>,
    oracle: Arc<Oracle>,
    counts: Arc<Situations>,
    rng: Rng,
    /// The node whose disk was lost, until it has been rebuilt: another loss in its region
    /// meanwhile is one more than N - W.
    lost: Option<u64>,
    /// The region that was taken out.
    out: Option<u64>,
    /// Regions all of whose nodes are down.
    down: Vec<u64>,
}

impl Life {
    async fn step(&mut self) {
        match self.rng.below(14) {
            0 | 1 => {
                let (one, two) = *self.rng.pick(&[(1, 2), (1, 3), (2, 3)]).unwrap();
                self.world.cut(one, two);
                self.counts.reached("two regions were cut");
            }
            2 | 3 => {
                self.world.cut_off(*self.rng.pick(&REGIONS).unwrap());
                self.counts.reached("a region was cut off");
            }
            4 | 5 => self.crash(),
            6 => self.lose().await,
            7 if self.down.is_empty() => {
                let region = *self.rng.pick(&REGIONS).unwrap();
                for id in nodes_of(region) {
                    self.world.crash(id);
                }
                self.down.push(region);
                self.counts.reached("a region was down");
            }
            8 | 9 => self.collect().await,
            10 => self.change_map().await,
            _ => self.world.heal(),
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
        }
    }

    /// A node loses its disk: one at a time, and not with another one of its region down.
    async fn lose(&mut self) {
        let running = self.world.running();
        let Some(id) = self.rng.pick(&running).copied() else { return };
        let region = region_of(id);
        let is_full = nodes_of(region)
            .into_iter()
            .all(|id| self.world.host(id).is_some_and(|host| host.node.is_whole()));
        if self.lost.is_some() || !is_full || self.out == Some(region) {
            return;
        }
        self.count_stats(id);
        self.world.crash(id);
        self.lost = Some(id);
        self.counts.reached("a disk was lost");
        self.world.start(id, Start::Lost).await.unwrap();
    }

    async fn restart(&mut self) {
        if let Some(region) = self.down.pop() {
            if self.rng.below(3) > 0 {
                self.down.push(region);
                return;
            }
            self.counts.reached("a region was back");
        }
        let down = self.down.clone();
        for region in REGIONS.into_iter().filter(|region| !down.contains(region)) {
            for id in nodes_of(region) {
                self.start_again(id).await;
            }
        }
    }

    async fn start_again(&mut self, id: u64) {
        let is_running = self.world.host(id).is_some();
        if is_running || self.out == Some(region_of(id)) {
            return;
        }
        self.world.start(id, Start::Again).await.unwrap();
    }

    /// Every region starts with the next map, node by node.
    async fn change_map(&mut self) {
        if !self.down.is_empty() {
            return;
        }
        if let Some(region) = self.out.take() {
            // It comes back empty.
            for id in nodes_of(region) {
                self.world.crash(id);
                self.world.wipe(id);
            }
            self.world.with(|state| state.map = state.map.clone().with(region, nodes_of(region)));
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
            for id in nodes_of(region) {
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
            self.world.heal();
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
        if let Some(id) = self.lost
            && self.world.host(id).is_some_and(|host| host.node.is_whole())
        {
            self.counts.reached("a lost disk was rebuilt");
            self.lost = None;
        }
        let Some(out) = self.out else { return };
        for id in nodes_of(out) {
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

    /// Faults have ended: every region is there, and its nodes are whole.
    async fn settle(&mut self) {
        self.world.heal();
        self.world.with(|state| (state.loss, state.late) = (0, 0));
        self.down.clear();
        self.restart().await;
        if self.out.is_some() {
            self.change_map().await;
        }
        let ends = Instant::now() + PATIENCE;
        // Ends: by the deadline.
        loop {
            self.look();
            let ids = self.world.running();
            let whole = ids
                .iter()
                .filter(|id| self.world.host(**id).is_some_and(|host| host.node.is_whole()));
            if whole.count() == 9 {
                return;
            }
            assert!(Instant::now() < ends, "not all are whole: {ids:?}");
            sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn live(seed: u64, counts: Arc<Situations>) -> u64 {
    let world = World::begin(seed, &REGIONS).await;
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
        };
        clients.push(tokio::spawn(client.run()));
    }
    let mut life = Life {
        world: Arc::clone(&world),
        oracle: Arc::clone(&oracle),
        counts,
        rng,
        lost: None,
        out: None,
        down: Vec::new(),
    };
    for _ in 0..STEPS {
        life.step().await;
        // A failed client shows itself at once.
        for client in clients.iter_mut().filter(|client| client.is_finished()) {
            client.await.unwrap();
        }
    }
    life.settle().await;
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
    oracle.check(&world.states(1).await);
    oracle.done.load(Ordering::Relaxed)
}

#[test]
fn regions_converge_and_lose_nothing_in_long_lives() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (first, count) = (number("VOUSSOIR_SEED", 0), number("VOUSSOIR_LIVES", 10));
    let counts = Arc::new(Situations::new(&SITUATIONS));
    let mut done = 0;
    for seed in first..first + count {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().start_paused(true).build().unwrap();
            runtime.block_on(live(seed, Arc::clone(&counts)))
        });
        match std::panic::catch_unwind(run) {
            Ok(operations) => done += operations,
            Err(panic) => {
                eprintln!(
                    "seed {seed} fails; VOUSSOIR_SEED={seed} VOUSSOIR_LIVES=1 cargo test \
                     -p voussoir-quorum --test regions regions_converge"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{done} acknowledged writes");
    if count > 1 {
        counts.assert_all_reached();
    }
}

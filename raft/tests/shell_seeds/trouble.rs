//! What happens to the nodes while the clients are at work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::clients::{burst, drop_reads, ms, read};
use super::draw::Trouble;
use super::wire::Link;
use super::world::{Running, World};

/// How often what has to hold at any time is checked.
const CHECK: Duration = Duration::from_millis(20);

/// Something that ends by itself.
struct Spell {
    ends: Instant,
    undo: Undo,
}

enum Undo {
    Mend(Vec<(u64, u64)>),
    WakeDisk(u64),
    SpeedDisk(u64),
    FreeMachine(u64),
    SpeedMachine(u64),
    Start(Vec<u64>),
    ReturnDisk(u64),
    /// The disk failed: power off, and on again.
    Replace(u64),
}

/// Everything that goes on at the moment.
pub(crate) struct Troubles {
    world: Arc<World>,
    spells: Vec<Spell>,
}

impl Troubles {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        Self { world: Arc::clone(world), spells: Vec::new() }
    }

    /// Makes trouble for as long as the seed says.
    pub(crate) async fn go(&mut self) {
        let world = Arc::clone(&self.world);
        let end = Instant::now() + Duration::from_millis(world.setup.trouble_ms);
        while Instant::now() < end && world.notes.violation().is_none() {
            let pause = world.rng.lock().scaled(5, 300);
            self.rest(pause).await;
            let trouble = world.rng.lock().pick(&world.setup.troubles).copied();
            if let Some(trouble) = trouble {
                self.begin(trouble).await;
            }
        }
    }

    /// Lets time pass, with checks, and ends what is to end meanwhile.
    async fn rest(&mut self, ms: u64) {
        let end = Instant::now() + Duration::from_millis(ms);
        while Instant::now() < end {
            sleep(CHECK.min(end - Instant::now())).await;
            self.world.check();
            let (over, on) = std::mem::take(&mut self.spells)
                .into_iter()
                .partition(|spell| spell.ends <= Instant::now());
            self.spells = on;
            let over: Vec<Spell> = over;
            for spell in over {
                self.undo(spell.undo).await;
            }
        }
    }

    async fn undo(&self, undo: Undo) {
        let world = &self.world;
        match undo {
            Undo::Mend(links) => links.iter().for_each(|(a, b)| world.wire.mend(*a, *b)),
            Undo::WakeDisk(id) => {
                world.with(id, |disk, _| disk.health.gate.set_shut(false));
            }
            Undo::SpeedDisk(id) => {
                world.with(id, |disk, _| {
                    disk.health.set_sync_ms(world.setup.disk_ms);
                    disk.health.set_read_ms(0);
                });
            }
            Undo::FreeMachine(id) => {
                world.with(id, |_, pace| pace.gate.set_shut(false));
            }
            Undo::SpeedMachine(id) => {
                world.with(id, |_, pace| pace.slow_ms.store(0, Ordering::Relaxed));
            }
            Undo::Start(ids) => {
                for id in ids {
                    world.start(id).await;
                }
            }
            Undo::ReturnDisk(id) => world.return_disk(id).await,
            Undo::Replace(id) => {
                let stopped = world.running(id).is_some_and(|node| node.raft.stopped().is_some());
                if stopped {
                    world.notes.reached("node stopped by its failed disk and replaced");
                }
                world.crash(id, true).await;
                world.start(id).await;
            }
        }
    }

    /// All faults end.
    pub(crate) async fn end(&mut self) {
        let world = Arc::clone(&self.world);
        world.notes.line("faults end".to_owned());
        world.wire.mend_all();
        for spell in std::mem::take(&mut self.spells) {
            self.undo(spell.undo).await;
        }
        for id in world.setup.voters.clone() {
            world.start(id).await;
        }
    }

    fn until(&mut self, ms: u64, undo: Undo) {
        let ends = Instant::now() + Duration::from_millis(ms);
        self.spells.push(Spell { ends, undo });
    }

    fn between(&self, low: u64, high: u64) -> u64 {
        self.world.rng.lock().scaled(low, high)
    }

    fn chance(&self, percent: u32) -> bool {
        self.world.rng.lock().chance(percent * 10_000)
    }

    /// A node that runs; the leader more often than others.
    fn victim(&self) -> Option<Running> {
        if self.chance(40)
            && let Some(leader) = self.world.leader()
        {
            return Some(leader);
        }
        let running = self.world.all_running();
        self.world.rng.lock().pick(&running).cloned()
    }

    fn follower(&self) -> Option<Running> {
        let leader = self.world.leader()?.id;
        let mut running = self.world.all_running();
        running.retain(|node| node.id != leader);
        self.world.rng.lock().pick(&running).cloned()
    }

    async fn begin(&mut self, trouble: Trouble) {
        let Some(victim) = self.victim() else { return };
        let id = victim.id;
        self.world.notes.line(format!("{trouble:?} for node {id}"));
        match trouble {
            Trouble::CutOff => self.cut_off(&victim),
            Trouble::CutOneWay | Trouble::BadLinks | Trouble::SlowLink => {
                self.worsen_links(trouble, &victim);
            }
            Trouble::Crash => {
                let power = self.chance(60);
                self.world.crash(id, power).await;
                let down = self.between(1, 1500);
                self.until(down, Undo::Start(vec![id]));
            }
            Trouble::CrashAll => {
                let all: Vec<u64> = self.world.all_running().iter().map(|node| node.id).collect();
                let power = self.chance(60);
                for id in &all {
                    self.world.crash(*id, power).await;
                }
                self.world.notes.reached("all nodes down at once");
                let down = self.between(1, 500);
                self.until(down, Undo::Start(all));
            }
            Trouble::HangDisk | Trouble::SlowDisk | Trouble::SlowReads => {
                self.worsen_disk(trouble, &victim);
            }
            Trouble::FailDisk => {
                self.world.fail_disk(id);
                let down = self.between(50, 1000);
                self.until(down, Undo::Replace(id));
            }
            Trouble::LoseDisk => {
                let spare = (self.world.setup.voters.len() - 1) / 2;
                if self.world.setup.journaled && self.world.out() < spare {
                    self.world.lose_disk(id).await;
                    // The others stay without it to the end.
                    if self.chance(60) {
                        let away = self.between(10, 3000);
                        self.until(away, Undo::ReturnDisk(id));
                    }
                }
            }
            Trouble::StickMachine => {
                self.world.with(id, |_, pace| pace.gate.set_shut(true));
                let long = self.between(100, 3000);
                self.until(long, Undo::FreeMachine(id));
            }
            Trouble::SlowMachine => {
                let slow = self.between(2, 100);
                self.world.with(id, |_, pace| pace.slow_ms.store(slow, Ordering::Relaxed));
                let long = self.between(100, 3000);
                self.until(long, Undo::SpeedMachine(id));
            }
            Trouble::LagFollower => self.lag_follower().await,
            Trouble::JumpClock => self.jump_clock().await,
            Trouble::DropReads => {
                drop_reads(&self.world, &victim).await;
            }
            Trouble::Burst => self.burst(),
            Trouble::Campaign => self.world.campaign(&victim),
            Trouble::Strangers => self.strangers(&victim),
        }
    }

    fn links_of(&self, id: u64) -> Vec<(u64, u64)> {
        let others = self.world.setup.voters.iter().filter(|other| **other != id);
        others.map(|other| (id, *other)).collect()
    }

    /// Cuts a node off from all others, or from some of them.
    fn cut_off(&mut self, victim: &Running) {
        let mut links = self.links_of(victim.id);
        if self.chance(25) {
            let some = self.between(1, links.len() as u64) as usize;
            self.world.rng.lock().shuffle(&mut links);
            links.truncate(some);
        }
        if self.world.leader().is_some_and(|leader| leader.id == victim.id) {
            self.world.notes.reached("leader cut off");
        }
        self.cut(&links);
        let long = self.between(50, 2000);
        self.until(long, Undo::Mend(links));
    }

    fn cut(&self, links: &[(u64, u64)]) {
        let noticed = self.chance(50);
        for (a, b) in links {
            self.world.wire.change(*a, *b, |link| link.cut = true);
            self.world.wire.change(*b, *a, |link| link.cut = true);
            if noticed {
                self.world.wire.lose_connection(*a, *b);
            }
        }
    }

    fn worsen_links(&mut self, trouble: Trouble, victim: &Running) {
        let links = self.links_of(victim.id);
        let leads = self.world.leader().is_some_and(|leader| leader.id == victim.id);
        let out = self.chance(50);
        let link = match trouble {
            Trouble::CutOneWay => {
                if leads {
                    self.world.notes.reached("leader cut off in one direction");
                }
                Link { cut: true, ..Link::default() }
            }
            Trouble::SlowLink => {
                Link { bytes_per_ms: Some(self.between(1, 200)), ..Link::default() }
            }
            _ => Link {
                drop_ppm: self.between(1, 300_000) as u32,
                repeat_ppm: self.between(1, 300_000) as u32,
                reorder_ppm: self.between(1, 500_000) as u32,
                extra_ms: self.between(1, 150),
                ..Link::default()
            },
        };
        for (a, b) in &links {
            let pair = if out { (*a, *b) } else { (*b, *a) };
            self.world.wire.change(pair.0, pair.1, |to| *to = link.clone());
            if trouble != Trouble::CutOneWay {
                self.world.wire.change(pair.1, pair.0, |to| *to = link.clone());
            }
        }
        let long = self.between(50, 2000);
        self.until(long, Undo::Mend(links));
    }

    fn worsen_disk(&mut self, trouble: Trouble, victim: &Running) {
        let id = victim.id;
        let notes = &self.world.notes;
        let alone = self.world.setup.voters.len() == 1;
        if trouble == Trouble::SlowReads {
            let slow = self.between(20, 500);
            self.world.with(id, |disk, _| disk.health.set_read_ms(slow));
            let long = self.between(200, 3000);
            return self.until(long, Undo::SpeedDisk(id));
        }
        if trouble == Trouble::SlowDisk {
            if alone {
                notes.reached("single voter with a slow disk");
            }
            let slow = self.between(20, 300);
            self.world.with(id, |disk, _| disk.health.set_sync_ms((slow / 2, slow)));
            let long = self.between(200, 3000);
            return self.until(long, Undo::SpeedDisk(id));
        }
        let leads = self.world.leader().is_some_and(|leader| leader.id == id);
        notes.reached(if leads { "disk hangs on the leader" } else { "disk hangs on a follower" });
        if alone {
            notes.reached("single voter with a hung disk");
        }
        self.world.with(id, |disk, _| disk.health.gate.set_shut(true));
        // A tenth hang until the faults end.
        let long = match self.between(1, 1024) {
            1..4 => 200,
            4..128 => 1000,
            _ => self.between(50, 60_000),
        };
        self.until(long, Undo::WakeDisk(id));
    }

    /// A follower falls behind: it is cut off while others write, with reads that wait there and
    /// perhaps a machine that does not move.
    async fn lag_follower(&mut self) {
        let Some(follower) = self.follower() else { return };
        let id = follower.id;
        let stuck = self.chance(60);
        if stuck {
            self.world.with(id, |_, pace| pace.gate.set_shut(true));
            // What is committed now is confirmed to readers and not applied.
            self.burst();
            self.rest(30).await;
            for _ in 0..self.between(1, 4) {
                let (world, node) = (Arc::clone(&self.world), follower.clone());
                let within = Duration::from_millis(self.between(500, 8000));
                tokio::spawn(async move {
                    // Its promise is checked by `read`; what it answers is not needed.
                    let _ = read(&world, &node, 0, within).await;
                });
            }
            self.rest(self.between(10, 100)).await;
        }
        let links = self.links_of(id);
        self.cut(&links);
        for _ in 0..self.between(1, 6) {
            self.burst();
            self.rest(self.between(20, 300)).await;
        }
        for (a, b) in &links {
            self.world.wire.mend(*a, *b);
        }
        self.world.notes.line(format!("node {id} is back"));
        if stuck {
            let long = self.between(50, 3000);
            self.until(long, Undo::FreeMachine(id));
        }
    }

    async fn jump_clock(&self) {
        let by = self.between(10, 4000);
        self.world.notes.jumps(ms(by));
        self.world.notes.reached("clock jumps");
        tokio::time::advance(Duration::from_millis(by)).await;
    }

    /// Nodes that are no other voters send messages and parts of snapshots.
    fn strangers(&self, victim: &Running) {
        let (count, bytes) = (self.between(1, 40), self.between(1, 8192));
        let strangers = [0, 99, u64::MAX, victim.id];
        let from = self.world.rng.lock().pick(&strangers).copied().unwrap_or(99);
        let term = victim.status().term + self.between(0, 3);
        let before = victim.raft.stats();
        if !self.world.wire.intrude(from, victim, term, (count, bytes)) {
            return;
        }
        let after = victim.raft.stats();
        let refused = after.messages_rejected - before.messages_rejected;
        let inside = (after.messages_received, after.messages_dropped);
        if refused != count || inside != (before.messages_received, before.messages_dropped) {
            let text = format!(
                "node {}: {refused} of {count} messages of strangers were refused",
                victim.id
            );
            self.world.notes.object(text);
        }
        self.world.notes.reached("messages of strangers refused");
    }

    fn burst(&self) {
        let Some(leader) = self.world.leader() else { return };
        let count = self.between(5, 60);
        let bytes = self.between(32, self.world.setup.payload_bytes);
        burst(&self.world, &leader, count, bytes);
    }
}

//! What a seed decides before its run begins.

use std::fmt;
use std::time::Duration;

use voussoir_raft::Config;
use voussoir_sim::Rng;

/// The kinds of trouble that a run may meet. Each run has about half of them, so that each also
/// happens without those that would hide its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    CutOff,
    CutOneWay,
    BadLinks,
    SlowLink,
    Crash,
    CrashAll,
    HangDisk,
    SlowDisk,
    SlowReads,
    FailDisk,
    LoseDisk,
    StickMachine,
    SlowMachine,
    LagFollower,
    JumpClock,
    DropReads,
    Burst,
    Campaign,
    Strangers,
}

impl Trouble {
    pub(crate) const ALL: [Self; 19] = [
        Self::CutOff,
        Self::CutOneWay,
        Self::BadLinks,
        Self::SlowLink,
        Self::Crash,
        Self::CrashAll,
        Self::HangDisk,
        Self::SlowDisk,
        Self::SlowReads,
        Self::FailDisk,
        Self::LoseDisk,
        Self::StickMachine,
        Self::SlowMachine,
        Self::LagFollower,
        Self::JumpClock,
        Self::DropReads,
        Self::Burst,
        Self::Campaign,
        Self::Strangers,
    ];

    fn needs_peers(self) -> bool {
        use Trouble::{BadLinks, CutOff, CutOneWay, LagFollower, SlowLink};
        matches!(self, CutOff | CutOneWay | BadLinks | SlowLink | LagFollower)
    }
}

/// What a seed decides before its run begins.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) voters: Vec<u64>,
    pub(crate) config: Config,
    /// How much faster than true time the clock of each voter runs, in millionths.
    pub(crate) drift_ppm: Vec<i64>,
    /// Stores on journals over disks that lose power; else stores in memory.
    pub(crate) journaled: bool,
    /// A disk serves all writes that wait with one sync; else one after another.
    pub(crate) grouped: bool,
    /// Time that a disk needs for a sync, in ms, at least and at most.
    pub(crate) disk_ms: (u64, u64),
    /// Time that a message needs, in ms, at least and at most.
    pub(crate) link_ms: (u64, u64),
    /// The driver's own task applies commands.
    pub(crate) quick: bool,
    /// Bytes of a chunk of a snapshot, by node: nodes cut the same state differently.
    pub(crate) chunk_bytes: u64,
    /// Bytes in each snapshot beside the state.
    pub(crate) filler_bytes: u64,
    /// The longest command, in bytes.
    pub(crate) payload_bytes: u64,
    pub(crate) clients: u64,
    pub(crate) keys: u64,
    /// How long a client rests between two calls at most, in ms.
    pub(crate) think_ms: u64,
    pub(crate) troubles: Vec<Trouble>,
    /// How long troubles go on, in ms.
    pub(crate) trouble_ms: u64,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { voters, journaled, grouped, disk_ms, link_ms, quick, troubles, .. } = self;
        writeln!(
            f,
            "{} voters, {} store, {} writes of {disk_ms:?} ms, links of {link_ms:?} ms, {} \
             machine, {} clients, commands up to {} bytes, troubles {troubles:?} for {} ms",
            voters.len(),
            if *journaled { "journal" } else { "memory" },
            if *grouped { "grouped" } else { "serial" },
            if *quick { "quick" } else { "separate" },
            self.clients,
            self.payload_bytes,
            self.trouble_ms,
        )?;
        writeln!(f, "clocks fast by {:?} ppm", self.drift_ppm)?;
        write!(f, "{:?}", self.config)
    }
}

impl Setup {
    /// The configuration of one node. Its clock starts with each of its lives, and drifts: a node
    /// whose clock is fast measures each of its durations too short.
    pub(crate) fn config_of(&self, id: u64) -> Config {
        let mut config = self.config.clone();
        let at = self.voters.iter().position(|voter| *voter == id).unwrap_or(0);
        let rate = 1_000_000 + self.drift_ppm[at];
        let durations = [
            &mut config.heartbeat_interval,
            &mut config.min_election_timeout,
            &mut config.max_election_timeout,
            &mut config.disk_stall,
            &mut config.resend_interval,
            &mut config.proposal_timeout,
            &mut config.snapshot_timeout,
        ];
        for duration in durations {
            let nanos = duration.as_nanos() as u64 as f64 * 1e6 / rate as f64;
            *duration = Duration::from_nanos(nanos as u64);
        }
        config.id = id;
        config
    }
}

impl Setup {
    /// Whether a round trip takes a third of the shortest wait before an election, or longer.
    pub(crate) fn is_long(&self) -> bool {
        6 * self.link_ms.1 >= self.config.min_election_timeout.as_millis() as u64
    }

    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, u64::from_le_bytes(*b"a setup!"));
        let count = match rng.below(100) {
            0..8 => 1,
            8..18 => 2,
            18..66 => 3,
            66..80 => 4,
            _ => 5,
        };
        let voters: Vec<u64> = (1..=count).collect();
        let payload_bytes = rng.scaled(32, 4096);
        // A few disks and networks are slow for good.
        let max_disk = match rng.below(100) {
            0..80 => 4,
            80..95 => 20,
            _ => 120,
        };
        let max_link = match rng.below(100) {
            0..80 => 3,
            80..95 => 15,
            _ => 90,
        };
        let mut config = draw_config(&mut rng, &voters, payload_bytes);
        // Draws of their own, which change no others.
        let mut features = Rng::stream(seed, u64::from_le_bytes(*b"together"));
        let (leases, is_long) = (features.chance(400_000), features.chance(250_000));
        // A leader that is heard of later than its followers wait for it cannot lead.
        let longest = config.min_election_timeout.as_millis() as u64 / 3;
        let max_link = if is_long { longest } else { max_link.min(longest) };
        // Where a round takes longer than proposals may, none would ever be answered.
        let rounds = Duration::from_millis(50 * (max_disk + max_link));
        config.proposal_timeout = config.proposal_timeout.max(rounds);
        let max_drift = if rng.chance(500_000) { rng.scaled(1, 100_000) } else { 0 };
        let drift = |_: &u64| rng.below(2 * max_drift + 1).cast_signed() - max_drift.cast_signed();
        let drift_ppm = voters.iter().map(drift).collect();
        config.max_clock_drift_ppm = leases.then_some(max_drift.max(1) as u32);
        let mut troubles = Trouble::ALL.to_vec();
        troubles.retain(|trouble| {
            let wanted = rng.chance(500_000);
            wanted && (count > 1 || !trouble.needs_peers())
        });
        Self {
            seed,
            voters,
            config,
            drift_ppm,
            journaled: rng.chance(600_000),
            grouped: rng.chance(700_000),
            disk_ms: (rng.below(2), rng.between(1, max_disk)),
            link_ms: (rng.below(2), if is_long { max_link } else { rng.between(1, max_link) }),
            quick: rng.chance(300_000),
            chunk_bytes: rng.scaled(40, 1000),
            filler_bytes: rng.below(1500),
            payload_bytes,
            clients: rng.between(2, 5),
            keys: rng.between(2, 4),
            think_ms: rng.scaled(10, 120),
            troubles,
            trouble_ms: rng.between(3000, 9000),
        }
    }
}

/// A valid configuration, mostly of small limits: windows slide, batches fill, logs are cut and
/// snapshots sent all the time.
fn draw_config(rng: &mut Rng, voters: &[u64], payload_bytes: u64) -> Config {
    for _ in 0..100 {
        let config = try_config(rng, voters, payload_bytes);
        if config.validate().is_ok() {
            return config;
        }
    }
    panic!("a hundred draws gave no valid configuration: the ranges drawn from are wrong");
}

fn try_config(rng: &mut Rng, voters: &[u64], payload_bytes: u64) -> Config {
    let ms = Duration::from_millis;
    let mut config = Config::new(1, voters);
    config.group = 7;
    if rng.chance(600_000) {
        let heartbeat = rng.scaled(10, 100);
        config.heartbeat_interval = ms(heartbeat);
        let election = heartbeat * rng.between(3, 8);
        config.min_election_timeout = ms(election);
        config.max_election_timeout = ms(election * rng.between(150, 300) / 100);
        config.disk_stall = ms(rng.between(election.max(200), 2000.max(election)));
        config.resend_interval = ms(rng.between(heartbeat, 500.max(heartbeat)));
    }
    config.proposal_timeout = ms(rng.scaled(200, 5000));
    config.max_entry_bytes = rng.scaled(payload_bytes, 16 << 10) as usize;
    config.max_append_entries = rng.scaled(1, 4096) as usize;
    config.max_append_bytes = rng.scaled(1, 64 << 10);
    config.max_inflight_appends = rng.scaled(1, 64) as usize;
    config.max_inflight_bytes = rng.scaled(1, 1 << 20);
    config.max_uncommitted_bytes = rng.scaled(1, 1 << 20);
    config.max_undecided = rng.scaled(1, 65_536) as usize;
    config.max_persists = rng.scaled(1, 16) as usize;
    config.max_persist_bytes = rng.scaled(1, 32 << 10);
    config.max_window_bytes = rng.scaled(1, 64 << 10);
    config.max_applying = rng.scaled(1, 16_384);
    config.max_applying_bytes = rng.scaled(1, 64 << 10);
    config.max_reads = rng.scaled(1, 64) as usize;
    config.snapshot_after_entries = if rng.chance(850_000) { rng.scaled(1, 300) } else { 0 };
    config.snapshot_after_bytes = if rng.chance(500_000) { rng.scaled(1, 1 << 18) } else { 0 };
    config.keep_entries = rng.below(40);
    config.max_snapshots_sending = rng.between(1, 3) as usize;
    config.max_inbox_bytes = if rng.chance(300_000) { 1 } else { rng.scaled(1, 1 << 20) };
    config.snapshot_window = rng.between(1, 6) as usize;
    config.snapshot_timeout = ms(rng.between(100, 2000));
    config
}

//! Ids are different whatever clocks, restarts and paused processes do.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use voussoir_lock::async_trait;
use voussoir_lock::ids::*;
use voussoir_sim::{Rng, Situations};

/// 1 January 2026, in ns since the UNIX epoch.
const START: u64 = 1_767_225_600_000_000_000;
const MS: u64 = 1_000_000;

static SITUATIONS: [&str; 10] = [
    "clock stepped back",
    "clock stepped forward",
    "clock behind",
    "exhausted",
    "ceiling reached",
    "number seized",
    "id of a zombie",
    "lease lost",
    "number released",
    "number reused",
];

/// Numbers that cannot be reached while `is_down`.
#[derive(Default)]
struct Flaky {
    numbers: MemoryNumbers,
    is_down: AtomicBool,
}

impl Flaky {
    fn check(&self) -> Result<(), WorkerError> {
        let is_down = self.is_down.load(Ordering::Relaxed);
        if is_down { Err(WorkerError::Unavailable("down".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl WorkerNumbers for Flaky {
    async fn acquire(&self, workers: u32) -> Result<WorkerGrant, WorkerError> {
        self.check()?;
        self.numbers.acquire(workers).await
    }
    async fn raise(&self, worker: u32, epoch: u64, ceiling_ms: u64) -> Result<(), WorkerError> {
        self.check()?;
        self.numbers.raise(worker, epoch, ceiling_ms).await
    }
    async fn release(&self, worker: u32, epoch: u64) -> Result<(), WorkerError> {
        self.check()?;
        self.numbers.release(worker, epoch).await
    }
}

struct Process {
    lease: WorkerLease,
    ids: Snowflake,
    /// Added to the world's time by this process's clock.
    offset: Arc<AtomicU64>,
    is_zombie: bool,
}

/// Several processes on few numbers.
struct Life<'a> {
    rng: Rng,
    now: Arc<AtomicU64>,
    numbers: Arc<Flaky>,
    layout: SnowflakeConfig,
    processes: Vec<Process>,
    used: HashSet<u32>,
    made: HashSet<u64>,
    situations: &'a Situations,
}

impl Life<'_> {
    async fn begin_process(&mut self) {
        let (now, offset) = (Arc::clone(&self.now), Arc::new(AtomicU64::new(0)));
        let ours = Arc::clone(&offset);
        let clock = move || now.load(Ordering::Relaxed).wrapping_add(ours.load(Ordering::Relaxed));
        let (numbers, ahead) = (Arc::clone(&self.numbers), Duration::from_millis(30));
        let workers = self.layout.workers();
        let Ok((lease, window)) =
            WorkerLease::acquire(numbers, workers, ahead, Arc::new(clock)).await
        else {
            return;
        };
        if !self.used.insert(window.worker()) {
            self.situations.reached("number reused");
        }
        let ids = Snowflake::new(self.layout.clone(), window).expect("a valid layout");
        self.processes.push(Process { lease, ids, offset, is_zombie: false });
    }

    fn make_ids(&mut self, at: usize) {
        let process = &self.processes[at];
        let offset = process.offset.load(Ordering::Relaxed);
        let now = self.now.load(Ordering::Relaxed).wrapping_add(offset);
        let mut last = 0;
        for _ in 0..self.rng.between(1, 12) {
            match process.ids.next(now) {
                Ok(id) => {
                    assert!(self.made.insert(id), "{id} was made twice");
                    assert!(id > last, "ids of one generator grow");
                    last = id;
                    if process.is_zombie {
                        self.situations.reached("id of a zombie");
                    }
                }
                Err(IdError::ClockBehind { ready_at_ms, .. }) => {
                    assert!(ready_at_ms > now / MS);
                    self.situations.reached("clock behind");
                }
                Err(IdError::Exhausted { ready_at_ms }) => {
                    assert!(ready_at_ms > now / MS && ready_at_ms <= now / MS + 5);
                    self.situations.reached("exhausted");
                }
                Err(IdError::CeilingReached { ceiling_ms }) => {
                    assert!(ceiling_ms <= now / MS + 5);
                    self.situations.reached("ceiling reached");
                }
                Err(IdError::LeaseLost) => self.situations.reached("lease lost"),
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn step(&mut self) {
        let count = self.processes.len() as u64;
        if count == 0 {
            self.numbers.is_down.store(false, Ordering::Relaxed);
            return self.begin_process().await;
        }
        let at = self.rng.below(count) as usize;
        match self.rng.below(100) {
            0..50 => self.make_ids(at),
            50..75 => {
                let by_ms = self.rng.between(1, 15);
                self.now.fetch_add(by_ms * MS, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(by_ms)).await;
            }
            75..80 => {
                let by = self.rng.between(1, 40) * MS;
                self.processes[at].offset.fetch_sub(by, Ordering::Relaxed);
                self.situations.reached("clock stepped back");
            }
            80..85 => {
                let by = self.rng.between(1, 40) * MS;
                self.processes[at].offset.fetch_add(by, Ordering::Relaxed);
                self.situations.reached("clock stepped forward");
            }
            85..88 => {
                // The holder is paused for so long that its number is granted again.
                let worker = self.processes[at].lease.grant().worker;
                self.numbers.numbers.seize(worker);
                self.processes[at].is_zombie = true;
                self.situations.reached("number seized");
                self.begin_process().await;
            }
            88..92 => {
                let process = self.processes.swap_remove(at);
                let _ = process.lease.release().await;
                let ended = process.ids.next(self.now.load(Ordering::Relaxed));
                assert!(ended.is_err(), "{ended:?} after the number was given back");
                self.situations.reached("number released");
            }
            92..94 => {
                let is_down = self.rng.below(2) == 0;
                self.numbers.is_down.store(is_down, Ordering::Relaxed);
            }
            94..96 => {
                // A crash gives nothing back; an operator frees the number.
                let process = self.processes.swap_remove(at);
                self.numbers.numbers.seize(process.lease.grant().worker);
            }
            _ => self.begin_process().await,
        }
    }
}

fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().expect("a runtime")
}

/// Regression corpus 62 and 63. `VOUSSOIR_SEEDS` runs more lives.
#[test]
fn no_clock_step_restart_or_zombie_repeats_an_id() {
    let situations = Situations::new(&SITUATIONS);
    let seeds = std::env::var("VOUSSOIR_SEEDS").map_or(300, |text| text.parse().expect("a number"));
    let mut made = 0;
    for seed in 0..seeds {
        let mut layout = SnowflakeConfig::default();
        (layout.worker_bits, layout.sequence_bits) = (1, 3);
        layout.max_clock_behind = Duration::from_millis(seed % 4);
        let mut life = Life {
            rng: Rng::new(seed),
            now: Arc::new(AtomicU64::new(START)),
            numbers: Arc::new(Flaky::default()),
            layout,
            processes: Vec::new(),
            used: HashSet::new(),
            made: HashSet::new(),
            situations: &situations,
        };
        paused().block_on(async {
            for _ in 0..400 {
                life.step().await;
            }
        });
        made += life.made.len() as u64;
    }
    assert!(made > seeds * 100, "{made} ids in {seeds} lives");
    situations.assert_all_reached();
}

#[test]
fn the_default_layout_is_41_10_12() {
    let layout = SnowflakeConfig::default();
    let ids = Snowflake::new(layout.clone(), WorkerWindow::unleased(1023, 0)).expect("valid");
    let id = ids.next(START).expect("an id");
    assert_eq!(id, (1_767_225_600_000 - 1_704_067_200_000) << 22 | 1023 << 12);
    let parts = layout.parts(id + 4095).expect("valid");
    assert_eq!((parts.time_ms, parts.worker, parts.sequence), (1_767_225_600_000, 1023, 4095));
    let outside = Snowflake::new(layout, WorkerWindow::unleased(1024, 0));
    assert_eq!(outside.expect_err("no room").field, "worker_bits");
}

#[test]
fn a_ms_has_as_many_ids_as_the_layout_says() {
    let ids = Snowflake::new(SnowflakeConfig::default(), WorkerWindow::unleased(0, 0));
    let ids = ids.expect("valid");
    let made = (0..5000).map_while(|_| ids.next(START).ok()).count();
    assert_eq!(made, 4096);
    let ready_at_ms = START / MS + 1;
    assert_eq!(ids.next(START), Err(IdError::Exhausted { ready_at_ms }));
    assert!(ids.next(ready_at_ms * MS).is_ok());
}

#[test]
fn a_clock_that_is_far_behind_is_typed_and_a_little_behind_goes_on() {
    let ids = Snowflake::new(SnowflakeConfig::default(), WorkerWindow::unleased(0, 0));
    let ids = ids.expect("valid");
    let first = ids.next(START).expect("an id");
    assert_eq!(ids.next(START - 10 * MS), Ok(first + 1));
    let behind = IdError::ClockBehind { behind_ms: 11, ready_at_ms: START / MS };
    assert_eq!(ids.next(START - 11 * MS), Err(behind));
    assert_eq!(ids.next(START), Ok(first + 2), "the refused call used nothing up");
}

#[test]
fn times_outside_the_layout_are_errors() {
    let layout = SnowflakeConfig::default();
    let ids = Snowflake::new(layout.clone(), WorkerWindow::unleased(0, 0)).expect("valid");
    assert!(matches!(ids.next(0), Err(IdError::ClockBehind { .. })));
    assert_eq!(ids.next(u64::MAX), Err(IdError::LayoutFull));
    let last_ms = layout.epoch_ms + (1 << 41) - 1;
    assert!(ids.next(last_ms * MS).is_ok());
}

#[test]
fn threads_share_a_generator() {
    let ids = Snowflake::new(SnowflakeConfig::default(), WorkerWindow::unleased(0, 0));
    let ids = &ids.expect("valid");
    let mut made = HashSet::new();
    std::thread::scope(|scope| {
        let run = move || -> Vec<u64> {
            (0..40_000).filter_map(|n| ids.next(START + n / 2000 * MS).ok()).collect()
        };
        let threads = [(); 4].map(|()| scope.spawn(run));
        for thread in threads {
            for id in thread.join().expect("no panic") {
                assert!(made.insert(id), "{id} was made twice");
            }
        }
    });
    assert!(made.len() > 40_000, "{}", made.len());
}

#[test]
fn an_acknowledged_ceiling_is_what_the_next_holder_begins_at() {
    paused().block_on(async {
        let numbers = Arc::new(MemoryNumbers::new());
        let (clock, ahead) = (Arc::new(|| START), Duration::from_secs(3));
        let (lease, window) =
            WorkerLease::acquire(numbers.clone(), 1, ahead, clock.clone()).await.expect("free");
        let ids = Snowflake::new(SnowflakeConfig::default(), window).expect("valid");
        ids.next(START + 2_999 * MS).expect("below the ceiling");
        let ceiling_ms = START / MS + 3000;
        let reached = Err(IdError::CeilingReached { ceiling_ms });
        assert_eq!(ids.next(START + 3000 * MS), reached);
        drop(lease);
        let taken = WorkerLease::acquire(numbers.clone(), 1, ahead, clock.clone()).await;
        assert_eq!(taken.expect_err("a crash frees nothing"), WorkerError::AllTaken.into());
        numbers.seize(0);
        let (lease, window) =
            WorkerLease::acquire(numbers, 1, ahead, clock).await.expect("it was freed");
        assert_eq!(lease.grant().ceiling_ms, ceiling_ms);
        let next = Snowflake::new(SnowflakeConfig::default(), window).expect("valid");
        let behind = IdError::ClockBehind { behind_ms: 3000, ready_at_ms: ceiling_ms };
        assert_eq!(next.next(START), Err(behind));
    });
}

#[test]
fn uuids_have_their_version_grow_and_bear_a_clock_that_steps_back() {
    let mut config = UuidV7Config::default();
    config.seed = Some(7);
    let mut ids = UuidV7::new(config.clone()).expect("valid");
    let (mut last, mut rng) = (0, Rng::new(1));
    for step in 0..20_000_u64 {
        let now = START + step * MS / 5 - rng.below(10_000) * MS;
        match ids.next(now) {
            Ok(id) => {
                assert_eq!((id >> 76 & 0xf, id >> 62 & 3), (7, 2), "version and variant");
                assert!(id > last, "ids of one generator grow");
                last = id;
            }
            Err(error) => assert!(matches!(error, IdError::ClockBehind { .. }), "{error}"),
        }
    }
    let behind = ids.next(START - 20_000 * MS);
    assert!(matches!(behind, Err(IdError::ClockBehind { .. })), "{behind:?}");
    let mut other = UuidV7::new(UuidV7Config::default()).expect("valid");
    let mut again = UuidV7::new(UuidV7Config::default()).expect("valid");
    assert_ne!(other.next(START), again.next(START), "seeds are drawn");
    assert_eq!(ids.next(u64::MAX), Ok(ids_after(last, &mut config)), "the far future fits");
}

/// What the seeded generator makes after `last` at the end of time.
fn ids_after(last: u128, config: &mut UuidV7Config) -> u128 {
    let mut ids = UuidV7::new(config.clone()).expect("valid");
    // The same calls draw the same bits.
    let mut rng = Rng::new(1);
    for step in 0..20_000_u64 {
        if let Ok(id) = ids.next(START + step * MS / 5 - rng.below(10_000) * MS) {
            assert!(id <= last);
        }
    }
    ids.next(u64::MAX).expect("an id")
}

#[test]
fn short_codes_are_a_permutation() {
    for (length, key) in [(1, 0), (1, 1), (2, 7), (3, 7)] {
        let codes = ShortCodes::new(length, key).expect("valid");
        let mut seen = HashSet::new();
        for number in 0..codes.count() {
            let code = codes.encode(number).expect("in range");
            assert_eq!(code.len(), length);
            assert_eq!(codes.decode(&code), Some(number));
            assert!(seen.insert(code));
        }
        assert_eq!(codes.encode(codes.count()), None);
    }
}

#[test]
fn short_codes_stay_the_same_across_versions() {
    let codes = ShortCodes::new(7, 0xfeed).expect("valid");
    let made = [0, 1, 2, codes.count() - 1].map(|number| codes.encode(number).expect("in range"));
    assert_eq!(made, ["mYyjPC6", "3vILTcH", "TK7DQVc", "9ZY7t95"]);
    for wrong in ["", "0", "00000000", "000000é", "00000 0", "------0"] {
        assert_eq!(codes.decode(wrong), None, "{wrong}");
    }
}

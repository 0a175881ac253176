//! Worker numbers through the lock service: processes that crash, are cut off and begin anew, on
//! clocks that step, never make an id twice.
//!
//! `VOUSSOIR_LOCK_IDS=1000000000` is the long form.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use voussoir_lock::ids::*;
use voussoir_lock::*;
use voussoir_sim::{Rng, Situations};

/// 1 January 2026, in ns since the UNIX epoch.
const START: u64 = 1_767_225_600_000_000_000;
const MS: u64 = 1_000_000;
const TTL: Duration = Duration::from_millis(200);
/// Longer than the time to live: a process that was cut off makes ids while others have its number.
const AHEAD: Duration = Duration::from_millis(300);
const WITHIN: Duration = Duration::from_millis(50);

/// A service as one process reaches it.
struct Link {
    service: Arc<MemoryLocks>,
    state: AtomicU8,
}

const UP: u8 = 0;
const CUT: u8 = 1;
/// Calls arrive, answers do not.
const ANSWERS_LOST: u8 = 2;

impl Link {
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        match self.state.load(Ordering::Relaxed) {
            UP => call.await,
            CUT => Err(ServiceError::unavailable("cut off")),
            _ => {
                let _ = call.await;
                Err(ServiceError::unknown("the answer is lost"))
            }
        }
    }
}

#[async_trait]
impl LockService for Link {
    type Grants = Fenced;

    async fn open_session(&self, ttl: Duration, by: Instant) -> Result<u64, ServiceError> {
        self.call(self.service.open_session(ttl, by)).await
    }
    async fn renew_session(&self, session: u64, by: Instant) -> Result<(), ServiceError> {
        self.call(self.service.renew_session(session, by)).await
    }
    async fn close_session(&self, session: u64, by: Instant) -> Result<(), ServiceError> {
        self.call(self.service.close_session(session, by)).await
    }
    async fn acquire(&self, wanted: &Acquisition, by: Instant) -> Result<Acquired, ServiceError> {
        self.call(self.service.acquire(wanted, by)).await
    }
    async fn release(&self, session: u64, request: u64, by: Instant) -> Result<(), ServiceError> {
        self.call(self.service.release(session, request, by)).await
    }
    async fn set_value(&self, value: &NewValue, by: Instant) -> Result<(), ServiceError> {
        self.call(self.service.set_value(value, by)).await
    }
    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        by: Instant,
    ) -> Result<LockView, ServiceError> {
        self.call(self.service.view(name, known, by)).await
    }
}

struct Process {
    link: Arc<Link>,
    lease: Option<WorkerLease>,
    ids: Snowflake,
    worker: u32,
    epoch: u64,
    /// Added to the world's time by this process's clock.
    offset: Arc<AtomicU64>,
    /// The first and the last id, once there is one.
    made: Option<(u64, u64)>,
}

struct World {
    rng: Rng,
    began: Instant,
    service: Arc<MemoryLocks>,
    layout: SnowflakeConfig,
    processes: Vec<Process>,
    /// The latest epoch of each number.
    epochs: [u64; 4],
    /// Number, first and last id of each process that has ended.
    ranges: Vec<(u32, u64, u64)>,
    made: u64,
    situations: Arc<Situations>,
}

impl World {
    fn now(&self) -> u64 {
        START + self.began.elapsed().as_nanos() as u64
    }

    async fn begin_process(&mut self) {
        let link = Arc::new(Link { service: self.service.clone(), state: AtomicU8::new(UP) });
        let mut config = LeaseConfig::default();
        (config.ttl, config.margin) = (TTL, Duration::from_millis(10));
        let clock = Arc::new(TokioClock::default());
        let session = Session::open_with_clock(link.clone(), config, WITHIN, clock).await;
        let session = session.expect("it is reached");
        let (began, offset) = (self.began, Arc::new(AtomicU64::new(0)));
        // Its clock may be wrong from the beginning.
        let wrong_by = self.rng.below(80) * MS;
        offset.fetch_sub(wrong_by, Ordering::Relaxed);
        let ours = Arc::clone(&offset);
        let clock = move || {
            let now = START + began.elapsed().as_nanos() as u64;
            now.wrapping_add(ours.load(Ordering::Relaxed))
        };
        let numbers = Arc::new(LockNumbers::new(&session, "ids", WITHIN));
        let workers = self.layout.workers();
        let leased = WorkerLease::acquire(numbers, workers, AHEAD, Arc::new(clock)).await;
        let (lease, window) = match leased {
            Ok(leased) => leased,
            Err(LeaseError::Worker(WorkerError::AllTaken)) => {
                self.situations.reached("all taken");
                // Those of crashed processes are free again in time.
                return tokio::time::sleep(TTL / 4).await;
            }
            Err(error) => panic!("{error}"),
        };
        let WorkerGrant { worker, epoch, .. } = lease.grant();
        let latest = &mut self.epochs[worker as usize];
        assert!(epoch > *latest, "the epochs of a number grow");
        if *latest > 0 {
            self.situations.reached("number reused");
        }
        *latest = epoch;
        let ids = Snowflake::new(self.layout.clone(), window).expect("a valid layout");
        let process = Process { link, lease: Some(lease), ids, worker, epoch, offset, made: None };
        self.processes.push(process);
    }

    /// Makes at most `most` ids, until there is a reason not to.
    fn make_ids(&mut self, at: usize, most: u64) {
        let now = self.now().wrapping_add(self.processes[at].offset.load(Ordering::Relaxed));
        let process = &mut self.processes[at];
        for _ in 0..most {
            match process.ids.next(now) {
                Ok(id) => {
                    let (first, last) = process.made.unwrap_or((id, 0));
                    assert!(id > last, "ids of one generator grow");
                    process.made = Some((first, id));
                    self.made += 1;
                    if self.epochs[process.worker as usize] > process.epoch {
                        self.situations.reached("id of a zombie");
                    }
                }
                Err(error) => {
                    let situation = match error {
                        IdError::ClockBehind { .. } => "clock behind",
                        IdError::Exhausted { .. } => "exhausted",
                        IdError::CeilingReached { .. } => "ceiling reached",
                        IdError::LeaseLost => "lease lost",
                        error => panic!("{error}"),
                    };
                    return self.situations.reached(situation);
                }
            }
        }
    }

    fn end_process(&mut self, at: usize) -> Process {
        let process = self.processes.swap_remove(at);
        if let Some((first, last)) = process.made {
            self.ranges.push((process.worker, first, last));
        }
        process
    }

    async fn step(&mut self) {
        if self.processes.len() < 3 {
            return self.begin_process().await;
        }
        let at = self.rng.below(self.processes.len() as u64) as usize;
        match self.rng.below(200) {
            0..100 => {
                let by = self.rng.between(1, 10);
                tokio::time::sleep(Duration::from_millis(by)).await;
            }
            100..170 => {
                let most = if self.rng.below(8) == 0 { 50_000 } else { 64 };
                self.make_ids(at, most);
            }
            170..174 => {
                let by = self.rng.between(1, 100) * MS;
                self.processes[at].offset.fetch_sub(by, Ordering::Relaxed);
                self.situations.reached("clock stepped back");
            }
            174..178 => {
                let by = self.rng.between(1, 100) * MS;
                self.processes[at].offset.fetch_add(by, Ordering::Relaxed);
                self.situations.reached("clock stepped forward");
            }
            178..182 => {
                let states = [CUT, ANSWERS_LOST];
                let state = states[self.rng.below(2) as usize];
                self.processes[at].link.state.store(state, Ordering::Relaxed);
                self.situations.reached(if state == CUT { "cut off" } else { "answers lost" });
            }
            182..184 => self.processes[at].link.state.store(UP, Ordering::Relaxed),
            184..186 => {
                // A crash: nobody hears of it.
                self.processes[at].link.state.store(CUT, Ordering::Relaxed);
                drop(self.end_process(at));
                self.situations.reached("process crashed");
            }
            186..188 => {
                let now = self.now();
                let mut process = self.end_process(at);
                let released = process.lease.take().expect("it runs").release().await;
                let ended = process.ids.next(now + 1_000 * MS);
                assert!(ended.is_err(), "{ended:?} after the number was given back");
                if released.is_ok() {
                    self.situations.reached("number released");
                }
            }
            188 => self.begin_process().await,
            _ => {}
        }
    }

    /// Ids of one number differ if the generators that had it made them in ranges of their own;
    /// those of different numbers differ anyway, and those of one generator grow.
    fn check(mut self) {
        while !self.processes.is_empty() {
            self.end_process(0);
        }
        self.ranges.sort_unstable();
        for pair in self.ranges.windows(2) {
            let [(worker, _, last), (next, first, _)] = [pair[0], pair[1]];
            assert!(worker != next || last < first, "ids of number {worker} were made twice");
        }
        let numbers: BTreeSet<u32> = self.ranges.iter().map(|(worker, ..)| *worker).collect();
        assert_eq!(numbers.len(), 4, "every number was used");
        println!("{} ids of {} generators, none twice", self.made, self.ranges.len());
    }
}

static SITUATIONS: [&str; 13] = [
    "clock stepped back",
    "clock stepped forward",
    "clock behind",
    "exhausted",
    "ceiling reached",
    "lease lost",
    "all taken",
    "number reused",
    "number released",
    "id of a zombie",
    "process crashed",
    "cut off",
    "answers lost",
];

/// Regression corpus 62 and 63, through the lock service.
#[tokio::test(start_paused = true)]
async fn leased_numbers_repeat_no_id() {
    let wanted = std::env::var("VOUSSOIR_LOCK_IDS").map_or(4_000_000, |n| n.parse().expect("n"));
    let situations = Arc::new(Situations::new(&SITUATIONS));
    let mut layout = SnowflakeConfig::default();
    layout.worker_bits = 2;
    let mut world = World {
        rng: Rng::new(wanted),
        began: Instant::now(),
        service: MemoryLocks::start_with_clock(Arc::new(TokioClock::default())),
        layout,
        processes: Vec::new(),
        epochs: [0; 4],
        ranges: Vec::new(),
        made: 0,
        situations: Arc::clone(&situations),
    };
    // Ends: half of the steps make ids, and time goes on.
    while world.made < wanted {
        world.step().await;
    }
    world.check();
    situations.assert_all_reached();
}

/// A lock of somebody else's, under the name of a number, is no ceiling of zero.
#[tokio::test(start_paused = true)]
async fn a_value_that_is_no_ceiling_is_an_error() {
    let clock = Arc::new(TokioClock::default());
    let service = MemoryLocks::start_with_clock(clock.clone());
    let session = Session::open_with_clock(service, LeaseConfig::default(), WITHIN, clock).await;
    let session = session.expect("it is reached");
    let guard = session.lock("ids/worker-0").within(WITHIN).await.expect("it is free");
    guard.set_value("something else", WITHIN).await.expect("it is held");
    assert_eq!(guard.release(WITHIN).await, Released::Released);
    let numbers = LockNumbers::new(&session, "ids", WITHIN);
    let error = numbers.acquire(1).await.expect_err("it is no ceiling");
    assert!(error.to_string().contains("ids/worker-0 is no ceiling"), "{error}");
}

/// Of two raises at a time the greater ceiling stands, whichever is written last.
#[tokio::test(start_paused = true)]
async fn a_confirmed_ceiling_never_falls() {
    let clock = Arc::new(TokioClock::default());
    let service = MemoryLocks::start_with_clock(clock.clone());
    let session = Session::open_with_clock(service, LeaseConfig::default(), WITHIN, clock).await;
    let numbers = LockNumbers::new(&session.expect("it is reached"), "ids", WITHIN);
    let WorkerGrant { worker, epoch, .. } = numbers.acquire(1).await.expect("it is free");
    let raise = |ceiling_ms| numbers.raise(worker, epoch, ceiling_ms);
    assert_eq!(tokio::join!(raise(20), raise(10)), (Ok(()), Ok(())));
    numbers.raise(worker, epoch, 5).await.expect("a lower one changes nothing");
    assert_eq!(numbers.raise(worker, epoch + 1, 30).await, Err(WorkerError::Lost));
    numbers.release(worker, epoch).await.expect("it is held");
    assert_eq!(numbers.raise(worker, epoch, 30).await, Err(WorkerError::Lost));
    let again = numbers.acquire(1).await.expect("it is free");
    assert_eq!((again.worker, again.ceiling_ms), (worker, 20));
    assert!(again.epoch > epoch);
}

//! The script of Redis against the limiter in memory, over random histories, and under clocks that
//! are set back: the very text that the crate sends, at times that the test gives.
//!
//! Needs `redis-server` on `PATH` or in `VOUSSOIR_REDIS_SERVER`; else says what it left out.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use test_support::RedisServer;
use voussoir_limit::*;
use voussoir_sim::Situations;

/// The script, at a time of the caller's instead of the server's. Everything expires far off.
fn script() -> String {
    let text = include_str!("../src/shared/redis/take.lua");
    let timed = text.replace("redis.pcall('TIME')", "{tonumber(ARGV[9]), tonumber(ARGV[10])}");
    let timed = timed.replace("'PX', ", "'PX', 3600000000 + ");
    assert_eq!(timed.matches("3600000000").count(), 2);
    assert!(timed.contains("ARGV[9]"));
    timed
}

/// A quota as the script is told of it.
#[derive(Clone, Copy)]
struct Figures {
    quota: Quota,
    interval: u64,
    ticks: u64,
}

impl Figures {
    fn gcra(count: u64, per: Duration, burst: u64) -> Self {
        let interval = (per.as_nanos() as u64).div_ceil(count);
        Self { quota: Quota::gcra(count, per).burst(burst), interval, ticks: 1000 }
    }

    fn window(count: u64, per: Duration) -> Self {
        Self { quota: Quota::fixed_window(count, per), interval: 0, ticks: 1 }
    }

    fn kind(&self) -> &'static str {
        if self.interval > 0 { "gcra" } else { "window" }
    }

    /// How long one unit can be rejected at most, µs.
    fn unit_us(&self) -> u64 {
        match self.kind() {
            "gcra" => self.interval.div_ceil(1000),
            _ => self.quota.per.as_micros() as u64,
        }
    }
}

struct Server {
    _process: RedisServer,
    connection: MultiplexedConnection,
    script: redis::Script,
}

/// Granted, remaining, wait, reset, unreadable.
type Answer = (u64, u64, i64, u64, u64);

impl Server {
    async fn start() -> Option<Self> {
        let server = RedisServer::start(&[])?;
        let client = redis::Client::open(server.url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        Some(Self { _process: server, connection, script: redis::Script::new(&script()) })
    }

    async fn take(
        &mut self,
        key: &str,
        of: &Figures,
        now_us: u64,
        least: u64,
        most: u64,
    ) -> Answer {
        let limit = if of.interval > 0 { of.quota.burst } else { of.quota.count };
        let mut call = self.script.key(key);
        call.arg(of.kind()).arg(limit).arg(of.interval).arg(of.ticks);
        call.arg(of.quota.per.as_micros() as u64).arg(least).arg(most).arg("fresh");
        call.arg(now_us / 1_000_000).arg(now_us % 1_000_000);
        call.invoke_async(&mut self.connection).await.unwrap()
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % n
    }
}

fn figures(random: &mut Random) -> Figures {
    let per = Duration::from_micros(
        [1, 10, 1000, 250_000, 1_000_000, 60_000_000][random.below(6) as usize],
    );
    let count = 1 + random.below(40);
    match random.below(3) {
        0 => Figures::window(count, per),
        _ => Figures::gcra(count, per, 1 + random.below(12)),
    }
}

/// One in a microsecond since 1970, of this century.
const SOME_DAY_US: u64 = 1_764_000_000_000_000;

static FORWARD: [&str; 6] =
    ["granted in part", "granted in full", "rejected", "never", "finer than 1 µs", "window"];

#[tokio::test]
async fn the_script_decides_as_the_limiter_in_memory() {
    let Some(mut server) = Server::start().await else { return };
    let situations = Situations::new(&FORWARD);
    for seed in 0..300 {
        let random = &mut Random(seed);
        let of = figures(random);
        let limiter = Limiter::new(of.quota).unwrap();
        let (key, mut now_us) = (format!("forward-{seed}"), SOME_DAY_US + random.below(1 << 40));
        for step in 0..40 {
            now_us += random.below(3) * random.below(2 * of.unit_us());
            let least = 1 + random.below(3) * random.below(6);
            let most = least + random.below(20);
            let now = now_us * 1000;
            let room = limiter.check_at(now, 0).unwrap().remaining();
            let expected = if room >= least { room.min(most) } else { 0 };
            let rejected = limiter.check_at(now, if expected > 0 { expected } else { least }).err();
            let (granted, remaining, wait, _, unreadable) =
                server.take(&key, &of, now_us, least, most).await;
            let at = format!("seed {seed} step {step}: {of:?}", of = of.quota);
            assert_eq!((granted, remaining, unreadable), (expected, room - expected, 0), "{at}");
            let expected_wait = match rejected.map(|rejected| rejected.retry_after()) {
                None => 0,
                Some(None) => -1,
                Some(Some(wait)) => wait.as_nanos().div_ceil(1000) as i64,
            };
            assert_eq!(wait, expected_wait, "{at}");
            situations.add("granted in part", u64::from(granted > 0 && granted < most));
            situations.add("granted in full", u64::from(granted == most));
            situations.add("rejected", u64::from(wait > 0));
            situations.add("never", u64::from(wait < 0));
            situations.add("window", u64::from(of.kind() == "window"));
            situations.add("finer than 1 µs", u64::from((1..1000).contains(&of.interval)));
        }
    }
    situations.assert_all_reached();
}

static BACK: [&str; 4] =
    ["set back with units used", "rejected after it", "longer than the burst", "window"];

/// However far the server's clock is set back, one unit is rejected for no longer than a unit or a
/// window takes, and no more is granted in real time than the quota admits.
#[tokio::test]
async fn a_clock_that_is_set_back_rejects_for_a_unit_at_most() {
    let Some(mut server) = Server::start().await else { return };
    let situations = Situations::new(&BACK);
    for seed in 0..300 {
        let random = &mut Random(seed);
        let of = figures(random);
        let key = format!("back-{seed}");
        let (start_us, mut real_us, mut behind_us) = (SOME_DAY_US, SOME_DAY_US, 0);
        let (mut granted_all, mut since_set_back) = (0, false);
        for _ in 0..40 {
            real_us += random.below(2 * of.unit_us());
            if random.below(8) == 0 {
                let far = [of.unit_us(), 30_000_000, 86_400_000_000][random.below(3) as usize];
                behind_us += far;
                since_set_back = true;
                situations.add("set back with units used", u64::from(granted_all > 0));
                let burst_us = of.unit_us() * of.quota.burst;
                situations.add("longer than the burst", u64::from(far > burst_us));
            }
            let most = 1 + random.below(4);
            let (granted, _, wait, _, _) =
                server.take(&key, &of, real_us - behind_us, 1, most).await;
            granted_all += granted;
            let wait = u64::try_from(wait).expect("one unit is within the limit");
            assert!(wait <= of.unit_us(), "seed {seed}: {wait} µs of {:?}", of.quota);
            if wait > 0 && since_set_back {
                situations.reached("rejected after it");
                // That wait is enough.
                real_us += wait;
                let (granted, ..) = server.take(&key, &of, real_us - behind_us, 1, 1).await;
                assert_eq!(granted, 1, "seed {seed}: after {wait} µs of {:?}", of.quota);
                granted_all += granted;
            }
            situations.add("window", u64::from(of.kind() == "window"));
            if of.kind() == "gcra" {
                let elapsed = Duration::from_micros(real_us - start_us) + Duration::from_nanos(1);
                let most = of.quota.most_in(elapsed);
                assert!(granted_all <= most, "seed {seed}: {granted_all} of {most}");
            }
        }
    }
    situations.assert_all_reached();
}

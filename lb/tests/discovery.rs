//! Discovery in virtual time, over sources that fail, fall silent and go stale.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use voussoir_lb::discovery::*;
use voussoir_lb::strategy::RoundRobin;
use voussoir_lb::*;

fn set(names: &[&str]) -> Resolved {
    Resolved::new(names.iter().map(|&name| EndpointConfig::new(name)))
}

fn names(balancer: &Balancer) -> Vec<String> {
    balancer.endpoints().iter().map(|endpoint| endpoint.name().to_owned()).collect()
}

fn balancer(config: Config) -> Balancer {
    Balancer::new(RoundRobin::default(), config).expect("valid")
}

fn config() -> DiscoveryConfig {
    let mut config = DiscoveryConfig::default();
    (config.seed, config.jitter) = (Some(1), 0.0);
    config
}

type Answer = Result<Resolved, &'static str>;

/// Gives the answers in turn, the last one again and again; `None` in the script never answers.
#[derive(Default)]
struct Scripted {
    script: Mutex<VecDeque<Option<Answer>>>,
    asked: Mutex<Vec<Instant>>,
}

impl Scripted {
    fn new(script: impl IntoIterator<Item = Option<Answer>>) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(script.into_iter().collect()), ..Self::default() })
    }

    /// Seconds between the questions.
    fn gaps(&self) -> Vec<u64> {
        let asked = self.asked.lock();
        asked.windows(2).map(|two| (two[1] - two[0]).as_secs_f64().round() as u64).collect()
    }
}

#[async_trait]
impl Source for Scripted {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        self.asked.lock().push(Instant::now());
        let answer = {
            let mut script = self.script.lock();
            if script.len() > 1 { script.pop_front() } else { script.front().cloned() }
        };
        match answer.flatten() {
            Some(Ok(resolved)) => Ok(resolved),
            Some(Err(reason)) => Err(DiscoveryError::Failed { reason: reason.to_owned() }),
            None => std::future::pending().await,
        }
    }
}

/// linkerd2 #3935: an error of the resolution stuck. It is retried, and the last good set stays.
#[tokio::test(start_paused = true)]
async fn an_error_or_an_empty_answer_keeps_the_last_good_set_and_is_retried() {
    let balancer = balancer(Config::default());
    let source = Scripted::new([
        Some(Ok(set(&["a", "b"]))),
        Some(Err("refused")),
        Some(Ok(set(&[]))),
        None,
        Some(Ok(set(&["a", "a"]))),
        Some(Ok(set(&["b", "c"]))),
    ]);
    let discovery =
        Discovery::start(balancer.clone(), Arc::clone(&source), config()).expect("valid");
    sleep(Duration::from_secs(29)).await;
    assert_eq!(names(&balancer), ["a", "b"]);
    assert_eq!(discovery.stats().age.map(|age| age.as_secs()), Some(29));
    // 30 s for the error, then waits of 1, 2, 4 and 8 s, and the time-out of 10 s.
    sleep(Duration::from_secs(25)).await;
    let stats = discovery.stats();
    assert_eq!((stats.failed, stats.empty, stats.rejected), (2, 1, 1), "{stats:?}");
    assert_eq!(stats.age.map(|age| age.as_secs()), Some(54), "the age of the set is told");
    assert!(stats.last_error.is_some_and(|error| error.contains("`a` is listed twice")));
    assert_eq!(names(&balancer), ["a", "b"], "the last good set stays");
    sleep(Duration::from_secs(8)).await;
    assert_eq!(names(&balancer), ["b", "c"]);
    assert_eq!(source.gaps(), [30, 1, 2, 14, 8]);
    let stats = discovery.stats();
    assert_eq!((stats.resolved, stats.updates), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_ttl_shortens_the_interval_and_an_equal_set_is_no_update() {
    let balancer = balancer(Config::default());
    let ttl = |seconds| set(&["a"]).with_ttl(Duration::from_secs(seconds));
    let source = Scripted::new([Some(Ok(ttl(5))), Some(Ok(ttl(0))), Some(Ok(ttl(600)))]);
    let discovery =
        Discovery::start(balancer.clone(), Arc::clone(&source), config()).expect("valid");
    sleep(Duration::from_secs(70)).await;
    // A TTL of 0 is cut to the shortest interval, a long one to the interval.
    assert_eq!(source.gaps(), [5, 1, 30, 30]);
    assert_eq!(balancer.stats(0).updates, 1);
    assert_eq!(discovery.stats().resolved, 5);
}

/// linkerd2 #15271: a silent source left dead addresses for ever. Passive detection notices.
#[tokio::test(start_paused = true)]
async fn when_all_endpoints_fail_their_requests_the_source_is_asked_at_once() {
    let mut with_outliers = Config::default();
    with_outliers.outliers = Some(OutlierConfig::default());
    let balancer = balancer(with_outliers);
    let source = Scripted::new([Some(Ok(set(&["old1", "old2"]))), Some(Ok(set(&["new"])))]);
    let discovery =
        Discovery::start(balancer.clone(), Arc::clone(&source), config()).expect("valid");
    sleep(Duration::from_secs(3)).await;
    // One may be ejected; the other is used though it fails as well.
    for now in 0..40 {
        let pick = balancer.pick(&Context::new(), now).expect("one is always used");
        pick.finish(now, Outcome::Failure);
    }
    assert!(balancer.availability().borrow().refused_ejections > 0);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(names(&balancer), ["new"]);
    assert_eq!((source.gaps(), discovery.stats().forced), (vec![3], 1));
}

#[tokio::test(start_paused = true)]
async fn when_all_endpoints_fail_their_checks_the_source_is_asked_until_one_passes() {
    let mut with_checks = Config::default();
    with_checks.checks = Some(CheckConfig::default());
    let balancer = balancer(with_checks);
    let source = Scripted::new([Some(Ok(set(&["a", "b"])))]);
    let discovery =
        Discovery::start(balancer.clone(), Arc::clone(&source), config()).expect("valid");
    sleep(Duration::from_millis(1)).await;
    let check = |passed, times| {
        for endpoint in balancer.endpoints() {
            for _ in 0..times {
                balancer.record_check(endpoint.id(), passed, 0);
            }
        }
    };
    check(true, 1);
    sleep(Duration::from_secs(40)).await;
    let healthy = source.gaps();
    check(false, 3);
    sleep(Duration::from_secs(20)).await;
    let forced = source.gaps()[healthy.len()..].to_vec();
    check(true, 2);
    assert_eq!(discovery.stats().forced, 1);
    assert!(forced.len() >= 4, "{healthy:?} while healthy, {forced:?} while all failed");
    assert!(forced.windows(2).skip(1).all(|two| two[1] >= two[0]), "{forced:?} backs off");
    assert!(forced.last() >= Some(&4), "{forced:?} backs off");
}

/// A stream over a channel.
struct Received(mpsc::UnboundedReceiver<Answer>);

impl Stream for Received {
    type Item = Result<Resolved, DiscoveryError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Self::Item>> {
        let failed = |reason: &str| DiscoveryError::Failed { reason: reason.to_owned() };
        self.0.poll_recv(context).map(|item| item.map(|item| item.map_err(failed)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_followed_and_opened_again_when_it_ends_or_all_fail() {
    let (senders, opened) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let source = {
        let (senders, opened) = (Arc::clone(&senders), Arc::clone(&opened));
        StreamSource::new(move || {
            let (sender, receiver) = mpsc::unbounded_channel();
            let count = opened.fetch_add(1, Relaxed);
            sender.send(Ok(set(&[["s0", "s1", "s2", "s3"][count as usize]]))).expect("open");
            senders.lock().push(sender);
            Received(receiver)
        })
    };
    let mut with_checks = Config::default();
    with_checks.checks = Some(CheckConfig::default());
    let balancer = balancer(with_checks);
    let mut config = config();
    config.interval = Duration::from_secs(3_600);
    let _discovery = Discovery::start(balancer.clone(), source, config).expect("valid");
    let settle = || sleep(Duration::from_millis(2));
    let pass = || balancer.endpoints().iter().for_each(|e| balancer.record_check(e.id(), true, 0));
    settle().await;
    pass();
    assert_eq!(names(&balancer), ["s0"]);
    senders.lock()[0].send(Ok(set(&["s0", "x"]))).expect("open");
    settle().await;
    assert_eq!((names(&balancer).len(), opened.load(Relaxed)), (2, 1));
    pass();
    // The stream ends: the set stays, and another stream is opened.
    senders.lock().remove(0);
    settle().await;
    assert_eq!(names(&balancer).len(), 2);
    sleep(Duration::from_millis(1_100)).await;
    // Those that left serve until s1 has passed its check.
    assert_eq!(
        (names(&balancer), opened.load(Relaxed)),
        (["s1", "s0", "x"].map(str::to_owned).to_vec(), 2)
    );
    pass();
    assert_eq!(names(&balancer), ["s1"]);
    sleep(Duration::from_secs(5)).await;
    // Silent, and all fail: another stream is opened.
    let id = balancer.endpoints()[0].id();
    (0..3).for_each(|_| balancer.record_check(id, false, 0));
    settle().await;
    assert_eq!((names(&balancer), opened.load(Relaxed)), (vec!["s2".to_owned()], 3));
    assert!(senders.lock()[0].is_closed(), "the silent stream was dropped");
}

/// linkerd2 #2550: updates waited for requests. They have a task of their own.
#[tokio::test(start_paused = true)]
async fn updates_arrive_without_a_request_and_beside_one_that_hangs() {
    let balancer = balancer(Config::default());
    let source = Scripted::new([Some(Ok(set(&["a"]))), Some(Ok(set(&["b"])))]);
    let _discovery = Discovery::start(balancer.clone(), source, config()).expect("valid");
    sleep(Duration::from_secs(1)).await;
    let hangs = balancer.pick(&Context::new(), 0).expect("healthy");
    sleep(Duration::from_secs(31)).await;
    assert_eq!(names(&balancer), ["b"]);
    assert_eq!(hangs.endpoint().name(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_again_when_it_changes_and_kept_when_it_breaks() {
    let folder = std::env::temp_dir().join(format!("voussoir-lb-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("endpoints");
    let replace = |text: &str| {
        std::fs::write(folder.join("new"), text).expect("written");
        std::fs::rename(folder.join("new"), &path).expect("renamed");
    };
    replace("127.0.0.1:80 weight=3\n127.0.0.1:81\n");
    let balancer = balancer(Config::default());
    let mut config = config();
    config.interval = Duration::from_secs(3_600);
    let source = FileSource::new(&path).with_poll_interval(Duration::from_millis(50));
    let discovery = Discovery::start(balancer.clone(), source, config).expect("valid");
    let until = async |is_true: &dyn Fn() -> bool| {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !is_true() {
            assert!(std::time::Instant::now() < end, "{discovery:?}");
            // Reading happens on other threads, in real time.
            sleep(Duration::from_millis(50)).await;
        }
    };
    until(&|| names(&balancer).len() == 2).await;
    assert_eq!(balancer.stats(0).endpoints[0].weight, 3);
    replace("127.0.0.1:82\n");
    until(&|| names(&balancer) == ["127.0.0.1:82"]).await;
    replace("127.0.0.1:83\n127.0.0.1:84 wieght=2\n");
    until(&|| discovery.stats().failed == 1).await;
    assert_eq!(names(&balancer), ["127.0.0.1:82"]);
    let error = discovery.stats().last_error.expect("an error");
    assert!(error.starts_with("line 2, column 14: `wieght=2`"), "{error}");
    replace("127.0.0.1:85\n");
    until(&|| names(&balancer) == ["127.0.0.1:85"]).await;
    std::fs::remove_file(&path).expect("removed");
    sleep(Duration::from_millis(500)).await;
    assert_eq!(names(&balancer), ["127.0.0.1:85"], "a missing file keeps the set");
    drop(discovery);
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[tokio::test]
async fn the_systems_resolver_gives_sorted_addresses() {
    let source = DnsSource::new("127.0.0.1", 8080).expect("valid");
    assert_eq!(source.resolve().await.expect("an address"), set(&["127.0.0.1:8080"]));
    let source = DnsSource::new("::1", 8080).expect("valid");
    assert_eq!(source.resolve().await.expect("an address"), set(&["[::1]:8080"]));
    let source = DnsSource::new("localhost", 1).expect("valid");
    let found = source.resolve().await.expect("loopback").endpoints;
    assert!(found.iter().any(|endpoint| endpoint.name == "127.0.0.1:1"), "{found:?}");
    assert!(DnsSource::new("", 1).is_err() && DnsSource::new("x".repeat(254), 1).is_err());
}

/// Panics instead of its second answer, or when it is asked for changes.
struct Panicking {
    asked: AtomicU32,
    on_change: bool,
}

#[async_trait]
impl Source for Panicking {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        let asked = self.asked.fetch_add(1, Relaxed);
        assert!(asked != 1 || self.on_change, "this source panics");
        Ok(set(if asked == 0 { &["a"] } else { &["a", "b"] }))
    }

    async fn changed(&self) -> Result<Resolved, DiscoveryError> {
        assert!(!self.on_change, "this source panics");
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_is_asked_again() {
    for on_change in [false, true] {
        let balancer = balancer(Config::default());
        let source = Arc::new(Panicking { asked: AtomicU32::new(0), on_change });
        let discovery =
            Discovery::start(balancer.clone(), Arc::clone(&source), config()).expect("valid");
        sleep(Duration::from_secs(62)).await;
        assert_eq!(names(&balancer), ["a", "b"], "on_change: {on_change}");
        let stats = discovery.stats();
        assert!((1..=70).contains(&stats.failed), "{stats:?}");
        assert!(stats.last_error.is_some_and(|error| error.contains("panicked")));
    }
}

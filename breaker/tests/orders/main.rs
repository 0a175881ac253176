//! Every order of a policy's stages, under a scripted dependency, in virtual time, against a plain
//! model of what the stages do: the answer, its time, the attempts, and what each guard sees.
//!
//! The six stages whose order matters most are put into all 720 orders, and the other three at
//! random places among them, `ORDERS` times each (default 20). Each failure prints the order and
//! the script.

mod model;
mod scripts;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use model::{Answer, Stage};
use scripts::{Kind, SCRIPTS, Script};
use tokio::time::{Instant, sleep};
use voussoir_breaker::*;
use voussoir_sim::Situations;

const MS: Duration = Duration::from_millis(1);

static SITUATIONS: [&str; 12] = [
    "retried",
    "hedged",
    "hedge won",
    "an overtaken attempt was seen",
    "a final answer ended a race",
    "timed out",
    "cut by the caller's deadline",
    "panicked",
    "answered by the fallback",
    "rejected",
    "a time limit inside of a shorter one",
    "sent once by its caller's word",
];

/// The verdicts of the scripts' answers; everything may be sent twice.
struct Http;

impl Classify<u16, &'static str> for Http {
    fn verdict(&self, answer: &Result<u16, &'static str>) -> Verdict {
        match answer {
            Ok(500..) | Err(_) => Verdict::Failure,
            Ok(400..) => Verdict::Ignored,
            Ok(_) => Verdict::Success,
        }
    }

    fn is_idempotent(&self) -> bool {
        true
    }
}

/// Counts what the adaptive limit is told: `[latencies, overloads]`.
#[derive(Clone, Debug, Default)]
struct Told(Arc<[AtomicU32; 2]>);

impl LimitAlgorithm for Told {
    fn initial(&self) -> usize {
        100
    }

    fn update(&mut self, sample: &LimitSample) -> usize {
        self.0[usize::from(sample.is_overload)].fetch_add(1, Relaxed);
        100
    }
}

struct Subject {
    policy: Policy<u16, &'static str>,
    breaker: Arc<Breaker>,
    bulkhead: Bulkhead,
    limit: AdaptiveLimit,
    told: Told,
    budget: Arc<RetryBudget>,
}

/// A budget that pays for every extra attempt.
fn plenty() -> RetryBudgetConfig {
    let mut budget = RetryBudgetConfig::default();
    (budget.max_balance, budget.min_active) = (1_000_000, u32::MAX);
    budget
}

fn subject(order: &[Stage], budget: RetryBudgetConfig) -> Subject {
    let mut config = BreakerConfig::default();
    config.slow_rate = Some(1.0);
    config.slow_after = 100 * MS;
    let clock = Arc::new(TokioClock::new());
    let breaker = Breaker::with_clock("b", &config, Arc::<TokioClock>::clone(&clock));
    let breaker = Arc::new(breaker.expect("valid"));
    breaker.metrics_only();
    let bulkhead = Bulkhead::new(100, QueueConfig::default()).expect("valid");
    let told = Told::default();
    let limit = AdaptiveLimit::with_tokio_clock(Box::new(told.clone()), QueueConfig::default());
    let limit = limit.expect("valid");
    let budget = RetryBudget::with_clock(budget, clock).expect("valid");
    let mut retries = RetryConfig::default();
    retries.max_attempts = model::MAX_ATTEMPTS;
    retries.backoff.first = Duration::from_millis(model::BACKOFF);
    retries.backoff.growth = Growth::Constant;
    let retry = Retry::new(retries).expect("valid").with_budget(Arc::clone(&budget));
    let mut hedges = HedgeConfig::default();
    (hedges.max_delay, hedges.min_samples) = (Duration::from_millis(model::HEDGE), u64::MAX);
    let hedge = Hedge::new(hedges).expect("valid").with_budget(Arc::clone(&budget));
    let (retry, hedge) = (Arc::new(retry), Arc::new(hedge));
    let shedder = Shedder::new(Arc::new(bulkhead.clone()), ShedConfig::default()).expect("valid");
    let shedder = Arc::new(shedder);
    let millis = |millis| Timeout::new(Duration::from_millis(millis)).expect("above zero");
    let mut builder = Policy::builder().classify(Arc::new(Http));
    for stage in order {
        builder = match stage {
            Stage::Fallback => builder.fallback(|_| async { Ok(model::FALLBACK) }),
            Stage::Whole => builder.timeout(millis(model::WHOLE)),
            Stage::Shed => builder.shed(Arc::clone(&shedder)),
            Stage::Retry => builder.retry(Arc::clone(&retry)),
            Stage::Hedge => builder.hedge(Arc::clone(&hedge)),
            Stage::Breaker => builder.breaker(Arc::clone(&breaker)),
            Stage::Adaptive => builder.adaptive(limit.clone()),
            Stage::Bulkhead => builder.bulkhead(bulkhead.clone()),
            Stage::Each => builder.timeout(millis(model::EACH)),
        };
    }
    let policy = builder.build().expect("every order is accepted");
    Subject { policy, breaker, bulkhead, limit, told, budget }
}

/// What the subject did in one call.
#[derive(Debug, PartialEq)]
struct Seen {
    answer: Answer,
    millis: u64,
    /// Begin and number of each attempt, in milliseconds.
    attempts: Vec<(u64, u32, u32)>,
    /// Extra attempts that the budget has paid for.
    paid: u64,
    /// Calls, failures, slow calls that the breaker has counted.
    breaker: (u64, u64, u64),
    /// Latencies and overloads that the adaptive limit was told.
    limit: [u32; 2],
}

async fn call(subject: &Subject, script: &Script) -> Seen {
    let start = Instant::now();
    let since = || u64::try_from(start.elapsed().as_millis()).expect("short");
    let attempts = Mutex::new(vec![]);
    let before = subject.breaker.stats().lifetime;
    let paid_before = subject.budget.stats().granted;
    let told = |which: usize| subject.told.0[which].load(Relaxed);
    let told_before = [told(0), told(1)];
    let op = |attempt: Attempt| {
        let begun = (since(), attempt.number, attempt.hedge);
        attempts.lock().expect("held briefly").push(begun);
        let step = script.step(attempt.number, attempt.hedge);
        async move {
            let Some(millis) = step.millis else { return std::future::pending().await };
            sleep(Duration::from_millis(millis)).await;
            match step.kind {
                Kind::Good => Ok(200),
                Kind::Final => Ok(404),
                Kind::Fail => Err("down"),
                Kind::Panic => panic!("scripted"),
            }
        }
    };
    let mut options = CallOptions::default();
    options.deadline = script.deadline.map(|left| Deadline::after(Duration::from_millis(left)));
    options.once = script.once;
    let mut call = pin!(subject.policy.call_with(options, op));
    let ended = std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(answer)) => Poll::Ready(Some(answer)),
            Err(_) => Poll::Ready(None),
        }
    })
    .await;
    let answer = match ended {
        None => Answer::Panicked,
        Some(Ok(value)) => Answer::Value(value),
        Some(Err(error)) => match error.kind {
            PolicyErrorKind::Inner(_) => Answer::Failed,
            PolicyErrorKind::TimedOut(_) => Answer::TimedOut,
            PolicyErrorKind::CutByDeadline(_) => Answer::Cut,
            PolicyErrorKind::Rejected(_) => Answer::Rejected,
            other => panic!("no stage says so here: {other}"),
        },
    };
    let after = subject.breaker.stats().lifetime;
    let attempts = attempts.lock().expect("held briefly").clone();
    Seen {
        answer,
        millis: since(),
        attempts,
        paid: subject.budget.stats().granted - paid_before,
        breaker: (
            after.calls - before.calls,
            after.failures - before.failures,
            after.slow - before.slow,
        ),
        limit: [told(0) - told_before[0], told(1) - told_before[1]],
    }
}

fn expected(order: &[Stage], script: &Script) -> Seen {
    let node = model::call(order, script);
    Seen {
        answer: node.answer,
        millis: node.end,
        attempts: node.attempts.clone(),
        paid: node.paid.len() as u64,
        breaker: node.breaker(),
        limit: node.limit(),
    }
}

async fn check(order: &[Stage], situations: &Situations) {
    let subject = subject(order, plenty());
    let mut calls = 0;
    for script in SCRIPTS {
        if script.hangs() && !order.iter().any(|stage| matches!(stage, Stage::Whole | Stage::Each))
        {
            continue;
        }
        if script.is_rejected {
            subject.breaker.force_open();
        } else {
            subject.breaker.metrics_only();
        }
        let before = subject.budget.stats();
        let (seen, expected) = (call(&subject, script).await, expected(order, script));
        assert_eq!(seen, expected, "{} under {}", script.name, subject.policy);
        let after = subject.budget.stats();
        let sends_again = order.iter().any(|s| matches!(s, Stage::Retry | Stage::Hedge));
        let accounts = u64::from(sends_again && !seen.attempts.is_empty());
        assert_eq!(after.calls - before.calls, accounts, "one account: {}", subject.policy);
        assert_eq!((after.active_calls, after.active_extra), (0, 0), "{}", subject.policy);
        let held = (subject.bulkhead.stats().running, subject.limit.stats().running);
        assert_eq!(held, (0, 0), "{} under {}", script.name, subject.policy);
        calls += 1;
        count(order, script, &seen, situations);
    }
    assert!(calls > 0);
}

fn count(order: &[Stage], script: &Script, seen: &Seen, situations: &Situations) {
    let at = |stage| order.iter().position(|other| *other == stage);
    let hedged = seen.attempts.iter().any(|(_, _, hedge)| *hedge > 0);
    let reached = [
        ("retried", seen.attempts.iter().any(|(_, number, _)| *number > 1)),
        ("hedged", hedged),
        ("hedge won", hedged && script.name == "hung first" && seen.answer == Answer::Value(200)),
        ("an overtaken attempt was seen", script.name == "hung first" && seen.breaker == (2, 1, 0)),
        ("a final answer ended a race", hedged && seen.answer == Answer::Value(404)),
        ("timed out", seen.answer == Answer::TimedOut),
        ("cut by the caller's deadline", seen.answer == Answer::Cut),
        ("panicked", seen.answer == Answer::Panicked),
        ("answered by the fallback", seen.answer == Answer::Value(model::FALLBACK)),
        ("rejected", seen.answer == Answer::Rejected),
        ("a time limit inside of a shorter one", at(Stage::Each) < at(Stage::Whole)),
        ("sent once by its caller's word", script.once && seen.attempts.len() == 1),
    ];
    for (name, is_so) in reached {
        situations.add(name, u64::from(is_so));
    }
}

/// All orders of `stages`.
fn orders(stages: &[Stage]) -> Vec<Vec<Stage>> {
    if stages.is_empty() {
        return vec![vec![]];
    }
    let mut all = vec![];
    for at in 0..stages.len() {
        let mut rest = stages.to_vec();
        let first = rest.remove(at);
        all.extend(orders(&rest).into_iter().map(|mut order| {
            order.insert(0, first);
            order
        }));
    }
    all
}

/// Silences the panics of the scripts, and of nothing else.
fn hush() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"scripted") {
            usual(info);
        }
    }));
}

fn run(all: Vec<Vec<Stage>>, situations: &Situations) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        for order in all {
            check(&order, situations).await;
        }
    });
}

const SIX: [Stage; 6] =
    [Stage::Fallback, Stage::Whole, Stage::Retry, Stage::Hedge, Stage::Breaker, Stage::Each];

/// Whatever the order, the extra attempts of all calls stay within what the calls have paid in.
#[test]
fn no_order_overspends_a_tight_budget() {
    hush();
    let mut budget = RetryBudgetConfig::default();
    (budget.ratio, budget.per_sec, budget.max_balance) = (0.2, 0.0, 3);
    budget.min_active = u32::MAX;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let mut most = 0;
    for order in orders(&SIX) {
        let subject = subject(&order, budget);
        let (mut calls, mut attempts) = (0, 0);
        for round in 0..40 {
            let script = &SCRIPTS[round % SCRIPTS.len()];
            let seen = runtime.block_on(call(&subject, script));
            calls += u64::from(!seen.attempts.is_empty());
            attempts += seen.attempts.len() as u64;
        }
        let stats = subject.budget.stats();
        assert_eq!(stats.calls, calls, "{}", subject.policy);
        let extra = attempts - calls;
        assert!(extra <= stats.granted && stats.granted <= calls / 5 + 3, "{}", subject.policy);
        most = most.max(extra);
    }
    assert!(most >= 8, "no order came near the budget: {most}");
}

#[test]
fn every_order_does_what_the_model_says() {
    hush();
    let situations = Situations::new(&SITUATIONS);
    let variants: u64 =
        std::env::var("ORDERS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let mut rng = 7_u64;
    let mut next = |below: usize| {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (rng >> 33) as usize % below
    };
    let mut all = vec![];
    for order in orders(&SIX) {
        for _ in 0..variants {
            let mut order = order.clone();
            for stage in [Stage::Shed, Stage::Adaptive, Stage::Bulkhead] {
                let at = next(order.len() + 1);
                order.insert(at, stage);
            }
            all.push(order);
        }
    }
    // And all that is left when stages are missing.
    for kept in 1_u32..1 << SIX.len() {
        let some: Vec<_> =
            SIX.iter().enumerate().filter(|(at, _)| kept >> at & 1 == 1).map(|(_, s)| *s).collect();
        if some.len() < 5 {
            all.extend(orders(&some));
        }
    }
    let half = all.split_off(all.len() / 2);
    std::thread::scope(|scope| {
        for part in [all, half] {
            scope.spawn(|| run(part, &situations));
        }
    });
    situations.assert_all_reached();
}

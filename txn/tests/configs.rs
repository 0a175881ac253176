//! Whatever validates works, and nothing else does.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::Config as ProptestConfig;
use voussoir_sim::Situations;
use voussoir_txn::store::MemoryStore;
use voussoir_txn::{Config, OpenError, Retry, Saga, Sagas, StartError, Step, StepError};

static SITUATIONS: [&str; 6] =
    ["accepted", "rejected", "retry accepted", "retry rejected", "input too long", "completed"];

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::from_nanos(1)),
        Just(Duration::from_secs(100 * 365 * 86_400)),
        Just(Duration::MAX),
        any::<u64>().prop_map(Duration::from_nanos),
    ]
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(1), Just(2), 3..300_usize, Just((1 << 20) - 1024), Just(usize::MAX)]
}

#[test]
fn whatever_validates_works() {
    let situations = Situations::new(&SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let jitter = prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0, any::<f64>()];
    let retries = (0..4_u32, durations(), durations(), jitter);
    let cases = (sizes(), sizes(), sizes(), retries, any::<u64>());
    let result = runner.run(&cases, |(open, ended, bytes, retry, seed)| {
        let mut config = Config::default();
        (config.max_open, config.max_ended, config.max_value_bytes) = (open, ended, bytes);
        config.seed = Some(seed);
        let mut policy = Retry::default();
        (policy.max_attempts, policy.base, policy.max_delay, policy.jitter) = retry;
        let valid = config.validate().is_ok();
        situations.reached(if valid { "accepted" } else { "rejected" });
        let valid_retry = policy.validate().is_ok();
        situations.reached(if valid_retry { "retry accepted" } else { "retry rejected" });
        let mut saga = Saga::<u64>::define("saga", 1);
        let step = Step::new("step", (), |_, input: u64, ()| async move {
            if input == 0 { Err(StepError::transient("busy")) } else { Ok::<u64, StepError>(1) }
        });
        saga.read(step.retry(policy));
        let saga = saga.build();
        prop_assert_eq!(saga.is_ok(), valid_retry);
        let Ok(saga) = saga else { return Ok(()) };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let opening = Sagas::builder().register(&saga).config(config).open(MemoryStore::new());
            let sagas = match opening.await {
                Ok(sagas) => sagas,
                Err(OpenError::Config(_)) => {
                    prop_assert!(!valid);
                    return Ok(());
                }
                Err(error) => panic!("{error}"),
            };
            prop_assert!(valid);
            for input in [1_u64, u64::MAX, 0] {
                let started = sagas.start(&saga, &format!("s{input}"), &input).await;
                match started {
                    Ok(handle) => {
                        // The longest delays outlast any test.
                        if input > 0 || retry.0 == 1 {
                            let end = handle.end().await.expect("it ends");
                            prop_assert_eq!(end.is_completed(), input > 0);
                            situations.reached("completed");
                        }
                    }
                    Err(StartError::Input(_)) => situations.reached("input too long"),
                    Err(StartError::Busy) => prop_assert!(open < 3),
                    Err(error) => panic!("{error}"),
                }
            }
            Ok(())
        })
    });
    result.expect("whatever validates works");
    situations.assert_all_reached();
}

/// A coordinator with any configuration that validates commits.
#[tokio::test(start_paused = true)]
async fn whatever_coordinator_validates_decides() {
    use std::sync::Arc;
    use voussoir_txn::async_trait;
    use voussoir_txn::two_phase::*;

    struct Willing;
    #[async_trait]
    impl Participant for Willing {
        async fn prepare(&self, _: &Gid) -> Result<Vote, PrepareError> {
            Ok(Vote::Prepared)
        }
        async fn finish(&self, _: &Gid, _: Decision) -> Result<Applied, ParticipantError> {
            Ok(Applied::Done)
        }
        async fn in_doubt(&self, _: &str, _: usize) -> Result<Vec<InDoubt>, ParticipantError> {
            Ok(Vec::new())
        }
    }

    static SITUATIONS: [&str; 3] = ["rejected", "committed", "too many branches"];
    let situations = Situations::new(&SITUATIONS);
    let mut rng = voussoir_sim::Rng::new(5);
    for _ in 0..2_000 {
        let mut duration = |config: &mut Duration| {
            let edges = [Duration::ZERO, Duration::from_nanos(1), Duration::MAX];
            match rng.below(40) {
                0..3 => *config = edges[rng.below(3) as usize],
                3 => *config = Duration::from_secs(100 * 365 * 86_400),
                _ => {}
            }
        };
        let mut config = CoordinatorConfig::default();
        for field in [
            &mut config.active_timeout,
            &mut config.prepare_timeout,
            &mut config.finish_timeout,
            &mut config.pause,
            &mut config.max_pause,
            &mut config.recover_every,
            &mut config.max_in_doubt_age,
        ] {
            duration(field);
        }
        config.max_active = [0, 1, 7, usize::MAX][rng.below(4) as usize];
        config.max_branches = [0, 1, 2, 1000, 1001][rng.below(5) as usize];
        config.max_in_doubt = [0, 1, usize::MAX][rng.below(3) as usize];
        let valid = config.validate().is_ok();
        let builder =
            Coordinator::builder("c").config(config).participant("all", Arc::new(Willing));
        let opened = builder.open(StoreLog::new(MemoryStore::new())).await;
        assert_eq!(opened.is_ok(), valid);
        let Ok(coordinator) = opened else {
            situations.reached("rejected");
            continue;
        };
        let mut txn = coordinator.begin().unwrap();
        for branch in 0..2 {
            match txn.enlist("all") {
                Ok(gid) => assert_eq!(gid.branch(), branch),
                Err(EnlistError::TooMany(1)) => situations.reached("too many branches"),
                Err(error) => panic!("{error}"),
            }
        }
        txn.commit(Ack::Decided).await.expect("the participant is willing");
        situations.reached("committed");
    }
    println!("{situations}");
    situations.assert_all_reached();
}

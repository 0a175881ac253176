//! The conformance suite of back ends: what each of them has to do, in front of the real thing.

mod groups;
mod needs;
mod records;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::{Backend, BackendError, Consumer, Producer, Received, Subscription};
use crate::format::Record;

/// What a check has seen that should not be.
type Verdict = Result<(), String>;
type Check = fn(Lab) -> Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// Time after which other members are given what one holds, in the suite.
const PROCESSING: Duration = Duration::from_secs(2);
/// How long a check waits for records that must come. They come earlier, or the back end is wrong.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a check waits for records that must not come.
const QUIET: Duration = Duration::from_millis(400);

/// What the suite has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The checks that passed, by name.
    pub passed: Vec<&'static str>,
    /// The checks that failed, by name, and what was seen.
    pub failed: Vec<(&'static str, String)>,
    /// The checks of needs that the back end refuses, by name. That it refuses their use is checked
    /// all the same.
    pub refused: Vec<&'static str>,
}

impl Report {
    /// # Panics
    /// If a check failed, with all that was seen.
    pub fn assert_passed(&self) {
        assert!(self.failed.is_empty(), "the back end does not conform: {:#?}", self.failed);
        assert!(!self.passed.is_empty(), "nothing was checked");
    }
}

/// Runs every check at once, each on topics of its own whose names begin with `namespace`. Takes
/// about 10 s.
///
/// # Panics
/// If a check panics, which is a defect of the back end or of the suite.
///
/// # Cancel safety
/// Dropped, it stops; its topics stay.
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use voussoir_journal::{Journal, MemoryFiles};
/// use voussoir_queue::backend::Embedded;
/// use voussoir_queue::{Queue, QueueConfig, testing};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let journal = Journal::open_with(Arc::new(MemoryFiles::new()), Default::default())?;
/// let queue = Queue::open(&journal, "q", QueueConfig::default())?;
/// testing::conformance(Arc::new(Embedded::new(queue)), "suite").await.assert_passed();
/// # Ok(())
/// # }
/// ```
pub async fn conformance(backend: Arc<dyn Backend>, namespace: &str) -> Report {
    run(backend, namespace, |_| true).await
}

/// As [`conformance`], with the checks of these names only: while a back end is being written.
///
/// # Panics
/// As [`conformance`], and if there is no check of one of the names.
///
/// # Cancel safety
/// As [`conformance`].
pub async fn some_checks(backend: Arc<dyn Backend>, namespace: &str, names: &[&str]) -> Report {
    for name in names {
        assert!(checks().any(|(known, _)| known == name), "there is no check {name}");
    }
    run(backend, namespace, |name| names.contains(&name)).await
}

fn checks() -> impl Iterator<Item = &'static (&'static str, Check)> {
    records::CHECKS.iter().chain(groups::CHECKS).chain(needs::CHECKS)
}

async fn run(
    backend: Arc<dyn Backend>,
    namespace: &str,
    is_asked: impl Fn(&str) -> bool,
) -> Report {
    let mut running = JoinSet::new();
    for (name, check) in checks().filter(|(name, _)| is_asked(name)) {
        let prefix = format!("{namespace}-{name}");
        let lab = Lab { backend: Arc::clone(&backend), prefix };
        let check = check(lab);
        running.spawn(async move { (*name, check.await) });
    }
    let mut report = Report::default();
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok((name, Ok(()))) => report.passed.push(name),
            Ok((name, Err(why))) if why == needs::REFUSED => report.refused.push(name),
            Ok((name, Err(why))) => report.failed.push((name, why)),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }
    report.passed.sort_unstable();
    report.refused.sort_unstable();
    report.failed.sort();
    report
}

/// What one check works with.
#[derive(Clone)]
struct Lab {
    backend: Arc<dyn Backend>,
    prefix: String,
}

impl Lab {
    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A new topic, and a producer.
    async fn topic(
        &self,
        name: &str,
        partitions: u32,
    ) -> Result<(String, Arc<dyn Producer>), String> {
        let topic = self.name(name);
        said("create_topic", self.backend.create_topic(&topic, partitions).await)?;
        Ok((topic, said("producer", self.backend.producer().await)?))
    }

    fn subscription(&self, group: &str, topic: &str) -> Subscription {
        let mut subscription = Subscription::new(&self.name(group), [topic]);
        subscription.processing_timeout = PROCESSING;
        subscription
    }

    async fn member(&self, group: &str, topic: &str) -> Result<Box<dyn Consumer>, String> {
        let subscription = self.subscription(group, topic);
        said("consumer", self.backend.consumer(subscription).await)
    }

    /// Members of a group from a subscription of the caller's.
    async fn open(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>, String> {
        said("consumer", self.backend.consumer(subscription.clone()).await)
    }
}

/// Sends records with the values `range`, by number, each with the key that `key` gives it.
async fn send(
    producer: &Arc<dyn Producer>,
    topic: &str,
    range: std::ops::Range<usize>,
    key: impl Fn(usize) -> String,
) -> Verdict {
    let records = range.map(|number| Record::new(number.to_string()).key(key(number))).collect();
    for answer in producer.send(topic, records).await {
        said("send", answer)?;
    }
    Ok(())
}

/// The number that [`send`] gave a record.
fn number(received: &Received) -> usize {
    let value = received.record.value.as_deref().and_then(|value| std::str::from_utf8(value).ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(usize::MAX)
}

fn numbers(received: &[Received]) -> Vec<usize> {
    let mut numbers: Vec<usize> = received.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// Polls until there are so many records, and once more for records that should not be there.
async fn read(consumer: &mut Box<dyn Consumer>, count: usize) -> Result<Vec<Received>, String> {
    let mut all = read_some(consumer, count).await?;
    all.extend(said("poll", consumer.poll(QUIET).await)?);
    if all.len() != count {
        return Err(format!("{} records came instead of {count}: {:?}", all.len(), numbers(&all)));
    }
    Ok(all)
}

/// Polls until there are so many records at least.
async fn read_some(
    consumer: &mut Box<dyn Consumer>,
    count: usize,
) -> Result<Vec<Received>, String> {
    let (mut all, until) = (Vec::new(), Instant::now() + PATIENCE);
    while all.len() < count {
        if Instant::now() > until {
            let came = numbers(&all);
            return Err(format!("{} of {count} records came in {PATIENCE:?}: {came:?}", all.len()));
        }
        all.extend(said("poll", consumer.poll(Duration::from_millis(200)).await)?);
    }
    Ok(all)
}

/// No record comes.
async fn is_quiet(consumer: &mut Box<dyn Consumer>) -> Verdict {
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        let came = said("poll", consumer.poll(QUIET).await)?;
        ensure(came.is_empty(), || format!("records that should not come: {:?}", numbers(&came)))?;
    }
    Ok(())
}

fn said<T>(verb: &str, result: Result<T, BackendError>) -> Result<T, String> {
    result.map_err(|error| format!("{verb}: {error}"))
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(why()) }
}

/// What was to be refused, as the error that says so.
fn refused<T>(what: &str, result: Result<T, BackendError>) -> Result<BackendError, String> {
    match result {
        Ok(_) => Err(format!("{what} was not refused")),
        Err(error) if error.outcome() == crate::Outcome::NotApplied => Ok(error),
        Err(error) => Err(format!("{what}: the outcome is not `NotApplied`: {error}")),
    }
}

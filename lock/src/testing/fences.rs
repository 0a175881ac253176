//! The conformance suite of resources that check fencing tokens.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::deaf::Deaf;
use super::{MS, Report, SOON, Verdict, ensure};
use crate::fence::FencingToken;
use crate::lease::LeaseConfig;
use crate::memory::MemoryLocks;
use crate::service::{Fenced, LockService};
use crate::session::Session;

/// A resource that checks fencing tokens, as [`fence_conformance`] uses it: a list of entries.
#[async_trait]
pub trait FencedResource: Send + Sync + 'static {
    /// Adds an entry, in one step with the check of the token.
    ///
    /// # Errors
    /// [`FencedError`].
    ///
    /// # Cancel safety
    /// Not dropped by the suite.
    async fn write(&self, token: FencingToken, entry: &str) -> Result<(), FencedError>;

    /// All entries, in the order in which they took effect.
    ///
    /// # Errors
    /// What went wrong.
    ///
    /// # Cancel safety
    /// Not dropped by the suite.
    async fn entries(&self) -> Result<Vec<String>, String>;
}

/// Why an entry was not added.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FencedError {
    /// A greater token has entered.
    Stale,
    /// Anything else.
    Failed(String),
}

impl fmt::Display for FencedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale => f.write_str("the token is stale"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Checks a resource of your own. `open` opens one and the same resource, which was empty at first;
/// it is called again after a restart, when the one before was dropped. Takes about 2 s.
///
/// # Panics
/// If the resource panics.
///
/// # Cancel safety
/// Dropped, it stops.
///
/// # Example
/// ```
/// use std::sync::{Arc, Mutex};
/// use voussoir_lock::testing::{FencedError, FencedResource, fence_conformance};
/// use voussoir_lock::{Fence, FencingToken, async_trait};
///
/// #[derive(Clone)]
/// struct Ledger(Arc<Mutex<Fence<Vec<String>>>>);
///
/// #[async_trait]
/// impl FencedResource for Ledger {
///     async fn write(&self, token: FencingToken, entry: &str) -> Result<(), FencedError> {
///         let mut fence = self.0.lock().unwrap();
///         fence.enter(token).map_err(|_| FencedError::Stale)?.push(entry.to_owned());
///         Ok(())
///     }
///     async fn entries(&self) -> Result<Vec<String>, String> {
///         // To look at it needs no token here.
///         let mut fence = self.0.lock().unwrap();
///         let latest = FencingToken::new(fence.latest());
///         Ok(fence.enter(latest).unwrap().clone())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let ledger = Ledger(Arc::new(Mutex::new(Fence::new(Vec::new()))));
/// fence_conformance(async || ledger.clone()).await.assert_passed();
/// # }
/// ```
pub async fn fence_conformance<R: FencedResource>(open: impl AsyncFn() -> R) -> Report {
    let mut report = Report::default();
    let mut note = |name, verdict: Verdict| match verdict {
        Ok(()) => report.passed.push(name),
        Err(seen) => report.failed.push((name, seen)),
    };
    // Each check has tokens above those of the checks before.
    note("the_late_write_of_a_paused_holder_is_refused", late_write(open().await, 0).await);
    note("a_holder_writes_again", again(&open().await, 1 << 20).await);
    note("an_older_token_leaves_nothing", older(&open().await, 2 << 20).await);
    let before = open().await;
    let mut verdict = write(&before, (3 << 20) + 7, "before").await;
    drop(before);
    if verdict.is_ok() {
        verdict = restarted(&open().await, 3 << 20).await;
    }
    note("an_older_token_is_refused_after_a_restart", verdict);
    note("racing_holders_leave_rising_tokens", racing(open().await, 4 << 20).await);
    report.passed.sort_unstable();
    report.failed.sort_unstable();
    report
}

async fn write(resource: &impl FencedResource, token: u64, entry: &str) -> Verdict {
    let written = resource.write(FencingToken::new(token), entry).await;
    written.map_err(|error| format!("{entry} by {token} was not written: {error}"))
}

async fn refused(resource: &impl FencedResource, token: u64, entry: &str) -> Verdict {
    let written = resource.write(FencingToken::new(token), entry).await;
    ensure!(written == Err(FencedError::Stale), "{entry} by the older {token}: {written:?}");
    let entries = resource.entries().await?;
    ensure!(entries.iter().all(|one| one != entry), "{entry} was refused and is there");
    Ok(())
}

async fn has(resource: &impl FencedResource, entry: &str) -> Verdict {
    let entries = resource.entries().await?;
    ensure!(entries.iter().any(|one| one == entry), "{entry} was written and is not there");
    Ok(())
}

/// A holder passes its own check, is paused past the end of its session, and goes on when the next
/// holder has written.
async fn late_write<R: FencedResource>(resource: R, base: u64) -> Verdict {
    let (service, resource) = (MemoryLocks::start(), Arc::new(resource));
    let mut config = LeaseConfig::default();
    (config.ttl, config.margin) = (1000 * MS, 10 * MS);
    let open = async |service| Session::<Fenced>::open(service, config.clone(), SOON).await;
    let failed = |error: &dyn fmt::Display| error.to_string();
    // Nobody renews the paused holder's session.
    let locks: Arc<dyn LockService<Grants = Fenced>> = service.clone();
    let deaf = Arc::new(Deaf(locks));
    let paused = open(deaf).await.map_err(|error| failed(&error))?;
    let other = {
        let mut long = config.clone();
        long.ttl = 10 * SOON;
        Session::open(service, long, SOON).await.map_err(|error| failed(&error))?
    };
    let old = paused.lock("resource").within(SOON).await.map_err(|error| failed(&error))?;
    let token = move |token: FencingToken| FencingToken::new(base + token.get());
    let (resume, resumed) = oneshot::channel::<()>();
    let writing = {
        let resource = Arc::clone(&resource);
        tokio::spawn(async move {
            let permit = old.permit().map(|permit| permit.token());
            // Between the check and the effect: no check of its own can help it.
            let _ = resumed.await;
            match permit {
                Ok(old) => resource.write(token(old), "late").await,
                Err(_) => Err(FencedError::Failed("it had no permit".to_owned())),
            }
        })
    };
    let new = other.lock("resource").within(SOON).await.map_err(|error| failed(&error))?;
    let entered = resource.write(token(new.token()), "new").await;
    entered.map_err(|error| format!("the next holder: {error}"))?;
    let _ = resume.send(());
    let late = writing.await.map_err(|error| error.to_string())?;
    ensure!(late == Err(FencedError::Stale), "the late write of a paused holder: {late:?}");
    has(&*resource, "new").await?;
    let entries = resource.entries().await?;
    ensure!(entries.iter().all(|one| one != "late"), "the late write is there");
    Ok(())
}

async fn again(resource: &impl FencedResource, base: u64) -> Verdict {
    for entry in ["again 1", "again 2"] {
        write(resource, base, entry).await?;
        has(resource, entry).await?;
    }
    Ok(())
}

async fn older(resource: &impl FencedResource, base: u64) -> Verdict {
    write(resource, base + 1, "first").await?;
    write(resource, base + 2, "second").await?;
    refused(resource, base + 1, "older").await?;
    // What was refused shuts nobody out.
    write(resource, base + 2, "third").await
}

async fn restarted(resource: &impl FencedResource, base: u64) -> Verdict {
    has(resource, "before").await?;
    refused(resource, base + 6, "older after a restart").await?;
    write(resource, base + 7, "after").await
}

/// Holders write at the same time. Whoever is refused is refused by a greater token that has
/// entered, and no entry of a smaller one comes behind it.
async fn racing<R: FencedResource>(resource: R, base: u64) -> Verdict {
    const HOLDERS: u64 = 8;
    const WRITES: u64 = 10;
    let resource = Arc::new(resource);
    let mut holders = JoinSet::new();
    for holder in 0..HOLDERS {
        let resource = Arc::clone(&resource);
        holders.spawn(async move {
            let (mut done, token) = (Vec::new(), FencingToken::new(base + holder));
            for number in 0..WRITES {
                let entry = format!("race {holder} {number}");
                match resource.write(token, &entry).await {
                    Ok(()) => done.push(entry),
                    Err(FencedError::Stale) => break,
                    Err(error) => return Err(format!("{entry}: {error}")),
                }
                tokio::task::yield_now().await;
            }
            Ok(done)
        });
    }
    let mut done = Vec::new();
    while let Some(holder) = holders.join_next().await {
        done.extend(holder.map_err(|error| error.to_string())??);
    }
    let entries = resource.entries().await?;
    let race: Vec<&String> = entries.iter().filter(|entry| entry.starts_with("race ")).collect();
    for entry in &done {
        ensure!(race.contains(&entry), "{entry} was written and is not there");
    }
    ensure!(race.len() == done.len(), "an entry was refused and is there: {race:?}");
    let holder = |entry: &&String| entry.split(' ').nth(1).map(str::to_owned);
    let is_rising = race.is_sorted_by_key(holder);
    ensure!(is_rising, "an older token wrote behind a newer one: {race:?}");
    let last = format!("race {} {}", HOLDERS - 1, WRITES - 1);
    ensure!(done.contains(&last), "the holder of the greatest token was refused");
    Ok(())
}

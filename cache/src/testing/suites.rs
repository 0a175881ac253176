//! The promises of the seams as suites of checks.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::core::peers::Invalidation;
use crate::remote::bus::Bus;
use crate::remote::level::{Put, SecondLevel};

const MINUTE: Duration = Duration::from_secs(60);

/// Checks the promises of [`Bus`].
///
/// # Cancel safety
/// A check that is dropped has no result.
///
/// # Panics
/// When one is broken.
pub async fn check_bus(bus: &dyn Bus) {
    bus.publish(&[b"before".to_vec()]).await.expect("a bus without subscriptions works");
    let mut one = bus.subscribe().await.expect("the first subscription");
    let mut two = bus.subscribe().await.expect("the second subscription");
    let messages: Vec<Vec<u8>> = vec![b"a".to_vec(), Vec::new(), vec![0, 0xff, b'\r', b'\n']];
    bus.publish(&messages).await.expect("publishing");
    bus.publish(&[b"last".to_vec()]).await.expect("publishing");
    for subscription in [&mut one, &mut two] {
        let mut heard = Vec::new();
        for _ in 0..4 {
            let next = timeout(Duration::from_secs(10), subscription.next()).await;
            heard.push(next.expect("a message within 10 s").expect("the subscription goes on"));
        }
        let all: Vec<Vec<u8>> = messages.iter().cloned().chain([b"last".to_vec()]).collect();
        assert_eq!(heard, all, "each subscription hears everything since it began, in order");
    }
    drop(one);
    bus.publish(&[b"more".to_vec()]).await.expect("a subscription that ended harms nobody");
    let next = timeout(Duration::from_secs(10), two.next()).await;
    assert_eq!(next.expect("a message within 10 s"), Some(b"more".to_vec()));
}

/// The head of a value with a source version and a position, as the cache writes it.
fn value(source_version: u64, position: u64, text: &str) -> Vec<u8> {
    let envelope = crate::remote::envelope::Envelope {
        version: 1,
        source_version: Some(source_version),
        position: Some(position),
        tags: Vec::new(),
        value: text.as_bytes().to_vec(),
    };
    envelope.encode(b"key").expect("no tags")
}

fn put<'a>(key: &'a [u8], lease: u64, bytes: &'a [u8], tags: &'a [&'a str]) -> Put<'a> {
    Put { key, lease, bytes, ttl: MINUTE, tags }
}

/// Checks the promises of [`SecondLevel`], on keys and tags that begin with `check`. It must be
/// empty.
///
/// # Cancel safety
/// A check that is dropped has no result, and may leave values and leases.
///
/// # Panics
/// When one is broken.
pub async fn check_second_level(level: &dyn SecondLevel) {
    check_leases(level).await;
    check_invalidations(level).await;
    check_order(level).await;
}

async fn check_leases(level: &dyn SecondLevel) {
    let key = b"check-lease\0\xff";
    assert!(level.fetch(key).await.expect("fetch").is_none());
    let version = level.lease(key, 1, MINUTE).await.expect("lease").expect("nobody has it");
    assert_eq!(level.lease(key, 2, MINUTE).await.expect("lease"), None, "one has it");
    assert!(!level.store(put(key, 2, b"two", &[])).await.expect("store"), "without the lease");
    level.release(key, 2).await.expect("release");
    assert_eq!(level.lease(key, 2, MINUTE).await.expect("lease"), None, "not its own to end");
    assert!(level.store(put(key, 1, b"\0one\xff", &[])).await.expect("store"));
    let fetched = level.fetch(key).await.expect("fetch").expect("it was stored");
    assert_eq!(fetched.bytes, b"\0one\xff");
    assert!(fetched.remaining <= MINUTE && fetched.remaining > MINUTE / 2, "{fetched:?}");
    assert!(fetched.floor < version, "{fetched:?}");
    let later = level.lease(key, 2, MINUTE).await.expect("lease").expect("storing ended it");
    assert!(later > version, "versions grow: {version}, {later}");
    level.release(key, 2).await.expect("release");
    let short = Duration::from_millis(20);
    assert!(level.lease(key, 3, short).await.expect("lease").is_some(), "it was released");
    sleep(3 * short).await;
    assert!(!level.store(put(key, 3, b"three", &[])).await.expect("store"), "its time is over");
    assert!(level.lease(key, 4, MINUTE).await.expect("lease").is_some(), "its time is over");
    let brief = Put { ttl: short, ..put(key, 4, b"four", &[]) };
    assert!(level.store(brief).await.expect("store"));
    sleep(3 * short).await;
    assert_eq!(level.fetch(key).await.expect("fetch"), None, "its lifetime is over");
}

async fn check_invalidations(level: &dyn SecondLevel) {
    let (key, other) = (b"check-key", b"check-other");
    for key in [&key[..], other] {
        assert!(level.lease(key, 1, MINUTE).await.expect("lease").is_some());
        assert!(level.store(put(key, 1, b"value", &[])).await.expect("store"));
        assert!(level.lease(key, 1, MINUTE).await.expect("lease").is_some());
    }
    level.invalidate(&[Invalidation::Key((*key).into())]).await.expect("invalidate");
    assert_eq!(level.fetch(key).await.expect("fetch"), None);
    assert!(!level.store(put(key, 1, b"old", &[])).await.expect("store"), "its lease ended too");
    assert!(level.fetch(other).await.expect("fetch").is_some(), "another key stays");
    assert!(level.store(put(other, 1, b"new", &["check-a", "check-b"])).await.expect("store"));
    let floors = level.floors(&["check-a", "check-b"]).await.expect("floors");
    assert_eq!(floors, [Some(0), Some(0)], "they are known while a value has them");
    let before = level.lease(key, 2, MINUTE).await.expect("lease").expect("nobody has it");
    let tags = ["check-b", "check-new"].map(|tag| Invalidation::Tag(tag.into()));
    level.invalidate(&tags).await.expect("invalidate");
    let floors = level.floors(&["check-a", "check-b", "check-new"]).await.expect("floors");
    let is_raised = |floor: Option<u64>| floor.is_some_and(|floor| floor > before);
    assert_eq!(floors[0], Some(0));
    assert!(is_raised(floors[1]), "{floors:?} after a load of version {before}");
    assert!(is_raised(floors[2]), "{floors:?}: a load under way may bring the tag");
    assert!(level.store(put(key, 2, b"value", &["check-b"])).await.expect("store"));
    let after = level.floors(&["check-b"]).await.expect("floors");
    assert_eq!(after[0], floors[1], "storing lowers no floor");
    level.invalidate(&[Invalidation::All]).await.expect("invalidate");
    let fetched = level.fetch(key).await.expect("fetch").expect("judged by its version");
    assert!(fetched.floor > before, "{fetched:?}");
    let next = level.lease(key, 3, MINUTE).await.expect("lease").expect("nobody has it");
    assert!(next > fetched.floor, "a load that begins now is above the floor");
    level.release(key, 3).await.expect("release");
}

async fn check_order(level: &dyn SecondLevel) {
    let key = b"check-order";
    let steps = [
        (value(5, 5, "a"), true),
        (value(4, 9, "older version"), false),
        (value(9, 4, "older position"), false),
        (value(5, 5, "b"), true),
        (value(256, 5, "c"), true),
        (value(255, 6, "older version"), false),
        (value(u64::MAX, u64::MAX, "d"), true),
    ];
    for (lease, (bytes, is_stored)) in (1..).zip(&steps) {
        assert!(level.lease(key, lease, MINUTE).await.expect("lease").is_some());
        let stored = level.store(put(key, lease, bytes, &[])).await.expect("store");
        assert_eq!(stored, *is_stored, "step {lease}");
    }
}

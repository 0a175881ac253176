//! Conformance checks for implementations of [`Partitioner`], to be called from tests.

use crate::owners::{Degraded, MAX_REPLICAS, Owners};
use crate::partitioner::Partitioner;

/// Keys that vary in length and content, the same on every call.
pub fn keys(count: u64) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(|n| {
        let random = crate::hash::mix(n.wrapping_add(0x5bd1_e995));
        let mut key = format!("key:{random:x}:").into_bytes();
        key.extend(std::iter::repeat_n(b'x', (random % 40) as usize));
        key
    })
}

/// Checks the rules of one partitioner with these nodes: answers repeat, owners are members and
/// differ, the owner heads the list, and longer lists begin with the shorter ones' nodes as a set
/// or say why not.
///
/// # Panics
/// Panics with the rule that is broken and the key that shows it.
pub fn conforms(partitioner: &dyn Partitioner, nodes: &[u64]) {
    for key in keys(500) {
        let owner = partitioner.owner(&key);
        assert_eq!(owner, partitioner.owner(&key), "an answer must repeat: {key:?}");
        assert!(nodes.contains(&owner), "the owner must be a member: {key:?}");
        for n in [0, 1, 2, 3, 5, MAX_REPLICAS, MAX_REPLICAS + 1, usize::MAX] {
            let owners = partitioner.owners(&key, n);
            list_conforms(&owners, n, nodes, &key);
            assert_eq!(owners, partitioner.owners(&key, n), "an answer must repeat: {key:?}");
            if n > 0 {
                assert_eq!(owners[0], owner, "the owner must head the list: {key:?}");
            }
        }
    }
}

fn list_conforms(owners: &Owners, n: usize, nodes: &[u64], key: &[u8]) {
    for (at, id) in owners.iter().enumerate() {
        assert!(nodes.contains(id), "every owner must be a member: {key:?}");
        assert!(!owners[..at].contains(id), "an owner must be named once: {key:?}");
    }
    assert!(owners.len() <= n.min(MAX_REPLICAS), "no more owners than asked for: {key:?}");
    if owners.len() < n {
        let found = owners.len();
        let told = owners.degraded() == Some(Degraded::FewerNodes { wanted: n, found });
        assert!(told, "a short list must say so: {key:?}");
    }
}

/// The share of keys that change owner between two partitioners, and the share that moves without
/// need: from a node that stays to another that was there before.
///
/// `joined` and `left` are the nodes by which the memberships differ. A consistent algorithm moves
/// nothing without need.
pub fn movement(
    before: &dyn Partitioner,
    after: &dyn Partitioner,
    joined: &[u64],
    left: &[u64],
    count: u64,
) -> (f64, f64) {
    let (mut moved, mut needless) = (0_u64, 0_u64);
    for key in keys(count) {
        let (old, new) = (before.owner(&key), after.owner(&key));
        moved += u64::from(old != new);
        needless += u64::from(old != new && !joined.contains(&new) && !left.contains(&old));
    }
    (moved as f64 / count as f64, needless as f64 / count as f64)
}

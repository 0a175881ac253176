//! Which replicas answer quickly, and which answer nothing that counts.

use std::collections::BTreeMap;

/// A replica that was not asked for so long is asked again, to see whether it has become quicker,
/// or whole.
const PROBE_NS: u64 = 1_000_000_000;
/// Replicas within this of the quickest are as good as it.
const NEAR_NS: u64 = 1_000_000;

/// Smoothed latencies of the replicas of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies {
    replicas: BTreeMap<u64, Measured>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Mean of the latest answers, each counting for an eighth, in ns.
    mean_ns: u64,
    /// When it was last asked because it had not been for long, or answered.
    at: u64,
    /// Whether its latest answer counts for something.
    is_whole: bool,
}

impl Latencies {
    /// A replica answered after `latency_ns`.
    pub(super) fn answered(&mut self, now: u64, replica: u64, latency_ns: u64) {
        let first = Measured { mean_ns: latency_ns, at: now, is_whole: true };
        let measured = self.replicas.entry(replica).or_insert(first);
        let (mean, sample) = (u128::from(measured.mean_ns), u128::from(latency_ns));
        measured.mean_ns = ((mean * 7 + sample) / 8) as u64;
        (measured.at, measured.is_whole) = (now, true);
    }

    /// A replica answered that it is not whole. However quick that was, it is asked last from now
    /// on: whoever asks it first waits for the answer, and asks another one.
    pub(super) fn not_whole(&mut self, now: u64, replica: u64) {
        let first = Measured { mean_ns: 0, at: now, is_whole: false };
        self.replicas.entry(replica).or_insert(first).is_whole = false;
    }

    /// A replica has not answered for `waited_ns`, and may not.
    pub(super) fn waited(&mut self, now: u64, replica: u64, waited_ns: u64) {
        let first = Measured { mean_ns: waited_ns, at: now, is_whole: true };
        let measured = self.replicas.entry(replica).or_insert(first);
        measured.mean_ns = measured.mean_ns.max(waited_ns);
    }

    /// Sorts replicas by how quick they are, those that are not whole last; those that are about as
    /// quick keep their order. The first one that was not asked for long comes first, so that it is
    /// measured again.
    pub(super) fn sort(&mut self, now: u64, replicas: &mut [u64]) {
        let measured = |replica: &u64| self.replicas.get(replica).copied();
        let mean = |replica: &u64| match measured(replica) {
            Some(one) if !one.is_whole => u64::MAX,
            one => one.map_or(0, |one| one.mean_ns),
        };
        let quickest = replicas.iter().map(mean).min().unwrap_or(0);
        let near = quickest.saturating_mul(2).saturating_add(NEAR_NS);
        replicas.sort_by_key(|replica| Some(mean(replica)).filter(|mean| *mean > near));
        let is_old = |replica: &u64| {
            let at = measured(replica).map_or(now, |one| one.at);
            mean(replica) > near && now.saturating_sub(at) >= PROBE_NS
        };
        if let Some(at) = replicas.iter().position(is_old) {
            if let Some(measured) = self.replicas.get_mut(&replicas[at]) {
                measured.at = now;
            }
            replicas[..=at].rotate_right(1);
        }
    }
}

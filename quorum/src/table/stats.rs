//! What a coordinator counts.

/// What a coordinator has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that asked one more replica because an answer took long.
    pub hedged: u64,
    /// Reads that found a replica behind.
    pub divergent_reads: u64,
    /// Reads that waited for their repair.
    pub blocking_repairs: u64,
    /// Answers that were digests.
    pub digests: u64,
    /// Digests of no state that had come: the replica was asked for its state.
    pub unmatched_digests: u64,
    /// Answers of replicas that are not whole.
    pub not_whole: u64,
    /// Calls to replicas whose earlier call of the same operation had failed.
    pub retried: u64,
    /// How often such a call was put off: of the calls to the replica too few have succeeded.
    pub postponed: u64,
    /// Operations under way, those that were answered and still spread their result included.
    pub operations: usize,
}

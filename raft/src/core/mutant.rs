//! Deliberately broken cores: each breaks one rule, and the tests must notice.

/// A rule to break. Only the feature `testing` can switch one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(
    not(feature = "testing"),
    expect(unreachable_pub, reason = "reachable through the feature `testing`")
)]
pub enum Mutant {
    /// Votes and terms are not written before they are spoken of.
    VoteWithoutPersisting,
    /// A candidate is voted for whatever its log holds.
    SkipUpToDateCheck,
    /// A node votes for every candidate of a term.
    VoteTwice,
    /// Entries of earlier terms are committed by counting.
    CommitOlderTermByCount,
    /// A follower acknowledges what it has received, not what is durable.
    AckBeforeDurable,
    /// The leader counts its own entries before they are durable.
    CountLeaderBeforeDurable,
    /// A majority is one node too few.
    SmallMajority,
    /// A read is answered without asking a majority.
    ReadWithoutQuorum,
    /// A read is attached to a round of heartbeats that is already under way.
    ReuseReadContext,
    /// A new leader answers reads before it has committed an entry of its own.
    ReadBeforeNoop,
    /// Forwarded reads are told apart by their counter alone, which starts over at a restart.
    ForgetReadNonce,
    /// A conflicting suffix goes from memory but not from the disk.
    ForgetToTruncate,
    /// A conflicting entry is kept and what follows is appended behind it.
    KeepConflictingEntry,
    /// After a snapshot the log goes on one entry late.
    SnapshotDropsLastEntry,
    /// Acknowledgements of earlier terms and sessions are believed.
    AcceptStaleAcks,
    /// The completion of a write vouches for what it wrote, truncated since or not.
    StaleCompletionVouches,
    /// After a failed write the leader goes on.
    IgnoreFailedWrite,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::VoteWithoutPersisting,
        Self::SkipUpToDateCheck,
        Self::VoteTwice,
        Self::CommitOlderTermByCount,
        Self::AckBeforeDurable,
        Self::CountLeaderBeforeDurable,
        Self::SmallMajority,
        Self::ReadWithoutQuorum,
        Self::ReuseReadContext,
        Self::ReadBeforeNoop,
        Self::ForgetReadNonce,
        Self::ForgetToTruncate,
        Self::KeepConflictingEntry,
        Self::SnapshotDropsLastEntry,
        Self::AcceptStaleAcks,
        Self::StaleCompletionVouches,
        Self::IgnoreFailedWrite,
    ];
}

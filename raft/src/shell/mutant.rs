//! Deliberately broken shells: each breaks one rule, and the tests must notice.

/// A rule of the shell to break. Only the feature `testing` can switch one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(
    not(feature = "testing"),
    expect(unreachable_pub, reason = "reachable through the feature `testing`")
)]
pub enum ShellMutant {
    /// A proposal is answered when it is committed, before it is applied.
    AnswerBeforeApply,
    /// A proposal whose outcome is unknown is sent a second time.
    #[cfg(feature = "testing")]
    ProposeAgain,
    /// A proposal whose caller has gone keeps no place: the next caller gets its answer.
    ReuseToken,
    /// A read is answered from before its index was applied.
    ReadBeforeApply,
    /// The completion of a write vouches for all writes under way.
    VouchForLatest,
    /// A write that failed is taken for done.
    TakeFailedForDone,
    /// A node whose disk has failed under a snapshot goes on.
    TrustFailedDisk,
    /// A proposal that is not decided in time is waited for without end.
    NeverGiveUp,
    /// A deadline that moves nearer is noticed when the timer rings for the old one.
    ForgetNearerDeadline,
    /// The room of an answered proposal is not given back.
    KeepRoom,
    /// A node that has halted stays within reach of its peers.
    StayAttached,
    /// Entries that a snapshot already includes are applied to it.
    ApplyTwice,
    /// The log is cut before the snapshot that covers it is stored.
    CompactBeforeSnapshot,
    /// A snapshot is closed whatever is missing of it.
    CloseHalf,
    /// A snapshot is handed over before its chunks are durable.
    CloseUnsynced,
    /// A chunk is stored whatever its number.
    TakeAnyChunk,
    /// A snapshot goes on where another one of the same entries was given up.
    MixSnapshots,
}

#[cfg(feature = "testing")]
impl ShellMutant {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::AnswerBeforeApply,
        Self::ProposeAgain,
        Self::ReuseToken,
        Self::ReadBeforeApply,
        Self::VouchForLatest,
        Self::TakeFailedForDone,
        Self::TrustFailedDisk,
        Self::NeverGiveUp,
        Self::ForgetNearerDeadline,
        Self::KeepRoom,
        Self::StayAttached,
        Self::ApplyTwice,
        Self::CompactBeforeSnapshot,
        Self::CloseHalf,
        Self::CloseUnsynced,
        Self::TakeAnyChunk,
        Self::MixSnapshots,
    ];
}

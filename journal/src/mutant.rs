//! Deliberate defects: each breaks one rule on which the guarantees rest, so that the tests can
//! prove that they would notice.

/// A rule that a deliberately broken journal does not keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(
    not(feature = "testing"),
    expect(unreachable_pub, reason = "part of the API only with the feature")
)]
pub enum Mutant {
    /// A new segment file is used without a sync of the directory.
    NoDirSync,
    /// A frame claims that everything before it is durable when it is only written.
    MarkBeforeSync,
    /// Checksums do not depend on the place.
    CrcNotSeeded,
    /// The table at the start of a segment forgets what was released.
    ReleaseForgotten,
    /// The table at the start of a segment forgets what was truncated.
    TruncateForgotten,
    /// After a failed sync the next one is believed.
    RetryAfterFailedSync,
    /// What recovery keeps above the mark is not written again.
    NoRewriteAboveMark,
    /// The manifest is written but not synced.
    ManifestNotSynced,
    /// Commits are acknowledged before the sync.
    AckBeforeSync,
    /// Reopening does not raise the epoch.
    EpochNotBumped,
    /// A segment is left for the next one without a sync.
    NoSyncBeforeRotation,
    /// A segment is recycled before what freed it is durable.
    RecycleBeforeDurable,
    /// Any invalid frame is taken for the torn tail.
    DamageIsTornTail,
    /// Payloads are not checked when the tail is scanned.
    PayloadUnchecked,
}

#[cfg(feature = "testing")]
impl Mutant {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::NoDirSync,
        Self::MarkBeforeSync,
        Self::CrcNotSeeded,
        Self::ReleaseForgotten,
        Self::TruncateForgotten,
        Self::RetryAfterFailedSync,
        Self::NoRewriteAboveMark,
        Self::ManifestNotSynced,
        Self::AckBeforeSync,
        Self::EpochNotBumped,
        Self::NoSyncBeforeRotation,
        Self::RecycleBeforeDurable,
        Self::DamageIsTornTail,
        Self::PayloadUnchecked,
    ];
}

//! Deliberate defects: each breaks one rule on which a guarantee rests, so that the tests can prove
//! that they would notice.

/// A rule that deliberately broken code does not keep. Only the feature `testing` can break one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(
    not(feature = "testing"),
    expect(unreachable_pub, reason = "reachable through the feature `testing`")
)]
pub enum Mutant {
    /// A cancelled probe keeps its place.
    ProbeLeaked,
    /// A half-open breaker admits one call too many.
    OneProbeTooMany,
    /// A half-open breaker comes back from a snapshot with its probes still under way.
    ProbesRestored,
    /// Answers of calls begun in an earlier state count in the present one.
    LateAnswersCount,
    /// A bucket of the window is used again without having been emptied.
    BucketNotEmptied,
    /// Rates count however few calls the window holds.
    CallsMinIgnored,
    /// The open wait stays the same however often the probes fail.
    OpenWaitNeverGrows,
    /// A breaker that was opened by hand admits calls.
    ForcedOpenAdmits,
    /// A retry gives its place in the budget back before its back-off.
    WaitingRetryUncounted,
    /// An attempt that has lost its race goes on.
    LoserKept,
    /// Last come, first served serves the first.
    LastServedLast,
    /// A standing queue is as patient as any.
    StandingQueuePatient,
    /// The more important calls are shed first.
    ImportantShedFirst,
    /// An attempt does not learn the deadline of its call.
    DeadlineKept,
}

#[cfg(feature = "testing")]
mod switch {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::Mutant;

    thread_local!(static ON: Cell<Option<Mutant>> = const { Cell::new(None) });

    struct Restore(Option<Mutant>);

    impl Drop for Restore {
        fn drop(&mut self) {
            ON.set(self.0);
        }
    }

    impl Mutant {
        /// All of them.
        pub const ALL: [Self; 14] = [
            Self::ProbeLeaked,
            Self::OneProbeTooMany,
            Self::ProbesRestored,
            Self::LateAnswersCount,
            Self::BucketNotEmptied,
            Self::CallsMinIgnored,
            Self::OpenWaitNeverGrows,
            Self::ForcedOpenAdmits,
            Self::WaitingRetryUncounted,
            Self::LoserKept,
            Self::LastServedLast,
            Self::StandingQueuePatient,
            Self::ImportantShedFirst,
            Self::DeadlineKept,
        ];

        /// Whether `test` fails with the rule broken on this thread.
        pub fn is_caught_by(self, test: impl FnOnce()) -> bool {
            let _restore = Restore(ON.replace(Some(self)));
            catch_unwind(AssertUnwindSafe(test)).is_err()
        }

        pub(crate) fn is_on(self) -> bool {
            ON.get() == Some(self)
        }
    }
}

#[cfg(not(feature = "testing"))]
impl Mutant {
    #[expect(clippy::unused_self, reason = "the same signature with and without the feature")]
    #[inline]
    pub(crate) const fn is_on(self) -> bool {
        false
    }
}

//! Deliberate defects: each breaks one rule on which a guarantee rests, so that the tests can prove
//! that they would notice. Only this crate's own tests can switch one on.

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A decision stores the next word, whatever the word has become meanwhile.
    ExchangeSkipped,
    /// What was read while the rules changed is used.
    SequenceIgnored,
    /// A change leaves a word at rest as it is.
    SameWordAfterChange,
    /// A decision uses a word, whosever it is.
    OwnerIgnored,
    /// A place changes hands without its word being taken away first.
    HandedOnOpenly,
    /// The time of a unit is rounded down.
    IntervalRoundedDown,
    /// A refund gives back what time has given back already.
    RefundedTwice,
    /// A unit leaves the log's window a nanosecond early.
    WindowOffByOne,
    /// Tiers are charged though one of them denies.
    TiersChargedApart,
    /// A newcomer takes the place of a key in debt.
    EvictedInDebt,
    /// A newcomer with an old clock reading is not asked whether it was forgotten since.
    LateNewcomer,
    /// A newcomer takes the first free place, wherever it has one already.
    KnownIgnored,
    /// What is spent from a lease stays in it.
    LeaseNotCounted,
    /// A share outlives its time.
    LeaseForEver,
}

#[cfg(test)]
thread_local! {
    static ON: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether the defect is switched on, in this thread.
#[cfg(test)]
pub(crate) fn is(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

#[cfg(not(test))]
#[inline(always)]
#[expect(clippy::inline_always, reason = "vanishes from the fast path in every profile")]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}

/// That the test passes as it is and fails with the defect.
#[cfg(test)]
pub(crate) fn assert_caught(mutant: Mutant, test: fn()) {
    test();
    ON.set(Some(mutant));
    let outcome = std::panic::catch_unwind(test);
    ON.set(None);
    assert!(outcome.is_err(), "{mutant:?} is not noticed");
}

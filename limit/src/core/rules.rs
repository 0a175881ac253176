//! A quota as the decisions need it: validated, in nanoseconds, with the divisions done.

/// Times are below this; later ones are taken as this.
pub(crate) const MAX_NOW: u64 = (1 << 63) - 1;

/// Which function decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The word is the theoretical arrival time.
    Gcra,
    /// The word is a tick and the units used as of that tick.
    TokenBucket,
    /// The word is a window and the units used in it.
    FixedWindow,
    SlidingCounter,
    SlidingLog,
}

impl Kind {
    /// Whether the state is one word.
    pub(crate) const fn is_word(self) -> bool {
        matches!(self, Self::Gcra | Self::TokenBucket | Self::FixedWindow)
    }
}

/// A validated quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) kind: Kind,
    /// Units in one `per`.
    pub(crate) count: u64,
    /// The period, ns; at least 1.
    pub(crate) per: u64,
    /// The most units at one moment: burst or window limit.
    pub(crate) limit: u64,
    /// GCRA: nanoseconds that one unit is worth, rounded up so that the rate is never exceeded.
    pub(crate) interval: u64,
    /// GCRA: how far the theoretical arrival time may run ahead of now: `limit * interval`.
    pub(crate) span: u64,
    /// How many low bits of a word hold units; the rest hold the window or the tick.
    pub(crate) unit_bits: u32,
    /// From when on receipts can be given back, ns: units taken before the last change of the pace
    /// have no known worth any more. 0 if there was none. See [`Self::succeeding`].
    pub(crate) receipts_from: u64,
}

impl Rules {
    /// `None` if the figures do not fit (see `Quota` for the ranges).
    pub(crate) fn new(kind: Kind, count: u64, per: u64, burst: u64) -> Option<Self> {
        if count == 0 || per == 0 || burst == 0 || per > MAX_NOW / 4 {
            return None;
        }
        let interval = per.div_ceil(count);
        let span = interval.checked_mul(burst).filter(|span| *span <= MAX_NOW / 2)?;
        let unit_bits = (MAX_NOW / per).leading_zeros();
        let limit = match kind {
            Kind::Gcra if count > per => return None,
            Kind::Gcra | Kind::TokenBucket => burst,
            Kind::FixedWindow | Kind::SlidingCounter | Kind::SlidingLog => count,
        };
        let packed = matches!(kind, Kind::TokenBucket | Kind::FixedWindow);
        if packed && (unit_bits == 0 || limit.saturating_add(1) >> unit_bits != 0) {
            return None;
        }
        Some(Self { kind, count, per, limit, interval, span, unit_bits, receipts_from: 0 })
    }

    /// These rules as the successors of `old` from after `now` on.
    ///
    /// How many of the units of a receipt time has given back is known only if they flowed back at
    /// one pace, and whether all of them are still counted only if the limit was not lowered. After
    /// any other change earlier receipts are worth nothing: a refund must never lead to more.
    pub(crate) fn succeeding(self, old: &Self, now: u64) -> Self {
        let keeps_receipts = match self.kind {
            // The log counts each unit under its own time.
            Kind::SlidingLog => true,
            Kind::Gcra => self.interval == old.interval && self.limit >= old.limit,
            Kind::TokenBucket | Kind::FixedWindow | Kind::SlidingCounter => {
                self.per == old.per && self.limit >= old.limit
            }
        };
        let changed = if keeps_receipts { 0 } else { now.saturating_add(1) };
        Self { receipts_from: old.receipts_from.max(changed), ..self }
    }

    /// The number of the window or tick at `now`.
    pub(crate) const fn index(&self, now: u64) -> u64 {
        now / self.per
    }

    /// All of `new` as the successors of `old` from after `now` on.
    pub(crate) fn all_succeeding(new: &[Self], old: &[Self], now: u64) -> Box<[Self]> {
        new.iter().zip(old).map(|(new, old)| new.succeeding(old, now)).collect()
    }

    /// See `Quota::most_in`.
    pub(crate) fn most_in(&self, window: u64) -> u64 {
        if window == 0 {
            return 0;
        }
        let between = window - 1;
        match self.kind {
            Kind::Gcra => self.limit.saturating_add(between / self.interval),
            Kind::TokenBucket => {
                // A tick that refills a full bucket adds nothing.
                let a_tick = self.count.min(self.limit);
                self.limit.saturating_add(between.div_ceil(self.per).saturating_mul(a_tick))
            }
            Kind::FixedWindow | Kind::SlidingCounter => {
                (between.div_ceil(self.per) + 1).saturating_mul(self.limit)
            }
            Kind::SlidingLog => window.div_ceil(self.per).saturating_mul(self.limit),
        }
    }
}

//! A window over the last stretch of time, in buckets.

use std::sync::atomic::Ordering::Relaxed;

use super::{Counts, Export, Sample};
use crate::core::tagged::{Added, Tag, Tagged};
use crate::sync::{AtomicU64, thread_number};
use crossbeam_utils::CachePadded;

/// One bucket on a cache line of its own. A success touches the first word only.
#[derive(Debug)]
#[repr(align(64))]
struct Bucket {
    calls: Tagged,
    failures: Tagged,
    slow: Tagged,
}

impl Bucket {
    fn new() -> Self {
        Self { calls: Tagged::new(), failures: Tagged::new(), slow: Tagged::new() }
    }

    fn counts(&self, tag: Tag) -> Counts {
        Counts {
            calls: self.calls.count(tag),
            failures: self.failures.count(tag),
            slow: self.slow.count(tag),
        }
    }
}

/// Totals of the calls that have left the buckets.
#[derive(Debug)]
struct Retired {
    calls: AtomicU64,
    failures: AtomicU64,
    slow: AtomicU64,
}

/// The bucket of `now` and the `buckets - 1` before it.
///
/// Each bucket is kept in several stripes.
#[derive(Debug)]
pub(crate) struct TimeWindow {
    /// Nanoseconds of a bucket.
    width: u64,
    /// The bucket last turned to, `now / width`: a division costs more than the rest of a record.
    present: AtomicU64,
    span: u32,
    /// Buckets of a stripe: a power of two, so that the place needs no division either.
    places: usize,
    /// Stripe by stripe.
    buckets: Box<[Bucket]>,
    retired: CachePadded<Retired>,
}

impl TimeWindow {
    pub(super) fn new(width: u64, span: u32, stripes: u32) -> Self {
        debug_assert!(width > 1 && span > 0, "validated by the configuration");
        let places = span.next_power_of_two() as usize;
        let stripes = stripes.max(1).next_power_of_two() as usize;
        Self {
            width,
            present: AtomicU64::new(0),
            span,
            places,
            buckets: (0..places * stripes).map(|_| Bucket::new()).collect(),
            retired: CachePadded::new(Retired {
                calls: AtomicU64::new(0),
                failures: AtomicU64::new(0),
                slow: AtomicU64::new(0),
            }),
        }
    }

    /// `now / width`, in 32 bits.
    #[inline]
    fn epoch(&self, now: u64) -> u32 {
        let present = self.present.load(Relaxed);
        let since = now.checked_sub(present * self.width);
        if since.is_some_and(|since| since < self.width) { present as u32 } else { self.turn(now) }
    }

    /// The epoch of a moment outside the present bucket.
    #[cold]
    fn turn(&self, now: u64) -> u32 {
        let epoch = now / self.width;
        // One that is late does not take the others back with it.
        self.present.fetch_max(epoch, Relaxed);
        epoch as u32
    }

    /// The bucket of an epoch in a thread's own stripe.
    #[inline]
    fn own_bucket(&self, epoch: u32) -> &Bucket {
        let place = epoch as usize & (self.places - 1);
        // Both lengths are powers of two: the mask picks the stripe and keeps the place.
        &self.buckets[(thread_number() * self.places + place) & (self.buckets.len() - 1)]
    }

    /// The count of an epoch over all stripes.
    fn counts(&self, tag: Tag) -> Counts {
        let place = tag.epoch as usize & (self.places - 1);
        let stripes = self.buckets.iter().skip(place).step_by(self.places);
        stripes.map(|bucket| bucket.counts(tag)).fold(Counts::default(), Counts::plus)
    }

    /// Counts a call that was neither failed nor slow.
    #[inline]
    pub(super) fn add_good(&self, generation: u8, now: u64) {
        let tag = Tag { generation, epoch: self.epoch(now) };
        if !self.own_bucket(tag.epoch).calls.step(tag) {
            self.add_at(tag, Sample::default());
        }
    }

    pub(super) fn add(&self, generation: u8, now: u64, sample: Sample) {
        self.add_at(Tag { generation, epoch: self.epoch(now) }, sample);
    }

    #[cold]
    fn add_at(&self, tag: Tag, sample: Sample) {
        let bucket = self.own_bucket(tag.epoch);
        // The call before its badness, so that no reader sees more bad calls than calls.
        match bucket.calls.add(tag) {
            Added::Late => return,
            Added::Now(_) => {}
            Added::Fresh { retired } => retire(&self.retired.calls, retired),
        }
        if sample.failed
            && let Added::Fresh { retired } = bucket.failures.add(tag)
        {
            retire(&self.retired.failures, retired);
        }
        if sample.slow
            && let Added::Fresh { retired } = bucket.slow.add(tag)
        {
            retire(&self.retired.slow, retired);
        }
    }

    fn tags(&self, generation: u8, now: u64) -> impl Iterator<Item = Tag> {
        let epoch = self.epoch(now);
        (0..self.span).rev().map(move |age| Tag { generation, epoch: epoch.wrapping_sub(age) })
    }

    pub(super) fn sum(&self, generation: u8, now: u64) -> Counts {
        self.tags(generation, now).map(|tag| self.counts(tag)).fold(Counts::default(), Counts::plus)
    }

    pub(super) fn reset(&self, generation: u8, now: u64) {
        let tag = Tag { generation, epoch: self.epoch(now) };
        for bucket in &self.buckets {
            retire(&self.retired.calls, bucket.calls.set(tag, 0));
            retire(&self.retired.failures, bucket.failures.set(tag, 0));
            retire(&self.retired.slow, bucket.slow.set(tag, 0));
        }
    }

    pub(super) fn lifetime(&self) -> Counts {
        let retired = Counts {
            calls: self.retired.calls.load(Relaxed),
            failures: self.retired.failures.load(Relaxed),
            slow: self.retired.slow.load(Relaxed),
        };
        let held = self.buckets.iter().map(|bucket| Counts {
            calls: bucket.calls.raw(),
            failures: bucket.failures.raw(),
            slow: bucket.slow.raw(),
        });
        held.fold(retired, Counts::plus)
    }

    pub(super) fn export(&self, generation: u8, now: u64) -> Export {
        let ages = (0..self.span).rev();
        ages.zip(self.tags(generation, now))
            .map(|(age, tag)| (age, self.counts(tag)))
            .filter(|(_, counts)| counts.calls > 0)
            .collect()
    }

    pub(super) fn import(&self, generation: u8, now: u64, export: &[(u32, Counts)]) {
        let epoch = self.epoch(now);
        for (age, counts) in export.iter().filter(|(age, _)| *age < self.span) {
            let tag = Tag { generation, epoch: epoch.wrapping_sub(*age) };
            let bucket = self.own_bucket(tag.epoch);
            bucket.calls.set(tag, counts.calls);
            bucket.failures.set(tag, counts.failures.min(counts.calls));
            bucket.slow.set(tag, counts.slow.min(counts.calls));
        }
    }
}

fn retire(total: &AtomicU64, count: u64) {
    if count > 0 {
        total.fetch_add(count, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Sample = Sample { failed: false, slow: false };
    const BAD: Sample = Sample { failed: true, slow: true };

    #[test]
    fn an_epoch_is_the_quotient_in_any_order_of_moments() {
        for width in [2, 3, 7, 1_000, 1_000_000, 999_999_937, 1 << 40, u64::MAX] {
            let window = TimeWindow::new(width, 1, 1);
            for base in [0, 1, width / 2, width, width.wrapping_mul(12345), u64::MAX / 3, u64::MAX]
            {
                for now in [base.saturating_sub(1), base, base.saturating_add(1)] {
                    assert_eq!(window.epoch(now), (now / width) as u32, "{now} / {width}");
                }
            }
        }
    }

    #[test]
    fn calls_leave_with_their_bucket() {
        let window = TimeWindow::new(10, 3, 2);
        window.reset(1, 0);
        window.add(1, 5, BAD);
        window.add(1, 15, OK);
        assert_eq!(window.sum(1, 29), Counts { calls: 2, failures: 1, slow: 1 });
        assert_eq!(window.sum(1, 30), Counts { calls: 1, failures: 0, slow: 0 });
        assert_eq!(window.sum(1, 40), Counts::default());
        window.add(1, 45, OK);
        assert_eq!(window.lifetime(), Counts { calls: 3, failures: 1, slow: 1 });
    }

    #[test]
    fn an_export_moves_to_another_clock() {
        let window = TimeWindow::new(10, 4, 4);
        window.reset(1, 1_000);
        window.add(1, 1_001, BAD);
        window.add(1, 1_012, OK);
        let export = window.export(1, 1_025);
        assert_eq!(export.iter().map(|(age, _)| *age).collect::<Vec<_>>(), [2, 1]);
        let other = TimeWindow::new(10, 4, 4);
        other.reset(1, 7);
        other.import(1, 7, &export);
        assert_eq!(other.sum(1, 7), window.sum(1, 1_025));
        assert_eq!(other.sum(1, 27).calls, 1);
    }
}

//! One life of a segment file.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::files::File;
use crate::format::manifest::{Life, SPAN_REWRITTEN, segment_name};

/// A segment that is live: active, sealed, or prepared as a spare.
pub(crate) struct Segment {
    pub(crate) slot: u32,
    pub(crate) sequence: u64,
    pub(crate) size: u64,
    pub(crate) file: Arc<dyn File>,
    seed: Seed,
    /// How many logs have records in it.
    logs: AtomicU64,
    /// LSN of the frame that freed the last of them.
    freed_at: AtomicU64,
    /// Number of LSNs from its first frame to its index, both included; 0 while it is not full.
    span: AtomicU32,
    /// It holds moved frames.
    is_rewritten: bool,
    /// Number of the plan of rewriting from which on it may be a victim; [`u64::MAX`] for never: it
    /// stays as it is.
    movable_from: AtomicU64,
    /// How often a batch could not be read that was to be moved.
    failed_reads: AtomicU32,
}

/// Identity of the journal and sequence of the segment, as checksums are seeded with them.
#[derive(Debug, Clone, Copy)]
struct Seed([u8; 24]);

/// A position in a segment's life, to which a checksum is bound.
#[derive(Clone, Copy)]
pub(crate) struct Location<'a> {
    seed: &'a Seed,
    offset: u64,
}

impl Location<'_> {
    /// What checksums at this place are XORed with.
    pub(crate) fn mask(&self) -> u32 {
        let mut bytes = [0; 32];
        bytes[..24].copy_from_slice(&self.seed.0);
        bytes[24..].copy_from_slice(&self.offset.to_le_bytes());
        crate::format::crc32c(&bytes)
    }
}

impl Segment {
    pub(crate) fn new(
        journal: u128,
        slot: u32,
        sequence: u64,
        size: u64,
        file: Arc<dyn File>,
    ) -> Self {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&journal.to_le_bytes());
        bytes[16..].copy_from_slice(&sequence.to_le_bytes());
        let seed = Seed(bytes);
        let (logs, freed_at, span) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU32::new(0));
        let (movable_from, failed_reads) = (AtomicU64::new(0), AtomicU32::new(0));
        Self {
            slot,
            sequence,
            size,
            file,
            seed,
            logs,
            freed_at,
            span,
            is_rewritten: false,
            movable_from,
            failed_reads,
        }
    }

    /// The same, as one of moved frames or not.
    pub(crate) fn with_moved_frames(self, is_rewritten: bool) -> Self {
        Self { is_rewritten, ..self }
    }

    pub(crate) fn is_rewritten(&self) -> bool {
        self.is_rewritten
    }

    /// Whether the plan with this number may take it for a victim.
    pub(crate) fn is_movable(&self, plan: u64) -> bool {
        self.movable_from.load(Ordering::Relaxed) <= plan
    }

    /// It never is a victim from now on.
    pub(crate) fn set_unmovable(&self) {
        self.movable_from.store(u64::MAX, Ordering::Relaxed);
    }

    /// A read failed in the round of the plan with this number. That may pass: it is left alone for
    /// some plans, and for good after some failures. True in the latter case.
    pub(crate) fn note_failed_read(&self, plan: u64) -> bool {
        const FAILURES_MAX: u32 = 3;
        const PLANS_WITHOUT: u64 = 16;
        let failures = self.failed_reads.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= FAILURES_MAX {
            self.set_unmovable();
        } else {
            self.movable_from.store(plan + PLANS_WITHOUT, Ordering::Relaxed);
        }
        failures >= FAILURES_MAX
    }

    pub(crate) fn location(&self, offset: u64) -> Location<'_> {
        Location { seed: &self.seed, offset }
    }

    pub(crate) fn name(&self) -> String {
        segment_name(self.slot)
    }

    /// Its entry in the manifest.
    pub(crate) fn life(&self) -> Life {
        let span = if self.is_rewritten { SPAN_REWRITTEN } else { self.span() };
        Life { sequence: self.sequence, slot: self.slot, span }
    }

    pub(crate) fn span(&self) -> u32 {
        self.span.load(Ordering::Relaxed)
    }

    pub(crate) fn set_span(&self, span: u32) {
        self.span.store(span, Ordering::Relaxed);
    }

    /// The segment is full: `first` is the LSN of its first frame, `index` the LSN of its index.
    pub(crate) fn set_full(&self, first: u64, index: u64) {
        // Damage can leave a gap of any size between the two; then the span stays unknown.
        let span = index.checked_sub(first).and_then(|span| span.checked_add(1));
        let span = span.and_then(|span| u32::try_from(span).ok());
        self.set_span(span.filter(|span| *span != SPAN_REWRITTEN).unwrap_or(0));
    }

    /// A log has its first records here.
    pub(crate) fn pin(&self) {
        self.logs.fetch_add(1, Ordering::Relaxed);
    }

    /// A log has no records here any more, by the frame with this LSN.
    pub(crate) fn unpin(&self, lsn: u64) {
        self.freed_at.fetch_max(lsn, Ordering::Relaxed);
        // Release and acquire: a thread that sees the count reach zero must see the LSN as well.
        let before = self.logs.fetch_sub(1, Ordering::Release);
        debug_assert!(before > 0, "unpinned more often than pinned");
    }

    /// What was copied here from another segment was released there by the frame with this LSN.
    pub(crate) fn note_freed(&self, lsn: u64) {
        self.freed_at.fetch_max(lsn, Ordering::Relaxed);
    }

    pub(crate) fn pinned(&self) -> bool {
        self.pins() > 0
    }

    /// How many extents logs have in it.
    pub(crate) fn pins(&self) -> u64 {
        self.logs.load(Ordering::Acquire)
    }

    pub(crate) fn freed_at(&self) -> u64 {
        self.freed_at.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("slot", &self.slot)
            .field("sequence", &self.sequence)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

//! What a power loss leaves behind.

use std::collections::BTreeMap;
use std::ops::Range;

use fastrand::Rng;

use super::disk::{Disk, Inode, SECTOR_BYTES, Write};
use super::fault::Counters;
use super::image::{Image, PAGE_BYTES};

/// How much of what was not synced a power loss takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// Any legal outcome, drawn from the disk's seed; the two extremes below among them.
    Any,
    /// Everything that was not synced.
    Everything,
    /// Nothing: the cache reached the disk in time.
    Nothing,
}

/// How the unsynced writes of one file fare.
enum Style {
    /// In order: so many survive whole, the next one is torn, the rest is lost.
    Prefix(usize),
    /// Each for itself: kept, lost, torn or scattered.
    Independent,
    /// Each sector was last flushed after some number of the writes.
    Sectors(BTreeMap<u64, usize>),
}

impl Disk {
    pub(super) fn power_loss(&mut self, loss: Loss) {
        self.counters.power_losses += 1;
        let loss = match (loss, self.rng.u32(..10)) {
            (Loss::Any, 0) => Loss::Everything,
            (Loss::Any, 1) => Loss::Nothing,
            (loss, _) => loss,
        };
        self.settle_names(loss);
        let donors: Vec<Image> = self.inodes.values().map(|file| file.durable.clone()).collect();
        for file in self.inodes.values_mut() {
            let donor = &donors[self.rng.usize(..donors.len())];
            let torn = settle(file, loss, donor, &mut self.rng, &mut self.counters);
            if self.fragile {
                self.counters.unreadable += torn.len() as u64;
                file.unreadable.extend(torn);
            }
        }
        self.restart();
        let names = &self.names;
        self.inodes.retain(|inode, _| names.values().any(|named| named == inode));
    }

    /// The process is gone: its handles and its lock with it.
    pub(super) fn restart(&mut self) {
        self.generation += 1;
        self.powered = true;
        self.locked = false;
    }

    fn settle_names(&mut self, loss: Loss) {
        let pending = std::mem::take(&mut self.pending_names);
        let ordered = self.rng.bool().then(|| self.rng.usize(..=pending.len()));
        for (index, entry) in pending.iter().enumerate() {
            let kept = match (loss, ordered) {
                (Loss::Everything, _) => false,
                (Loss::Nothing, _) => true,
                (Loss::Any, Some(prefix)) => index < prefix,
                (Loss::Any, None) => self.rng.bool(),
            };
            if kept {
                self.counters.entries_kept += 1;
                entry.apply(&mut self.durable_names);
            } else {
                self.counters.entries_lost += 1;
            }
        }
        self.names = self.durable_names.clone();
    }
}

/// Decides about all that is pending in a file. Answers the sectors in which a write was torn.
fn settle(
    file: &mut Inode,
    loss: Loss,
    donor: &Image,
    rng: &mut Rng,
    counters: &mut Counters,
) -> Vec<u64> {
    let mut torn = Vec::new();
    let pending = std::mem::take(&mut file.pending);
    let mut style = match loss {
        Loss::Everything => None,
        Loss::Nothing => Some(Style::Prefix(pending.len())),
        Loss::Any => Style::draw(pending.len(), rng),
    };
    let (mut lost_one, mut reordered) = (false, false);
    for (index, write) in pending.iter().enumerate() {
        let kept = style.as_mut().map(|style| style.survivors(index, write, pending.len(), rng));
        let kept = kept.unwrap_or_default();
        let bytes: usize = kept.iter().map(ExactSizeIterator::len).sum();
        match bytes {
            0 => counters.writes_lost += 1,
            n if n == write.data.len() => counters.writes_kept += 1,
            _ => counters.writes_torn += 1,
        }
        reordered |= lost_one && bytes > 0;
        lost_one |= bytes == 0;
        for range in kept {
            let end = write.offset + range.end as u64;
            if range.end < write.data.len() && !end.is_multiple_of(SECTOR_BYTES) {
                torn.push(end / SECTOR_BYTES);
            }
            file.durable.write(&write.data[range.clone()], write.offset + range.start as u64);
        }
    }
    counters.files_reordered += u64::from(reordered);
    if loss == Loss::Any {
        size_ahead(file, donor, rng, counters);
    }
    file.seen = file.durable.clone();
    torn
}

impl Style {
    fn draw(writes: usize, rng: &mut Rng) -> Option<Self> {
        match rng.u32(..8) {
            0 => None,
            1 => Some(Self::Prefix(writes)),
            2 | 3 => Some(Self::Prefix(rng.usize(..=writes))),
            4 | 5 => Some(Self::Independent),
            _ => Some(Self::Sectors(BTreeMap::new())),
        }
    }

    /// The parts of a write that reached the disk, in order.
    fn survivors(
        &mut self,
        index: usize,
        write: &Write,
        writes: usize,
        rng: &mut Rng,
    ) -> Vec<Range<usize>> {
        let whole = std::iter::once(0..write.data.len());
        match self {
            Self::Prefix(kept) if index < *kept => whole.collect(),
            Self::Prefix(kept) if index == *kept => torn(write, rng),
            Self::Prefix(_) => Vec::new(),
            Self::Independent => match rng.u32(..8) {
                0..=2 => whole.collect(),
                3..=5 => Vec::new(),
                6 => torn(write, rng),
                _ => sectors(write).filter(|_| rng.bool()).map(|(_, range)| range).collect(),
            },
            Self::Sectors(flushed) => sectors(write)
                .filter(|(sector, _)| {
                    let cut = flushed.entry(*sector).or_insert_with(|| rng.usize(..=writes));
                    index < *cut
                })
                .map(|(_, range)| range)
                .collect(),
        }
    }
}

/// A prefix, that ends at a sector or, for memory-like devices, at any byte.
fn torn(write: &Write, rng: &mut Rng) -> Vec<Range<usize>> {
    let end = write.offset + rng.u64(..=write.data.len() as u64);
    let end = if rng.bool() { end } else { end / SECTOR_BYTES * SECTOR_BYTES };
    let prefix = 0..end.saturating_sub(write.offset) as usize;
    std::iter::once(prefix).filter(|prefix| !prefix.is_empty()).collect()
}

/// The sectors that a write touches, with its bytes in each.
fn sectors(write: &Write) -> impl Iterator<Item = (u64, Range<usize>)> {
    let (start, end) = (write.offset, write.offset + write.data.len() as u64);
    (start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)).map(move |sector| {
        let from = (sector * SECTOR_BYTES).max(start) - start;
        let to = ((sector + 1) * SECTOR_BYTES).min(end) - start;
        (sector, from as usize..to as usize)
    })
}

/// The size is metadata and may reach the disk without the data: zeros show, or, where the file
/// system does not guard against it, what the blocks held in another file.
fn size_ahead(file: &mut Inode, donor: &Image, rng: &mut Rng, counters: &mut Counters) {
    let (from, to) = (file.durable.len(), file.seen.len());
    if from >= to || rng.bool() {
        return;
    }
    let end = if rng.bool() { to } else { rng.u64(from + 1..=to) };
    file.durable.grow(end);
    if rng.u32(..4) != 0 {
        counters.sizes_ahead += 1;
        return;
    }
    counters.stale_shown += 1;
    // Whole blocks change owner, so old bytes show at the offsets that they always had.
    let start = from.next_multiple_of(PAGE_BYTES as u64).min(end);
    let mut old = vec![0; (end - start) as usize];
    let length = donor.read(&mut old, start);
    file.durable.write(&old[..length], start);
}

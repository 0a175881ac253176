//! What the frames of a segment say that has no index which can be used.

use std::collections::BTreeMap;

use crate::format::frame::Section;
use crate::format::index::{BatchRef, DirectoryEntry};

/// What one log has in one segment, by the frames themselves.
#[derive(Debug, Default)]
pub(crate) struct Rebuilt {
    pub(crate) number: u64,
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) last: u64,
    pub(crate) bytes: u64,
    pub(crate) batches: Vec<BatchRef>,
    /// How many of the first batches stand before a lost frame that may have changed the log: it
    /// may have replaced them. Invariant: at most the number of batches.
    pub(super) in_doubt: usize,
}

impl Rebuilt {
    pub(super) fn append(&mut self, batch: BatchRef, end: u64, lsn: u64) {
        self.truncate(batch.first);
        if self.batches.is_empty() {
            self.first = batch.first;
        }
        self.end = end;
        self.last = lsn;
        self.bytes += u64::from(batch.length);
        self.batches.push(batch);
    }

    /// As the directory of the segment has it, apart from its entries.
    pub(crate) fn directory_entry(&self) -> DirectoryEntry {
        DirectoryEntry {
            log: self.number,
            first: self.first,
            end: self.end,
            last: self.last,
            at: 0,
            count: self.batches.len() as u32,
            crc: 0,
            bytes: u32::try_from(self.bytes).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn truncate(&mut self, from: u64) {
        while self.batches.last().is_some_and(|batch| batch.first >= from) {
            self.batches.pop();
        }
        self.end = self.end.min(from);
        self.in_doubt = self.in_doubt.min(self.batches.len());
    }
}

/// What the frames of one segment say, without its index.
#[derive(Debug, Default)]
pub(crate) struct Rebuild {
    /// By number. Of moved frames each batch is one of these.
    pub(crate) logs: Vec<Rebuilt>,
    /// From the first frame to the last, nothing is missing.
    pub(super) contiguous: bool,
    /// It ends in an index.
    pub(super) ended: bool,
    /// The segment is one of moved frames.
    pub(super) is_moved: bool,
    pub(super) first_lsn: u64,
    pub(super) last_lsn: u64,
    pub(super) last_epoch: u32,
    /// Offset of the index, or of where it would be.
    pub(super) index_at: u64,
    pub(super) chains: BTreeMap<u64, Chain>,
}

/// The sections of one log in one segment, each of which names the frame of the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain {
    before: u64,
    last: u64,
    broken: bool,
}

impl Rebuild {
    /// Whether no frame is missing apart from the index, which is not synced. Proof is the span
    /// that the manifest has for the segment, or the LSN of the frame with which the next live
    /// segment begins: the table there directly follows the index.
    pub(crate) fn is_whole(&self, span: u32, next: Option<u64>) -> bool {
        self.contiguous
            && (self.ended
                || next == Some(self.last_lsn + 2)
                || u64::from(span) == self.last_lsn - self.first_lsn + 2)
    }

    /// LSNs of the first frame and of the index, provided that no frame is missing.
    pub(crate) fn lsns(&self) -> (u64, u64) {
        (self.first_lsn, if self.ended { self.last_lsn } else { self.last_lsn + 1 })
    }

    /// Where the index belongs, and the epoch that its frame has.
    pub(crate) fn index_place(&self) -> (u64, u32) {
        (self.index_at, self.last_epoch)
    }

    /// Bytes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let of_log =
            |log: &Rebuilt| size_of::<Rebuilt>() + log.batches.len() * size_of::<BatchRef>();
        let chains = self.chains.len() * size_of::<(u64, Chain)>();
        self.logs.iter().map(of_log).sum::<usize>() + chains
    }

    /// Whether nothing of a log is missing here: `before` and `after` are the LSNs of its last
    /// section at the start of this segment and of the next one, as the tables there say.
    pub(crate) fn proves(&self, log: u64, before: Option<u64>, after: u64) -> bool {
        match self.chains.get(&log) {
            None => before == Some(after),
            Some(chain) => {
                !chain.broken && chain.before == before.unwrap_or(0) && chain.last == after
            }
        }
    }

    /// Whether no moved frame is missing. The index counts as well, as it says where they end.
    pub(crate) fn is_whole_moved(&self) -> bool {
        self.is_moved && self.contiguous && self.ended
    }

    /// The batches of one log, by position. `last` is the LSN of the last batch that the log is
    /// known to have here: then only those are given that no lost frame can have replaced. Without
    /// it all that were found are.
    pub(crate) fn batches_of(&self, number: u64, last: Option<u64>) -> Vec<BatchRef> {
        let from = self.logs.partition_point(|log| log.number < number);
        let of_log = self.logs[from..].iter().take_while(|log| log.number == number);
        let certain = |log: &Rebuilt| match last {
            None => log.batches.clone(),
            Some(_) if self.is_whole_moved() => log.batches.clone(),
            Some(last) if !self.is_moved && log.last == last => {
                log.batches[log.in_doubt..].to_vec()
            }
            Some(_) => Vec::new(),
        };
        of_log.flat_map(certain).collect()
    }

    /// Adds a section to the chain of its log. False when sections before it are missing.
    pub(super) fn note(&mut self, section: &Section, lsn: u64) -> bool {
        if let Some(chain) = self.chains.get_mut(&section.log) {
            let follows = chain.last == section.previous;
            chain.broken |= !follows;
            chain.last = lsn;
            follows
        } else {
            let chain = Chain { before: section.previous, last: lsn, broken: false };
            self.chains.insert(section.log, chain);
            true
        }
    }
}

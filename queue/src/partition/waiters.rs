//! Readers that wait for records, ordered by the offset that each waits for.

use std::collections::BTreeMap;
use std::task::Waker;

#[derive(Debug)]
pub(super) struct Waiters {
    /// (offset, number): the reader.
    by_offset: BTreeMap<(u64, u64), Waker>,
    next_number: u64,
    max: usize,
    pub(super) is_closed: bool,
}

impl Waiters {
    pub(super) fn new(max: usize) -> Self {
        Self { by_offset: BTreeMap::new(), next_number: 0, max, is_closed: false }
    }

    pub(super) fn len(&self) -> usize {
        self.by_offset.len()
    }

    /// Adds a reader, or replaces the waker of the one with `number`, and returns its number and
    /// the replaced waker. `Err` returns the waker when there is no room.
    pub(super) fn add(
        &mut self,
        offset: u64,
        number: Option<u64>,
        waker: Waker,
    ) -> Result<(u64, Option<Waker>), Waker> {
        let number = match number {
            Some(number) => number,
            None if self.by_offset.len() >= self.max => return Err(waker),
            None => {
                self.next_number += 1;
                self.next_number
            }
        };
        Ok((number, self.by_offset.insert((offset, number), waker)))
    }

    pub(super) fn remove(&mut self, offset: u64, number: u64) -> Option<Waker> {
        self.by_offset.remove(&(offset, number))
    }

    /// Takes the readers whose offset is below `end`, in the order of their offsets.
    pub(super) fn take_below(&mut self, end: u64) -> Vec<Waker> {
        if self.by_offset.first_key_value().is_none_or(|((offset, _), _)| *offset >= end) {
            return Vec::new();
        }
        let later = self.by_offset.split_off(&(end, 0));
        std::mem::replace(&mut self.by_offset, later).into_values().collect()
    }

    /// Takes all readers, and takes no more.
    pub(super) fn close(&mut self) -> Vec<Waker> {
        self.is_closed = true;
        std::mem::take(&mut self.by_offset).into_values().collect()
    }
}

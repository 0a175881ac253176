//! Worker numbers in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::numbers::{WorkerError, WorkerGrant, WorkerNumbers};

/// Worker numbers that live as long as this value: for tests, and for several generators of one
/// process. Numbers of a process that ended without giving them back are taken back by
/// [`seize`](Self::seize) only.
#[derive(Debug, Default)]
pub struct MemoryNumbers {
    numbers: Mutex<BTreeMap<u32, Number>>,
}

#[derive(Debug)]
struct Number {
    is_taken: bool,
    epoch: u64,
    ceiling_ms: u64,
}

impl MemoryNumbers {
    /// All numbers are free, and no time was used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a number away from its holder, whether it is used or not. Its next holder gets a new
    /// epoch.
    pub fn seize(&self, worker: u32) {
        if let Some(number) = self.lock().get_mut(&worker) {
            number.is_taken = false;
            number.epoch += 1;
        }
    }

    /// Nothing panics while the numbers are locked.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Number>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` on the number, if it is in use in `epoch`.
    fn with(
        &self,
        worker: u32,
        epoch: u64,
        change: impl FnOnce(&mut Number),
    ) -> Result<(), WorkerError> {
        let mut numbers = self.lock();
        let number = numbers.get_mut(&worker).ok_or(WorkerError::Lost)?;
        if !number.is_taken || number.epoch != epoch {
            return Err(WorkerError::Lost);
        }
        change(number);
        Ok(())
    }
}

#[async_trait]
impl WorkerNumbers for MemoryNumbers {
    async fn acquire(&self, workers: u32) -> Result<WorkerGrant, WorkerError> {
        let mut numbers = self.lock();
        let is_free = |worker: &u32| numbers.get(worker).is_none_or(|number| !number.is_taken);
        let worker = (0..workers).find(is_free).ok_or(WorkerError::AllTaken)?;
        let fresh = Number { is_taken: false, epoch: 0, ceiling_ms: 0 };
        let number = numbers.entry(worker).or_insert(fresh);
        number.is_taken = true;
        number.epoch += 1;
        Ok(WorkerGrant::new(worker, number.epoch, number.ceiling_ms))
    }

    async fn raise(&self, worker: u32, epoch: u64, ceiling_ms: u64) -> Result<(), WorkerError> {
        self.with(worker, epoch, |number| number.ceiling_ms = number.ceiling_ms.max(ceiling_ms))
    }

    async fn release(&self, worker: u32, epoch: u64) -> Result<(), WorkerError> {
        self.with(worker, epoch, |number| number.is_taken = false)
    }
}

//! One log, shared by its handles and the journal.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::wakers::Wakers;
use crate::core::bounds::LogBounds;
use crate::core::view::View;
use crate::error::{Error, LogName};

#[derive(Debug)]
pub(crate) struct LogInner {
    name: LogName,
    /// Its place in the journal's table of logs.
    index: u32,
    pub(crate) view: RwLock<View>,
    /// Of the followers that wait for a change.
    pub(crate) followers: Wakers,
    /// Bytes; `u64::MAX` for none.
    quota: AtomicU64,
}

impl LogInner {
    pub(crate) fn new(name: LogName, index: u32, bounds: LogBounds) -> Self {
        Self {
            name,
            index,
            view: RwLock::new(View::new(bounds)),
            followers: Wakers::default(),
            quota: AtomicU64::new(u64::MAX),
        }
    }

    pub(crate) fn name(&self) -> &LogName {
        &self.name
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn set_quota(&self, bytes: Option<u64>) {
        self.quota.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether `more` bytes beside what is stored stay within the quota.
    pub(crate) fn check_quota(&self, more: u64) -> Result<(), Error> {
        let quota = self.quota.load(Ordering::Relaxed);
        if quota == u64::MAX || self.view.read().bytes().saturating_add(more) <= quota {
            return Ok(());
        }
        Err(Error::OverQuota { log: self.name.clone(), quota })
    }
}

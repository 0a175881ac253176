//! Records that are delivered later.

use crate::format::Record;

/// The header that says when a record is delivered: ms since the UNIX epoch, as decimal digits.
/// Only work queues heed it. What is no number is ignored.
pub const DELIVER_AT: &str = "deliver-at-ms";

impl Record {
    /// Has work queues deliver the record not before this time, in ms since the UNIX epoch
    /// ([`DELIVER_AT`]).
    #[must_use]
    pub fn deliver_at(self, ms: u64) -> Self {
        self.header(DELIVER_AT, ms.to_string())
    }
}

/// When a record is delivered, in ns since the UNIX epoch; 0 for at once.
pub(super) fn deliver_at(record: &Record) -> u64 {
    let header = record.last_header(DELIVER_AT);
    let text = header.and_then(|value| std::str::from_utf8(value).ok());
    let ms = text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    ms.saturating_mul(1_000_000)
}

//! Calls of code that is not the journal's: completion callbacks and wakers.
//!
//! The journal never calls them under one of its locks, and a panic in them ends there.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls foreign code. A panic in it is reported as an event and goes no further: the commits of
/// others must not fail with it.
pub(crate) fn call(what: &'static str, code: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        // The destructor of the payload is foreign code as well, and could panic once more.
        std::mem::forget(payload);
        tracing::error!(target: "voussoir::journal", what, "foreign code panicked");
    }
}

//! Counts of what a transport did.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// Counters of a transport since its start. Heartbeat frames are counted in bytes only.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.get(),)+ }
            }
        }
    };
}

counters! {
    /// Messages, requests and answers taken for sending.
    frames_out,
    /// Bytes written to connections.
    bytes_out,
    /// Messages, requests and answers that came in whole.
    frames_in,
    /// Bytes read from connections.
    bytes_in,
    /// Writes to connections; `frames_out` by this is how well small messages are gathered.
    writes,
    /// Messages and requests rejected at `send` and `call` because a queue was full.
    full,
    /// Messages, requests and answers that were taken and, before all of their bytes were written,
    /// dropped: the connection broke, or the peer turned out not to take that length.
    dropped,
    /// Own connections that came up.
    connected,
    /// Attempts to connect that failed.
    dial_failed,
    /// Connections that came in and were accepted.
    accepted,
    /// Connections that came in and were rejected, or did not finish their handshake.
    rejected,
    /// Connections closed because the peer broke the protocol.
    violations,
    /// Connections closed because unfinished frames took too much memory.
    overloaded,
    /// Connections closed because a reload no longer permits the certificate of the peer.
    revoked,
    /// Messages and requests to services that have no handler.
    unknown_service,
    /// Requests rejected because too many of the peer were under way.
    busy,
    /// Calls of peers whose handler was dropped: at the deadline, given up, or disconnected.
    cancelled,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        // Relaxed: a count orders nothing.
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

//! Counters of a TCP proxy.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a [`TcpProxy`](super::TcpProxy) has done since it was made.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct TcpStats {
            /// Connections that are open.
            pub active: usize,
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn read(&self, active: usize) -> TcpStats {
                TcpStats { active, $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Connections that were accepted, those that were rejected at the limit included.
    accepted,
    /// Times that accepting failed.
    accept_errors,
    /// Connections that were reset because `max_connections` were open.
    rejected_full,
    /// Connections that were reset because they did not come from a trusted proxy.
    rejected_untrusted,
    /// Connections that the route rejected.
    rejected_route,
    /// Connections for which no endpoint could be picked.
    rejected_endpoint,
    /// Connections without a proper PROXY header or ClientHello, in time.
    prelude_failures,
    /// Attempts to connect to an endpoint that failed or timed out.
    connect_failures,
    /// Connections that reached no endpoint.
    unconnected,
    /// Connections that both sides ended in order.
    completed,
    /// Connections that the client reset, also while an endpoint was connected to.
    client_resets,
    /// Connections that the endpoint reset.
    upstream_resets,
    /// Connections that were closed for idleness.
    idle_timeouts,
    /// Connections that were closed at the end of a drain.
    aborted,
    /// Bytes from clients that were written to endpoints, without PROXY headers.
    bytes_to_upstream,
    /// Bytes from endpoints that were written to clients.
    bytes_to_client,
}

pub(super) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

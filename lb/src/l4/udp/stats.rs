//! Counters of a UDP proxy.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a [`UdpProxy`](super::UdpProxy) has done since it was made.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct UdpStats {
            /// Flows at present.
            pub active: usize,
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn read(&self, active: usize) -> UdpStats {
                UdpStats { active, $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Flows that began.
    flows,
    /// Datagrams of clients.
    received,
    /// Datagrams that were sent to endpoints, or wait to be.
    sent_to_upstream,
    /// Datagrams that were sent to clients.
    sent_to_client,
    /// Answers that the system did not send.
    answers_dropped,
    /// Datagrams of clients that were not forwarded, for whatever reason.
    dropped,
    /// Datagrams for which no flow began because there were `max_flows`.
    rejected_full,
    /// Datagrams for which the route had no balancer.
    rejected_route,
    /// Datagrams for which no endpoint could be picked.
    rejected_endpoint,
    /// Flows that ended in favour of another one.
    evicted,
    /// Flows that ended for idleness.
    idle_timeouts,
    /// Flows that ended with an error of the socket to the endpoint, such as an ICMP error.
    upstream_errors,
    /// Times that receiving from clients failed.
    receive_errors,
    /// Flows that were ended at the end of a drain.
    aborted,
}

//! Counters of a UDP proxy.

use crate::l4::stats::counters;

counters! {
    /// What a [`UdpProxy`](super::UdpProxy) has done since it was made.
    UdpStats,
    /// Flows at present.
    active,
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

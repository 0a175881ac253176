//! Counters of a TCP proxy.

use crate::l4::stats::counters;

counters! {
    /// What a [`TcpProxy`](super::TcpProxy) has done since it was made.
    TcpStats,
    /// Connections that are open.
    active,
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

//! The HTTP proxy: pure parts, and the proxy over loopback with clients and backends that speak
//! through raw sockets.

mod bad_input;
mod configs;
mod corpus;
#[cfg(target_os = "linux")]
mod descriptors;
mod gate;
mod http1;
mod http2;
mod mutated;
mod pure;
#[allow(dead_code, reason = "shared with `l7_lives`")]
mod support;
#[cfg(feature = "tls")]
mod tls;

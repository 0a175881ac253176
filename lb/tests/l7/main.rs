//! The HTTP proxy: pure parts, and the proxy over loopback with clients and backends that speak
//! through raw sockets.

mod bad_input;
mod configs;
mod corpus;
mod gate;
mod http1;
mod http2;
mod pure;
mod support;
#[cfg(feature = "tls")]
mod tls;

//! Proxies for TCP and UDP. Feature `l4`.
//!
//! [`TcpProxy`] and [`UdpProxy`] accept, ask a [`Route`] for a [`Balancer`](crate::Balancer), lease
//! an endpoint whose name is its address (`10.0.0.1:80`), and move bytes until both sides are done.
//! [`ProxyHeader`] and [`ClientHello`] are the decoders that they use, for users of their own.

mod address_range;
mod client_hello;
mod config;
mod proxy_header;
mod route;
mod stats;
mod tcp;
mod udp;

pub use address_range::{AddressRange, AddressRangeError};
pub use client_hello::{ClientHello, ClientHelloError};
pub use config::{
    ClientHelloConfig, OnFull, OnFullFlows, ProxyInConfig, TcpConfig, UdpConfig, Untrusted,
};
pub use proxy_header::{
    Addresses, Decoded, MAX_V1_BYTES, MAX_V2_BYTES, ProxyHeader, ProxyHeaderError, ProxyVersion,
    Tlv,
};
pub use route::{Connection, Route, ServerNames};
pub use tcp::{TcpProxy, TcpStats};
pub use udp::{UdpProxy, UdpStats};

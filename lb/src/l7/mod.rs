//! Proxy for HTTP/1.1 and HTTP/2. Feature `l7`; with TLS by feature `tls`.
//!
//! [`HttpProxy`] accepts, asks a [`Router`] for an [`Upstream`], leases an endpoint of its
//! balancer, and streams both bodies with back-pressure. A request that failed is sent to another
//! endpoint where that is safe ([`RetryConfig`]). [`check_request`], [`remove_hop_by_hop`] and the
//! conditions of [`Route`]s are pure functions, for users of their own.

mod body;
mod config;
mod framing;
mod gate;
mod headers;
mod io;
mod matching;
mod proxy;
mod router;
#[cfg(feature = "tls")]
mod tls;
mod upstream;
mod validate;

pub use config::{HttpConfig, KeySource, Protocol, RetryConfig, UpstreamConfig};
pub use gate::{Gate, GatePermit, GateRejected};
pub use headers::{ForwardedConfig, HeaderChanges, Rewrite, remove_hop_by_hop};
pub use matching::{CookieMatch, Glob, HeaderMatch, HeaderRule, HostMatch, PathMatch};
pub use proxy::{HttpProxy, HttpStats, ProxyBody};
pub use router::{RequestFacts, Route, Router, SplitBy};
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use tls::{ClientTls, ServerTls, TlsError};
pub use upstream::{Upstream, UpstreamStats};
pub use validate::{RequestError, check_request};

//! Which balancer serves a connection.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use super::client_hello::ClientHello;
use super::proxy_header::ProxyHeader;
use crate::balancer::Balancer;

/// What a proxy knows of a connection, or of the first datagram of a flow, before it chooses.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Connection<'a> {
    /// The client: from the PROXY header if there was one that names it, else the peer.
    pub client: SocketAddr,
    /// The other end of the connection: a client, or a proxy in front of this one.
    pub peer: SocketAddr,
    /// The address that the peer connected to.
    pub local: SocketAddr,
    /// The PROXY header.
    pub header: Option<&'a ProxyHeader>,
    /// The ClientHello, if the configuration asks for it.
    pub hello: Option<&'a ClientHello>,
}

/// Chooses the balancer of a connection. A [`Balancer`] is a route that chooses itself, and so is a
/// closure that returns one.
///
/// Called once for each connection, in its own task. If it panics, that connection is closed; if it
/// blocks, it holds up a thread of the runtime. For UDP it is called in the task of `serve`.
pub trait Route: Send + Sync {
    /// The balancer, or `None` to reject the connection.
    fn route(&self, connection: &Connection<'_>) -> Option<Balancer>;
}

impl fmt::Debug for dyn Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Route")
    }
}

impl Route for Balancer {
    fn route(&self, _: &Connection<'_>) -> Option<Balancer> {
        Some(self.clone())
    }
}

impl<F: Fn(&Connection<'_>) -> Option<Balancer> + Send + Sync> Route for F {
    fn route(&self, connection: &Connection<'_>) -> Option<Balancer> {
        self(connection)
    }
}

/// Routes by the server name of a ClientHello.
///
/// An exact name wins over a pattern, and a longer pattern over a shorter one. A pattern
/// `*.example.com` matches every name below `example.com`, at any depth, and not itself.
///
/// # Example
/// ```
/// use voussoir_lb::l4::ServerNames;
/// use voussoir_lb::{Balancer, Config, strategy::LeastConnections};
/// let shop = Balancer::new(LeastConnections::default(), Config::default())?;
/// let others = Balancer::new(LeastConnections::default(), Config::default())?;
/// let route = ServerNames::new().with("shop.example.com", shop).with_default(others);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ServerNames {
    /// By lower-case name; patterns without their `*`.
    names: HashMap<String, Balancer>,
    default: Option<Balancer>,
}

impl ServerNames {
    /// A table that rejects every name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Routes a name, or all names that match `*.suffix`. `*` is the default.
    pub fn with(mut self, name: &str, balancer: Balancer) -> Self {
        if name == "*" {
            return self.with_default(balancer);
        }
        let name = name.strip_prefix('*').unwrap_or(name).trim_end_matches('.');
        self.names.insert(name.to_ascii_lowercase(), balancer);
        self
    }

    /// Routes connections whose name is not in the table, or that have none.
    pub fn with_default(mut self, balancer: Balancer) -> Self {
        self.default = Some(balancer);
        self
    }

    /// The balancer of a lower-case name, apart from the default.
    fn find(&self, name: &str) -> Option<&Balancer> {
        let dots = name.match_indices('.').map(|(at, _)| &name[at..]);
        self.names.get(name).or_else(|| dots.into_iter().find_map(|suffix| self.names.get(suffix)))
    }
}

impl Route for ServerNames {
    fn route(&self, connection: &Connection<'_>) -> Option<Balancer> {
        let name = connection.hello.and_then(|hello| hello.server_name.as_deref());
        name.and_then(|name| self.find(name)).or(self.default.as_ref()).cloned()
    }
}

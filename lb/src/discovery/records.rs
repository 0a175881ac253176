//! Sources over DNS records, asked for with their TTL: addresses, and SRV (feature `hickory`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver, ResolverBuilder, TokioResolver};
use tokio::task::JoinSet;

use super::service::{Service, endpoints};
use super::{DiscoveryError, Resolved, Source};
use crate::config::EndpointConfig;
use crate::error::ConfigError;

/// SRV records of one service beyond which its answer is rejected.
const MAX_SERVICES: usize = 256;
/// Targets that are asked for at a time.
const MAX_QUESTIONS: usize = 16;

/// Which addresses of a name count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// IPv4 and IPv6. When one of the two questions fails, the answer does: half of a set would
    /// replace a whole one.
    #[default]
    Both,
    /// A records only.
    V4,
    /// AAAA records only.
    V6,
}

/// Asks name servers for records, by the resolver of hickory. It keeps no answer: when it is asked,
/// a name server is.
#[derive(Clone)]
pub struct DnsClient {
    resolver: TokioResolver,
    family: Family,
}

impl DnsClient {
    /// A client of the name servers that the system is configured for (`/etc/resolv.conf`, with its
    /// search list and time-outs) as they are now, and of its hosts file.
    ///
    /// # Errors
    /// A configuration of the system that cannot be read.
    pub fn from_system() -> Result<Self, DiscoveryError> {
        let builder = TokioResolver::builder_tokio().map_err(failed)?;
        Self::build(builder)
    }

    /// A client of these name servers, which are asked by UDP, and by TCP where an answer does not
    /// fit into a datagram. The system's configuration and hosts file are not read.
    ///
    /// # Errors
    /// No name server, or a client that cannot be built.
    pub fn with_name_servers(
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Self, DiscoveryError> {
        let server = |address: SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            let connections = connections.map(|mut connection| {
                connection.port = address.port();
                connection
            });
            NameServerConfig::new(address.ip(), true, connections.into())
        };
        let servers: Vec<_> = addresses.into_iter().map(server).collect();
        if servers.is_empty() {
            return Err(DiscoveryError::Failed { reason: "no name server".to_owned() });
        }
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
        Self::build(builder)
    }

    fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<Self, DiscoveryError> {
        // The discovery asks when a TTL is over, and earlier when a set has failed: a cache would
        // answer the second kind with what has just failed.
        builder.options_mut().cache_size = 0;
        let resolver = builder.build().map_err(failed)?;
        Ok(Self { resolver, family: Family::default() })
    }

    /// Sets which addresses count.
    pub fn with_family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// The addresses of `host`, each with `port`, and their TTL.
    ///
    /// # Errors
    /// What is no name of a host. An address is none: it has no record.
    pub fn addresses(
        &self,
        host: impl AsRef<str>,
        port: u16,
    ) -> Result<AddressRecords, ConfigError> {
        let name = parse(host.as_ref(), "host")?;
        Ok(AddressRecords { client: self.clone(), name, port })
    }

    /// The instances of a service by its SRV records, such as `_http._tcp.example.com`.
    ///
    /// # Errors
    /// What is no name.
    pub fn services(&self, name: impl AsRef<str>) -> Result<ServiceRecords, ConfigError> {
        let name = parse(name.as_ref(), "name")?;
        Ok(ServiceRecords { client: self.clone(), name })
    }

    /// The addresses of a name, and when the first of the answers is no longer valid. `None` when
    /// the name has no address.
    async fn lookup(&self, name: Name) -> Result<Option<Answer>, DiscoveryError> {
        let asks = |family| matches!(self.family, Family::Both) || self.family == family;
        let (v4, v6) = tokio::join!(
            self.lookup_one(&name, RecordType::A, asks(Family::V4)),
            self.lookup_one(&name, RecordType::AAAA, asks(Family::V6)),
        );
        Ok(match (v4?, v6?) {
            (Some(mut v4), Some(v6)) => {
                v4.addresses.extend(v6.addresses);
                v4.valid_until = v4.valid_until.min(v6.valid_until);
                Some(v4)
            }
            (one, other) => one.or(other),
        })
    }

    async fn lookup_one(
        &self,
        name: &Name,
        kind: RecordType,
        is_asked: bool,
    ) -> Result<Option<Answer>, DiscoveryError> {
        if !is_asked {
            return Ok(None);
        }
        let lookup = match self.resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() => return Ok(None),
            Err(error) => {
                let reason = format!("{kind} of {name}: {error}");
                return Err(DiscoveryError::Failed { reason });
            }
        };
        let address = |data: &RData| match data {
            RData::A(address) => Some(IpAddr::from(address.0)),
            RData::AAAA(address) => Some(IpAddr::from(address.0)),
            _ => None,
        };
        let addresses: BTreeSet<IpAddr> =
            lookup.answers().iter().filter_map(|record| address(&record.data)).collect();
        Ok((!addresses.is_empty()).then(|| Answer { addresses, valid_until: lookup.valid_until() }))
    }
}

impl fmt::Debug for DnsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsClient").field("family", &self.family).finish_non_exhaustive()
    }
}

/// The addresses of a name.
struct Answer {
    addresses: BTreeSet<IpAddr>,
    valid_until: Instant,
}

/// The addresses of a host, each with a port, valid for their TTL. From [`DnsClient::addresses`].
#[derive(Clone, Debug)]
pub struct AddressRecords {
    client: DnsClient,
    name: Name,
    port: u16,
}

#[async_trait]
impl Source for AddressRecords {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        let Some(answer) = self.client.lookup(self.name.clone()).await? else {
            return Ok(Resolved::new([]));
        };
        let endpoint = |ip| EndpointConfig::new(SocketAddr::new(ip, self.port).to_string());
        Ok(Resolved::new(answer.addresses.into_iter().map(endpoint))
            .with_ttl(remaining(answer.valid_until)))
    }
}

/// The instances of a service by its SRV records (RFC 2782), valid for the shortest TTL of them and
/// of the addresses of their targets. From [`DnsClient::services`].
///
/// Priorities are those of the endpoints, numbered from 0. The weight of a target is divided among
/// its addresses. A target without an address is left out; one that cannot be asked for makes the
/// whole answer fail, so that the balancer keeps its last set. At most 256 records.
#[derive(Clone, Debug)]
pub struct ServiceRecords {
    client: DnsClient,
    name: Name,
}

#[async_trait]
impl Source for ServiceRecords {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        let lookup = match self.client.resolver.lookup(self.name.clone(), RecordType::SRV).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() => return Ok(Resolved::new([])),
            Err(error) => return Err(failed(error)),
        };
        let records = lookup.answers().iter().filter_map(|record| match &record.data {
            // A target of "." says that the service is not available here.
            RData::SRV(srv) if !srv.target.is_root() => Some(srv.clone()),
            _ => None,
        });
        let records: Vec<_> = records.collect();
        if records.len() > MAX_SERVICES {
            let reason = format!("{} SRV records, {MAX_SERVICES} at most", records.len());
            return Err(DiscoveryError::Failed { reason });
        }
        let targets: BTreeSet<Name> = records.iter().map(|srv| srv.target.clone()).collect();
        let answers = self.client.lookup_all(targets).await?;
        let mut valid_until = lookup.valid_until();
        let mut services = Vec::with_capacity(records.len());
        for srv in records {
            let Some((_, answer)) = answers.iter().find(|(name, _)| *name == srv.target) else {
                continue;
            };
            valid_until = valid_until.min(answer.valid_until);
            services.push(Service {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                addresses: answer.addresses.clone(),
            });
        }
        Ok(Resolved::new(endpoints(&services)?).with_ttl(remaining(valid_until)))
    }
}

impl DnsClient {
    /// The addresses of each name that has some.
    async fn lookup_all(
        &self,
        names: BTreeSet<Name>,
    ) -> Result<Vec<(Name, Answer)>, DiscoveryError> {
        let mut names = names.into_iter();
        let mut answers = Vec::new();
        let mut asked = JoinSet::new();
        // Ends: each round takes an answer, and each name is asked for once.
        loop {
            for name in names.by_ref().take(MAX_QUESTIONS - asked.len()) {
                let client = self.clone();
                asked.spawn(async move { (name.clone(), client.lookup(name).await) });
            }
            let Some(answered) = asked.join_next().await else {
                return Ok(answers);
            };
            let (name, answer) =
                answered.map_err(|error| DiscoveryError::Failed { reason: error.to_string() })?;
            answers.extend(answer?.map(|answer| (name, answer)));
        }
    }
}

fn parse(text: &str, field: &'static str) -> Result<Name, ConfigError> {
    let is_address = text.parse::<IpAddr>().is_ok();
    match Name::from_utf8(text) {
        Ok(name) if !is_address && name.num_labels() > 0 => Ok(name),
        _ => Err(ConfigError::new(field, "must be a DNS name")),
    }
}

fn remaining(valid_until: Instant) -> Duration {
    valid_until.saturating_duration_since(Instant::now())
}

fn failed(error: NetError) -> DiscoveryError {
    DiscoveryError::Failed { reason: error.to_string() }
}

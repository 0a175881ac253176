//! What the shape of the file does not say: ranges, names that must exist.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use voussoir_lb::l7::HttpConfig;
use voussoir_lb::probe::{CheckerConfig, HttpProbe};

use super::{Config, ConfigError, Pool, RouteEntry, Server, build_route};
use crate::gates::RouteLimit;

pub(super) fn check(text: &str, config: &Config) -> Result<(), ConfigError> {
    server(text, &config.server)?;
    if config.listeners.is_empty() {
        return Err(ConfigError::at(text, 0, "`listeners` must not be empty"));
    }
    let mut addresses = HashSet::new();
    for listener in &config.listeners {
        let address = listener.get_ref().address;
        if address.port() != 0 && !addresses.insert(address) {
            let what = format!("a listener has the address {address} already");
            return Err(ConfigError::at(text, listener.span().start, what));
        }
    }
    for (name, pool) in &config.pools {
        let failed = |reason: Reason| {
            let place = reason.field.and_then(|field| find(text, pool.span(), field));
            let what = format!("pool `{name}`: {}", reason.what);
            ConfigError::at(text, place.unwrap_or(pool.span().start), what)
        };
        check_pool(pool.get_ref()).map_err(failed)?;
    }
    let mut names = HashSet::new();
    for route in &config.routes {
        check_route(text, config, route, &mut names)?;
    }
    Ok(())
}

/// A mistake in a pool, and the field that it is in.
struct Reason {
    field: Option<&'static str>,
    what: String,
}

impl Reason {
    fn field(field: &'static str, what: impl ToString) -> Self {
        Self { field: Some(field), what: what.to_string() }
    }
}

/// Where the key that sets `field` stands: the file's keys have units at their ends. The section of
/// a table begins at its header.
fn find(text: &str, section: Range<usize>, field: &str) -> Option<usize> {
    let field = field.rsplit('.').next()?;
    let rest = text.get(section.start..)?;
    let mut offset = section.start;
    for (number, line) in rest.split_inclusive('\n').enumerate() {
        if number > 0 && line.starts_with("[[") {
            return None;
        }
        if let Some(at) = line.find(field)
            && !line.trim_start().starts_with('#')
        {
            return Some(offset + at);
        }
        offset += line.len();
    }
    None
}

impl From<voussoir_lb::ConfigError> for Reason {
    fn from(error: voussoir_lb::ConfigError) -> Self {
        // Names of the library that the file has other names for.
        let field = match error.field {
            "outliers.base_ejection" => "ejection_ms",
            "retry.budget_share" => "budget_percent",
            "slow_start.window" => "slow_start_ms",
            other => other,
        };
        Self::field(field, format!("`{field}` {}", error.rule))
    }
}

fn check_pool(pool: &Pool) -> Result<(), Reason> {
    match &pool.dns {
        None if pool.endpoints.is_empty() => {
            return Err(Reason::field("endpoints", "`endpoints` must not be empty"));
        }
        Some(_) if !pool.endpoints.is_empty() => {
            return Err(Reason::field("endpoints", "`dns` gives the endpoints: leave these out"));
        }
        Some(dns) => drop(dns.source().map_err(|what| Reason::field("dns", what))?),
        None => {}
    }
    for endpoint in &pool.endpoints {
        let port = endpoint.address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            let what = format!("`{}` must be `HOST:PORT`", endpoint.address);
            return Err(Reason::field("endpoints", what));
        }
    }
    if pool.retry.budget_percent > 100 {
        return Err(Reason::field("budget_percent", "`budget_percent` must be between 0 and 100"));
    }
    if pool.outliers.max_ejected_percent > 100 {
        let what = "`max_ejected_percent` must be between 0 and 100";
        return Err(Reason::field("max_ejected_percent", what));
    }
    let upstream = pool.upstream().map_err(|what| Reason::field("hash_by", what))?;
    upstream.validate()?;
    pool.balancer().validate()?;
    if let Some(health) = &pool.health {
        HttpProbe::new(&health.path).validate()?;
        checker(pool).validate()?;
    }
    if let Some(breaker) = &pool.breaker {
        let tried = voussoir_breaker::Breaker::new("check", &breaker.config());
        tried.map_err(|error| Reason::field("breaker", error))?;
    }
    if pool.dns.is_some() {
        return Ok(());
    }
    let balancer = voussoir_lb::Balancer::boxed(pool.strategy(), voussoir_lb::Config::default())?;
    let endpoints = pool.endpoints.iter().map(super::EndpointEntry::endpoint);
    balancer.update(endpoints, 1).map_err(|error| Reason::field("endpoints", error))
}

/// When the checks of a pool run.
pub(crate) fn checker(pool: &Pool) -> CheckerConfig {
    let mut config = CheckerConfig::default();
    if let Some(health) = &pool.health {
        config.interval = Duration::from_millis(health.interval_ms);
        config.timeout = Duration::from_millis(health.timeout_ms);
    }
    config
}

fn check_route<'a>(
    text: &str,
    config: &Config,
    route: &'a Spanned<RouteEntry>,
    names: &mut HashSet<&'a str>,
) -> Result<(), ConfigError> {
    let entry = route.get_ref();
    let name = entry.name.get_ref();
    if !names.insert(name) {
        let what = format!("a route has the name `{name}` already");
        return Err(ConfigError::at(text, entry.name.span().start, what));
    }
    build_route(text, entry, |pool| config.pools.contains_key(pool).then_some(()))?;
    if let Some(limit) = &entry.limit {
        let failed = |error: voussoir_limit::ConfigError| {
            ConfigError::at(text, limit.span().start, format!("`limit`: {error}"))
        };
        RouteLimit::new(limit.get_ref()).map_err(failed)?;
    }
    Ok(())
}

fn server(text: &str, server: &Server) -> Result<(), ConfigError> {
    let at = |field: &'static str, what: String| {
        let start = text.find("[server]").unwrap_or(0);
        ConfigError::at(text, find(text, start..start, field).unwrap_or(start), what)
    };
    if server.drain_timeout_ms > 3_600_000 {
        let what = "`drain_timeout_ms` must be at most 3,600,000";
        return Err(at("drain_timeout_ms", what.to_owned()));
    }
    let config = http(server).map_err(|what| at("trusted_proxies", what))?;
    let failed = |error: voussoir_lb::ConfigError| at(error.field, format!("`server`: {error}"));
    config.validate().map_err(failed)
}

/// The configuration of the proxy.
pub(crate) fn http(server: &Server) -> Result<HttpConfig, String> {
    let mut config = HttpConfig::default();
    config.max_connections = server.max_connections;
    config.max_header_bytes = server.max_header_bytes;
    config.header_timeout = Duration::from_millis(server.header_timeout_ms);
    config.body_timeout = Duration::from_millis(server.body_timeout_ms);
    for range in &server.trusted_proxies {
        let wrong = |_| format!("`{range}` is no address and no range such as `10.0.0.0/8`");
        config.forwarded.trusted.push(range.parse().map_err(wrong)?);
    }
    Ok(config)
}

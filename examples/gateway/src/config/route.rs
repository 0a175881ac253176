//! Routes: which requests go to which pool.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::header::HeaderName;
use serde::Deserialize;
use toml::Spanned;
use voussoir_lb::l7::{
    CookieMatch, Glob, HeaderMatch, HeaderRule, HostMatch, PathMatch, Route, SplitBy,
};
use voussoir_limit::Quota;

use super::ConfigError;

/// Conditions that must all hold, and where requests go then.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteEntry {
    /// For the access log and the metrics. Unique.
    pub name: Spanned<String>,
    /// `example.com`, or `*.example.com`; one must match.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// A whole path, or a pattern such as `/api/*`.
    pub path: Option<Spanned<String>>,
    /// A path and all below it.
    pub prefix: Option<Spanned<String>>,
    /// Methods, such as `GET`; one must match.
    #[serde(default)]
    pub methods: Vec<Spanned<String>>,
    /// Headers and the patterns of their values; all must match.
    #[serde(default)]
    pub headers: BTreeMap<Spanned<String>, String>,
    /// A language that the client must prefer.
    pub language: Option<String>,
    /// `name`, or `name=value`.
    pub cookie: Option<String>,
    /// Where requests go.
    pub pool: Option<Spanned<String>>,
    /// Where requests go, by weight.
    #[serde(default)]
    pub split: BTreeMap<Spanned<String>, Spanned<u32>>,
    /// Requests with the same value of this cookie go to the same pool of `split`.
    pub split_by_cookie: Option<String>,
    /// Removed from the beginning of the path.
    pub strip_prefix: Option<String>,
    /// The `Host` that backends see; without it the client's.
    pub host_to_backend: Option<Spanned<String>>,
    /// How many requests are admitted.
    pub limit: Option<Spanned<Limit>>,
}

/// How many requests are admitted. The others get 429 with `Retry-After`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Requests in each period, 1 or more.
    pub requests: u64,
    /// The period in ms.
    #[serde(default = "default_per")]
    pub per_ms: u64,
    /// Requests that may come at one moment; without it `requests`.
    pub burst: Option<u64>,
    /// For whom this is counted.
    #[serde(default)]
    pub by: LimitBy,
}

fn default_per() -> u64 {
    1_000
}

/// For whom requests are counted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum LimitBy {
    /// Each client address; of IPv6 each /64.
    #[default]
    Client,
    /// All together.
    Route,
    /// Each value of a header; requests without it together.
    Header(HeaderName),
}

impl TryFrom<String> for LimitBy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let header = |name: &str| name.parse().ok().map(Self::Header);
        let found = match (text.as_str(), text.split_once(':')) {
            ("client", _) => Some(Self::Client),
            ("route", _) => Some(Self::Route),
            (_, Some(("header", name))) => header(name),
            _ => None,
        };
        found.ok_or_else(|| format!("`by` is `{text}`; allowed: `client`, `route`, `header:NAME`"))
    }
}

impl Limit {
    /// The quota of each key.
    pub fn quota(&self) -> Quota {
        let per = Duration::from_millis(self.per_ms);
        Quota::gcra(self.requests, per).burst(self.burst.unwrap_or(self.requests))
    }
}

/// A pool that a route names, and its weight.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// The name of the pool.
    pub pool: &'a Spanned<String>,
    /// 1 or more.
    pub weight: u32,
}

impl RouteEntry {
    /// Where requests go.
    ///
    /// # Errors
    /// Neither `pool` nor `split` is given, or both are, or a weight is 0.
    pub fn targets(&self, text: &str) -> Result<Vec<Target<'_>>, ConfigError> {
        let start = self.name.span().start;
        let name = self.name.get_ref();
        if self.pool.is_some() != self.split.is_empty() {
            let what = format!("route `{name}` must have either `pool` or `split`");
            return Err(ConfigError::at(text, start, what));
        }
        let mut targets: Vec<_> = self.pool.iter().map(|pool| Target { pool, weight: 1 }).collect();
        for (pool, weight) in &self.split {
            if *weight.get_ref() == 0 {
                let what = "a weight must be between 1 and 4294967295; remove the pool instead";
                return Err(ConfigError::at(text, weight.span().start, what));
            }
            targets.push(Target { pool, weight: *weight.get_ref() });
        }
        Ok(targets)
    }
}

/// The route that an entry describes, without its gate.
///
/// # Errors
/// The first mistake, with its place in `text`.
pub fn build_route<T>(
    text: &str,
    entry: &RouteEntry,
    target: impl Fn(&str) -> Option<T>,
) -> Result<Route<T>, ConfigError> {
    let at = |offset: usize, what: String| ConfigError::at(text, offset, what);
    let mut targets = Vec::new();
    for Target { pool, weight } in entry.targets(text)? {
        let unknown = || at(pool.span().start, format!("there is no pool `{}`", pool.get_ref()));
        targets.push((target(pool.get_ref()).ok_or_else(unknown)?, weight));
    }
    let mut targets = targets.into_iter();
    let Some((first, weight)) = targets.next() else {
        return Err(at(entry.name.span().start, "a route needs a pool".to_owned()));
    };
    let mut route = Route::new(entry.name.get_ref(), first);
    route.targets[0].1 = weight;
    route.targets.extend(targets);
    route.hosts.extend(entry.hosts.iter().map(|host| HostMatch::parse(host)));
    route.path = path(text, entry)?;
    conditions(text, entry, &mut route)?;
    if let Some(cookie) = &entry.split_by_cookie {
        route.split_by = SplitBy::Cookie(cookie.clone());
    }
    if let Some(prefix) = &entry.strip_prefix {
        route.rewrite.path_prefix = Some((prefix.clone(), String::new()));
    }
    if let Some(host) = &entry.host_to_backend {
        let wrong = |_| at(host.span().start, format!("`{}` is no host", host.get_ref()));
        route.rewrite.host = Some(host.get_ref().parse().map_err(wrong)?);
    }
    Ok(route)
}

fn path(text: &str, entry: &RouteEntry) -> Result<Option<PathMatch>, ConfigError> {
    let (found, is_prefix) = match (&entry.path, &entry.prefix) {
        (Some(_), Some(prefix)) => {
            let what = "a route has either `path` or `prefix`";
            return Err(ConfigError::at(text, prefix.span().start, what));
        }
        (Some(path), None) => (path, false),
        (None, Some(prefix)) => (prefix, true),
        (None, None) => return Ok(None),
    };
    let value = found.get_ref();
    if !value.starts_with(['/', '*']) {
        let what = format!("`{value}` must begin with `/`");
        return Err(ConfigError::at(text, found.span().start, what));
    }
    let path = if is_prefix { PathMatch::Prefix(value.clone()) } else { PathMatch::parse(value) };
    Ok(Some(path))
}

fn conditions<T>(text: &str, entry: &RouteEntry, route: &mut Route<T>) -> Result<(), ConfigError> {
    let at = |offset: usize, what: String| ConfigError::at(text, offset, what);
    for method in &entry.methods {
        let unknown = |_| at(method.span().start, format!("`{}` is no method", method.get_ref()));
        route.methods.push(method.get_ref().parse().map_err(unknown)?);
    }
    for (name, pattern) in &entry.headers {
        let wrong = |_| at(name.span().start, format!("`{}` is no header name", name.get_ref()));
        let name: HeaderName = name.get_ref().parse().map_err(wrong)?;
        route.headers.push(HeaderMatch::new(name, HeaderRule::Pattern(Glob::new(pattern))));
    }
    if let Some(language) = &entry.language {
        let rule = HeaderRule::Language(language.clone());
        route.headers.push(HeaderMatch::new(hyper::header::ACCEPT_LANGUAGE, rule));
    }
    if let Some(cookie) = &entry.cookie {
        let (name, value) = match cookie.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&**cookie, None),
        };
        route.cookies.push(CookieMatch::new(name, value));
    }
    Ok(())
}

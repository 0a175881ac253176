//! Conditions on a request: host, path, header, cookie.

use hyper::header::{HeaderMap, HeaderName};

/// A pattern in which `*` stands for any run of characters, also an empty one and also `/`.
/// Case-sensitive. All other characters stand for themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    parts: Vec<Box<str>>,
}

impl Glob {
    /// Compiles a pattern.
    ///
    /// # Example
    /// ```
    /// use voussoir_lb::l7::Glob;
    /// assert!(Glob::new("*Mobile*").matches("Mozilla/5.0 Mobile Safari"));
    /// assert!(!Glob::new("/api/*").matches("/apis"));
    /// ```
    pub fn new(pattern: &str) -> Self {
        Self { parts: pattern.split('*').map(Into::into).collect() }
    }

    /// Whether the whole of `text` matches. Each part is searched once, left to right.
    pub fn matches(&self, text: &str) -> bool {
        let [first, rest @ ..] = &*self.parts else { return false };
        let [middle @ .., last] = rest else { return text == &**first };
        let Some(mut text) = text.strip_prefix(&**first) else { return false };
        for part in middle {
            let Some(at) = text.find(&**part) else { return false };
            text = &text[at + part.len()..];
        }
        text.ends_with(&**last)
    }
}

/// Condition on the host: of the request target, else of the `Host` header, without its port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostMatch {
    /// The whole name, letters in lower case.
    Exact(String),
    /// Any name below this one: `.example.com` matches `a.example.com`, not `example.com`.
    Below(String),
}

impl HostMatch {
    /// `*.example.com` is every name below `example.com`; anything else is a whole name.
    pub fn parse(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') => Self::Below(suffix.to_owned()),
            _ => Self::Exact(text),
        }
    }

    /// Whether `host`, which may have a port and a final dot, matches.
    pub fn matches(&self, host: &str) -> bool {
        let host = host_name(host);
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
            Self::Below(suffix) => {
                let Some(at) = host.len().checked_sub(suffix.len()) else { return false };
                at > 0 && host.is_char_boundary(at) && host[at..].eq_ignore_ascii_case(suffix)
            }
        }
    }
}

/// `host` without its port and its final dot; an IPv6 address keeps its brackets.
fn host_name(host: &str) -> &str {
    let name = match host.rfind(':') {
        Some(at) if !host[at..].contains(']') => &host[..at],
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// Condition on the path, without the query.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// The path itself or what is below it: `/api` matches `/api` and `/api/x`, not `/apis`.
    Prefix(String),
    /// A pattern, such as `/api/*`.
    Pattern(Glob),
}

impl PathMatch {
    /// A text with `*` is a pattern; anything else is a whole path.
    pub fn parse(text: &str) -> Self {
        if text.contains('*') {
            Self::Pattern(Glob::new(text))
        } else {
            Self::Exact(text.to_owned())
        }
    }

    /// Whether `path` matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(whole) => path == whole,
            Self::Pattern(glob) => glob.matches(path),
            Self::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                let rest = path.strip_prefix(prefix);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

/// Condition on a header. With several lines of that name, one of them must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The name of the header.
    pub name: HeaderName,
    /// What must hold for its value.
    pub rule: HeaderRule,
}

/// What must hold for the value of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderRule {
    /// The header is present.
    Present,
    /// The header is absent.
    Absent,
    /// The value is this text.
    Exact(String),
    /// The value contains this text.
    Contains(String),
    /// The value matches this pattern.
    Pattern(Glob),
    /// A language that the client prefers to all others is this one or a variety of it: `ko`
    /// matches `ko-KR,ko;q=0.9,en;q=0.8`, not `en,ko;q=0.5` (RFC 9110 §12.5.4, RFC 4647 §3.3.1).
    Language(String),
}

impl HeaderMatch {
    /// A condition on the header `name`.
    pub fn new(name: HeaderName, rule: HeaderRule) -> Self {
        Self { name, rule }
    }

    /// Whether `headers` fulfil the condition. A value that is not visible ASCII matches nothing.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        match &self.rule {
            HeaderRule::Present => headers.contains_key(&self.name),
            HeaderRule::Absent => !headers.contains_key(&self.name),
            rule => {
                let mut values = headers.get_all(&self.name).iter();
                values.any(|value| value.to_str().is_ok_and(|value| rule.accepts(value)))
            }
        }
    }
}

impl HeaderRule {
    fn accepts(&self, value: &str) -> bool {
        match self {
            Self::Present => true,
            Self::Absent => false,
            Self::Exact(whole) => value == whole,
            Self::Contains(part) => value.contains(&**part),
            Self::Pattern(glob) => glob.matches(value),
            Self::Language(language) => prefers_language(value, language),
        }
    }
}

fn prefers_language(value: &str, language: &str) -> bool {
    let ranges = value.split(',').filter_map(|range| {
        let (tag, quality) = range.split_once(';').unwrap_or((range, "q=1"));
        let quality = quality.trim().strip_prefix("q=")?.trim().parse::<f32>().ok()?;
        (quality > 0.0 && quality <= 1.0).then_some((tag.trim(), quality))
    });
    let best = ranges.clone().map(|(_, quality)| quality).fold(0.0, f32::max);
    let mut preferred = ranges.filter(|(_, quality)| *quality >= best);
    preferred.any(|(tag, _)| {
        let head = tag.get(..language.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(language))
            && matches!(tag.as_bytes().get(language.len()), None | Some(b'-'))
    })
}

/// Condition on a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CookieMatch {
    /// The name of the cookie.
    pub name: String,
    /// Its value; `None` is any.
    pub value: Option<String>,
}

impl CookieMatch {
    /// A condition on the cookie `name`.
    pub fn new(name: impl Into<String>, value: Option<String>) -> Self {
        Self { name: name.into(), value }
    }

    /// Whether a cookie of `headers` fulfils the condition.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        cookies(headers).any(|(name, value)| {
            name == self.name && self.value.as_ref().is_none_or(|wanted| wanted == value)
        })
    }
}

/// Names and values of all cookies. HTTP/2 may split them over several headers.
pub(super) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(hyper::header::COOKIE).iter();
    let pairs = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(';'));
    pairs.filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        Some((name, value.trim_matches('"')))
    })
}

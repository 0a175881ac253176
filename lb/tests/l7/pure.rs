//! Router, header changes and validation, without a socket.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request};
use proptest::prelude::*;
use voussoir_lb::l7::{
    CookieMatch, ForwardedConfig, Glob, HeaderMatch, HeaderRule, HostMatch, PathMatch,
    RequestError, RequestFacts, Rewrite, Route, Router, SplitBy, check_request, remove_hop_by_hop,
};

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
    };
    lines.iter().map(line).collect()
}

fn header(name: &'static str, rule: HeaderRule) -> HeaderMatch {
    HeaderMatch::new(HeaderName::from_static(name), rule)
}

fn path(name: &'static str, pattern: &str) -> Route<&'static str> {
    Route::new(name, name).with_path(PathMatch::parse(pattern))
}

#[test]
fn the_routes_of_the_examples_work_as_they_are_written() {
    let mobile = HeaderRule::Pattern(Glob::new("*Mobile*"));
    let routes = vec![
        path("api", "/api/*"),
        path("images", "/images/*"),
        path("cdn", "/static/*"),
        Route::new("mobile", "mobile").with_header(header("user-agent", mobile)),
        Route::new("korean", "korean")
            .with_header(header("accept-language", HeaderRule::Language("ko".into()))),
        Route::new("rest", "rest"),
    ];
    let router = Router::new(routes).unwrap();
    let to = |path: &str, lines: &[(&str, &str)]| {
        let headers = headers(lines);
        *router.route(&RequestFacts::new("h", path, &Method::GET, &headers), 0).unwrap().1
    };
    assert_eq!(to("/api/users", &[]), "api");
    assert_eq!(to("/images/a.png", &[]), "images");
    assert_eq!(to("/static/css/a.css", &[]), "cdn");
    assert_eq!(to("/apis", &[]), "rest");
    let phone = ("user-agent", "Mozilla/5.0 (iPhone) Mobile/15E148 Safari");
    assert_eq!(to("/", &[phone]), "mobile");
    assert_eq!(to("/", &[("user-agent", "curl/8")]), "rest");
    assert_eq!(to("/", &[("accept-language", "ko-KR,ko;q=0.9,en;q=0.8")]), "korean");
    assert_eq!(to("/", &[("accept-language", "en-US,en;q=0.9,ko;q=0.8")]), "rest");
    assert_eq!(to("/", &[("accept-language", "kok")]), "rest");
}

#[test]
fn hosts_methods_cookies_and_prefixes_are_matched() {
    let mut route = Route::new("r", 0)
        .with_host(HostMatch::parse("Example.com"))
        .with_host(HostMatch::parse("*.example.org"))
        .with_path(PathMatch::Prefix("/a/".into()));
    route.methods = vec![Method::GET];
    route.cookies = vec![CookieMatch::new("beta", Some("1".into()))];
    let router = Router::new(vec![route]).unwrap();
    let beta = headers(&[("cookie", "x=2"), ("cookie", "y; beta=1")]);
    let matches = |host, path, method: Method, headers: &HeaderMap| {
        router.route(&RequestFacts::new(host, path, &method, headers), 0).is_some()
    };
    assert!(matches("EXAMPLE.com:8080", "/a", Method::GET, &beta));
    assert!(matches("b.example.org.", "/a/b", Method::GET, &beta));
    assert!(!matches("example.org", "/a/b", Method::GET, &beta));
    assert!(!matches("example.com.evil", "/a/b", Method::GET, &beta));
    assert!(!matches("example.com", "/ab", Method::GET, &beta));
    assert!(!matches("example.com", "/a", Method::POST, &beta));
    assert!(!matches("example.com", "/a", Method::GET, &headers(&[("cookie", "beta=2")])));
    assert!(HostMatch::parse("[::1]").matches("[::1]:80"));
}

#[test]
fn a_canary_gets_its_share_and_keeps_its_clients() {
    let mut route = Route::new("split", "stable").with_target("canary", 1);
    route.targets[0].1 = 19;
    let by_request = Router::new(vec![route.clone()]).unwrap();
    let none = HeaderMap::new();
    let facts = RequestFacts::new("h", "/", &Method::GET, &none);
    let step = u64::MAX / 2_000;
    let draws = (0..2_000).map(|at| at * step + step / 2);
    let targets = draws.map(|draw| *by_request.route(&facts, draw).unwrap().1);
    assert_eq!(targets.filter(|target| *target == "canary").count(), 100);
    route.split_by = SplitBy::Cookie("id".into());
    let by_cookie = Router::new(vec![route]).unwrap();
    let mut canary = 0;
    for id in 0..2_000 {
        let headers = headers(&[("cookie", &format!("id={id}"))]);
        let facts = RequestFacts::new("h", "/", &Method::GET, &headers);
        let to = by_cookie.route(&facts, 0).unwrap().1;
        assert_eq!(by_cookie.route(&facts, u64::MAX).unwrap().1, to, "a client stays");
        canary += u32::from(*to == "canary");
    }
    assert!((60..=140).contains(&canary), "{canary} of 2000 at a share of 100");
}

#[test]
fn weights_of_zero_and_routes_without_targets_are_rejected() {
    let mut route = Route::new("r", ());
    route.targets[0].1 = 0;
    assert_eq!(Router::new(vec![route.clone()]).unwrap_err().field, "targets");
    route.targets.clear();
    assert_eq!(Router::new(vec![route.clone()]).unwrap_err().field, "targets");
    route.targets = vec![((), u32::MAX), ((), 1)];
    assert!(Router::new(vec![route]).is_err());
}

#[test]
fn headers_that_connection_lists_are_dropped_with_the_known_ones() {
    let mut map = headers(&[
        ("connection", "close, X-Secret"),
        ("connection", "x-other"),
        ("x-secret", "1"),
        ("x-other", "1"),
        ("x-end", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
        ("upgrade", "h2c"),
        ("transfer-encoding", "chunked"),
    ]);
    remove_hop_by_hop(&mut map).unwrap();
    assert_eq!(map, headers(&[("x-end", "1")]));
    for listed in ["host", "Content-Length", "transfer-encoding", "authorization", "cookie"] {
        let mut map = headers(&[("connection", listed)]);
        assert_eq!(remove_hop_by_hop(&mut map), Err(RequestError::Connection), "{listed}");
    }
}

#[test]
fn the_client_is_the_last_hop_that_no_trusted_proxy_named() {
    let mut config = ForwardedConfig::default();
    let peer = "10.0.0.9".parse().unwrap();
    let lines =
        headers(&[("x-forwarded-for", "6.6.6.6, 1.2.3.4"), ("x-forwarded-for", "10.1.1.1")]);
    assert_eq!(config.client(peer, &lines), peer, "nobody is trusted by default");
    config.trusted = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!(config.client(peer, &lines).to_string(), "1.2.3.4");
    let lines = headers(&[("x-forwarded-for", "1.2.3.4, unknown")]);
    assert_eq!(config.client(peer, &lines), peer);
}

#[test]
fn a_path_prefix_is_replaced() {
    let mut rewrite = Rewrite::default();
    assert_eq!(rewrite.path("/v1/a"), None);
    rewrite.path_prefix = Some(("/v1".into(), String::new()));
    assert_eq!(rewrite.path("/v1/a?b=1").unwrap(), "/a?b=1");
    assert_eq!(rewrite.path("/v1").unwrap(), "/");
    rewrite.path_prefix = Some(("/v1".into(), "/new/".into()));
    assert_eq!(rewrite.path("/v1/a").unwrap(), "/new/a");
}

fn parts(target: &str, lines: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(target).body(()).unwrap();
    *request.headers_mut() = headers(lines);
    request.into_parts().0
}

#[test]
fn each_rule_of_the_validation_rejects_what_breaks_it() {
    use RequestError::*;
    let check =
        |target: &str, lines: &[(&str, &str)]| check_request(&parts(target, lines), 1 << 10);
    let host = ("host", "a");
    assert_eq!(check("/", &[host]).unwrap().unwrap(), "a");
    assert_eq!(check("http://b:8/", &[("host", "B:8")]).unwrap().unwrap(), "b:8");
    let coding = ("transfer-encoding", "chunked");
    let length = ("content-length", "5");
    assert_eq!(check("/", &[host, coding, length]), Err(Framing));
    assert_eq!(check("/", &[host, coding, coding]), Err(TransferCoding));
    assert_eq!(check("/", &[host, ("transfer-encoding", "gzip, chunked")]), Err(TransferCoding));
    for wrong in ["+5", "5,5", "0x5", "", "99999999999999999999"] {
        assert_eq!(check("/", &[host, ("content-length", wrong)]), Err(ContentLength), "{wrong}");
    }
    assert_eq!(check("/", &[host, length, length]), Err(ContentLength));
    assert_eq!(check("/", &[]), Err(Host));
    assert_eq!(check("/", &[host, host]), Err(Host));
    for wrong in ["a b", "u@a", "a/b", "a\\b", "a\"b", ""] {
        assert_eq!(check("/", &[("host", wrong)]), Err(Host), "{wrong}");
    }
    assert_eq!(check("http://b/", &[host]), Err(Host));
    for wrong in [
        "/static/../admin",
        "/a/%2e%2E/b",
        "/a/..%2fb",
        "/a/..%5cb",
        "/a/./b",
        "/a/..;x/b",
        "/a%00",
        "/..",
    ] {
        assert_eq!(check(wrong, &[host]), Err(Path), "{wrong}");
    }
    for fine in ["/a..b", "/...", "/a.b/c", "/%", "/%4", "/%e4"] {
        assert!(check(fine, &[host]).is_ok(), "{fine}");
    }
    assert_eq!(check("*", &[host]), Err(Target));
    assert_eq!(check("/", &[host, ("x", &"y".repeat(1 << 10))]), Err(TooLarge));
}

/// A glob by definition: each `*` takes every length.
fn naive(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|at| naive(rest, &text[at..])),
        [first, rest @ ..] => text.first() == Some(first) && naive(rest, &text[1..]),
    }
}

proptest! {
    #[test]
    fn a_glob_matches_what_its_definition_says(
        pattern in "[ab*]{0,8}",
        text in "[ab]{0,10}",
    ) {
        let expected = naive(pattern.as_bytes(), text.as_bytes());
        prop_assert_eq!(Glob::new(&pattern).matches(&text), expected);
    }

    #[test]
    fn no_path_that_resolves_upwards_passes(
        pieces in proptest::collection::vec(
            prop_oneof![
                Just("/"), Just("."), Just(".."), Just("%2e"), Just("%2E"), Just("%2f"),
                Just("a"), Just("%"), Just("%25"), Just(";"), Just("%5c"),
            ],
            0..10,
        ),
    ) {
        let target = format!("/{}", pieces.concat());
        let checked = check_request(&parts(&target, &[("host", "a")]), 1 << 10);
        // An independent reading: decode once, split, look.
        let decoded = target
            .replace("%2e", ".").replace("%2E", ".").replace("%2f", "/").replace("%5c", "/");
        let climbs = decoded.split('/').any(|segment| {
            let name = segment.split(';').next().unwrap();
            name == "." || name == ".."
        });
        prop_assert_eq!(checked == Err(RequestError::Path), climbs, "{}", target);
    }

    #[test]
    fn nothing_that_connection_lists_is_left(
        names in proptest::collection::vec("x-[a-z]{1,4}", 0..6),
        listed in proptest::collection::vec(any::<bool>(), 6),
    ) {
        let mut map = HeaderMap::new();
        for name in &names {
            map.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"));
        }
        let chosen: Vec<_> = names.iter().zip(&listed).filter(|(_, listed)| **listed).collect();
        let list: Vec<_> = chosen.iter().map(|(name, _)| name.to_uppercase()).collect();
        map.insert("connection", list.join(" ,, ").parse().unwrap());
        remove_hop_by_hop(&mut map).unwrap();
        prop_assert!(!map.contains_key("connection"));
        for name in &names {
            let is_listed = chosen.iter().any(|(found, _)| *found == name);
            prop_assert_eq!(map.contains_key(name), !is_listed);
        }
    }
}

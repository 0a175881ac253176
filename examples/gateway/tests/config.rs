//! Mistakes in a configuration file: each is named with its line and with what is allowed.

use gateway::config::parse;

const GOOD: &str = r#"[[listeners]]
address = "127.0.0.1:0"

[[routes]]
name = "all"
path = "/api/*"
pool = "web"
limit = { requests = 10, by = "client" }

[pools.web]
endpoints = ["127.0.0.1:9001", { address = "backend:80", weight = 2 }]
strategy = "peak-ewma"
try_timeout_ms = 1000
health = { path = "/health", interval_ms = 500 }
breaker = { failure_percent = 50 }
"#;

/// Parses `GOOD` with `from` replaced by `to`, which must fail in the line of `to` with all of
/// `words`.
fn fails(from: &str, to: &str, words: &[&str]) {
    assert_eq!(GOOD.matches(from).count(), 1, "{from}");
    let text = GOOD.replace(from, to);
    let error = parse(&text).expect_err(to);
    let at = GOOD.find(from).expect("it is there");
    let last = to.lines().count().saturating_sub(1);
    let first = GOOD[..at].matches('\n').count() + 1;
    assert!((first..=first + last).contains(&error.line), "{to}: {error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word} in: {error}");
    }
}

#[test]
fn a_good_file_is_accepted() {
    let config = parse(GOOD).expect("good");
    assert_eq!((config.listeners.len(), config.routes.len(), config.pools.len()), (1, 1, 1));
    let pool = config.pools["web"].get_ref();
    assert_eq!((pool.endpoints[0].weight, pool.endpoints[1].weight), (1, 2));
}

#[test]
fn the_file_of_the_readme_is_accepted() {
    parse(include_str!("../gateway.toml")).expect("good");
}

#[test]
fn a_mistake_is_named_with_its_line_and_what_is_allowed() {
    fails("path = \"/api/*\"", "pth = \"/api/*\"", &["unknown field `pth`", "`prefix`"]);
    fails("\"peak-ewma\"", "\"peak\"", &["unknown variant `peak`", "`power-of-two`"]);
    fails("weight = 2", "wieght = 2", &["unknown field `wieght`", "`weight`"]);
    fails("weight = 2", "weight = 0", &["weight", "backend:80"]);
    fails("pool = \"web\"", "pool = \"wbe\"", &["there is no pool `wbe`"]);
    fails("pool = \"web\"", "split = { web = 0 }", &["between 1 and"]);
    let route = "name = \"all\"\npath = \"/api/*\"\npool = \"web\"";
    fails(route, "name = \"all\"\nmethods = []", &["`pool` or `split`"]);
    fails(route, "name = \"all\"\npool = \"web\"\nsplit = { web = 1 }", &["`pool` or `split`"]);
    fails("\"/api/*\"", "\"api\"", &["must begin with `/`"]);
    fails("requests = 10", "requests = 0", &["limit", "count"]);
    fails("by = \"client\"", "by = \"clients\"", &["`client`, `route`, `header:NAME`"]);
    fails(
        "try_timeout_ms = 1000",
        "try_timeout_ms = 0",
        &["try_timeout", "between 1 ms and 1 day"],
    );
    fails("try_timeout_ms = 1000", "total_timeout_ms = 5", &["total_timeout", "try_timeout"]);
    fails("try_timeout_ms = 1000", "retry = { max_attempts = 0 }", &["between 1 and 100"]);
    fails("try_timeout_ms = 1000", "retry = { budget_percent = 101 }", &["between 0 and 100"]);
    fails("try_timeout_ms = 1000", "max_in_flight = 0", &["max_in_flight", "between 1 and"]);
    fails("try_timeout_ms = 1000", "hash_by = \"x\"", &["`path`, `header:NAME`, `cookie:NAME`"]);
    fails("interval_ms = 500", "interval_ms = 0", &["interval", "between 1 ms and 1 day"]);
    fails("failure_percent = 50", "failure_percent = 0", &["failure_rate"]);
    fails("\"127.0.0.1:9001\"", "\"127.0.0.1\"", &["HOST:PORT"]);
    fails("\"127.0.0.1:9001\"", "\"backend:80\"", &["backend:80"]);
    fails("\"127.0.0.1:0\"", "\"127.0.0.1\"", &["socket address"]);
    fails("[pools.web]", "[pools.web", &["table"]);
}

#[test]
fn names_and_addresses_are_unique() {
    let twice =
        GOOD.replace("[pools.web]", "[[routes]]\nname = \"all\"\npool = \"web\"\n\n[pools.web]");
    let error = parse(&twice).expect_err("two routes of one name");
    assert_eq!((error.line, error.column), (11, 8), "{error}");
    let address = "[[listeners]]\naddress = \"127.0.0.1:80\"\n";
    let error = parse(&format!("{address}{address}{GOOD}")).expect_err("one address twice");
    assert_eq!(error.line, 3, "{error}");
    assert!(error.what.contains("127.0.0.1:80 already"), "{error}");
}

#[test]
fn what_is_wrong_with_the_server_is_named() {
    let error = parse(&format!("[server]\nmax_connections = 0\n\n{GOOD}")).expect_err("none");
    assert_eq!(error.line, 2, "{error}");
    assert!(error.what.contains("between 1 and 1000000"), "{error}");
    let error = parse(&format!("[server]\ndrain_timeout_ms = 3_600_001\n\n{GOOD}"));
    let error = error.expect_err("more than an hour").to_string();
    assert!(error.contains("line 2, column") && error.contains("at most 3,600,000"), "{error}");
    let text = format!("[server]\ntrusted_proxies = [\"10.0.0.0/99\"]\n\n{GOOD}");
    let error = parse(&text).expect_err("no range");
    assert_eq!(error.line, 2, "{error}");
    assert!(error.what.contains("10.0.0.0/8"), "{error}");
}

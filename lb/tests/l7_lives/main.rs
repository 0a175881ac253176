//! Random lives of the HTTP proxy: backends that answer, reset, stall, close, answer early or say
//! too much; sets that change; clients of HTTP/1.1 and HTTP/2 that come, ask and leave.
//!
//! What must hold: a response is the one of its request, whatever happened on the connection
//! before; a GET fails only if its response broke off after its head; a POST reaches a backend at
//! most once.
//!
//! `VOUSSOIR_L7_LIVES` is the number of lives (default 3), `VOUSSOIR_L7_SEED` the first seed.
//! `VOUSSOIR_L7_REQUESTS` is the number of requests of the test with a set that changes every
//! 100 ms (default 20,000; long form 1,000,000 in a release build).

mod backends;
mod changes;
mod random;
#[path = "../l7/support.rs"]
#[allow(dead_code, reason = "shared with the tests of `l7`, which use all of it")]
mod support;

/// The value of an environment variable, or `default`.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

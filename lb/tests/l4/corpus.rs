//! Short runs over what the fuzzers found: each input of `fuzz/corpus`, and variants of each.

use crate::decoders;
use test_support::corpus;

#[test]
fn any_proxy_header_is_decoded_or_refused() {
    corpus::run("lb_proxy_header", 3000, decoders::proxy_header);
}

#[test]
fn any_client_hello_is_decoded_or_refused() {
    corpus::run("lb_client_hello", 3000, decoders::client_hello);
}

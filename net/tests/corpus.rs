//! Short runs over what the fuzzers found: each input of `fuzz/corpus`, and variants of each.

use test_support::corpus;
use voussoir_net::testing::decoders;

#[test]
fn any_stream_is_cut_into_frames_or_rejected() {
    corpus::run("net_frames", 3000, decoders::frames);
}

#[test]
fn any_handshake_is_decoded_or_rejected() {
    corpus::run("net_handshake", 3000, decoders::handshake);
}

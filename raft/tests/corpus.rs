//! Short runs over what the fuzzers found: each input of `fuzz/corpus`, and variants of each.

use test_support::corpus;
use voussoir_raft::testing::decoders;

#[test]
fn any_message_is_decoded_or_refused() {
    corpus::run("raft_message", 3000, decoders::message);
}

#[test]
fn any_record_is_decoded_or_refused() {
    corpus::run("raft_record", 3000, decoders::record);
}

#[test]
fn any_part_of_a_snapshot_is_decoded_or_refused() {
    corpus::run("raft_snapshot_part", 3000, decoders::snapshot_part);
}

#[test]
fn a_core_outlives_whatever_its_peers_send() {
    corpus::run("raft_peer", 3000, decoders::peer);
}

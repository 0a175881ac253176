//! Short runs over the inputs of the fuzzers: each of `fuzz/corpus`, and variants of each.

mod decoders;

use test_support::corpus;

#[test]
fn any_siblings_are_decoded_or_refused() {
    corpus::run("quorum_siblings", 3000, decoders::siblings);
}

#[test]
fn any_crdt_is_decoded_or_refused() {
    corpus::run("quorum_crdt", 3000, decoders::crdt);
}

#[test]
fn any_question_or_answer_of_a_tree_is_decoded_or_refused() {
    corpus::run("quorum_merkle", 3000, decoders::merkle);
}

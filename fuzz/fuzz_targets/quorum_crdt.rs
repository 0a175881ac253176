//! See the function that it calls.
#![no_main]

#[allow(dead_code, reason = "the other targets use the rest")]
#[path = "../../quorum/tests/corpus/decoders.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::crdt(bytes));

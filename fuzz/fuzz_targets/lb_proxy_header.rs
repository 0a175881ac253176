//! A PROXY header is decoded or refused, whatever arrives.
#![no_main]

#[allow(dead_code, reason = "the other target uses the rest")]
#[path = "../../lb/tests/l4/decoders.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::proxy_header(bytes));

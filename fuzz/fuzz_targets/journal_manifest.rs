//! See the function that it calls.
#![no_main]

use voussoir_journal::testing::decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::manifest_slot(bytes));

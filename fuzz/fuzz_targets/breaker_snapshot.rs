//! A breaker is restored from whatever the JSON says, and works.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(snapshot) = serde_json::from_slice(bytes) {
        voussoir_breaker::testing::use_snapshot(&snapshot);
    }
});

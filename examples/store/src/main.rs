//! A replicated key-value store.
fn main() {}

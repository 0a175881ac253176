//! Criterion benches, and runs side by side with the rivals.

//! The parts as callers see them, and that these tests notice broken ones.

mod breaker;
mod mutants;
mod policies;

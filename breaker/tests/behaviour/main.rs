//! The parts as callers see them, and that these tests notice broken ones.

mod breaker;
mod by_hand;
mod composition;
mod foreign;
mod half_open;
mod healthy;
mod policies;

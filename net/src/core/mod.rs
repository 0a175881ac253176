//! Decisions of a connection, without a socket, a clock or a task.

pub(crate) mod backoff;
pub(crate) mod calls;
pub(crate) mod liveness;
pub(crate) mod outbox;
pub(crate) mod partials;
#[cfg(test)]
mod tests;

//! The same order done synchronously: the customer waits for every service, and for the slowest.

use std::sync::Arc;

use crate::order::Order;
use crate::services::{Failure, Service};

/// Calls each service in turn.
pub(crate) async fn place(services: &[Arc<Service>], order: &Order) -> Result<(), Failure> {
    for service in services {
        service.perform(order).await?;
    }
    Ok(())
}

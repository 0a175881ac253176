//! An order, and the record that it is in the log.

use serde::{Deserialize, Serialize};
use voussoir_queue::Record;

/// What a customer orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Given by the customer's client, which sends an order again under the same id.
    pub(crate) id: u64,
    pub(crate) customer: String,
    pub(crate) article: String,
}

impl Order {
    /// Orders of one customer are worked on in order.
    pub(crate) fn record(&self) -> Result<Record, serde_json::Error> {
        Ok(Record::new(serde_json::to_vec(self)?).key(self.customer.clone()))
    }

    pub(crate) fn read(record: &Record) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(record.value.as_deref().unwrap_or_default())
    }
}

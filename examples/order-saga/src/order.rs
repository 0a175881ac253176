//! What is ordered.

use serde::{Deserialize, Serialize};

const MAX_ID_BYTES: usize = 64;
const MAX_TEXT_BYTES: usize = 200;
const MAX_QUANTITY: u64 = 1_000;
const MAX_CENTS: u64 = 1_000_000_000;

/// The body of `POST /orders`, and the input of the saga.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    pub(crate) customer: String,
    pub(crate) article: String,
    pub(crate) quantity: u64,
    pub(crate) card: String,
    pub(crate) cents: u64,
    pub(crate) address: String,
}

impl Order {
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn check(&self) -> Result<(), String> {
        let texts = [
            ("customer", &self.customer),
            ("article", &self.article),
            ("card", &self.card),
            ("address", &self.address),
        ];
        for (field, text) in texts {
            if !(1..=MAX_TEXT_BYTES).contains(&text.len()) {
                return Err(format!("{field}: must have 1 to {MAX_TEXT_BYTES} bytes"));
            }
        }
        let numbers = [("quantity", self.quantity, MAX_QUANTITY), ("cents", self.cents, MAX_CENTS)];
        for (field, number, most) in numbers {
            if !(1..=most).contains(&number) {
                return Err(format!("{field} {number}: must be from 1 to {most}"));
            }
        }
        Ok(())
    }
}

/// # Errors
/// The rule that it breaks.
pub(crate) fn check_id(id: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if (1..=MAX_ID_BYTES).contains(&id.len()) && id.chars().all(fits) {
        return Ok(());
    }
    Err(format!("the Idempotency-Key must have 1 to {MAX_ID_BYTES} of a-z, A-Z, 0-9, - and _"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_breaks_a_rule_is_told_which() {
        let text = r#"{"customer": "ann", "article": "lamp", "quantity": 1, "card": "c",
                       "cents": 5, "address": "a"}"#;
        let order: Order = serde_json::from_str(text).unwrap();
        assert_eq!(order.check(), Ok(()));
        let none = Order { quantity: 0, ..order.clone() };
        assert_eq!(none.check().unwrap_err(), "quantity 0: must be from 1 to 1000");
        let dear = Order { cents: MAX_CENTS + 1, ..order.clone() };
        assert!(dear.check().unwrap_err().starts_with("cents 1000000001: must"));
        let long = Order { address: "x".repeat(201), ..order };
        assert!(long.check().unwrap_err().starts_with("address: must"));
        for id in ["", "a/b", "a b", &"x".repeat(65)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}

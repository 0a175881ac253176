//! An order: a seat is held, the card is charged, a mail is sent. Without arguments all goes well;
//! with `broke` the card is declined, and the seat is given back.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use voussoir_txn::store::MemoryStore;
use voussoir_txn::{Retry, Saga, Sagas, Step, StepCx, StepError};

#[derive(Clone, Serialize, Deserialize)]
struct Order {
    customer: String,
    cents: u64,
    is_broke: bool,
}

async fn hold_seat(cx: StepCx, order: Order, (): ()) -> Result<u32, StepError> {
    println!("hold a seat for {}       key {}", order.customer, cx.key);
    Ok(17)
}

async fn free_seat(cx: StepCx, _: Order, seat: Option<u32>) -> Result<(), StepError> {
    println!("free the seat {seat:?}       key {}", cx.key);
    Ok(())
}

async fn charge(cx: StepCx, order: Order, seat: u32) -> Result<String, StepError> {
    println!("charge {} for seat {seat}    key {}", order.cents, cx.key);
    if order.is_broke { Err(StepError::domain("the card is declined")) } else { Ok("r-1".into()) }
}

async fn send_mail(cx: StepCx, order: Order, receipt: String) -> Result<(), StepError> {
    println!("mail {receipt} to {}       key {}", order.customer, cx.key);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut order = Saga::<Order>::define("order", 1);
    let seat = order.step(Step::new("seat", (), hold_seat).undo(free_seat));
    let retry = Retry::exponential(Duration::from_millis(50), 5);
    let (mut order, receipt) = order.pivot(Step::new("charge", seat, charge).retry(retry));
    order.then(Step::new("mail", receipt, send_mail));
    let order = order.build()?;

    // `JournalStore` instead keeps them across restarts.
    let sagas = Sagas::builder().register(&order).open(MemoryStore::new()).await?;
    let is_broke = std::env::args().any(|word| word == "broke");
    let input = Order { customer: "ada".into(), cents: 4_200, is_broke };
    let end = sagas.start(&order, "order-1", &input).await?.end().await?;
    println!("{:?}, seat {:?}", end.outcome(), end.output(&seat));
    Ok(())
}

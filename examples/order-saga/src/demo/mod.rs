//! The demonstration: an order that is refused at each step, a compensation that is stuck, kills of
//! the orchestrator under load, and a comparison of the services with what the clients were told.

mod load;
mod processes;

use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::Error;
use crate::order::Order;
use crate::saga::STEPS;
use crate::services::Totals;
use load::Clients;
use processes::{Process, ask, orchestrator, services};

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Kills of the orchestrator under load
    #[arg(long, default_value_t = 10, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) kills: u32,
    /// Seed of what is ordered, and of when the orchestrator is killed
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) seed: u64,
}

/// Runs the demonstration.
///
/// # Errors
/// Something could not be started, or an order ended by half.
pub(crate) async fn run(demo: &Demo) -> Result<(), Error> {
    let folder = tempfile::Builder::new().prefix("order-saga-").tempdir()?;
    let services = services().await?;
    let orchestrator = orchestrator(folder.path(), services.address).await?;
    println!("services: http://{}, each by its own table, in a process apart", services.address);
    println!("orders:   http://{}, sagas in {}\n", orchestrator.address, folder.path().display());
    let mut stage = Stage { folder, services, orchestrator, began: Instant::now() };
    stage.show_failures().await?;
    stage.show_stuck().await?;
    stage.kill_under_load(demo).await?;
    stage.orchestrator.end().await?;
    stage.services.end().await
}

pub(super) fn order() -> Order {
    let text = |text: &str| text.to_owned();
    let (customer, article, card) = (text("ann"), text("lamp"), text("c-1"));
    Order { customer, article, quantity: 2, card, cents: 4_200, address: text("Lane 1") }
}

/// An order that is refused at a step; behind the pivot nothing is refused.
pub(super) fn refused_at(step: &str) -> Order {
    let mut order = order();
    let (field, text) = match step {
        "order" => (&mut order.customer, "blocked"),
        "stock" => (&mut order.article, "sold-out"),
        "payment" => (&mut order.card, "declined"),
        _ => (&mut order.address, "nowhere"),
    };
    text.clone_into(field);
    order
}

/// What the services are asked for such an order.
fn calls_refused_at(step: &str) -> Vec<String> {
    let before: Vec<&str> = STEPS.into_iter().take_while(|one| *one != step).collect();
    let mut calls: Vec<String> = before.iter().map(|one| (*one).to_owned()).collect();
    calls.push(format!("{step} refused"));
    calls.extend(before.iter().rev().map(|one| format!("undo {one}")));
    calls
}

struct Stage {
    folder: tempfile::TempDir,
    services: Process,
    orchestrator: Process,
    began: Instant,
}

impl Stage {
    async fn totals(&self) -> Result<Totals, Error> {
        let (_, totals) = ask(self.services.address, "GET", "/totals", "", &Value::Null).await?;
        Ok(serde_json::from_value(totals)?)
    }

    /// The calls of one order, in the order in which the services had them.
    async fn calls(&self, id: &str) -> Result<Vec<String>, Error> {
        let prefix = format!("{id}: ");
        let all = self.totals().await?.history;
        Ok(all.iter().filter_map(|call| call.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    async fn order(&self, id: &str, order: &Order) -> Result<Value, Error> {
        let body = serde_json::to_value(order)?;
        let (_, answer) = ask(self.orchestrator.address, "POST", "/orders", id, &body).await?;
        Ok(answer)
    }

    /// Orders, and checks its end and the calls.
    async fn expect(
        &self,
        id: &str,
        order: &Order,
        state: &str,
        expected: &[String],
    ) -> Result<(), Error> {
        let answer = self.order(id, order).await?;
        let calls = self.calls(id).await?;
        let because = answer["because"].as_str().unwrap_or_default();
        println!("{id:<19} {state:<10} {}\n{:<31}{because}", calls.join(", "), "");
        if answer["state"] != state || calls != expected {
            return Err(
                format!("{id}: expected {state} by {expected:?}: {answer} {calls:?}").into()
            );
        }
        Ok(())
    }

    async fn show_failures(&self) -> Result<(), Error> {
        println!("order               end        calls, in order");
        let all = STEPS.map(str::to_owned);
        self.expect("all-is-well", &order(), "completed", &all).await?;
        for step in &STEPS[..4] {
            let (id, expected) = (format!("refused-at-{step}"), calls_refused_at(step));
            self.expect(&id, &refused_at(step), "undone", &expected).await?;
        }
        Ok(())
    }

    /// The undo of `stock` is broken until it is mended; then an operator has it tried again.
    async fn show_stuck(&self) -> Result<(), Error> {
        println!("\nthe undo of stock is broken:");
        let (services, orders) = (self.services.address, self.orchestrator.address);
        ask(services, "PUT", "/broken/stock", "", &Value::Null).await?;
        let answer = self.order("stuck-at-stock", &refused_at("shipping")).await?;
        if answer["state"] != "stuck" || answer["steps"][0]["step"] != "stock" {
            return Err(format!("the order is not stuck: {answer}").into());
        }
        let (_, listed) = ask(orders, "GET", "/stuck", "", &Value::Null).await?;
        println!("  GET /stuck                          {listed}");
        if listed.as_array().map(Vec::len) != Some(1) {
            return Err(format!("not one order is stuck: {listed}").into());
        }
        println!("  calls: {}", self.calls("stuck-at-stock").await?.join(", "));
        ask(services, "DELETE", "/broken/stock", "", &Value::Null).await?;
        let how = json!({ "step": "stock", "how": "retry" });
        let path = "/orders/stuck-at-stock/resolve";
        let (status, said) = ask(orders, "POST", path, "", &how).await?;
        println!("  mended; POST {path}  {how}: {status}");
        if status != 204 {
            return Err(format!("it was not resolved: {said}").into());
        }
        self.expect(
            "stuck-at-stock",
            &refused_at("shipping"),
            "undone",
            &calls_refused_at("shipping"),
        )
        .await
    }

    /// Orders by many clients, while the orchestrator is killed and started again.
    async fn kill_under_load(&mut self, demo: &Demo) -> Result<(), Error> {
        println!("\nthe orchestrator is killed (kill -9) under load:");
        let before = self.totals().await?;
        let (sender, receiver) = watch::channel(self.orchestrator.address);
        let mut clients = Clients::start(&receiver, demo.seed);
        let mut random = fastrand::Rng::with_seed(demo.seed);
        let mut found = 0;
        for kill in 1..=demo.kills {
            let pause = std::time::Duration::from_millis(random.u64(50..400));
            tokio::time::sleep(pause).await;
            clients.check()?;
            self.orchestrator.kill().await?;
            let start = Instant::now();
            self.orchestrator = orchestrator(self.folder.path(), self.services.address).await?;
            let open = self.orchestrator.open_orders()?;
            found += open;
            sender.send_replace(self.orchestrator.address);
            println!(
                "  {:>4.1} s  kill {kill}: {open} orders under way, taken up after {} ms; {} ended",
                self.began.elapsed().as_secs_f64(),
                start.elapsed().as_millis(),
                clients.ended(),
            );
        }
        let ledger = clients.finish().await?;
        let totals = self.totals().await?;
        ledger.compare(&before, &totals)?;
        println!("\nledger: {} orders completed, {} undone", ledger.completed, ledger.undone);
        println!(
            "        {} attempts repeated; p50 {:.1} ms, p99 {:.1} ms, kills included",
            ledger.repeats,
            ledger.quantile(50),
            ledger.quantile(99)
        );
        println!(
            "services: {} cents charged, {} pieces reserved, {} shipped",
            totals.charged_cents, totals.reserved, totals.shipped
        );
        println!("kills:  {} of the orchestrator, {found} orders were under way", demo.kills);
        println!("exact: every order is done at all services or at none, as its client was told");
        Ok(())
    }
}

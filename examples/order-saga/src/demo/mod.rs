//! The demonstration of both forms: an order that is refused at each step, a compensation that is
//! stuck, kills of the process under load, and a comparison of the services with what the clients
//! were told. Then the latencies of both, side by side.

mod beside;
mod load;
mod processes;

use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::Error;
use crate::args::Form;
use crate::order::Order;
use crate::saga::STEPS;
use crate::services::Totals;
use load::Clients;
use processes::{Process, ask, orders, services};

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Kills under load, in each form
    #[arg(long, default_value_t = 10, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) kills: u32,
    /// Seed of what is ordered, and of when the process that takes orders is killed
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) seed: u64,
}

/// Runs the demonstration.
///
/// # Errors
/// Something could not be started, or an order ended by half.
pub(crate) async fn run(demo: &Demo) -> Result<(), Error> {
    let services = services().await?;
    let began = Instant::now();
    println!("services: http://{}, each by its own table, in a process apart", services.address);
    let mut kept = (services, began);
    for form in [Form::Orchestrated, Form::Choreographed] {
        let mut stage = Stage::start(form, kept).await?;
        stage.show_failures().await?;
        stage.show_stuck().await?;
        stage.kill_under_load(demo).await?;
        stage.process.end().await?;
        kept = (stage.services, stage.began);
    }
    beside::compare(kept.0.address).await?;
    kept.0.end().await
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
    form: Form,
    folder: tempfile::TempDir,
    services: Process,
    /// Takes the orders.
    process: Process,
    began: Instant,
}

impl Stage {
    async fn start(form: Form, (services, began): (Process, Instant)) -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix("order-saga-").tempdir()?;
        let process = orders(form, folder.path(), services.address).await?;
        let what = match form {
            Form::Orchestrated => "orchestrated: a saga calls the services, step by step",
            Form::Choreographed => "choreographed: each service reacts to events of the others",
        };
        let (address, journal) = (process.address, folder.path().display());
        println!("\n== {what}\norders:   http://{address}, journal in {journal}\n");
        Ok(Self { form, folder, services, process, began })
    }

    /// The id of an order, which no order of the other form has.
    fn id(&self, name: &str) -> String {
        match self.form {
            Form::Orchestrated => name.to_owned(),
            Form::Choreographed => format!("c-{name}"),
        }
    }

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
        let (_, answer) = ask(self.process.address, "POST", "/orders", id, &body).await?;
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
        println!("{id:<21} {state:<10} {}\n{:<33}{because}", calls.join(", "), "");
        if answer["state"] != state || calls != expected {
            return Err(
                format!("{id}: expected {state} by {expected:?}: {answer} {calls:?}").into()
            );
        }
        Ok(())
    }

    async fn show_failures(&self) -> Result<(), Error> {
        println!("order                 end        calls, in order");
        let all = STEPS.map(str::to_owned);
        self.expect(&self.id("all-is-well"), &order(), "completed", &all).await?;
        for step in &STEPS[..4] {
            let id = self.id(&format!("refused-at-{step}"));
            let expected = calls_refused_at(step);
            self.expect(&id, &refused_at(step), "undone", &expected).await?;
        }
        Ok(())
    }

    /// The undo of `stock` is broken until it is mended; then an operator has it tried again.
    async fn show_stuck(&self) -> Result<(), Error> {
        println!("\nthe undo of stock is broken:");
        let (services, orders) = (self.services.address, self.process.address);
        ask(services, "PUT", "/broken/stock", "", &Value::Null).await?;
        let id = self.id("stuck-at-stock");
        let answer = self.order(&id, &refused_at("shipping")).await?;
        if answer["state"] != "stuck" || answer["steps"][0]["step"] != "stock" {
            return Err(format!("the order is not stuck: {answer}").into());
        }
        let (_, listed) = ask(orders, "GET", "/stuck", "", &Value::Null).await?;
        println!("  GET /stuck                          {listed}");
        if listed.as_array().map(Vec::len) != Some(1) {
            return Err(format!("not one order is stuck: {listed}").into());
        }
        println!("  calls: {}", self.calls(&id).await?.join(", "));
        ask(services, "DELETE", "/broken/stock", "", &Value::Null).await?;
        let how = json!({ "step": "stock", "how": "retry" });
        let path = format!("/orders/{id}/resolve");
        let (status, said) = ask(orders, "POST", &path, "", &how).await?;
        println!("  mended; POST {path}  {how}: {status}");
        if status != 204 {
            return Err(format!("it was not resolved: {said}").into());
        }
        let expected = calls_refused_at("shipping");
        self.expect(&id, &refused_at("shipping"), "undone", &expected).await
    }

    /// Orders by many clients, while the process that takes them is killed and started again.
    async fn kill_under_load(&mut self, demo: &Demo) -> Result<(), Error> {
        println!("\nthe process that takes orders is killed (kill -9) under load:");
        let before = self.totals().await?;
        let (sender, receiver) = watch::channel(self.process.address);
        let mut clients = Clients::start(&receiver, demo.seed, &self.id("client"));
        let mut random = fastrand::Rng::with_seed(demo.seed);
        let mut found = 0;
        for kill in 1..=demo.kills {
            let pause = std::time::Duration::from_millis(random.u64(50..400));
            tokio::time::sleep(pause).await;
            clients.check()?;
            self.process.kill().await?;
            let start = Instant::now();
            self.process = orders(self.form, self.folder.path(), self.services.address).await?;
            let open = self.process.open_orders()?;
            found += open;
            sender.send_replace(self.process.address);
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
        println!("\nledger:   {} orders completed, {} undone", ledger.completed, ledger.undone);
        println!(
            "          {} attempts repeated; p50 {:.1} ms, p99 {:.1} ms, kills included",
            ledger.repeats,
            ledger.quantile(50),
            ledger.quantile(99)
        );
        println!(
            "services: {} cents charged, {} pieces reserved, {} shipped",
            totals.charged_cents, totals.reserved, totals.shipped
        );
        println!("kills:    {}, {found} orders were under way", demo.kills);
        println!(
            "exact:    every order is done at all services or at none, as its client was told"
        );
        Ok(())
    }
}

//! Three backends, one of which is slow and one of which fails at once: who gets the requests?
//!
//! `cargo run --example lb-minimal`

use voussoir_lb::strategy::{PeakEwma, RoundRobin, Strategy};
use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome, OutlierConfig};

const MS: u64 = 1_000_000;

/// Latency in ms and outcome of a request to the endpoint.
fn request(name: &str) -> (u64, Outcome) {
    match name {
        "slow:80" => (200, Outcome::Success),
        "broken:80" => (0, Outcome::Failure),
        _ => (5, Outcome::Success),
    }
}

fn run(strategy: Box<dyn Strategy>) -> Result<(), Box<dyn std::error::Error>> {
    println!("{strategy:?}");
    let mut config = Config::default();
    config.outliers = Some(OutlierConfig::default());
    let balancer = Balancer::boxed(strategy, config)?;
    balancer.update(["good:80", "slow:80", "broken:80"].map(EndpointConfig::new), 0)?;
    // One request every 10 ms of virtual time, in flight for as long as its backend takes.
    let mut running = Vec::new();
    for now in (0..10_000).map(|step| step * 10 * MS) {
        let pick = balancer.pick(&Context::new(), now).ok_or("no endpoint is healthy")?;
        let (latency, outcome) = request(pick.endpoint().name());
        running.push((now + latency * MS, pick, outcome));
        let (done, rest): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|(end, ..)| *end <= now + 10 * MS);
        running = rest;
        for (end, pick, outcome) in done {
            pick.finish(end, outcome);
        }
    }
    for endpoint in balancer.stats(100_000 * MS).endpoints {
        println!(
            "  {:10} {:5} picks, {} failures",
            endpoint.name, endpoint.picks, endpoint.failures
        );
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(Box::new(RoundRobin::default()))?;
    run(Box::new(PeakEwma::default()))
}

//! CPU time and latency of the proxies beside nginx and haproxy, on loopback.
//!
//! Each proxy is a process with one thread. The load speaks HTTP/1.1 through all of them, also
//! through those that only move bytes. Rounds are interleaved, and each begins with another proxy.
//! nginx and haproxy are taken from `VOUSSOIR_NGINX`, `VOUSSOIR_HAPROXY` (`cargo xtask services
//! fetch haproxy`) or the `PATH`; one that is missing is left out. nginx needs
//! `libnginx-mod-stream` for `l4`.

mod load;
mod plain;
mod servers;

use std::error::Error;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::report::{Figure, Report};
use load::Load;
pub use servers::serve;
use servers::{Layer, Server, backend, start};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(1_500);
const LOADS: [Load; 3] = [Load::Request, Load::Connection, Load::Bulk];
/// Idle connections held at once: nginx has 1,024 descriptors here, two for each.
const IDLE: usize = 400;

pub fn l4(report: &mut Report) {
    compare(Layer::L4, report).expect("a proxy and its load run");
}

pub fn l7(report: &mut Report) {
    compare(Layer::L7, report).expect("a proxy and its load run");
}

/// What a round measured.
struct Sample {
    /// CPU time of the proxy for each request, in µs.
    cpu: f64,
    /// Requests a second.
    rate: f64,
}

fn compare(layer: Layer, report: &mut Report) -> Result<()> {
    let backend = backend()?;
    let mut servers = Vec::new();
    for name in ["ours", "plain", "nginx", "haproxy"] {
        servers.extend(start(name, layer, backend)?);
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut slowest = f64::INFINITY;
    for load in LOADS {
        let samples = in_turn(&servers, |server| closed_loop(&runtime, server, load))?;
        let cpu: Vec<Figure> = samples.iter().map(|rounds| figure(rounds, |s| s.cpu)).collect();
        rows(report, &format!("{layer} {load}: CPU for each"), &servers, &cpu, "us");
        if load == Load::Request {
            let rates = samples.iter().map(|rounds| figure(rounds, |s| s.rate).value);
            slowest = rates.fold(slowest, f64::min);
        }
    }
    // The same rate for all of them, which none has difficulty with.
    let rate = slowest / 4.0;
    let samples = in_turn(&servers, |server| {
        let mut latencies = runtime.block_on(load::open_loop(server.address, rate, ROUND))?;
        latencies.sort_unstable();
        Ok(latencies[latencies.len() * 99 / 100] as f64 / 1e3)
    })?;
    let p99: Vec<Figure> = samples.iter().map(|rounds| figure(rounds, |p99| *p99)).collect();
    rows(report, &format!("{layer} p99 at {rate:.0} a second"), &servers, &p99, "us");
    let memory: Vec<Figure> = servers
        .iter()
        .map(|server| idle(&runtime, server).map(Figure::from))
        .collect::<Result<_>>()?;
    rows(report, &format!("{layer} memory of an idle connection"), &servers, &memory, "KiB");
    Ok(())
}

/// Measures every server once in each round.
fn in_turn<T>(
    servers: &[Server],
    mut measure: impl FnMut(&Server) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut samples: Vec<Vec<T>> = servers.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        for at in 0..servers.len() {
            let at = (at + round) % servers.len();
            samples[at].push(measure(&servers[at])?);
        }
    }
    Ok(samples)
}

fn closed_loop(runtime: &Runtime, server: &Server, load: Load) -> Result<Sample> {
    let before = server.cpu()?;
    let began = Instant::now();
    let requests = runtime.block_on(load::closed_loop(server.address, load, ROUND))? as f64;
    let spent = (server.cpu()? - before).as_nanos() as f64 / 1e3;
    Ok(Sample { cpu: spent / requests, rate: requests / began.elapsed().as_secs_f64() })
}

/// The median of the rounds, with its range.
fn figure<T>(rounds: &[T], of: impl Fn(&T) -> f64) -> Figure {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    Figure { value: values[values.len() / 2], range: Some((values[0], values[values.len() - 1])) }
}

/// A row for each of the others, beside ours, which is the first.
fn rows(report: &mut Report, name: &str, servers: &[Server], figures: &[Figure], unit: &str) {
    for (server, theirs) in servers.iter().zip(figures).skip(1) {
        report.beside(name, figures[0], server.name, *theirs, unit);
    }
}

/// Memory that a connection takes after one request, in KiB.
fn idle(runtime: &Runtime, server: &Server) -> Result<f64> {
    let before = server.resident_kib()?;
    let open = runtime.block_on(load::idle(server.address, IDLE))?;
    let grown = server.resident_kib()?.saturating_sub(before);
    drop(open);
    Ok(grown as f64 / IDLE as f64)
}

//! voussoir-lb beside the crates that do parts of its work, in one process and one run.
//!
//! `cargo xtask bench lb [-- PART…]` with the parts `picks`, `l4`, `l7`; all without arguments.

mod measure;
mod ours;
mod picks;
mod proxies;
#[path = "../../report.rs"]
mod report;
mod rivals;

use report::Report;

/// A part of the run: its name, and what adds its rows.
type Part = (&'static str, fn(&mut Report));

fn main() -> std::io::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let [proxy, kind, layer, listen, backend] = &asked[..]
        && proxy == "proxy"
    {
        return proxies::serve(kind, layer, listen, backend).map_err(std::io::Error::other);
    }
    let parts: [Part; 3] = [("picks", picks::picks), ("l4", proxies::l4), ("l7", proxies::l7)];
    let mut report = Report::begin("lb");
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run(&mut report);
        }
    }
    report.end()
}

//! What a strategy is worth: latencies under each, with a slow and a failing backend among ten.
//!
//! `cargo run --release --example lb-compare [FILE.svg]` prints tables and draws them.

mod simulation;

use std::fmt::Write;

use simulation::{Report, STRATEGIES, Scenario, from_1_ms_to_1_s, one_slow_one_failing, run};

fn main() -> std::io::Result<()> {
    let scenarios = [one_slow_one_failing(), from_1_ms_to_1_s()];
    let mut results = Vec::new();
    for scenario in scenarios {
        let reports: Vec<Report> =
            STRATEGIES.into_iter().map(|strategy| run(&scenario, strategy, 1)).collect();
        print(&scenario, &reports);
        results.push((scenario, reports));
    }
    if let Some(path) = std::env::args().nth(1) {
        std::fs::write(path, draw(&results))?;
    }
    Ok(())
}

fn print(scenario: &Scenario, reports: &[Report]) {
    println!("{}\n", scenario.name);
    println!(
        "| strategy | p50 ms | p99 ms | p99.9 ms | failed | slowest, of its fair share | last |"
    );
    println!("|---|---|---|---|---|---|---|");
    let slowest = (0..scenario.backends.len())
        .max_by_key(|&at| scenario.backends[at].slowest)
        .expect("there are backends");
    for report in reports {
        let failed = scenario.requests - report.latencies.len();
        println!(
            "| {} | {:.1} | {:.1} | {:.1} | {:.2} % | {:.2} | {:.2} |",
            report.strategy,
            report.quantile(500),
            report.quantile(990),
            report.quantile(999),
            failed as f64 * 100.0 / scenario.requests as f64,
            report.share(slowest),
            report.share(scenario.backends.len() - 1),
        );
    }
    println!();
}

/// One panel for each scenario: p99 (filled) and p99.9 (hollow) on a logarithmic axis.
fn draw(results: &[(Scenario, Vec<Report>)]) -> String {
    const ROW: usize = 22;
    let x = |ms: f64| 170.0 + ms.max(1.0).log10() * 140.0;
    let height = results.iter().map(|(_, reports)| 70 + ROW * reports.len()).sum::<usize>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"640\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(svg, "{text}");
    };
    let mut top = 0;
    for (scenario, reports) in results {
        line(format_args!("<text x=\"10\" y=\"{}\">{}</text>", top + 20, scenario.name));
        let bottom = top + 40 + ROW * reports.len();
        for ms in [1, 10, 100, 1_000] {
            let at = x(f64::from(ms));
            line(format_args!(
                "<path d=\"M{at:.1} {} V{bottom}\" stroke=\"#ccc\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{ms} ms</text>",
                top + 30,
                bottom + 14
            ));
        }
        for (at, report) in reports.iter().enumerate() {
            let y = top + 44 + ROW * at;
            let (p99, p999) = (x(report.quantile(990)), x(report.quantile(999)));
            line(format_args!(
                "<text x=\"160\" y=\"{}\" text-anchor=\"end\">{}</text>\
                 <path d=\"M{p99:.1} {y} H{p999:.1}\" stroke=\"#06c\"/>\
                 <circle cx=\"{p99:.1}\" cy=\"{y}\" r=\"5\" fill=\"#06c\"/>\
                 <circle cx=\"{p999:.1}\" cy=\"{y}\" r=\"5\" fill=\"white\" stroke=\"#06c\"/>",
                y + 4,
                report.strategy
            ));
        }
        top = bottom + 30;
    }
    svg + "</svg>\n"
}

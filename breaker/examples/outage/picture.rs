//! The runs as small multiples: good answers a second over time.

use std::fmt::Write;

use crate::client::Kind;
use crate::run::{RATE, SECONDS};

const WIDTH: f64 = 280.0;
const HEIGHT: f64 = 90.0;
const COLUMNS: usize = 3;
const GAP: f64 = 34.0;
/// Start, end and label of the server's bad times.
const PHASES: [(usize, usize, &str, &str); 3] =
    [(20, 40, "slow", "#fde9c8"), (40, 70, "dead", "#f6cfcf"), (70, 75, "cold", "#dbe7f5")];

pub(crate) fn draw(runs: &[(Kind, Vec<u32>)]) -> String {
    let rows = runs.len().div_ceil(COLUMNS) as f64;
    let (width, height) = (COLUMNS as f64 * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (at, (kind, good)) in runs.iter().enumerate() {
        let x = GAP + (at % COLUMNS) as f64 * (WIDTH + GAP);
        let y = GAP + (at / COLUMNS) as f64 * (HEIGHT + GAP);
        panel(&mut svg, x, y, *kind, good).expect("a string takes all that is written to it");
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, x: f64, y: f64, kind: Kind, good: &[u32]) -> std::fmt::Result {
    let across = |second: usize| x + WIDTH * second as f64 / SECONDS as f64;
    let up = |rate: f64| y + HEIGHT * (1.0 - rate / (RATE as f64 * 1.3));
    for (from, to, label, colour) in PHASES {
        let (left, right) = (across(from), across(to));
        writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{HEIGHT}\" \
             fill=\"{colour}\"/><text x=\"{left:.1}\" y=\"{:.1}\" fill=\"#888\" \
             font-size=\"8\">{label}</text>",
            right - left,
            y + HEIGHT - 3.0,
        )?;
    }
    let offered = up(RATE as f64);
    writeln!(
        svg,
        "<text x=\"{x}\" y=\"{:.1}\">{}</text><rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" fill=\"none\" stroke=\"#999\"/><path d=\"M{x} {offered:.1} h{WIDTH}\" \
         stroke=\"#bbb\" stroke-dasharray=\"3 3\"/>",
        y - 6.0,
        kind.name(),
    )?;
    svg.push_str("<polyline fill=\"none\" stroke=\"#1b6ca8\" stroke-width=\"1.3\" points=\"");
    for (second, count) in good.iter().enumerate() {
        write!(svg, "{:.1},{:.1} ", across(second), up(f64::from(*count)))?;
    }
    svg.push_str("\"/>\n");
    Ok(())
}

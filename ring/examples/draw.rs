//! Draws a ring, the load of its nodes and what moves when one joins, as SVG.
//!
//! `cargo run -p voussoir-ring --example draw [FILE [NODES [VIRTUAL_NODES]]]`, by default
//! `target/ring.svg`, 8 nodes of 16 virtual nodes.

use std::f64::consts::TAU;
use std::fmt::Write as _;

use voussoir_ring::{HashRing, Node, Placement, Plan, PlanConfig, RingConfig, Topology};

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 640.0;
const CENTRE: (f64, f64) = (310.0, 330.0);
const OLD: (f64, f64) = (150.0, 180.0);
const NEW: (f64, f64) = (188.0, 218.0);
const MOVES: (f64, f64) = (226.0, 256.0);

/// Hues at the golden angle: neighbours in number are far apart in colour.
fn colour(number: usize, of_new: bool) -> String {
    if of_new {
        "#111827".to_owned()
    } else {
        let hue = number as f64 * 137.508 % 360.0;
        format!("hsl({hue:.0}, 62%, {}%)", if number.is_multiple_of(2) { 58 } else { 46 })
    }
}

struct Picture {
    svg: String,
    colours: Vec<(u64, String)>,
}

impl Picture {
    fn colour(&self, id: u64) -> &str {
        self.colours.iter().find(|(node, _)| *node == id).map_or("#999", |(_, colour)| colour)
    }

    fn text(&mut self, x: f64, y: f64, size: u32, anchor: &str, text: &str) {
        let _ = writeln!(
            self.svg,
            r##"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="#1f2937">{text}</text>"##
        );
    }

    /// A piece of a ring between two shares of the circle, clockwise from the top.
    fn arc(
        &mut self,
        (from, to): (f64, f64),
        (inner, outer): (f64, f64),
        colour: &str,
        title: &str,
    ) {
        let at = |share: f64, radius: f64| {
            let angle = share * TAU;
            (CENTRE.0 + radius * angle.sin(), CENTRE.1 - radius * angle.cos())
        };
        let ((a, b), (c, d)) = (at(from, outer), at(to, outer));
        let ((e, f), (g, h)) = (at(to, inner), at(from, inner));
        let large = u8::from(to - from > 0.5);
        let _ = writeln!(
            self.svg,
            r#"<path fill="{colour}" d="M{a:.2},{b:.2} A{outer},{outer} 0 {large} 1 {c:.2},{d:.2} L{e:.2},{f:.2} A{inner},{inner} 0 {large} 0 {g:.2},{h:.2} Z"><title>{title}</title></path>"#
        );
    }

    fn ring(&mut self, placement: &Placement, radii: (f64, f64)) {
        let mut start = 0.0;
        for (range, owners) in placement.ranges() {
            let end = start + range.share();
            let colour = self.colour(owners[0]).to_owned();
            self.arc((start, end), radii, &colour, &format!("node {}", owners[0]));
            start = end;
        }
    }

    fn moves(&mut self, plan: &Plan) {
        for one in plan.moves() {
            let start = one.range.start as f64 / u64::MAX as f64;
            let from = one.from.unwrap_or_default();
            let title = format!("from node {from} to node {}", one.to.unwrap_or_default());
            let colour = self.colour(from).to_owned();
            self.arc((start, start + one.range.share()), MOVES, &colour, &title);
        }
    }

    fn bars(&mut self, before: &[(u64, f64)], after: &[(u64, f64)]) {
        let (left, top, width) = (640.0, 120.0, 300.0);
        let most = before.iter().chain(after).map(|(_, share)| *share).fold(0.0, f64::max);
        let row = (440.0 / after.len() as f64).min(48.0);
        for (nth, (id, share)) in after.iter().enumerate() {
            let y = top + row * nth as f64;
            let old = before.iter().find(|(node, _)| node == id).map_or(0.0, |(_, share)| *share);
            let colour = self.colour(*id).to_owned();
            self.text(left - 10.0, y + row * 0.5, 13, "end", &format!("node {id}"));
            for (part, share, opacity) in [(0.08, old, 0.35), (0.44, *share, 1.0)] {
                let _ = writeln!(
                    self.svg,
                    r#"<rect x="{left}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{colour}" opacity="{opacity}"/>"#,
                    y + row * part,
                    width * share / most,
                    row * 0.34
                );
            }
            let label = format!("{:.1} % → {:.1} %", old * 100.0, share * 100.0);
            self.text(
                left + width * share.max(old) / most + 8.0,
                y + row * 0.55,
                12,
                "start",
                &label,
            );
        }
        let bottom = top + row * after.len() as f64;
        for (nodes, dash) in [(before.len(), "2 4"), (after.len(), "6 3")] {
            let x = left + width / nodes as f64 / most;
            let _ = writeln!(
                self.svg,
                r##"<line x1="{x:.1}" y1="{top}" x2="{x:.1}" y2="{bottom:.1}" stroke="#1f2937" stroke-dasharray="{dash}"/>"##
            );
        }
        let note =
            "pale: before, full: after; lines: an even share before (dotted) and after (dashed)";
        self.text(left - 60.0, bottom + 26.0, 12, "start", note);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().unwrap_or_else(|| "target/ring.svg".to_owned());
    let nodes: u64 = args.next().map_or(Ok(8), |arg| arg.parse())?;
    let mut config = RingConfig::default();
    config.virtual_nodes = args.next().map_or(Ok(16), |arg| arg.parse())?;
    let before = Topology::new(1, (1..=nodes).map(Node::new))?;
    let joining = nodes + 1;
    let after = before.with(Node::new(joining))?;
    let old = HashRing::with_config(&before, &config)?.placement(1);
    let new = HashRing::with_config(&after, &config)?.placement(1);
    let plan = Plan::new(&old, &new, &PlanConfig::default())?;

    let colours = (1..=joining).map(|id| (id, colour(id as usize, id == joining)));
    let mut picture = Picture { svg: String::new(), colours: colours.collect() };
    let _ = writeln!(
        picture.svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>"##
    );
    let title =
        format!("{nodes} nodes of {} virtual nodes; node {joining} joins", config.virtual_nodes);
    picture.text(40.0, 44.0, 20, "start", &title);
    picture.ring(&old, OLD);
    picture.ring(&new, NEW);
    picture.moves(&plan);
    for (dy, line) in
        [(-24.0, "inner: before"), (0.0, "middle: after"), (24.0, "outer: what moves,")]
    {
        picture.text(CENTRE.0, CENTRE.1 + dy, 14, "middle", line);
    }
    picture.text(CENTRE.0, CENTRE.1 + 44.0, 14, "middle", "coloured by where it was");
    let moved = format!(
        "{:.1} % of the keys move in {} ranges; an even share is {:.1} %",
        plan.moved() * 100.0,
        plan.changes().len(),
        100.0 / joining as f64
    );
    picture.text(CENTRE.0, HEIGHT - 24.0, 14, "middle", &moved);
    picture.text(640.0, 100.0, 15, "start", "keys of each node");
    picture.bars(&old.shares(), &new.shares());
    picture.svg.push_str("</svg>\n");
    if let Some(folder) = std::path::Path::new(&file).parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&file, picture.svg)?;
    println!("{file}: {moved}");
    Ok(())
}

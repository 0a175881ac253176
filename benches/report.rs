//! The rows of a run beside rivals: a table while it runs, and the same rows as JSON lines in
//! `target/bench/CRATE.jsonl` at its end. Each workspace of rivals includes this file as a module.

use std::fs;
use std::io;
use std::path::Path;

/// What was measured in the rounds of one subject.
#[derive(Clone, Copy)]
pub struct Figure {
    /// The figure that is compared: the median of the rounds, or the best of them.
    pub value: f64,
    /// The lowest and the highest round, where they are kept.
    pub range: Option<(f64, f64)>,
}

impl From<Vec<f64>> for Figure {
    /// The median of the rounds, of which there is at least one, with the lowest and the highest.
    fn from(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        let range = Some((rounds[0], rounds[rounds.len() - 1]));
        Self { value: rounds[rounds.len() / 2], range }
    }
}

impl From<f64> for Figure {
    fn from(value: f64) -> Self {
        Self { value, range: None }
    }
}

impl Figure {
    fn shown(self) -> String {
        let Self { value, range } = self;
        range.map_or_else(
            || format!("{value:.2}"),
            |(low, high)| format!("{value:.1} [{low:.1}-{high:.1}]"),
        )
    }

    fn json(self) -> String {
        let Self { value, range } = self;
        range.map_or_else(
            || format!("{value:.3}"),
            |(low, high)| format!(r#"{{"value":{value:.3},"min":{low:.3},"max":{high:.3}}}"#),
        )
    }
}

pub struct Report {
    name: &'static str,
    lines: Vec<String>,
}

impl Report {
    /// Prints the head of the table. `name` is the crate, and names the file of JSON lines.
    pub fn begin(name: &'static str) -> Self {
        println!("{:<46} {:>24} {:>24} {:>7}  unit  rival", "name", "ours", "rival", "ratio");
        Self { name, lines: Vec::new() }
    }

    /// A row without a rival: a floor, or what no rival does.
    pub fn alone(&mut self, name: &str, ours: impl Into<Figure>, unit: &str) {
        let ours = ours.into();
        println!("{name:<46} {:>24} {:>24} {:>7}  {unit:<5}", ours.shown(), "-", "-");
        let ours = ours.json();
        self.lines.push(format!(r#"{{"name":"{name}","unit":"{unit}","ours":{ours}}}"#));
    }

    /// A row beside a rival. The ratio is the rival's value divided by ours.
    pub fn beside(
        &mut self,
        name: &str,
        ours: impl Into<Figure>,
        rival: &str,
        theirs: impl Into<Figure>,
        unit: &str,
    ) {
        let (ours, theirs) = (ours.into(), theirs.into());
        let ratio = theirs.value / ours.value;
        let (own, other) = (ours.shown(), theirs.shown());
        println!("{name:<46} {own:>24} {other:>24} {ratio:>7.2}  {unit:<5} {rival}");
        let (ours, theirs) = (ours.json(), theirs.json());
        self.lines.push(format!(
            r#"{{"name":"{name}","unit":"{unit}","ours":{ours},"rival":"{rival}","theirs":{theirs},"ratio":{ratio:.3}}}"#
        ));
    }

    /// Writes the JSON lines below the root of the repository and says where.
    pub fn end(self) -> io::Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{}.jsonl", self.name));
        fs::write(&file, self.lines.join("\n") + "\n")?;
        println!("{} rows as JSON lines in target/bench/{}.jsonl", self.lines.len(), self.name);
        Ok(())
    }
}

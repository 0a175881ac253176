//! Rows of the table, printed as they come; the JSON lines follow at the end.

#[derive(Default)]
pub struct Report {
    lines: Vec<String>,
}

impl Report {
    pub fn head(&self) {
        println!("{:<42} {:>10} {:>10} {:>7}  unit  rival", "name", "ours", "rival", "ratio");
    }

    pub fn alone(&mut self, name: impl Into<String>, ours: f64, unit: &'static str) {
        let name = name.into();
        println!("{name:<42} {ours:>10.2} {:>10} {:>7}  {unit:<5}", "-", "-");
        self.lines.push(format!(r#"{{"name":"{name}","unit":"{unit}","ours":{ours:.3}}}"#));
    }

    pub fn beside(&mut self, name: &str, ours: f64, rival: &str, theirs: f64, unit: &'static str) {
        let ratio = theirs / ours;
        println!("{name:<42} {ours:>10.2} {theirs:>10.2} {ratio:>7.2}  {unit:<5} {rival}");
        self.lines.push(format!(
            r#"{{"name":"{name}","unit":"{unit}","ours":{ours:.3},"rival":"{rival}","theirs":{theirs:.3},"ratio":{ratio:.3}}}"#
        ));
    }

    pub fn print(&self) {
        for line in &self.lines {
            println!("{line}");
        }
    }
}

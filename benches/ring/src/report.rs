//! Rows of the table.

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

struct Row {
    name: String,
    ours: f64,
    rival: Option<(String, f64)>,
    unit: &'static str,
}

impl Report {
    pub fn alone(&mut self, name: impl Into<String>, ours: f64, unit: &'static str) {
        self.rows.push(Row { name: name.into(), ours, rival: None, unit });
    }

    pub fn beside(&mut self, name: &str, ours: f64, rival: &str, theirs: f64, unit: &'static str) {
        let rival = Some((rival.to_owned(), theirs));
        self.rows.push(Row { name: name.to_owned(), ours, rival, unit });
    }

    pub fn print(&self) {
        println!(
            "{:<40} {:>10} {:>10} {:>7}  {:<5} rival",
            "name", "ours", "rival", "ratio", "unit"
        );
        for row in &self.rows {
            let (theirs, ratio, rival) = row.rival.as_ref().map_or_else(
                || ("-".to_owned(), "-".to_owned(), ""),
                |(name, theirs)| {
                    (format!("{theirs:.2}"), format!("{:.2}", theirs / row.ours), name.as_str())
                },
            );
            println!(
                "{:<40} {:>10.2} {theirs:>10} {ratio:>7}  {:<5} {rival}",
                row.name, row.ours, row.unit
            );
        }
        for row in &self.rows {
            let rival = row.rival.as_ref().map_or_else(String::new, |(name, theirs)| {
                format!(
                    r#","rival":"{name}","theirs":{theirs:.3},"ratio":{:.3}"#,
                    theirs / row.ours
                )
            });
            println!(
                r#"{{"name":"{}","unit":"{}","ours":{:.3}{rival}}}"#,
                row.name, row.unit, row.ours
            );
        }
    }
}

//! Each ratio beside its target.

/// On which side of its target a figure should be.
#[derive(Clone, Copy)]
pub enum Side {
    AtMost,
    AtLeast,
}

/// What was measured against a target.
#[derive(Default)]
pub struct Bars(Vec<(String, f64, Side, f64)>);

impl Bars {
    /// Adds a line. A ratio is that of ours to the rival's, round by round, and then the median.
    pub fn add(&mut self, name: &str, figure: f64, side: Side, target: f64) {
        self.0.push((name.to_owned(), figure, side, target));
    }

    /// Adds the median of ours divided by theirs, round by round.
    pub fn add_ratio(&mut self, name: &str, ours: &[f64], theirs: &[f64], side: Side, target: f64) {
        let rounds = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
        self.add(name, crate::median(rounds.collect()), side, target);
    }

    pub fn print(&self) {
        println!("\n{:<62} {:>8}   target", "target", "figure");
        for (name, figure, side, target) in &self.0 {
            let (sign, is_met) = match side {
                Side::AtMost => ("<=", figure <= target),
                Side::AtLeast => (">=", figure >= target),
            };
            let said = if is_met { "met" } else { "MISSED" };
            println!("{name:<62} {figure:>8.3}   {sign} {target:<6} {said}");
        }
    }
}

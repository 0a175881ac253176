//! The stampede as a picture: how many readers have their answer after which time, and how many
//! loads that took.

use std::fmt::Write;
use std::time::Duration;

use super::stampede::Run;

const LEFT: f64 = 70.0;
const TOP: f64 = 50.0;
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 240.0;
/// Colour and dashes of each run: told apart without colours too.
const STROKES: [(&str, &str); 2] = [("#c0392b", "6 3"), ("#1b6ca8", "none")];

/// One curve for each run, over a logarithmic axis of time.
pub(super) fn draw(runs: &[Run; 2]) -> String {
    let height = TOP + HEIGHT + 90.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 680 {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"680\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"14\">{} readers of one product that is not in \
         memory</text>\n",
        runs[0].waits.len()
    );
    let last = runs.iter().map(|run| run.quantile(1.0)).max().unwrap_or_default();
    let decades = axis_decades(last);
    lines(&mut svg, decades, runs).expect("a string takes all that is written to it");
    svg + "</svg>\n"
}

/// Decades of milliseconds, from 1 ms on, that contain `last`.
fn axis_decades(last: Duration) -> u32 {
    (1..9).find(|decades| last.as_millis() <= 10_u128.pow(*decades)).unwrap_or(9)
}

fn lines(svg: &mut String, decades: u32, runs: &[Run; 2]) -> std::fmt::Result {
    let x = |wait: Duration| {
        let millis = (wait.as_secs_f64() * 1e3).max(1.0);
        LEFT + WIDTH * millis.log10() / f64::from(decades)
    };
    let y = |share: f64| TOP + HEIGHT * (1.0 - share);
    let bottom = y(0.0);
    for decade in 0..=decades {
        let wait = Duration::from_millis(10_u64.pow(decade));
        let label = if decade < 3 { format!("{wait:?}") } else { format!("{} s", wait.as_secs()) };
        let at = x(wait);
        writeln!(
            svg,
            "<path d=\"M{at:.1} {TOP} V{bottom}\" stroke=\"#ccc\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            bottom + 16.0
        )?;
    }
    for percent in [0, 50, 100] {
        let at = y(f64::from(percent) / 100.0);
        writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1} h{WIDTH}\" stroke=\"#ccc\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>",
            LEFT - 6.0,
            at + 4.0
        )?;
    }
    for ((at, run), (colour, dashes)) in runs.iter().enumerate().zip(STROKES) {
        write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-dasharray=\"{dashes}\" points=\"{LEFT},{bottom} "
        )?;
        for percent in 1..=100 {
            let share = f64::from(percent) / 100.0;
            write!(svg, "{:.1},{:.1} ", x(run.quantile(share)), y(share))?;
        }
        let legend = bottom + 42.0 + 20.0 * at as f64;
        writeln!(
            svg,
            "\"/>\n<path d=\"M{LEFT} {:.1} h30\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-dasharray=\"{dashes}\"/>\
             <text x=\"{:.1}\" y=\"{legend:.1}\">{}: {} loads at the database, the last answer \
             after {:.0} ms</text>",
            legend - 4.0,
            LEFT + 40.0,
            run.variant,
            run.loads,
            run.quantile(1.0).as_secs_f64() * 1e3,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(millis: std::ops::RangeInclusive<u64>, loads: u64) -> Run {
        Run { variant: "some", waits: millis.map(Duration::from_millis).collect(), loads }
    }

    #[test]
    fn the_picture_has_a_curve_for_each_run_within_its_frame() {
        let svg = draw(&[run(1..=3_000, 3_000), run(5..=6, 1)]);
        assert_eq!(svg.matches("<polyline").count(), 2, "{svg}");
        assert!(svg.contains("3000 loads") && svg.contains("1 loads"), "{svg}");
        assert!(svg.contains(">10 s<") && !svg.contains(">100 s<"), "{svg}");
        let points = svg.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        for point in points.flat_map(|points| points.split_whitespace()) {
            let (x, y) = point.split_once(',').unwrap();
            assert!((LEFT..=LEFT + WIDTH).contains(&x.parse().unwrap()), "{point}");
            assert!((TOP..=TOP + HEIGHT).contains(&y.parse().unwrap()), "{point}");
        }
    }

    #[test]
    fn the_axis_ends_with_the_decade_of_the_last_answer() {
        let decades = [1, 10, 11, 100, 999, 1_000, 1_001].map(Duration::from_millis);
        assert_eq!(decades.map(axis_decades), [1, 1, 2, 2, 3, 3, 4]);
    }
}

//! Snapshots in chunks, under faults: parts and answers are lost, doubled, delayed and overtake
//! each other, leaders change in the middle, the snapshot is replaced while it is sent, the
//! receiver loses power, its disk fills up. The whole node on paused tokio time, over real
//! journals on disks that lose power. Needs the features `testing` and `journal`.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds are played, `VOUSSOIR_SEED` plays one.

mod courier;
mod disk;
mod machine;
mod story;

use voussoir_sim::{Failure, Report, Runner};

use self::story::play;

const COMMAND: &str = "cargo test -p voussoir-raft --features testing --test transfers";

fn run(seed: u64) -> Result<Report, Failure> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().map_err(|e| e.to_string())?;
    let seen = runtime.block_on(play(seed))?;
    Ok(seen.report(Report::of(seed)))
}

#[test]
fn a_snapshot_arrives_whole_or_not_at_all() {
    let runner = Runner::new(format!("{COMMAND} a_snapshot_arrives")).seeds(150).twice(0);
    let summary = runner.run(run).unwrap();
    println!("{summary}");
    for figure in courier::FIGURES.iter().chain(&story::FIGURES) {
        assert!(summary.figure(figure) > 0, "never happened: {figure}");
    }
}

/// A test of the test: a chunk that does not belong is seen.
#[test]
fn a_mixed_snapshot_is_seen() {
    let whole = |node, piece| machine::pieces(node, piece, &[1, 2, 3, 4, 5]);
    let (one, two) = (whole(1, 100), whole(2, 100));
    assert_eq!(machine::joined(one.clone()), Ok(vec![1, 2, 3, 4, 5]));
    let mixed: Vec<_> = one[..2].iter().chain(&two[2..]).cloned().collect();
    assert!(machine::joined(mixed).is_err());
    assert!(machine::joined(one[..3].to_vec()).is_err(), "the end is missing");
    let doubled = [&one[..2], &one[1..]].concat();
    assert!(machine::joined(doubled).is_err());
}

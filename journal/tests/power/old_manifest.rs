//! A manifest of which the newer copy rots, so that the older one counts: it is from before a round
//! of rewriting ended. Neither opening nor salvage loses a record by that.

use std::sync::Arc;

use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Commit, Journal, MemoryFiles, SalvageConfig, Work, salvage};

use crate::rewriting::{
    SEGMENT, append_cold, cold, commit, config, fill_segment, finish_round, fits, open, record,
    short_of_segments,
};

/// The content of the manifest, and of both its copies which is the newer one.
fn manifest_of(image: &[(String, Vec<u8>)]) -> (Vec<Vec<u8>>, usize) {
    let (_, content) = image.iter().find(|(name, _)| name == "manifest").unwrap();
    let copies: Vec<Vec<u8>> = content.chunks(SEGMENT as usize).map(<[u8]>::to_vec).collect();
    let counter = |copy: &[u8]| u64::from_le_bytes(copy[40..48].try_into().unwrap());
    let newer = usize::from(counter(&copies[1]) > counter(&copies[0]));
    (copies, newer)
}

/// The newer copy of the manifest rots, and the other one is from before a round ended: it lists
/// victims whose files have been made ready for another use, and not the segment that has their
/// batches.
#[test]
fn a_manifest_older_than_a_round_loses_nothing() {
    let mut reused = 0;
    for nth in 0..16 {
        let disk = CrashFiles::new(1);
        let journal = short_of_segments(disk.mount());
        let upto = cold(&journal).end();
        finish_round(&journal);
        // The next segment is wanted, and a victim's file is taken for it.
        fill_segment(&journal, false);
        let after = disk.snapshot();
        disk.inject(Fault::new(Op::Any, When::Nth(nth), Effect::PowerOff));
        for _ in 0..4 {
            journal.work(0);
        }
        disk.power_loss(Loss::Everything);
        disk.heal();
        drop(journal);
        let image = disk.snapshot();
        let ((copies, newer), (before, _)) = (manifest_of(&image), manifest_of(&after));
        reused += u64::from(copies == before && headers(&image) != headers(&after));
        disk.overwrite("manifest", newer as u64 * SEGMENT + 70, &[0xff; 9]);
        is_salvaged(&disk, upto);
        let journal = open(disk.mount());
        fits(&journal, upto);
        for _ in 0..20 {
            append_cold(&journal);
            fill_segment(&journal, true);
        }
        fits(&journal, upto + 20);
    }
    assert!(reused > 0, "no file of a victim was in use again");
}

/// The headers of all segment files.
fn headers(image: &[(String, Vec<u8>)]) -> Vec<Vec<u8>> {
    let segments = image.iter().filter(|(name, _)| name.starts_with("segment-"));
    segments.map(|(_, content)| content[..64].to_vec()).collect()
}

/// Nothing of the cold log is missing in what a salvage makes of the disk.
fn is_salvaged(disk: &CrashFiles, upto: u64) {
    let to = Arc::new(MemoryFiles::new());
    salvage(&*disk.mount(), to.clone(), &SalvageConfig::default(), &mut |_| {}).unwrap();
    let journal = Journal::open_with(to, config()).unwrap();
    let log = cold(&journal);
    assert_eq!(log.bounds(), 0..upto);
    for position in 0..upto {
        assert_eq!(log.read(position).unwrap(), record(position), "{position}");
    }
}

/// A spare is prepared while a round is under way, so that the older copy of the manifest lists a
/// later segment than the one to which batches were moved. The next round takes the file of a
/// victim for its own copies, and no manifest is written until it ends.
#[test]
fn a_round_that_writes_over_a_victim_of_the_last_one_loses_nothing() {
    let mut overwritten = 0;
    for steps in 0..5 {
        let disk = CrashFiles::new(1);
        let journal = open(disk.mount());
        let log = cold(&journal);
        // A third of each segment: a round empties two of them, and the next one begins at once.
        let fill = || {
            for _ in 0..2 {
                let records = (log.end()..log.end() + 150).map(record);
                commit(&journal, Commit::new().append(&log, records));
            }
            fill_segment(&journal, false);
        };
        loop {
            fill();
            let work = std::iter::repeat_with(|| journal.work(0));
            if work.take(20).find(|work| *work != Work::Prepared) == Some(Work::Rewritten) {
                break;
            }
        }
        assert_eq!(journal.stats().bytes_rewritten, 0);
        fill();
        assert_eq!(journal.work(0), Work::Prepared);
        finish_round(&journal);
        let (after, upto) = (disk.snapshot(), log.end());
        for _ in 0..steps {
            journal.work(0);
        }
        disk.power_loss(Loss::Everything);
        drop(journal);
        let image = disk.snapshot();
        let ((copies, newer), (before, _)) = (manifest_of(&image), manifest_of(&after));
        overwritten += u64::from(copies == before && headers(&image) != headers(&after));
        disk.overwrite("manifest", newer as u64 * SEGMENT + 70, &[0xff; 9]);
        is_salvaged(&disk, upto);
        fits(&open(disk.mount()), upto);
    }
    assert!(overwritten > 0, "no victim was overwritten before a manifest was written");
}

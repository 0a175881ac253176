//! Which situations of rewriting a run has reached.

use voussoir_journal::files::crash::CrashFiles;
use voussoir_journal::{Extent, Journal, Log, Report, Role, SegmentInfo, Stats, Work};
use voussoir_sim::Situations;

use crate::oracle::{Change, Changes, Key, World};

/// What is known of the rounds of one disk.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// A round is under way in this life.
    moving: bool,
    /// Segments that came back in this life.
    rewritten: u64,
    /// Logs deleted during this round.
    deleted: Vec<Key>,
    /// Segments of moved frames at the last recovery.
    known: Vec<SegmentInfo>,
}

impl Moves {
    pub(crate) fn life_begins(&mut self) {
        (self.moving, self.rewritten) = (false, 0);
        self.deleted.clear();
    }

    /// A round is under way.
    pub(crate) fn is_moving(&self) -> bool {
        self.moving
    }

    /// After a call of `work`.
    pub(crate) fn worked(&mut self, stats: &Stats, work: Work, situations: &Situations) {
        if work == Work::Rewritten {
            self.moving = true;
        }
        self.notice_end(stats, situations);
    }

    /// Rounds also end within commits that wait for room.
    fn notice_end(&mut self, stats: &Stats, situations: &Situations) {
        if stats.segments_rewritten > self.rewritten {
            self.rewritten = stats.segments_rewritten;
            self.moving = false;
            self.deleted.clear();
            situations.reached("a round of rewriting ends");
        }
    }

    /// These changes were just submitted; before them the logs were as in `world`.
    pub(crate) fn changed(
        &mut self,
        journal: &Journal,
        world: &World,
        changes: &Changes,
        situations: &Situations,
    ) {
        self.notice_end(&journal.stats(), situations);
        if !self.moving {
            return;
        }
        for (key, change) in changes {
            let Ok(log) = journal.log(key.0, key.1) else { continue };
            let sealed: Vec<Extent> =
                log.extents().into_iter().filter(|extent| extent.sealed).collect();
            let within = |at: u64| sealed.iter().any(|extent| extent.first < at && at < extent.end);
            match change {
                Change::Release(upto) if within(*upto) => {
                    situations.reached("a victim is released in part");
                }
                Change::Truncate(from) if within(*from) => {
                    situations.reached("a victim is truncated");
                }
                Change::Delete if !sealed.is_empty() => self.deleted.push(*key),
                Change::Append(_) if !world.contains_key(key) && self.deleted.contains(key) => {
                    situations.reached("a log is deleted and created again in a round");
                }
                _ => {}
            }
        }
    }

    /// A record was read and is right.
    pub(crate) fn read(&self, log: &Log, position: u64, situations: &Situations) {
        let holds = |extent: &Extent| (extent.first..extent.end).contains(&position);
        let sealed = log.extents().into_iter().any(|extent| extent.sealed && holds(&extent));
        if self.moving && sealed {
            situations.reached("a victim is read");
        }
    }

    /// What a crash left.
    pub(crate) fn recovered(
        &mut self,
        report: &Report,
        disk: &CrashFiles,
        situations: &Situations,
    ) {
        let of_role = |role| report.segments.iter().filter(move |segment| segment.role == role);
        for unlisted in unlisted_targets(report, disk) {
            match unlisted {
                Target::Torn => situations.reached("a round of rewriting ends in a crash"),
                // Its victims are listed: it is not one that was freed later.
                Target::Whole(lsn) => {
                    let victim = of_role(Role::Sealed)
                        .any(|sealed| (sealed.first_lsn..=sealed.last_lsn).contains(&lsn));
                    let situation = "crash between the copies and the manifest";
                    situations.add(situation, u64::from(victim));
                }
            }
        }
        let moved: Vec<SegmentInfo> = of_role(Role::Rewritten).cloned().collect();
        let sealed: Vec<&SegmentInfo> = of_role(Role::Sealed).collect();
        for pair in sealed.windows(2) {
            // Between two full segments one has been freed whose batches live on elsewhere.
            let freed = pair[0].last_lsn + 2..pair[1].first_lsn;
            let lives_on = moved
                .iter()
                .any(|moved| freed.contains(&moved.first_lsn) || freed.contains(&moved.last_lsn));
            situations.add("a victim is freed behind a pinned segment", u64::from(lives_on));
        }
        let is_new =
            |moved: &&SegmentInfo| self.known.iter().all(|known| known.sequence != moved.sequence);
        for new in moved.iter().filter(is_new) {
            let again = self.known.iter().any(|known| {
                let gone = moved.iter().all(|moved| moved.sequence != known.sequence);
                let same = known.first_lsn..=known.last_lsn;
                gone && (same.contains(&new.first_lsn) || same.contains(&new.last_lsn))
            });
            situations.add("a moved batch is moved again", u64::from(again));
        }
        self.known = moved;
    }
}

enum Target {
    Torn,
    /// With the highest LSN of its batches.
    Whole(u64),
}

/// Files with moved frames that no manifest lists.
fn unlisted_targets(report: &Report, disk: &CrashFiles) -> Vec<Target> {
    let listed = |name: &str| report.segments.iter().any(|segment| segment.name == name);
    let mut found = Vec::new();
    for (name, content) in disk.snapshot() {
        let is_target = name.starts_with("segment-")
            && content.get(8) == Some(&2)
            && content.get(52) == Some(&1);
        if is_target && !listed(&name) {
            found.push(trailer_lsn(&content).map_or(Target::Torn, Target::Whole));
        }
    }
    found
}

/// The LSN in the trailer of a segment file, if it is of the use that the header names.
fn trailer_lsn(content: &[u8]) -> Option<u64> {
    let at = content.len() - 64;
    let place = [&content[16..40], &(at as u64).to_le_bytes()].concat();
    let crc = crc_fast::crc32_iscsi(&content[at..at + 60]) ^ crc_fast::crc32_iscsi(&place);
    let verifies =
        content[at..].starts_with(b"vsrseale") && content[at + 60..] == crc.to_le_bytes();
    verifies.then(|| u64::from_le_bytes(content[at + 24..at + 32].try_into().unwrap()))
}

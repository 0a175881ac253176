//! Which segment a file is when its header does not verify.

use std::sync::Arc;

use crate::engine::segment::Segment;
use crate::files::File;
use crate::recovery::scan::Scanner;

/// Heads that are compared. A few suffice: each that fits by chance is one in 2^32.
const HEADS: usize = 64;
/// Sequences that are tried above and below the highest known one.
const ABOVE: u64 = 1 << 12;
const BELOW: u64 = 1 << 20;

/// The sequence under whose checksums frames of the file verify.
///
/// A checksum is XORed with that of (journal, sequence, offset), so each head says which value this
/// must have. `listed` is what the manifest says of a file of this name. Frames of an earlier use
/// of the file may stand behind the end of the present one: the highest sequence that two heads
/// agree on wins.
pub(super) fn sequence_of(
    file: &Arc<dyn File>,
    size: u64,
    journal: u128,
    listed: Option<u64>,
    newest: u64,
) -> Option<u64> {
    let segment = |sequence| Segment::new(journal, 0, sequence, size, Arc::clone(file));
    // A file that cannot be read has no heads.
    let heads = Scanner::lenient(&segment(0)).head_masks(HEADS).unwrap_or_default();
    let agreeing = |sequence: u64| {
        let segment = segment(sequence);
        let fits = |head: &&(u64, u32)| segment.location(head.0).mask() == head.1;
        heads.iter().filter(fits).count()
    };
    if heads.is_empty() {
        return None;
    }
    if let Some(listed) = listed.filter(|listed| agreeing(*listed) > 0) {
        return Some(listed);
    }
    let lowest = newest.saturating_sub(BELOW);
    let mut single = None;
    for sequence in (lowest..=newest.saturating_add(ABOVE)).rev() {
        match agreeing(sequence) {
            0 => {}
            1 => single = single.or(Some(sequence)),
            _ => return Some(sequence),
        }
    }
    single
}

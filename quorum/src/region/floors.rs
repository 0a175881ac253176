//! Which memberships of the regions are over.
//!
//! A replica that was removed while it was down starts with values whose tombstones were collected
//! without it. Within its region nobody hears it, for each request carries its membership. Other
//! regions do not know that region's memberships, so that each collection tells them: a replica
//! keeps, durably, of which membership each region was when tombstones were last collected, and
//! neither hears nor asks a node of an earlier one.
//!
//! A store that is new or was lost asks another replica of its region, in the same membership,
//! what it keeps. If its whole region is new, it asks a majority of another region: after a change
//! of the replicas no majority is left that serves the membership before it. Until then it merges
//! nothing of another region and shows it nothing.

use std::collections::BTreeMap;

use crate::membership::Stamp;

/// Memberships by region. Invariant: at most [`super::RegionConfig::MAX_REGIONS`], all of regions
/// of the map.
pub(crate) type Floors = BTreeMap<u64, Stamp>;

/// Whether a membership is none that was over when `floor` was kept.
pub(super) fn admits(floor: Option<&Stamp>, seen: Stamp) -> bool {
    let Some(floor) = floor else { return true };
    // A cluster may have been given its first name meanwhile, which draws branches anew.
    let is_named_since = !floor.lineage.is_named();
    if is_named_since {
        return seen.epoch >= floor.epoch;
    }
    seen.lineage == floor.lineage && (seen.epoch > floor.epoch || seen == *floor)
}

/// Adds what others keep. Returns whether anything has changed.
pub(super) fn raise(floors: &mut Floors, later: impl IntoIterator<Item = (u64, Stamp)>) -> bool {
    let mut is_changed = false;
    for (region, stamp) in later {
        let floor = floors.get(&region);
        if floor != Some(&stamp) && admits(floor, stamp) {
            floors.insert(region, stamp);
            is_changed = true;
        }
    }
    is_changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Lineage;

    #[test]
    fn no_earlier_membership_and_no_other_past_or_cluster_is_admitted() {
        let stamp =
            |lineage, epoch, branch| Stamp { lineage: Lineage::new(lineage), epoch, branch };
        let floor = stamp(7, 5, 9);
        for (seen, is_admitted) in [
            (stamp(7, 5, 9), true),
            (stamp(7, 6, 1), true),
            (stamp(7, 4, 9), false),
            (stamp(7, 5, 8), false),
            (stamp(8, 6, 9), false),
            (stamp(0, 6, 0), false),
        ] {
            assert_eq!(admits(Some(&floor), seen), is_admitted, "{seen:?}");
            assert!(admits(None, seen));
            let mut floors = Floors::from([(1, floor)]);
            assert_eq!(raise(&mut floors, [(1, seen)]), is_admitted && seen != floor);
            assert_eq!(floors[&1], if is_admitted { seen } else { floor });
        }
        assert!(admits(Some(&stamp(0, 5, 0)), stamp(7, 5, 3)), "it was given a name");
        assert!(!admits(Some(&stamp(0, 5, 0)), stamp(7, 4, 3)));
    }
}

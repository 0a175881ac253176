//! Memberships against their rules, over every change of up to seven replicas.

use std::collections::BTreeMap;

use super::*;
use crate::version::codec::DecodeError;

const LEVELS: [Level; 3] = [Level::Two, Level::Quorum, Level::All];

/// Every membership of 1 to 7 replicas in the middle of each change of one.
fn changes(write: Level) -> Vec<Membership> {
    let mut all = Vec::new();
    for n in 1..=7 {
        let stable = Membership::first(1..=n);
        let replace = MemberChange::Replace { old: 1, new: 9 };
        for change in [MemberChange::Add(9), MemberChange::Remove(1), replace] {
            all.extend(stable.begin(change, write).ok().flatten());
        }
    }
    all
}

/// All sets of the ids.
fn subsets(ids: &[u64]) -> impl Iterator<Item = Vec<u64>> + '_ {
    (0..1_u32 << ids.len()).map(|bits| {
        let is_in = |at: &usize| bits & (1 << at) != 0;
        (0..ids.len()).filter(is_in).map(|at| ids[at]).collect()
    })
}

/// The levels of nodes whose tables read from a majority.
fn at(write: Level) -> Levels {
    Levels { read: Level::Quorum, write }
}

fn seen(membership: &Membership, ids: &[u64]) -> BTreeMap<u64, Seen> {
    let here = Seen { epoch: membership.epoch(), is_whole: true, is_ready: true };
    let behind = Seen { epoch: membership.epoch() - 1, is_whole: true, is_ready: true };
    let all = membership.ids().into_iter();
    all.map(|id| (id, if ids.contains(&id) { here } else { behind })).collect()
}

fn ids(set: &[Member]) -> Vec<u64> {
    set.iter().map(|member| member.id).collect()
}

#[test]
fn quorums_of_neighbouring_epochs_intersect_and_joint_ones_are_of_both_sets() {
    let mut tried = 0;
    for joint in changes(Level::Quorum) {
        let (before, after) = (joint.abandon().unwrap(), joint.finish().unwrap());
        let all = joint.ids();
        for left in
            subsets(&all).filter(|left| joint.is_met(Level::Quorum, |id| left.contains(&id)))
        {
            for other in [&before, &after, &joint] {
                let is_quorum =
                    |right: &Vec<u64>| other.is_met(Level::Quorum, |id| right.contains(&id));
                for right in subsets(&all).filter(is_quorum) {
                    assert!(
                        left.iter().any(|id| right.contains(id)),
                        "{joint:?} {left:?} {right:?}"
                    );
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 10_000, "{tried}");
}

/// What the whole of the transfer is for: whatever was acknowledged by W old replicas is on W new
/// ones, and whatever a majority of old acceptors has chosen is in every majority of the new ones,
/// once the added replica has read its sources and, where that is needed, all have caught up.
#[test]
fn what_was_acknowledged_before_is_held_by_a_quorum_of_the_new_replicas() {
    let (mut transfers, mut without_a_copy) = (0, 0);
    for lowest in LEVELS {
        for joint in changes(lowest) {
            let (old, new) = (ids(joint.members()), ids(joint.next().unwrap()));
            let added: Vec<u64> = new.iter().copied().filter(|id| !old.contains(id)).collect();
            for fenced in subsets(&old) {
                let told = seen(&joint, &fenced);
                let Some(copier) = added.first().or(new.first()) else { continue };
                let Ok(sources) = joint.sources(*copier, &told, at(lowest)) else { continue };
                // The worst choice: as few sources as are allowed.
                let mut read: Vec<u64> = sources.from[..sources.needed].to_vec();
                read.extend(old.contains(copier).then_some(*copier));
                for write in LEVELS.into_iter().filter(|level| {
                    level.count(old.len()) >= lowest.count(old.len())
                        && level.count(old.len()) <= old.len()
                        && level.count(new.len()) <= new.len()
                }) {
                    for holders in subsets(&old).filter(|set| set.len() == write.count(old.len())) {
                        // Acknowledged before the fence, so it is where it was acknowledged.
                        let is_read = holders.iter().any(|id| read.contains(id));
                        assert!(is_read, "{joint:?}: {holders:?} and {read:?}");
                        let held = new.iter().filter(|id| {
                            holders.contains(id) || added.contains(id) || joint.must_catch_up(**id)
                        });
                        let held = held.count();
                        assert!(held >= write.count(new.len()), "{joint:?} {write:?} {holders:?}");
                        transfers += 1;
                    }
                }
                for chosen in subsets(&old).filter(|set| set.len() > old.len() / 2) {
                    assert!(chosen.iter().any(|id| read.contains(id)));
                    let held =
                        new.iter().filter(|id| chosen.contains(id) || added.contains(id)).count();
                    let majority = new.len() / 2 + 1;
                    assert!(held + majority > new.len(), "{joint:?} {chosen:?}");
                    without_a_copy += u64::from(added.is_empty());
                }
            }
        }
    }
    assert!(transfers > 1_000 && without_a_copy > 100, "{transfers} {without_a_copy}");
}

/// Behind the fence no quorum of the old epoch is left, and none comes back when one of those that
/// have moved on loses its disk: it finds too few to be rebuilt as a replica of the old epoch.
#[test]
fn behind_the_fence_nothing_of_the_old_epoch_is_acknowledged() {
    let (mut fenced, mut by_reads) = (0, 0);
    let levels = LEVELS.into_iter().flat_map(|write| {
        [Level::One, Level::Two, Level::Quorum, Level::All].map(|read| Levels { read, write })
    });
    for levels in levels {
        for joint in changes(levels.write) {
            let (old, before) = (ids(joint.members()), joint.abandon().unwrap());
            for moved in subsets(&old) {
                let told = seen(&joint, &moved);
                if joint.fence(&told, levels).is_err() {
                    by_reads += u64::from(joint.fence(&told, at(levels.write)).is_ok());
                    continue;
                }
                fenced += 1;
                for level in [levels.read, levels.write, Level::Quorum] {
                    let is_left = |id| old.contains(&id) && !moved.contains(&id);
                    assert!(!before.is_met(level, is_left), "{joint:?} {moved:?} {level:?}");
                }
                for lost in &moved {
                    let mut told: BTreeMap<u64, Seen> = BTreeMap::new();
                    for id in old.iter().filter(|id| *id != lost) {
                        let epoch =
                            if moved.contains(id) { before.epoch() + 1 } else { before.epoch() };
                        told.insert(*id, Seen { epoch, is_whole: true, is_ready: true });
                    }
                    let rebuilt = before.sources(*lost, &told, levels);
                    assert!(rebuilt.is_err() || old.len() == 1, "{joint:?} {moved:?} {lost}");
                }
            }
        }
    }
    assert!(by_reads > 100, "{by_reads}");
    assert!(fenced > 100, "{fenced}");
}

/// A new replica that has acknowledged something in the last epoch, and lost its disk, is not
/// rebuilt as a replica of the joint one.
#[test]
fn a_replica_of_the_new_set_is_not_rebuilt_as_one_of_the_joint_epoch() {
    let mut tried = 0;
    for write in LEVELS {
        for joint in changes(write) {
            let new = ids(joint.next().unwrap());
            let after = joint.finish().unwrap();
            for moved in subsets(&new).filter(|set| after.is_met(write, |id| set.contains(&id))) {
                for lost in moved.iter().filter(|_| new.len() > 1) {
                    let mut told = seen(&joint, &joint.ids());
                    told.remove(lost);
                    for id in moved.iter().filter(|id| *id != lost) {
                        let there = Seen { epoch: after.epoch(), is_whole: true, is_ready: true };
                        told.insert(*id, there);
                    }
                    assert!(joint.sources(*lost, &told, at(write)).is_err(), "{joint:?} {moved:?}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn a_change_ends_when_every_new_replica_is_ready_behind_the_fence() {
    let first = Membership::first([1, 2, 3]);
    let joint = first.begin(MemberChange::Replace { old: 3, new: 4 }, Level::Quorum);
    let joint = joint.unwrap().unwrap();
    let mut told = seen(&joint, &[1, 2, 4]);
    assert!(joint.may_finish(&told, at(Level::Quorum)));
    for (id, wrong) in [(1, "epoch"), (2, "whole"), (4, "epoch"), (4, "whole"), (4, "ready")] {
        let good = told[&id];
        let bad = match wrong {
            "epoch" => Seen { epoch: 1, ..good },
            "whole" => Seen { is_whole: false, ..good },
            _ => Seen { is_ready: false, ..good },
        };
        told.insert(id, bad);
        assert!(!joint.may_finish(&told, at(Level::Quorum)), "{id} {wrong}");
        told.insert(id, good);
    }
    assert!(!first.may_finish(&told, at(Level::Quorum)));
    // Two of four old replicas hold what three have acknowledged, and are no fence: the other two
    // and a replica that is rebuilt from them would go on.
    let four = Membership::first(1..=4).begin(MemberChange::Add(9), Level::Quorum);
    let four = four.unwrap().unwrap();
    let lack = Err(Lack { found: 2, needed: 3 });
    assert_eq!(four.sources(9, &seen(&four, &[1, 2]), at(Level::Quorum)), lack);
    assert!(four.sources(9, &seen(&four, &[1, 2, 3]), at(Level::Quorum)).is_ok());
    // A replica that stays may be away, if enough of the old ones are there.
    let mut without = seen(&joint, &[2, 3, 4]);
    without.remove(&1);
    assert!(joint.may_finish(&without, at(Level::Quorum)));
    // Of four old replicas, three must have moved, the new ones among them or not.
    let joint = Membership::first(1..=4).begin(MemberChange::Remove(1), Level::Quorum);
    let joint = joint.unwrap().unwrap();
    assert!(joint.may_finish(&seen(&joint, &[2, 3, 4]), at(Level::Quorum)));
    assert!(joint.must_catch_up(2) && !joint.must_catch_up(1));
    let mut told = seen(&joint, &[1, 2, 3, 4]);
    told.insert(3, Seen { is_ready: false, ..told[&3] });
    assert!(!joint.may_finish(&told, at(Level::Quorum)), "where they become fewer, all catch up");
}

#[test]
fn changes_are_idempotent_and_what_cannot_be_is_refused() {
    let first = Membership::first([3, 1, 2]);
    assert_eq!(ids(first.members()), [1, 2, 3]);
    let quorum = Level::Quorum;
    let replace = |old, new| MemberChange::Replace { old, new };
    for change in [MemberChange::Add(1), MemberChange::Remove(9), replace(9, 1)] {
        assert_eq!(first.begin(change, quorum), Ok(None));
    }
    let refused = |change, write| first.begin(change, write).unwrap_err();
    assert_eq!(refused(replace(9, 8), quorum), ChangeRejected::NotAMember { id: 9 });
    assert_eq!(refused(replace(1, 2), quorum), ChangeRejected::IsAMember { id: 2 });
    let one = Membership::first([1]);
    assert_eq!(one.begin(MemberChange::Remove(1), quorum), Err(ChangeRejected::Count { count: 0 }));
    let many = Membership::first(1..=31);
    let error = ChangeRejected::Count { count: 32 };
    assert_eq!(many.begin(MemberChange::Add(32), quorum), Err(error));
    let two = Membership::first([1, 2]);
    assert_eq!(
        two.begin(MemberChange::Remove(1), Level::Two),
        Err(ChangeRejected::Count { count: 1 })
    );
    let joint = first.begin(MemberChange::Add(4), quorum).unwrap().unwrap();
    let underway = Err(ChangeRejected::Underway { epoch: 2 });
    assert_eq!(joint.begin(MemberChange::Remove(1), quorum), underway);
    let (done, undone) = (joint.finish().unwrap(), joint.abandon().unwrap());
    assert!(first.is_followed_by(&joint) && joint.is_followed_by(&done));
    assert!(joint.is_followed_by(&undone) && !first.is_followed_by(&done));
    // Removed and added again, it is another member.
    let gone = done.begin(MemberChange::Remove(2), quorum).unwrap().unwrap().finish().unwrap();
    let again = gone.begin(MemberChange::Add(2), quorum).unwrap().unwrap();
    assert_eq!((done.since(2), again.since(2)), (Some(1), Some(6)));
    let last = Membership { epoch: Membership::MAX_EPOCH, ..first };
    assert_eq!(last.begin(MemberChange::Add(4), quorum), Err(ChangeRejected::Exhausted));
}

#[test]
fn a_membership_that_cannot_follow_is_refused() {
    let change = |first: &Membership, change| first.begin(change, Level::Quorum).unwrap().unwrap();
    let first = Membership::first([1, 2, 3]);
    let joint = change(&first, MemberChange::Replace { old: 3, new: 4 });
    let done = joint.finish().unwrap();
    let later = change(&done, MemberChange::Remove(1));
    for good in [&joint, &done, &later] {
        assert!(
            first.can_lead_to(good) && Membership::unknown(Lineage::UNNAMED).can_lead_to(good),
            "{good:?}"
        );
    }
    let other = change(&Membership::first([7, 8]), MemberChange::Add(9));
    for bad in [other.finish().unwrap(), other] {
        assert!(!first.can_lead_to(&bad), "of another cluster: {bad:?}");
    }
    // The replica 3 was removed by the epoch 3, and only another one of its id can come back.
    let back = Membership { epoch: 9, ..first.clone() };
    assert!(!done.can_lead_to(&back));
    let far = Membership { epoch: 1 + Membership::MAX_EPOCHS_AHEAD, ..first.clone() };
    assert!(first.can_lead_to(&far));
    assert!(!first.can_lead_to(&Membership { epoch: far.epoch + 1, ..far }));
}

#[test]
fn memberships_keep_their_bytes_and_damage_is_refused() {
    let mut all = changes(Level::Quorum);
    all.push(Membership::unknown(Lineage::UNNAMED));
    all.push(Membership::first([1, 2, 3]));
    let named: Vec<_> = all.iter().map(|one| one.clone().of_lineage(Lineage::new(7))).collect();
    all.extend(named);
    all.push(long_history(Lineage::new(7), 50));
    for membership in all {
        let bytes = encode(&membership);
        assert_eq!(decode(bytes.clone()), Ok(membership));
        for at in 0..bytes.len() {
            assert!(decode(bytes.slice(..at)).is_err());
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x81;
            // What is accepted has exactly these bytes.
            if let Ok(other) = decode(changed.clone().into()) {
                assert_eq!(encode(&other), changed);
            }
        }
    }
    let mut long = encode(&Membership::first([1])).to_vec();
    long[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode(long.into()), Err(DecodeError::AboveLimit("count of members")));
    let golden = Membership::first([2]).begin(MemberChange::Add(7), Level::Quorum);
    let golden = encode(&golden.unwrap().unwrap());
    let expected = [
        &[1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..],
        &[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(golden, expected.concat());
    let named = Membership::first([2]).of_lineage(Lineage::new(0x1122));
    let named = named.begin(MemberChange::Add(7), Level::Quorum);
    let mut named = named.unwrap().unwrap();
    named.branches[0] = 0x33;
    let expected = [
        &[2, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..],
        &[0x22, 0x11, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x33, 0, 0, 0, 0, 0, 0, 0],
        &expected.concat()[12..],
    ];
    assert_eq!(encode(&named), expected.concat());
}

/// A membership after so many changes.
fn long_history(lineage: Lineage, changes: u64) -> Membership {
    let mut membership = Membership::first([1, 2, 3]).of_lineage(lineage);
    for change in 0..changes {
        let replace = MemberChange::Replace { old: change + 1, new: change + 4 };
        let joint = membership.begin(replace, Level::Quorum).unwrap().unwrap().drawn();
        membership = joint.finish().unwrap().drawn();
    }
    membership
}

#[test]
fn two_pasts_of_a_cluster_are_told_apart_as_far_as_they_are_remembered() {
    let change = |before: &Membership, new| {
        let change = MemberChange::Replace { old: before.members()[0].id, new };
        before.begin(change, Level::Quorum).unwrap().unwrap().drawn()
    };
    for lineage in [Lineage::UNNAMED, Lineage::new(7)] {
        let first = Membership::first([1, 2, 3]).of_lineage(lineage);
        let (one, two) = (change(&first, 4), change(&first, 4));
        assert!(one.is_same_change(&two));
        assert_eq!(one.is_kin(&two), !lineage.is_named(), "proposed by two");
        // The same epoch of two pasts, each with itself, and each with what came before both.
        let (one, two) = (one.finish().unwrap().drawn(), two.finish().unwrap().drawn());
        assert!(one.is_kin(&one) && first.can_lead_to(&one) && first.can_lead_to(&two));
        assert_eq!(one.hears(two.stamp()), !lineage.is_named());
        assert!(one.hears(first.stamp()) && first.hears(one.stamp()));
        // And one that goes on for longer than branches are remembered.
        let (mut near, mut epochs) = (two.clone(), 0);
        while near.is_kin(&one) == one.is_kin(&two) && epochs < 40 {
            near = change(&near, epochs + 10).finish().unwrap().drawn();
            epochs += 1;
        }
        let remembered = Membership::MAX_BRANCHES as u64 / 2;
        assert_eq!(epochs, if lineage.is_named() { remembered } else { 40 });
    }
    let (ours, theirs) = (Lineage::new(7), Lineage::new(8));
    let first = |lineage| Membership::first([1, 2, 3]).of_lineage(lineage);
    assert!(!first(ours).can_lead_to(&long_history(theirs, 1)));
    assert!(!first(ours).hears(first(theirs).stamp()) && !first(ours).is_kin(&first(theirs)));
    let spare = Membership::unknown(Lineage::UNNAMED);
    assert!(spare.can_lead_to(&first(ours)) && first(ours).is_kin(&spare));
    let spare = Membership::unknown(theirs);
    assert!(!spare.can_lead_to(&first(ours)) && !first(ours).is_kin(&spare));
    assert!(!spare.hears(first(ours).stamp()));
}

//! The coordinator of one consumer group, as a state machine.
//!
//! A member joins with the topics that it wants and the partitions that it still works on. When all
//! known members have joined, or the time for it is over, the coordinator divides the partitions
//! and begins the next generation. The generation is made durable first; then members are told
//! what they have. From then on the table rejects commits of earlier generations, so that no member
//! of one can mark as read what another works on.
//!
//! A partition has at most one owner at any time. An eager assignor asks each member to let go of
//! everything before it joins. The cooperative one leaves members what they keep; what moves is
//! given to nobody in the first generation, and to its new owner in the next, which begins when the
//! old one has joined without it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

mod assign;

pub use assign::Assignor;
pub(crate) use assign::{Assignment, Claim, Place, assign};

/// A member: unique within the life of a coordinator.
pub(crate) type MemberId = u64;

/// Times of a group, in ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// A member that has not been heard of for this long is removed.
    pub(crate) session: u64,
    /// How long a rebalance waits for members to join.
    pub(crate) rebalance: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A member that is new, or takes part in a rebalance. `owned` is what it goes on working on.
    ///
    /// A request may come twice, the second time in a later rebalance, before which the member has
    /// been given more than `owned`. So a join of a known member counts for the rebalance in which
    /// it was told to join ([`Standing::MustJoin`]); in any other one it is a heartbeat.
    Join {
        /// `None` for a new member, which is told its id by [`Coordinator::step`].
        member: Option<MemberId>,
        /// The generation that a known member was told with [`Standing::MustJoin`].
        generation: u32,
        /// A static member: takes over from the one that had this name.
        instance: Option<Arc<str>>,
        topics: BTreeSet<Arc<str>>,
        owned: BTreeSet<Place>,
    },
    Heartbeat {
        member: MemberId,
    },
    Leave {
        member: MemberId,
    },
    /// The answer to [`Output::Persist`]: the generation that is durable, or none.
    Persisted {
        ticket: u64,
        generation: Option<u32>,
    },
    /// The topics that there are, and how many partitions each has.
    Topics {
        topics: BTreeMap<Arc<str>, u32>,
    },
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Make the next generation durable, and answer with [`Input::Persisted`].
    Persist { ticket: u64 },
    /// The member is no longer one: it was silent for too long, or another has its name.
    Removed { member: MemberId },
    /// Something that members wait for has changed.
    Changed,
}

/// Why an input was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupRejected {
    /// The member is none, or no longer: it has to join as a new one.
    UnknownMember,
    TooManyMembers,
}

/// Where a member stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It works on these partitions, in this generation.
    Stable { generation: u32, places: BTreeSet<Place> },
    /// It has to join. Before, an eager member lets go of everything, a cooperative one of all but
    /// these partitions.
    MustJoin { is_cooperative: bool, generation: u32, places: BTreeSet<Place> },
    /// It has joined, and waits for the others or for the disk.
    Waiting,
}

#[derive(Clone, Debug)]
struct Member {
    instance: Option<Arc<str>>,
    topics: BTreeSet<Arc<str>>,
    /// What it was given in `generation`. Invariant: disjoint from that of all other members.
    given: BTreeSet<Place>,
    /// The part of it that it goes on working on. Invariant: within `given`.
    owned: BTreeSet<Place>,
    /// It has joined the rebalance that is under way.
    has_joined: bool,
    /// Of `given`; 0 when it was given nothing yet.
    generation: u32,
    heard_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Stable,
    /// Waits for members to join until `deadline`.
    Joining {
        deadline: u64,
    },
    /// Waits for the generation to be durable.
    Persisting {
        assignment: Assignment,
        needs_another: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Coordinator {
    assignor: Assignor,
    times: Times,
    max_members: usize,
    generation: u32,
    members: BTreeMap<MemberId, Member>,
    next_member: MemberId,
    topics: BTreeMap<Arc<str>, u32>,
    phase: Phase,
    /// Something happened during `Persisting` that a further rebalance has to settle.
    is_dirty: bool,
    /// Of the latest [`Output::Persist`].
    ticket: u64,
    outputs: VecDeque<Output>,
}

impl Coordinator {
    /// A group without members.
    pub(crate) fn new(
        assignor: Assignor,
        times: Times,
        max_members: usize,
        topics: BTreeMap<Arc<str>, u32>,
    ) -> Self {
        Self {
            assignor,
            times,
            max_members,
            generation: 0,
            members: BTreeMap::new(),
            next_member: 0,
            topics,
            phase: Phase::Stable,
            is_dirty: false,
            ticket: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Takes an input. Returns the member's id for a join.
    pub(crate) fn step(
        &mut self,
        now: u64,
        input: Input,
    ) -> Result<Option<MemberId>, GroupRejected> {
        self.expire(now);
        match input {
            Input::Join { member: Some(member), generation, topics, owned, .. } => {
                self.join(now, member, generation, topics, owned)?;
                self.try_complete(now);
                return Ok(Some(member));
            }
            Input::Join { member: None, instance, topics, .. } => {
                return self.take_in(now, instance, topics).map(Some);
            }
            Input::Heartbeat { member } => self.member(member)?.heard_at = now,
            Input::Leave { member } => {
                self.member(member)?;
                self.members.remove(&member);
                self.unsettle(now);
            }
            Input::Persisted { ticket, generation } => self.persisted(now, ticket, generation),
            Input::Topics { topics } => {
                let old = std::mem::replace(&mut self.topics, topics);
                let mut used = self.members.values().flat_map(|member| &member.topics);
                // Those that no member reads may change as they like.
                if used.any(|topic| old.get(topic) != self.topics.get(topic)) {
                    self.unsettle(now);
                }
            }
            Input::Tick => {}
        }
        self.try_complete(now);
        Ok(None)
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is due: a session or a rebalance ends.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let sessions = self.members.values().map(|member| member.heard_at + self.times.session);
        let rebalance = match self.phase {
            Phase::Joining { deadline } => Some(deadline),
            _ => None,
        };
        sessions.chain(rebalance).min()
    }

    /// Where a member stands.
    pub(crate) fn standing(&self, member: MemberId) -> Result<Standing, GroupRejected> {
        let member = self.members.get(&member).ok_or(GroupRejected::UnknownMember)?;
        Ok(match &self.phase {
            Phase::Joining { .. } if !member.has_joined => {
                let generation = member.generation;
                // What a static member is to be given again is not its own yet.
                let places = if generation == 0 { BTreeSet::new() } else { member.given.clone() };
                Standing::MustJoin { is_cooperative: self.is_cooperative(), generation, places }
            }
            Phase::Stable if member.generation == self.generation => {
                Standing::Stable { generation: self.generation, places: member.given.clone() }
            }
            _ => Standing::Waiting,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The static member of this name.
    pub(crate) fn instance(&self, instance: &str) -> Option<MemberId> {
        let is_it = |member: &Member| member.instance.as_deref() == Some(instance);
        self.members.iter().find(|(_, member)| is_it(member)).map(|(id, _)| *id)
    }

    pub(crate) fn members(&self) -> usize {
        self.members.len()
    }

    /// The partitions that members have been given.
    pub(crate) fn given(&self) -> BTreeSet<Place> {
        self.members.values().flat_map(|member| &member.given).cloned().collect()
    }

    fn is_cooperative(&self) -> bool {
        self.assignor == Assignor::CooperativeSticky
    }

    fn member(&mut self, member: MemberId) -> Result<&mut Member, GroupRejected> {
        self.members.get_mut(&member).ok_or(GroupRejected::UnknownMember)
    }

    fn join(
        &mut self,
        now: u64,
        member: MemberId,
        generation: u32,
        topics: BTreeSet<Arc<str>>,
        owned: BTreeSet<Place>,
    ) -> Result<(), GroupRejected> {
        let is_joining = matches!(self.phase, Phase::Joining { .. });
        let known = self.member(member)?;
        known.heard_at = now;
        if generation != known.generation {
            return Ok(());
        }
        // A member keeps no more than it was given.
        known.owned = owned.intersection(&known.given).cloned().collect();
        let has_changed = known.topics != topics;
        known.topics = topics;
        if is_joining {
            known.has_joined = true;
        } else if has_changed {
            self.unsettle(now);
        }
        Ok(())
    }

    /// Takes in a new member.
    fn take_in(
        &mut self,
        now: u64,
        instance: Option<Arc<str>>,
        topics: BTreeSet<Arc<str>>,
    ) -> Result<MemberId, GroupRejected> {
        let old = instance.as_deref().and_then(|instance| self.instance(instance));
        if old.is_none() && self.members.len() >= self.max_members {
            return Err(GroupRejected::TooManyMembers);
        }
        let id = self.next_member;
        self.next_member += 1;
        let mut fresh = Member {
            instance,
            topics,
            given: BTreeSet::new(),
            owned: BTreeSet::new(),
            has_joined: true,
            generation: 0,
            heard_at: now,
        };
        if let Some((old, member)) = old.and_then(|old| self.members.remove_entry(&old)) {
            // The assignor gives it what the member before it had.
            fresh.given = member.given;
            self.outputs.push_back(Output::Removed { member: old });
        }
        self.members.insert(id, fresh);
        self.unsettle(now);
        self.try_complete(now);
        Ok(id)
    }

    /// Begins a rebalance, or notes that another has to follow the one under way.
    fn unsettle(&mut self, now: u64) {
        match self.phase {
            Phase::Stable => self.begin(now),
            Phase::Joining { .. } => {}
            Phase::Persisting { .. } => self.is_dirty = true,
        }
    }

    fn begin(&mut self, now: u64) {
        self.is_dirty = false;
        let deadline = now + self.times.rebalance;
        for member in self.members.values_mut() {
            // New members have joined by coming.
            member.has_joined = member.generation == 0;
        }
        self.phase = Phase::Joining { deadline };
        self.outputs.push_back(Output::Changed);
    }

    /// Removes members that have been silent, and those that a rebalance waited for in vain.
    fn expire(&mut self, now: u64) {
        let late = match self.phase {
            Phase::Joining { deadline } => deadline <= now,
            _ => false,
        };
        let session = self.times.session;
        let is_gone =
            |member: &Member| member.heard_at + session <= now || (late && !member.has_joined);
        let gone: Vec<_> =
            self.members.iter().filter(|(_, m)| is_gone(m)).map(|(id, _)| *id).collect();
        if gone.is_empty() {
            return;
        }
        for member in gone {
            self.members.remove(&member);
            self.outputs.push_back(Output::Removed { member });
        }
        self.unsettle(now);
    }

    /// Ends the joining when all have joined.
    fn try_complete(&mut self, now: u64) {
        let Phase::Joining { deadline } = self.phase else { return };
        let all = self.members.values().all(|member| member.has_joined);
        debug_assert!(all || now < deadline, "who is late has been removed");
        if !all {
            return;
        }
        let claim =
            |member: &Member| Claim { topics: member.topics.clone(), owned: member.given.clone() };
        let claims = self.members.iter().map(|(id, member)| (*id, claim(member))).collect();
        let mut assignment = assign(self.assignor, &claims, &self.topics);
        let needs_another = self.is_cooperative() && withhold(&self.members, &mut assignment);
        self.phase = Phase::Persisting { assignment, needs_another };
        self.ticket += 1;
        self.outputs.push_back(Output::Persist { ticket: self.ticket });
    }

    fn persisted(&mut self, now: u64, ticket: u64, generation: Option<u32>) {
        let Phase::Persisting { assignment, needs_another } = &mut self.phase else { return };
        if ticket != self.ticket {
            return;
        }
        let (assignment, needs_another) = (std::mem::take(assignment), *needs_another);
        let Some(generation) = generation else {
            // The old generation is not over. Each member has to ask again, so that a store that
            // has stopped is asked no more often than the members are. Without members there is
            // nobody to be told: the next one that joins begins a generation.
            self.phase = Phase::Stable;
            if !self.members.is_empty() {
                self.begin(now);
            }
            for member in self.members.values_mut() {
                member.has_joined = false;
            }
            return;
        };
        self.phase = Phase::Stable;
        self.generation = generation;
        // Who has come since is given nothing yet, and what the one before it had may be another's.
        for member in self.members.values_mut().filter(|member| member.generation == 0) {
            member.given.clear();
        }
        for (id, places) in assignment {
            // What a member that has left meanwhile was given is given to others next time.
            if let Some(member) = self.members.get_mut(&id) {
                member.owned.clone_from(&places);
                member.given = places;
                member.generation = generation;
            }
        }
        self.outputs.push_back(Output::Changed);
        if std::mem::take(&mut self.is_dirty) || needs_another {
            self.begin(now);
        }
    }
}

/// Takes out of `assignment` what another member still works on. Returns whether there was any.
fn withhold(members: &BTreeMap<MemberId, Member>, assignment: &mut Assignment) -> bool {
    let mut owners: BTreeMap<&Place, MemberId> = BTreeMap::new();
    for (id, member) in members {
        owners.extend(member.owned.iter().map(|place| (place, *id)));
    }
    let mut withheld = false;
    for (id, places) in assignment {
        places.retain(|place| {
            let is_free = owners.get(place).is_none_or(|owner| owner == id);
            withheld |= !is_free;
            is_free
        });
    }
    withheld
}

#[cfg(test)]
mod tests;

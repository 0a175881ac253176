//! What picks read: groups with their shares of the traffic, compiled from the state.

use std::collections::HashMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::context::Context;
use crate::endpoint::{Endpoint, Pick};
use crate::random::Random;
use crate::strategy::{Member, Select};

/// All of the traffic.
pub(super) const WHOLE: u64 = 1 << 32;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) groups: Box<[CompiledGroup]>,
    /// When the table must be compiled again, in ns.
    pub(super) next_change: u64,
    /// Whether the key or the client chooses the group.
    pub(super) keyed: bool,
    /// Endpoints that serve their own sessions, by name hash.
    pub(super) sessions: HashMap<u64, Arc<Endpoint>>,
    /// Tells the table from all others of the process.
    pub(super) serial: u64,
    /// Whether threads keep it between picks.
    pub(super) is_kept: bool,
}

#[derive(Debug)]
pub(super) struct CompiledGroup {
    /// End of the group's share of the traffic, in 2^-32. Invariant: ascending, at most [`WHOLE`].
    pub(super) end: u64,
    pub(super) members: Box<[Member]>,
    pub(super) select: Arc<dyn Select>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            groups: Box::default(),
            next_change: u64::MAX,
            keyed: false,
            sessions: HashMap::new(),
            serial: 0,
            is_kept: true,
        }
    }
}

impl Table {
    #[inline]
    pub(super) fn pick(&self, ctx: &Context<'_>, now: u64, random: &Random) -> Option<Pick> {
        if let Some(session) = ctx.session
            && let Some(pick) = self.pick_session(session, ctx, now)
        {
            return Some(pick);
        }
        match &*self.groups {
            [first, others @ ..] if first.end == WHOLE => {
                let pick = first.pick(ctx, now, random);
                if pick.is_some() || others.is_empty() {
                    return pick;
                }
                others.iter().find_map(|group| group.pick(ctx, now, random))
            }
            groups => self.pick_among(groups, ctx, now, random),
        }
    }

    #[cold]
    fn pick_session(&self, session: &str, ctx: &Context<'_>, now: u64) -> Option<Pick> {
        let is_token = session.len() == 16 && session.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hash = u64::from_str_radix(session, 16).ok().filter(|_| is_token)?;
        let endpoint = self.sessions.get(&hash)?;
        let is_taken = ctx.admits(endpoint.id()) && endpoint.try_take();
        is_taken.then(|| Pick::new(Arc::clone(endpoint), now))
    }

    /// Chooses a group by its share, and a member of it. If all of the group are full, the other
    /// groups are asked in order.
    fn pick_among(
        &self,
        groups: &[CompiledGroup],
        ctx: &Context<'_>,
        now: u64,
        random: &Random,
    ) -> Option<Pick> {
        let bits = self.group_bits(ctx, random) >> 32;
        // A share that no group has is rejected.
        let chosen = groups.iter().position(|group| bits < group.end)?;
        let others = groups.iter().enumerate().filter(|(at, _)| *at != chosen);
        groups[chosen]
            .pick(ctx, now, random)
            .or_else(|| others.into_iter().find_map(|(_, group)| group.pick(ctx, now, random)))
    }

    fn group_bits(&self, ctx: &Context<'_>, random: &Random) -> u64 {
        // Not the hash that chooses the endpoint within the group.
        const SEED: u64 = 0x67726f7570;
        match (self.keyed, ctx.key, ctx.client) {
            (true, Some(key), _) => xxh3_64_with_seed(key, SEED),
            (true, None, Some(client)) => {
                let bytes = match client {
                    std::net::IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    std::net::IpAddr::V6(address) => address.octets(),
                };
                xxh3_64_with_seed(&bytes, SEED)
            }
            _ => random.u64(),
        }
    }
}

impl CompiledGroup {
    #[inline]
    fn pick(&self, ctx: &Context<'_>, now: u64, random: &Random) -> Option<Pick> {
        let selection = self.select.select(&self.members, ctx, now, random);
        let index = selection.index;
        if let Some(member) = self.members.get(index)
            && ctx.admits(member.endpoint.id())
            && member.endpoint.try_take()
        {
            return Some(selection.end_with(Pick::new(Arc::clone(&member.endpoint), now)));
        }
        self.pick_next(index, ctx, now)
    }

    /// The first member after `index` that is neither full nor excluded.
    #[cold]
    fn pick_next(&self, index: usize, ctx: &Context<'_>, now: u64) -> Option<Pick> {
        let len = self.members.len();
        let mut others = (1..=len).map(|step| &self.members[(index % len + step) % len].endpoint);
        let endpoint = others.find(|other| ctx.admits(other.id()) && other.try_take())?;
        Some(Pick::new(Arc::clone(endpoint), now))
    }
}

//! What picks read: groups with their shares of the traffic, compiled from the state.

use std::collections::HashMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::context::Context;
use crate::endpoint::{Endpoint, Pick};
use crate::random::Random;
use crate::strategy::{Member, Select, Selection};

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
    /// The most requests in flight at a member.
    pub(super) max_in_flight: u32,
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
        let pick = self.take(selection, ctx, now);
        if pick.is_some() {
            return pick;
        }
        self.pick_other(ctx, now, random)
    }

    /// Leases the member of the selection, unless it is full or excluded.
    #[inline]
    fn take(&self, selection: Selection, ctx: &Context<'_>, now: u64) -> Option<Pick> {
        if let Some(member) = self.members.get(selection.index)
            && ctx.admits(member.endpoint.id())
            && member.endpoint.try_take()
        {
            return Some(selection.end_with(Pick::new(Arc::clone(&member.endpoint), now)));
        }
        None
    }

    /// Leases another member than the first choice: the next choice of the strategy, else a drawn
    /// one.
    #[cold]
    fn pick_other(&self, ctx: &Context<'_>, now: u64, random: &Random) -> Option<Pick> {
        let is_open = |at: usize| {
            let endpoint = self.members.get(at).map(|member| &member.endpoint);
            endpoint.is_some_and(|endpoint| {
                ctx.admits(endpoint.id()) && endpoint.in_flight() < self.max_in_flight
            })
        };
        let other = self.select.select_other(&self.members, ctx, now, random, &is_open);
        let pick = other.and_then(|selection| self.take(selection, ctx, now));
        if pick.is_some() {
            return pick;
        }
        let drawn = self.draw_open(&is_open, now, random)?;
        // Other threads may have filled the drawn member: then the first one after it is leased.
        let order = (drawn..self.members.len()).chain(0..drawn);
        order.map(Selection::new).find_map(|selection| self.take(selection, ctx, now))
    }

    /// Draws one of the open members by `weight / (load + 1)`. `None` if no member is open.
    ///
    /// Source: Efraimidis, Spirakis, "Weighted random sampling with a reservoir" (2006), for a
    /// reservoir of one; the weights are those of Envoy's least request.
    fn draw_open(
        &self,
        is_open: &dyn Fn(usize) -> bool,
        now: u64,
        random: &Random,
    ) -> Option<usize> {
        let (mut drawn, mut total) = (None, 0.0);
        for (at, member) in self.members.iter().enumerate().filter(|(at, _)| is_open(*at)) {
            let weight = f64::from(member.weight) / (f64::from(member.endpoint.load(now)) + 1.0);
            total += weight;
            // 0 to 1, without 1: the first open member is always taken.
            let chance = (random.u64() >> 11) as f64 / (1_u64 << 53) as f64;
            if chance * total < weight {
                drawn = Some(at);
            }
        }
        drawn
    }
}

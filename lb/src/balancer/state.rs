//! What a balancer knows about its endpoints. Behind the lock; picks never read it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::plan::GroupKey;
use super::{Inner, MAX_ENDPOINTS};
use crate::config::{Config, EndpointConfig, OutlierConfig};
use crate::core::{
    CheckState, CheckThresholds, EjectionState, WindowSample, ejection_allowed, latency_outliers,
    ramp_step, success_rate_outliers,
};
use crate::endpoint::Endpoint;
use crate::error::UpdateError;
use crate::strategy::Select;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) entries: Vec<Entry>,
    next_id: u64,
    /// When the current window of outlier detection ends.
    window_end: Option<u64>,
    /// The compiled form of each group that ever was: it holds positions.
    pub(super) selects: HashMap<GroupKey, Arc<dyn Select>>,
    /// Counts changes. A table is current if it was compiled from this version.
    pub(super) version: u64,
    /// Whether a thread compiles a table.
    pub(super) compiling: bool,
    /// Whether the strategy panicked when it compiled the last one: the table is an older one.
    pub(super) is_outdated: bool,
    pub(super) last_update: Option<u64>,
    pub(super) updates: u64,
    pub(super) ejections: u64,
    pub(super) refused_ejections: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) config: EndpointConfig,
    /// `None` when no checks run.
    pub(super) check: Option<CheckState>,
    pub(super) ejection: EjectionState,
    /// When slow start began. `None` when it does not apply.
    ramp_since: Option<u64>,
    /// Drained by [`Balancer::set_draining`](super::Balancer::set_draining), whatever a set says.
    is_drained: bool,
    /// Whether it left the set and serves until an endpoint of the set does. Invariant: it passes
    /// its checks, does not drain, and stands behind all endpoints of the set.
    has_left: bool,
}

impl Entry {
    /// Whether it gets no new traffic, by its set or by hand.
    pub(super) fn is_draining(&self) -> bool {
        self.config.draining || self.is_drained
    }

    fn passes_checks(&self) -> bool {
        self.check.is_none_or(CheckState::is_healthy)
    }

    /// Whether checks and outlier detection find nothing wrong.
    pub(super) fn is_healthy(&self) -> bool {
        self.passes_checks() && self.ejection.until.is_none()
    }

    /// Whether it may get new traffic.
    pub(super) fn is_usable(&self) -> bool {
        self.is_healthy() && !self.is_draining()
    }

    /// Whether it may get new traffic in a panic: unless nothing at all is known about it.
    pub(super) fn is_usable_in_panic(&self) -> bool {
        self.check != Some(CheckState::Unknown) && !self.is_draining()
    }

    fn end_ejection(&mut self, now: u64) {
        self.ejection.until = None;
        self.endpoint.forget_failures_in_a_row();
        self.ramp_since = Some(now);
    }

    /// The step of slow start and the time to the next one, while the endpoint warms up.
    pub(super) fn ramp(&self, config: &Config, now: u64) -> Option<(u32, Option<u64>)> {
        let (slow, since) = (config.slow_start.as_ref()?, self.ramp_since?);
        Some(ramp_step(now.saturating_sub(since), slow.window.as_nanos() as u64, slow.floor))
    }
}

pub(super) fn validate(endpoints: &[EndpointConfig]) -> Result<(), UpdateError> {
    if endpoints.is_empty() {
        return Err(UpdateError::Empty);
    }
    if endpoints.len() > MAX_ENDPOINTS {
        return Err(UpdateError::TooMany { count: endpoints.len(), max: MAX_ENDPOINTS });
    }
    let mut names = HashSet::with_capacity(endpoints.len());
    for endpoint in endpoints {
        if !names.insert(endpoint.name.as_str()) {
            return Err(UpdateError::Duplicate { name: endpoint.name.clone() });
        }
        if !(1..=65_535).contains(&endpoint.weight) {
            let (name, weight) = (endpoint.name.clone(), endpoint.weight);
            return Err(UpdateError::Weight { name, weight });
        }
    }
    Ok(())
}

impl State {
    /// Replaces the set. Entries of names that stay keep everything but their configuration.
    pub(super) fn replace(&mut self, set: Vec<EndpointConfig>, inner: &Arc<Inner>, now: u64) {
        let is_first = self.updates == 0;
        let old = std::mem::take(&mut self.entries);
        let mut old: HashMap<String, Entry> =
            old.into_iter().map(|entry| (entry.config.name.clone(), entry)).collect();
        for config in set {
            let entry = match old.remove(&config.name) {
                Some(entry) => Entry { config, has_left: false, ..entry },
                None => self.new_entry(config, inner, (!is_first).then_some(now)),
            };
            self.entries.push(entry);
        }
        self.updates += 1;
        self.last_update = Some(now);
        self.keep_ejected_share(&inner.config, now);
        // A set that only drains is meant to serve nothing.
        let could_serve = self.entries.iter().any(|entry| !entry.is_draining());
        if could_serve && !self.entries.iter().any(Entry::is_usable) {
            self.keep_left(old.into_values());
        }
    }

    /// Keeps what left a set in which nothing passes its checks yet, until an endpoint of it does.
    ///
    /// Source: Envoy keeps hosts that left discovery while their checks pass.
    fn keep_left(&mut self, old: impl Iterator<Item = Entry>) {
        let is_kept = |entry: &Entry| entry.check.is_some() && entry.is_usable();
        let mut left: Vec<Entry> = old.filter(is_kept).collect();
        left.sort_unstable_by_key(|entry| entry.endpoint.id());
        // Together with the set no more than one set may have.
        left.truncate(MAX_ENDPOINTS - self.entries.len());
        self.entries.extend(left.into_iter().map(|entry| Entry { has_left: true, ..entry }));
    }

    /// Drops what left the set, once an endpoint of the set serves, and what no longer can.
    /// Returns whether it dropped any.
    pub(super) fn drop_left(&mut self, config: &Config, now: u64) -> bool {
        let before = self.entries.len();
        let is_served = self.entries.iter().any(|entry| !entry.has_left && entry.is_usable());
        self.entries.retain(|entry| {
            let can_serve = entry.passes_checks() && !entry.is_draining();
            !entry.has_left || (!is_served && can_serve)
        });
        let has_dropped = self.entries.len() < before;
        if has_dropped {
            self.keep_ejected_share(config, now);
        }
        has_dropped
    }

    /// The endpoints that traffic is shared among: those of the set, or those that left it while
    /// they serve in its place.
    pub(super) fn serving(&self) -> impl Iterator<Item = &Entry> {
        let holds = self.entries.last().is_some_and(|entry| entry.has_left);
        self.entries.iter().filter(move |entry| entry.has_left == holds)
    }

    fn new_entry(
        &mut self,
        config: EndpointConfig,
        inner: &Arc<Inner>,
        ramp_since: Option<u64>,
    ) -> Entry {
        let id = self.next_id;
        self.next_id += 1;
        let weak = Arc::downgrade(inner);
        Entry {
            endpoint: Arc::new(Endpoint::new(id, &config.name, inner.tracking, weak)),
            check: inner.config.checks.as_ref().map(|_| CheckState::Unknown),
            ejection: EjectionState::default(),
            ramp_since,
            is_drained: false,
            has_left: false,
            config,
        }
    }

    /// Returns whether the name is known.
    pub(super) fn set_draining(
        &mut self,
        name: &str,
        draining: bool,
        config: &Config,
        now: u64,
    ) -> bool {
        let found = self.entries.iter_mut().find(|entry| entry.config.name == name);
        let is_known = found.map(|entry| entry.is_drained = draining).is_some();
        self.keep_ejected_share(config, now);
        is_known
    }

    /// Returns whether the health changed.
    pub(super) fn record_check(
        &mut self,
        id: u64,
        passed: bool,
        config: &Config,
        now: u64,
    ) -> bool {
        let Some(checks) = &config.checks else { return false };
        let thresholds = CheckThresholds { rise: checks.rise, fall: checks.fall };
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.endpoint.id() == id) else {
            return false;
        };
        let before = entry.check.unwrap_or_default();
        let after = before.record(passed, thresholds);
        entry.check = Some(after);
        if after.is_healthy() && !before.is_healthy() {
            entry.ramp_since = Some(now);
        }
        let has_changed = after.is_healthy() != before.is_healthy();
        if has_changed {
            self.keep_ejected_share(config, now);
        }
        has_changed || before == CheckState::Unknown
    }

    /// Ejects an endpoint, if its share allows it. Returns whether it did.
    pub(super) fn eject(&mut self, id: u64, config: &Config, now: u64) -> bool {
        let Some(outliers) = &config.outliers else { return false };
        let (ejected, counted) = self.ejected();
        let stays = |entry: &Entry| entry.is_usable() && entry.endpoint.id() != id;
        let is_allowed = ejection_allowed(ejected, counted, outliers.max_ejected_share)
            && self.entries.iter().any(stays);
        let entry = self.entries.iter_mut().find(|entry| entry.endpoint.id() == id);
        let Some(entry) =
            entry.filter(|entry| entry.ejection.until.is_none() && !entry.is_draining())
        else {
            return false;
        };
        if !is_allowed {
            self.refused_ejections += 1;
            return false;
        }
        let nanos = |duration: std::time::Duration| duration.as_nanos() as u64;
        entry.ejection.eject(now, nanos(outliers.base_ejection), nanos(outliers.max_ejection));
        self.ejections += 1;
        true
    }

    /// How many endpoints are ejected, of how many. Those that drain serve nothing, so they count
    /// neither as ejected nor as left.
    fn ejected(&self) -> (usize, usize) {
        let counted = || self.entries.iter().filter(|entry| !entry.is_draining());
        (counted().filter(|entry| entry.ejection.until.is_some()).count(), counted().count())
    }

    /// Ends ejections, those that would end first, until what is left of the set may have as many
    /// and one endpoint that passes its checks serves: the share was that of another set.
    fn keep_ejected_share(&mut self, config: &Config, now: u64) {
        let Some(outliers) = &config.outliers else { return };
        // Ends: each turn ends an ejection.
        loop {
            let (ejected, counted) = self.ejected();
            if ejected == 0 {
                return;
            }
            let is_within = ejection_allowed(ejected - 1, counted, outliers.max_ejected_share);
            let is_served = self.entries.iter().any(|entry| entry.is_usable() && !entry.has_left);
            let could_serve = |entry: &&mut Entry| {
                let is_ejected = entry.ejection.until.is_some() && !entry.is_draining();
                is_ejected && (!is_within || entry.passes_checks())
            };
            let found =
                self.entries.iter_mut().filter(could_serve).min_by_key(|entry| {
                    (!is_served && !entry.passes_checks(), entry.ejection.until)
                });
            match found {
                Some(entry) if !is_within || !is_served => entry.end_ejection(now),
                _ => return,
            }
        }
    }

    /// Does what is due at `now`. Returns whether the table must be compiled again.
    pub(super) fn advance(&mut self, config: &Config, now: u64) -> bool {
        for entry in &mut self.entries {
            if entry.ejection.until.is_some_and(|until| until <= now) {
                entry.end_ejection(now);
            }
        }
        if let Some(outliers) = &config.outliers
            && self.window_end.is_some_and(|end| end <= now)
        {
            self.end_window(outliers, config, now);
        }
        // The time of the next change is part of the table.
        true
    }

    fn end_window(&mut self, outliers: &OutlierConfig, config: &Config, now: u64) {
        self.window_end = None;
        let samples: Vec<WindowSample> =
            self.entries.iter().map(|entry| entry.endpoint.take_window()).collect();
        for entry in &mut self.entries {
            entry.ejection.end_window();
        }
        let mut found = Vec::new();
        if let Some(rate) = &outliers.success_rate {
            let (endpoints, requests) = (rate.min_endpoints, rate.min_requests);
            found.extend(success_rate_outliers(&samples, endpoints, requests, rate.factor));
        }
        if let Some(latency) = &outliers.latency {
            let (endpoints, requests) = (latency.min_endpoints, latency.min_requests);
            found.extend(latency_outliers(&samples, endpoints, requests, latency.factor));
        }
        for at in found {
            self.eject(self.entries[at].endpoint.id(), config, now);
        }
    }

    /// When something is due next, after `now`. Begins a window if none runs.
    pub(super) fn next_change(&mut self, config: &Config, now: u64) -> u64 {
        let mut next = u64::MAX;
        // Also if only failures in a row eject: each window forgets an ejection.
        if let Some(outliers) = &config.outliers {
            let interval = outliers.interval.as_nanos() as u64;
            next = *self.window_end.get_or_insert(now.saturating_add(interval));
        }
        for entry in &self.entries {
            next = next.min(entry.ejection.until.unwrap_or(u64::MAX));
            if let Some((_, Some(wait))) = entry.ramp(config, now) {
                next = next.min(now.saturating_add(wait));
            }
        }
        next.max(now.saturating_add(1))
    }

    pub(super) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.entries.iter().map(|entry| Arc::clone(&entry.endpoint)).collect()
    }

    /// Keeps the compiled forms; returns the ones that they replace.
    pub(super) fn remember(
        &mut self,
        compiled: Vec<(GroupKey, Arc<dyn Select>)>,
    ) -> Vec<Arc<dyn Select>> {
        let insert = |(key, select)| self.selects.insert(key, select);
        compiled.into_iter().filter_map(insert).collect()
    }
}

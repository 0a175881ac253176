//! What happens in the lives of `tests`: random steps, and the drain at the end.

use super::tests::{Asked, Job, Life, Rec, SECOND};
use super::*;

impl Life<'_> {
    pub(super) fn step(&mut self) {
        match self.random.u8(..32) {
            0..=6 => self.produce(),
            7..=11 => self.receive(),
            12..=15 => self.finish(),
            16 => self.reject(),
            17 => self.extend(),
            18 => self.ack_twice(),
            19 => self.ack_stale(),
            20..=21 => self.pass(),
            22..=27 => self.land(),
            28 => self.dead_letters(),
            29 => self.cancel(),
            30 => self.is_full = !self.is_full,
            _ if self.random.u8(..3) == 0 => self.crash(),
            _ => {}
        }
    }

    fn produce(&mut self) {
        let scheduled = match self.random.u8(..12) {
            0 => self.now + self.random.u64(0..8 * SECOND),
            1 => self.now + 1_000 * SECOND,
            _ => 0,
        };
        let key = self.random.bool().then(|| self.random.u64(..3));
        let (is_gap, is_poison) = (self.random.u8(..10) == 0, self.random.u8(..6) == 0);
        self.log.push(Rec { key, deliver_at: scheduled, is_gap, is_poison });
        self.feed(Input::Grown);
    }

    fn receive(&mut self) {
        let max = self.random.usize(1..4);
        self.ask(Asked::Receive, |id| Input::Receive { id, max, lease_ns: 10 * SECOND });
    }

    fn take_job(&mut self) -> Option<Job> {
        let at = (!self.jobs.is_empty()).then(|| self.random.usize(..self.jobs.len()))?;
        Some(self.jobs.swap_remove(at))
    }

    fn rec(&self, slot: Slot) -> Rec {
        let offset = match slot {
            Slot::Log(offset) => offset,
            Slot::Dead(id) => self.disk.letters[id as usize],
        };
        self.log[offset as usize]
    }

    /// A worker is done with a record, or fails with it, or dies.
    fn finish(&mut self) {
        let Some(job) = self.take_job() else { return };
        let held = job.held;
        if self.rec(held.slot).is_poison && self.random.u8(..8) > 0 {
            if self.random.bool() {
                let delay = self.random.bool().then(|| self.random.u64(0..20 * SECOND));
                let until = self.now + delay.unwrap_or(0);
                self.ask(Asked::Nack(job, until), |id| Input::Nack { id, held, delay_ns: delay });
            }
            return;
        }
        if job.until > job.first_until && self.now >= job.first_until && self.now < job.until {
            self.situations.reached("lease extended beyond its first end");
        }
        self.ask(Asked::Ack(job), |id| Input::Ack { id, held });
    }

    fn reject(&mut self) {
        let Some(job) = self.take_job() else { return };
        let held = job.held;
        self.known.entry(held.slot).or_default().may_be_rejected = true;
        let reason = "no such customer".to_owned();
        self.ask(Asked::Reject(job), |id| Input::Reject { id, held, reason });
    }

    fn extend(&mut self) {
        let Some(job) = self.jobs.first().copied() else { return };
        let (held, until) = (job.held, self.now + 15 * SECOND);
        let asked = Asked::Extend(held.lease, until);
        self.ask(asked, |id| Input::Extend { id, held, lease_ns: 15 * SECOND });
    }

    fn ack_twice(&mut self) {
        let Some(job) = self.take_job() else { return };
        let held = job.held;
        for _ in 0..2 {
            self.ask(Asked::Ack(job), |id| Input::Ack { id, held });
        }
    }

    fn ack_stale(&mut self) {
        let Some(job) = self.stale.pop() else { return };
        let held = job.held;
        self.ask(Asked::Ack(job), |id| Input::Ack { id, held });
    }

    fn pass(&mut self) {
        self.now += self.random.u64(0..12 * SECOND);
        let expired = self.core.counters.expired;
        self.feed(Input::Tick);
        let more = self.core.counters.expired - expired;
        self.situations.add("lease expired", more);
    }

    fn dead_letters(&mut self) {
        let ids: Vec<u64> = self.core.ledger.dead.keys().copied().collect();
        let Some(dead) = self.random.choice(ids) else { return };
        if self.random.bool() {
            return self.ask(Asked::Purge, |id| Input::Purge { id, dead });
        }
        let offset = self.disk.letters[dead as usize];
        let Rec { key, deliver_at, .. } = self.log[offset as usize];
        let record = Arrived { payload: offset, bytes: 100, key, deliver_at };
        self.ask(Asked::Redrive(dead), |id| Input::Redrive { id, dead, record });
    }

    fn cancel(&mut self) {
        let receives = self.asked.iter().filter(|(_, asked)| matches!(asked, Asked::Receive));
        let Some(id) = receives.map(|(id, _)| *id).min() else { return };
        if self.random.bool() {
            // The receiver is dropped: its answer finds nobody.
            self.asked.remove(&id);
        }
        self.feed(Input::Cancel { id });
    }

    /// Workers that succeed with everything but poison, and time that passes only as the deadlines
    /// say: everything comes to an end.
    pub(super) fn drain(&mut self) {
        self.is_full = false;
        let end = self.log.len() as u64;
        for _ in 0..20_000 {
            self.land();
            if self.unwritten.is_some() {
                continue;
            }
            let is_paused = self.core.paused_until > self.now;
            let is_blocked = !is_paused && !self.core.window.dying.is_empty();
            let listed = self.core.ledger.dead.iter().find(|(_, dead)| !dead.is_redriven);
            if let Some((dead, _)) = listed.filter(|_| is_blocked) {
                let dead = *dead;
                self.ask(Asked::Purge, |id| Input::Purge { id, dead });
                continue;
            }
            if let Some(job) = self.take_job() {
                let held = job.held;
                let entry = self.core.window.entries.get(&held.slot);
                let is_last = entry.is_some_and(|entry| entry.count > self.limits.max_deliveries);
                if self.rec(held.slot).is_poison && !is_last {
                    let asked = Asked::Nack(job, self.now);
                    self.ask(asked, |id| Input::Nack { id, held, delay_ns: None });
                } else {
                    self.ask(Asked::Ack(job), |id| Input::Ack { id, held });
                }
                continue;
            }
            if self.core.ledger.floor >= end && self.core.window.entries.is_empty() {
                return self.check_ended();
            }
            if self.core.waiting.is_empty() {
                self.receive();
                continue;
            }
            let deadline = self.core.next_deadline();
            self.now = self.now.max(deadline.unwrap_or_else(|| {
                panic!("nothing is due and records are left: {:?}", self.core.window.entries)
            }));
            self.feed(Input::Tick);
        }
        panic!("it never ends: {:?}", self.core);
    }

    /// Each record is acknowledged or has become a dead letter once.
    fn check_ended(&self) {
        assert_eq!(self.core.ledger.floor, self.log.len() as u64);
        assert!(self.core.ledger.settled.is_empty() && self.core.ledger.marks.is_empty());
        let mut died: Vec<u64> = self.disk.letters.clone();
        died.sort_unstable();
        let before = died.len();
        died.dedup();
        assert_eq!(before, died.len(), "a dead letter was copied twice");
        for (offset, rec) in (0..).zip(&self.log) {
            let known = self.known.get(&Slot::Log(offset)).cloned().unwrap_or_default();
            let is_dead = died.binary_search(&offset).is_ok();
            assert!(!(known.is_acked && is_dead), "{offset} is done and dead");
            let is_known = known.is_acked || known.may_be_acked || is_dead || rec.is_gap;
            assert!(is_known, "{offset} is lost: {known:?}");
        }
    }
}

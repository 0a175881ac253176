//! A laboratory in which disks and links take their time.

use super::{Lab, Letter, MS};
use voussoir_raft::Config;
use voussoir_raft::core::Input;

/// A laboratory in which time passes in steps of 1 ms and nothing is lost.
pub(crate) struct Live {
    pub(crate) lab: Lab,
    letters: Vec<(u64, Letter)>,
    disk_busy_until: [u64; 16],
    /// How many letters have been sent.
    sent: u64,
}

impl Live {
    pub(crate) fn new(voters: u64, seed: u64) -> Self {
        Self::with(voters, move |config| config.seed = Some(seed))
    }

    pub(crate) fn with(voters: u64, tweak: impl Fn(&mut Config) + 'static) -> Self {
        let lab = Lab::with(voters, tweak);
        Self { lab, letters: Vec::new(), disk_busy_until: [0; 16], sent: 0 }
    }

    /// A write takes `write_ms(node)` from when the one before it was done, and the nth letter
    /// `link_ms(n)`.
    pub(crate) fn run(
        &mut self,
        ms: u64,
        write_ms: impl Fn(u64) -> u64,
        link_ms: impl Fn(u64) -> u64,
    ) {
        for _ in 0..ms {
            let lab = &mut self.lab;
            lab.now += MS;
            for id in lab.ids() {
                lab.node_mut(id).fast_disk = false;
                let busy_until = &mut self.disk_busy_until[id as usize];
                if lab.node(id).writes.is_empty() {
                    *busy_until = lab.now + write_ms(id) * MS;
                } else if *busy_until <= lab.now {
                    *busy_until = lab.now + write_ms(id) * MS;
                    lab.sync_one(id);
                }
                lab.step(id, Input::Tick);
            }
            for letter in lab.take(|_| true) {
                self.sent += 1;
                self.letters.push((lab.now + link_ms(self.sent) * MS, letter));
            }
            let (due, under_way): (Vec<_>, Vec<_>) =
                self.letters.drain(..).partition(|(at, _)| *at <= lab.now);
            self.letters = under_way;
            for (_, Letter { from, to, message }) in due {
                lab.send(from, to, message);
            }
        }
    }

    pub(crate) fn term(&self) -> u64 {
        let up = self.lab.ids().into_iter().filter(|id| self.lab.node(*id).core.is_some());
        up.map(|id| self.lab.status(id).term).max().unwrap()
    }
}

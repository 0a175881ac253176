//! Entries rot on the disks of nodes, which find out when they start again.

use voussoir_sim::{Crash, MILLISECOND, SECOND, World};

use super::node::RaftNode;
use super::oracle::Oracle;
use crate::types::Role;

/// Between two strikes, at least and at most.
const PAUSE_NS: (u64, u64) = (50 * MILLISECOND, SECOND);
/// Between two looks at a node that was struck.
const LOOK_NS: (u64, u64) = (5 * MILLISECOND, 50 * MILLISECOND);

/// A node whose disk was struck.
#[derive(Clone, Copy, Debug)]
struct Struck {
    id: u64,
    led: bool,
    /// How often it had been repaired.
    repairs: u64,
}

/// Strikes one node after the other, the next one when the one before is sound.
#[derive(Debug, Default)]
pub(super) struct Rot {
    struck: Option<Struck>,
}

impl Rot {
    /// Strikes whenever `alarm` goes off, from a while after the start.
    pub(super) fn begin(world: &mut World<RaftNode>, alarm: Option<u64>) -> Self {
        if let Some(alarm) = alarm {
            world.alarm(PAUSE_NS.1, alarm);
        }
        Self::default()
    }

    /// Goes on. Returns when to do so again, in ns.
    pub(super) fn turn(&mut self, world: &mut World<RaftNode>, oracle: &mut Oracle) -> Option<u64> {
        if let Some(struck) = self.struck {
            self.look(world, oracle, struck);
        } else if world.now() < world.plan().quiet_ns {
            self.strike(world, oracle);
        }
        let is_over = world.now() >= world.plan().quiet_ns && self.struck.is_none();
        let (least, most) = if self.struck.is_some() { LOOK_NS } else { PAUSE_NS };
        (!is_over).then(|| world.rng().scaled(least, most))
    }

    /// Looks whether a node is sound again. Now and then its repair is cut off.
    fn look(&mut self, world: &mut World<RaftNode>, oracle: &mut Oracle, struck: Struck) {
        let Struck { id, led, repairs } = struck;
        let Some(recovering) = world.node(id).map(|node| node.status().recovering) else { return };
        if recovering.is_none() {
            if oracle.repairs(id) == repairs {
                oracle.reached("damage where the snapshot covers it");
            } else if led {
                oracle.reached("damaged leader repaired");
            }
            self.struck = None;
        } else if world.now() < world.plan().quiet_ns
            && world.rng().chance(200_000)
            && world.crash(id, Crash::Power)
        {
            world.restart(id);
        }
    }

    /// Has an entry rot on the disk of a node.
    fn strike(&mut self, world: &mut World<RaftNode>, oracle: &Oracle) {
        let up: Vec<u64> = world.nodes().map(|(id, _)| id).collect();
        let Some(id) = world.rng().pick(&up).copied() else { return };
        let (wanted, is_late) = (world.rng().next_u64(), world.rng().chance(500_000));
        let Some(node) = world.node(id) else { return };
        let led = node.status().role == Role::Leader;
        let Some(record) = node.record(wanted, is_late) else { return };
        if world.crash(id, Crash::Process) {
            if world.disk_mut(id).is_some_and(|disk| disk.rot_record(&record)) {
                self.struck = Some(Struck { id, led, repairs: oracle.repairs(id) });
            }
            world.restart(id);
        }
    }
}

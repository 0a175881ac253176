//! The flows of a proxy, by their addresses, in the order of their last datagram.

use std::collections::HashMap;
use std::sync::Arc;

use super::flow::{Ends, Flow};

/// No place.
const NONE: usize = usize::MAX;
/// Answers do not move a flow in the order, so the one at its end may be busy. So many busy ones
/// are moved before one is evicted.
const SECOND_CHANCES: usize = 8;

#[derive(Debug)]
struct Node {
    flow: Arc<Flow>,
    /// When the flow got its place in the order, in ns.
    placed: u64,
    /// Towards the idlest. Invariant: [`NONE`] or an occupied place.
    older: usize,
    /// Towards the busiest. Invariant: [`NONE`] or an occupied place.
    newer: usize,
}

/// A map and a doubly linked list over one slab.
#[derive(Debug)]
pub(super) struct Flows {
    by_ends: HashMap<Ends, usize>,
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    oldest: usize,
    newest: usize,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            by_ends: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
        }
    }
}

impl Flows {
    pub(super) fn len(&self) -> usize {
        self.by_ends.len()
    }

    /// The flow between two addresses, which becomes the newest.
    pub(super) fn touch(&mut self, ends: Ends, now: u64) -> Option<Arc<Flow>> {
        let at = *self.by_ends.get(&ends)?;
        let node = self.node(at);
        node.placed = now;
        node.flow.touch(now);
        let flow = Arc::clone(&node.flow);
        self.move_to_newest(at);
        Some(flow)
    }

    /// Adds a flow as the newest. Replaces another one between the same addresses.
    pub(super) fn insert(&mut self, flow: Arc<Flow>) {
        let ends = flow.ends();
        if let Some(&at) = self.by_ends.get(&ends) {
            self.take(at).end();
        }
        let placed = flow.last_activity();
        let node = Some(Node { flow, placed, older: NONE, newer: NONE });
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.by_ends.insert(ends, at);
        self.link_newest(at);
    }

    /// Removes this flow, unless another one has taken its place.
    pub(super) fn remove(&mut self, flow: &Arc<Flow>) -> bool {
        let Some(&at) = self.by_ends.get(&flow.ends()) else { return false };
        if !Arc::ptr_eq(&self.node(at).flow, flow) {
            return false;
        }
        self.take(at);
        true
    }

    /// Removes the flow that was idle longest.
    pub(super) fn pop_idlest(&mut self) -> Option<Arc<Flow>> {
        for _ in 0..SECOND_CHANCES {
            if self.oldest == NONE {
                return None;
            }
            let at = self.oldest;
            let node = self.node(at);
            let last = node.flow.last_activity();
            if last <= node.placed {
                return Some(self.take(at));
            }
            node.placed = last;
            self.move_to_newest(at);
        }
        (self.oldest != NONE).then(|| self.take(self.oldest))
    }

    pub(super) fn into_flows(self) -> impl Iterator<Item = Arc<Flow>> {
        self.nodes.into_iter().flatten().map(|node| node.flow)
    }

    fn node(&mut self, at: usize) -> &mut Node {
        self.nodes[at].as_mut().expect("an index of the map or list is occupied")
    }

    fn take(&mut self, at: usize) -> Arc<Flow> {
        self.unlink(at);
        let node = self.nodes[at].take().expect("an index of the map or list is occupied");
        self.free.push(at);
        self.by_ends.remove(&node.flow.ends());
        node.flow
    }

    fn move_to_newest(&mut self, at: usize) {
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    fn unlink(&mut self, at: usize) {
        let (older, newer) = {
            let node = self.node(at);
            (node.older, node.newer)
        };
        match older {
            NONE => self.oldest = newer,
            older => self.node(older).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.node(newer).older = older,
        }
    }

    fn link_newest(&mut self, at: usize) {
        let newest = self.newest;
        let node = self.node(at);
        (node.older, node.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = at,
            newest => self.node(newest).newer = at,
        }
        self.newest = at;
    }
}

//! Topologies for tests.
#![allow(dead_code, reason = "each test file uses some of these")]

use voussoir_ring::{Node, Topology};

pub(crate) fn topology(nodes: u64) -> Topology {
    Topology::new(1, (0..nodes).map(Node::new)).unwrap()
}

/// Nodes dealt to zones in turn, and to racks within their zone.
pub(crate) fn zoned(nodes: u64, zones: u64, racks: u64) -> Topology {
    let node = |id| {
        let (zone, rack) = (id % zones, id / zones % racks);
        Node::new(id).in_zone(format!("z{zone}")).in_rack(format!("r{rack}"))
    };
    Topology::new(1, (0..nodes).map(node)).unwrap()
}

pub(crate) fn ids(topology: &Topology) -> Vec<u64> {
    topology.nodes().iter().map(|node| node.id).collect()
}

//! The rivals behind one closure each: a 16-byte key in, something of the answer out.

use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use consistent_hash_ring::RingBuilder;
use maglev::ConsistentHasher;

pub type Key = [u8; 16];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VirtualNode {
    pub node: u64,
    pub number: u32,
}

/// Our hash function for a rival that takes one: what is left is the ring itself.
#[derive(Default)]
pub struct Xxh3(u64);

impl Hasher for Xxh3 {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= xxhash_rust::xxh3::xxh3_64(bytes);
    }
}

fn virtual_nodes(nodes: u64) -> Vec<VirtualNode> {
    (0..nodes).flat_map(|node| (0..160).map(move |number| VirtualNode { node, number })).collect()
}

fn number(key: &Key) -> u128 {
    u128::from_le_bytes(*key)
}

pub fn hashring(nodes: u64) -> impl Fn(&Key) -> u64 {
    let mut ring = hashring::HashRing::new();
    ring.batch_add(virtual_nodes(nodes));
    move |key| ring.get(&number(key)).map_or(0, |found| found.node)
}

pub fn hashring_xxh3(nodes: u64) -> impl Fn(&Key) -> u64 {
    let mut ring = hashring::HashRing::with_hasher(BuildHasherDefault::<Xxh3>::default());
    ring.batch_add(virtual_nodes(nodes));
    move |key| ring.get(&number(key)).map_or(0, |found| found.node)
}

pub fn hashring_replicas(nodes: u64) -> impl Fn(&Key) -> u64 {
    let mut ring = hashring::HashRing::new();
    ring.batch_add(virtual_nodes(nodes));
    move |key| {
        let found = ring.get_with_replicas(&number(key), 2);
        found.and_then(|list| list.last().map(|found| found.node)).unwrap_or_default()
    }
}

pub fn consistent_hash_ring(nodes: u64) -> impl Fn(&Key) -> u64 {
    let ring = RingBuilder::default().vnodes(160).nodes_iter(0..nodes).build();
    move |key| *ring.get(number(key))
}

pub fn consistent_hash_ring_replicas(nodes: u64) -> impl Fn(&Key) -> u64 {
    let ring = RingBuilder::default().vnodes(160).nodes_iter(0..nodes).build();
    move |key| ring.replicas(number(key)).take(3).copied().fold(0, u64::wrapping_add)
}

#[derive(Clone, Debug)]
pub struct Named(u64);

impl conhash::Node for Named {
    fn name(&self) -> String {
        format!("node-{}", self.0)
    }
}

pub fn conhash(nodes: u64) -> impl Fn(&Key) -> u64 {
    let mut ring = conhash::ConsistentHash::new();
    for node in 0..nodes {
        ring.add(&Named(node), 160);
    }
    move |key| ring.get(key).map_or(0, |found| found.0)
}

pub fn pingora_ketama(nodes: u64) -> impl Fn(&Key) -> u64 {
    let address = |node: u64| {
        let [.., a, b] = node.to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, a, b)), 80)
    };
    let buckets: Vec<_> =
        (0..nodes).map(|node| pingora_ketama::Bucket::new(address(node), 1)).collect();
    let ring = pingora_ketama::Continuum::new(&buckets);
    move |key| ring.node(key).map_or(0, |found| u64::from(found.port()))
}

pub fn maglev(nodes: u64) -> impl Fn(&Key) -> u64 {
    let table = maglev::Maglev::with_capacity(0..nodes, 65_537);
    move |key| *table.get(&number(key)).unwrap_or(&0)
}

pub fn anchorhash(nodes: u64) -> impl Fn(&Key) -> u64 {
    let anchor = anchorhash::Builder::default().with_resources(0..nodes).build::<u128>(2000);
    move |key| *anchor.get_resource(number(key)).unwrap_or(&0)
}

pub fn jump(nodes: u64) -> impl Fn(&Key) -> u64 {
    move |key| jump_consistent_hash::hash(voussoir_ring::hash::key(key), nodes as usize).into()
}

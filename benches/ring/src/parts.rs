//! Lookups in a tight loop over a warm ring, and building.

use voussoir_ring::{HashRing, Jump, Maglev, Memento, Partitioner, hash};

use crate::measure::{median_ms, ring, time, topology};
use crate::report::Report;
use crate::rivals::{self, Key};

pub fn lookups(report: &mut Report) {
    report.alone("making a key and hashing it", time(hash_only), "ns");
    for nodes in [10, 100, 1000] {
        let at = |what: &str| format!("{what}, {nodes} nodes");
        let ours = ring(nodes, 1);
        let ours = time(|key| ours.owner(key));
        let ring = at("ring 160");
        report.beside(&ring, ours, "hashring 0.3.6", time(rivals::hashring(nodes)), "ns");
        let theirs = time(rivals::hashring_xxh3(nodes));
        report.beside(&ring, ours, "hashring 0.3.6 with XXH3", theirs, "ns");
        let theirs = time(rivals::consistent_hash_ring(nodes));
        report.beside(&ring, ours, "consistent_hash_ring 0.8.0", theirs, "ns");
        report.beside(&ring, ours, "conhash 0.5.1", time(rivals::conhash(nodes)), "ns");
        let theirs = time(rivals::pingora_ketama(nodes));
        report.beside(&ring, ours, "pingora-ketama 0.9.1", theirs, "ns");
        let table = Maglev::with_table(&topology(nodes, 1), 65_537).expect("a table");
        let ours = time(|key| table.owner(key));
        report.beside(&at("Maglev 65537"), ours, "maglev 0.2.1", time(rivals::maglev(nodes)), "ns");
        let jump = Jump::new(&topology(nodes, 1)).expect("jump");
        let ours = time(|key| jump.owner(key));
        report.beside(
            &at("jump"),
            ours,
            "jump-consistent-hash 0.1.0",
            time(rivals::jump(nodes)),
            "ns",
        );
        let memento = Memento::new(&topology(nodes, 1)).expect("memento");
        let ours = time(|key| memento.owner(key));
        let theirs = time(rivals::anchorhash(nodes));
        report.beside(&at("Memento, none removed"), ours, "anchorhash 0.2.2", theirs, "ns");
        let mut memento = memento;
        for id in (0..nodes / 10).map(|nth| nth * 7 % (nodes - 1)) {
            memento.remove(id).expect("a member");
        }
        report.alone(&at("Memento, a tenth removed"), time(|key| memento.owner(key)), "ns");
    }
}

fn hash_only(key: &Key) -> u64 {
    hash::key(key)
}

pub fn replicas(report: &mut Report) {
    for nodes in [12, 99, 999] {
        let name = format!("owners(key, 3) over 3 zones, {nodes} nodes");
        let zoned = ring(nodes, 3);
        report.alone(&name, time(|key| zoned.owners(key, 3)[2]), "ns");
        let name = format!("owners(key, 3) without zones, {nodes} nodes");
        let plain = ring(nodes, 1);
        let ours = time(|key| plain.owners(key, 3)[2]);
        report.beside(&name, ours, "hashring 0.3.6", time(rivals::hashring_replicas(nodes)), "ns");
        // Its ring of 999 takes seconds to build.
        if nodes < 999 {
            let theirs = time(rivals::consistent_hash_ring_replicas(nodes));
            report.beside(&name, ours, "consistent_hash_ring 0.8.0", theirs, "ns");
        }
    }
}

pub fn builds(report: &mut Report) {
    for nodes in [10, 100, 1000] {
        let members = topology(nodes, 1);
        let ours = median_ms(|| HashRing::new(&members).expect("a ring"), 15);
        let name = format!("build ring 160, {nodes} nodes");
        let theirs = median_ms(|| rivals::hashring(nodes), 5);
        report.beside(&name, ours, "hashring 0.3.6", theirs, "ms");
        let theirs = median_ms(|| rivals::pingora_ketama(nodes), 5);
        report.beside(&name, ours, "pingora-ketama 0.9.1", theirs, "ms");
        let theirs = median_ms(|| rivals::conhash(nodes), 1);
        report.beside(&name, ours, "conhash 0.5.1", theirs, "ms");
        let theirs = median_ms(|| rivals::consistent_hash_ring(nodes), 1);
        report.beside(&name, ours, "consistent_hash_ring 0.8.0", theirs, "ms");
        let table = median_ms(|| Maglev::with_table(&members, 65_537).expect("a table"), 5);
        let theirs = median_ms(|| rivals::maglev(nodes), 1);
        report.beside(
            &format!("build Maglev 65537, {nodes} nodes"),
            table,
            "maglev 0.2.1",
            theirs,
            "ms",
        );
        let ring = HashRing::new(&members).expect("a ring");
        let bytes = ring.memory_bytes() as f64 / nodes as f64;
        report.alone(&format!("ring 160 memory a node, {nodes} nodes"), bytes, "B");
    }
}

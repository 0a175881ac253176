//! Development only.
use std::hint::black_box;
use std::time::Instant;
use voussoir_ring::{hash, HashRing, Node, Partitioner, Topology, Published};
fn key(number: u64) -> [u8; 16] {
    let random = hash::mix(number);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&random.to_le_bytes());
    key[8..].copy_from_slice(&number.to_le_bytes());
    key
}
fn t(name: &str, f: impl Fn(&[u8; 16]) -> u64) {
    let mut v: Vec<f64> = (1..8u64).map(|r| {
        let s = Instant::now(); let mut sum = 0u64;
        for n in 0..2_000_000 { sum = sum.wrapping_add(f(&key((r << 32) + n))); }
        black_box(sum); s.elapsed().as_nanos() as f64 / 2e6 }).collect();
    v.sort_by(f64::total_cmp);
    println!("{name}: min {:.1} med {:.1}", v[0], v[3]);
}
fn main() {
    t("key", |k| k[0] as u64);
    t("hash", |k| hash::key(k));
    for n in [10u64, 100, 1000] {
        let z = |z: u64| Topology::new(1, (0..n).map(|i| if z > 1 { Node::new(i).in_zone(format!("{}", i % z)) } else { Node::new(i) })).unwrap();
        let s = Instant::now();
        let r = HashRing::new(&z(1)).unwrap();
        println!("build {n}: {:?} bytes {}", s.elapsed(), r.memory_bytes());
        let tz = z(1);
        let s = Instant::now(); for _ in 0..10 { black_box(HashRing::new(&tz).unwrap()); }
        println!("build {n}: {:?}", s.elapsed() / 10);
        t(&format!("owner {n}"), |k| r.owner(k));
        t(&format!("owner_at {n}"), |k| r.owner_at(u64::from_le_bytes(k[..8].try_into().unwrap())));
        let p = Published::new(1, r.clone());
        let rd = std::cell::RefCell::new(p.reader());
        t(&format!("reader {n}"), |k| rd.borrow_mut().get().owner(k));
        t(&format!("owners3 nozone {n}"), |k| r.owners(k, 3)[2]);
        let r = HashRing::new(&z(3)).unwrap();
        t(&format!("owners3 zoned {n}"), |k| r.owners(k, 3)[2]);
    }
}

//! Where a key stands among all keys. Both kinds of partition share one ordered space of *places*:
//!
//! | key | place | neighbours |
//! |---|---|---|
//! | `ordered/…` | `r/KEY` | its neighbours in order: partitioned by range |
//! | any other | `h/HASH/KEY`, the hash as 16 hexadecimal digits | none: partitioned by hash |
//!
//! A shard is a range of places. So a shard of hashes is split and moved by the same code as a
//! shard of keys, and [`RangeMap`](voussoir_ring::range::RangeMap) finds the owner of both.

use voussoir_ring::hash;

use crate::kv::MAX_KEY_BYTES;

/// Keys that begin so are partitioned by range.
pub const ORDERED: &str = "ordered/";
/// The longest place, in bytes.
pub const MAX_PLACE_BYTES: usize = MAX_KEY_BYTES + HASH_HEAD;
/// Length of `h/HASH/`.
const HASH_HEAD: usize = 19;
/// Where the places of ordered keys begin.
const RANGES: &str = "r/";

/// The place of a key.
pub fn place(key: &str) -> String {
    if key.starts_with(ORDERED) {
        format!("{RANGES}{key}")
    } else {
        format!("h/{:016x}/{key}", hash::key(key.as_bytes()))
    }
}

/// Where the first shards begin: `hashes` shards that divide the hashes evenly, and one shard of
/// all ordered keys. The first begins at the empty place, so that every place has an owner.
pub fn first_starts(hashes: u32) -> Vec<String> {
    let hashes = u128::from(hashes.max(1));
    let start = |nth: u128| match (nth << 64) / hashes {
        0 => String::new(),
        start => format!("h/{start:016x}"),
    };
    (0..hashes).map(start).chain([RANGES.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_divided_evenly_and_ordered_keys_stay_together() {
        let starts = first_starts(16);
        assert_eq!(
            (starts.len(), &starts[1][..], &starts[15][..]),
            (17, "h/1000000000000000", "h/f000000000000000")
        );
        assert!(starts.is_sorted());
        let mut counts = vec![0; 17];
        for number in 0..16_000 {
            let place = place(&format!("key/{number}"));
            counts[starts.partition_point(|start| *start <= place) - 1] += 1;
        }
        assert!(counts[..16].iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert_eq!(counts[16], 0);
        assert!(place("ordered/a") < place("ordered/b") && place("ordered/a") > starts[16]);
    }

    #[test]
    fn the_longest_key_has_the_longest_place() {
        assert_eq!(place(&"k".repeat(MAX_KEY_BYTES)).len(), MAX_PLACE_BYTES);
    }
}

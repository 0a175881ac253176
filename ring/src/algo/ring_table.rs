//! Points of a ring and the table that finds the owner of a position in two cache lines.
//!
//! A point is a `u64`: 40 bits of position, 24 bits for its node. The owner of a position is the
//! node of the first point at or after it, wrapping at the end.
//!
//! A slot of the table covers the positions that share its leading bits. It is one `u64`: the number
//! of the first point at or after its start, and where inside the slot up to four points stand, 9
//! bits each. The point of a position is then the first one plus as many as stand before it, all
//! four compared at once and without a branch; its node is read from an array of nodes alone. What
//! the 9 bits cannot decide (more points, or a point with the same 9 bits: one position in a
//! hundred) is looked up among the points themselves.
//!
//! Slots and nodes are all that nearly every lookup touches, and they are what is kept small: 1.3
//! MiB for a thousand nodes of 160 points.

use crate::error::BuildError;

/// The most points of one ring (sum over all nodes of virtual nodes times weight).
pub const POINTS_MAX: u64 = (1 << FIRST_BITS) - 1;

/// Bits of a point below its position.
const NODE_BITS: u32 = 24;
const NODE_MASK: u64 = (1 << NODE_BITS) - 1;

/// Bits of a slot for the number of a point.
const FIRST_BITS: u32 = 24;
const PLACES: u32 = 4;
const PLACE_BITS: u32 = 9;
/// A place and a bit above it, clear in a place, that catches the borrow when two are compared.
const FIELD_BITS: u32 = PLACE_BITS + 1;
/// One in each field.
const ONES: u64 = 1 | 1 << FIELD_BITS | 1 << (2 * FIELD_BITS) | 1 << (3 * FIELD_BITS);
/// The upper bit of each field. A slot that has them set has more points than places.
const UPPER: u64 = ONES << PLACE_BITS;
/// The last place in each field: where no point stands.
const NOWHERE: u64 = UPPER - ONES;

/// Up to this many points the table may be longer than it need be: it stays in the inner caches.
const SMALL: u64 = 16_384;
const SLOT_BITS_MIN: u32 = 4;

#[derive(Debug)]
pub(crate) struct RingTable {
    /// Sorted; at most one a position.
    points: Box<[u64]>,
    /// The node of each point, and the first one again at the end.
    nodes: Box<[u16]>,
    /// From the top: the places of the points inside, each in its field, the lowest first; the
    /// number of the first point.
    slots: Box<[u64]>,
    /// Leading bits of a position that choose its slot.
    slot_bits: u32,
}

pub(crate) const fn point(position: u64, node: u16) -> u64 {
    (position & !NODE_MASK) | node as u64
}

/// The last position that the point owns: the ring does not tell positions apart below 40 bits.
const fn end_of(point: u64) -> u64 {
    point | NODE_MASK
}

/// How many of four places come before a place, and whether one is equal to it.
#[inline]
const fn compare(places: u64, place: u64) -> (u64, bool) {
    let differences = (places | UPPER) - place * ONES;
    // The upper bit of a field is left where its place is not below; multiplying sums these bits.
    let not_below = ((((differences & UPPER) >> PLACE_BITS) * ONES) >> (3 * FIELD_BITS)) & 7;
    let equal = differences ^ UPPER;
    // A field of zero is the lowest one that borrows and had no upper bit.
    (PLACES as u64 - not_below, equal.wrapping_sub(ONES) & !equal & UPPER != 0)
}

impl RingTable {
    /// Builds the table from `count` unsorted points, each made by [`point`].
    pub(crate) fn new(count: u64, points: impl Iterator<Item = u64>) -> Result<Self, BuildError> {
        if count > POINTS_MAX {
            let what = "the ring's virtual nodes";
            return Err(BuildError::TooLarge { what, wanted: count, max: POINTS_MAX });
        }
        let slots = if count <= SMALL { count * 3 / 2 } else { count * 4 / 5 };
        let slot_bits = slots.next_power_of_two().trailing_zeros().max(SLOT_BITS_MIN);
        let unsorted: Vec<u64> = points.collect();
        let points = sort(&unsorted, slot_bits);
        let nodes = points.iter().chain(points.first()).map(|&point| point as u16).collect();
        let slots = fill(&points, slot_bits);
        Ok(Self { points, nodes, slots, slot_bits })
    }

    /// The node that owns a position.
    #[inline]
    pub(crate) fn owner(&self, position: u64) -> u16 {
        self.nodes[self.at_or_after(position)]
    }

    /// The number of the first point at or after the position; that of the last one plus one stands
    /// for the first one.
    #[inline]
    fn at_or_after(&self, position: u64) -> usize {
        let slot = self.slots[(position >> (64 - self.slot_bits)) as usize];
        let place = (position << self.slot_bits) >> (64 - PLACE_BITS);
        let first = (slot & ((1 << FIRST_BITS) - 1)) as usize;
        let places = slot >> FIRST_BITS;
        let (before, tied) = compare(places & NOWHERE, place);
        let undecided = tied || places & UPPER != 0;
        if undecided { self.scan(first, position) } else { first + before as usize }
    }

    #[cold]
    fn scan(&self, first: usize, position: u64) -> usize {
        let ahead = &self.points[first..];
        first + ahead.iter().take_while(|&&point| end_of(point) < position).count()
    }

    /// The nodes from a position on, once around.
    #[inline]
    pub(crate) fn walk(&self, position: u64) -> impl Iterator<Item = u16> {
        let (wrapped, ahead) = self.nodes.split_at(self.at_or_after(position));
        // The copy of the first node stands for it only when the walk starts there.
        ahead.iter().chain(wrapped).copied()
    }

    /// The points in order: the last position of each, and its node.
    pub(crate) fn ends(&self) -> impl ExactSizeIterator<Item = (u64, u16)> {
        self.points.iter().map(|&point| (end_of(point), point as u16))
    }

    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.points) + size_of_val(&*self.nodes) + size_of_val(&*self.slots)
    }
}

/// Sorts by counting leading bits, then by insertion among the few that share them: the positions
/// are hashes, so this is linear.
fn sort(unsorted: &[u64], bits: u32) -> Box<[u64]> {
    let shift = 64 - bits;
    let mut next = vec![0_u32; (1 << bits) + 1];
    for point in unsorted {
        next[(point >> shift) as usize + 1] += 1;
    }
    let mut sum = 0;
    for start in &mut next {
        sum += *start;
        *start = sum;
    }
    let mut sorted = vec![0; unsorted.len()];
    for &point in unsorted {
        let next = &mut next[(point >> shift) as usize];
        sorted[*next as usize] = point;
        *next += 1;
    }
    for at in 1..sorted.len() {
        let mut back = at;
        while back > 0 && sorted[back - 1] > sorted[back] {
            sorted.swap(back - 1, back);
            back -= 1;
        }
    }
    // Of points that share a position the lowest node keeps it, in whatever order they came.
    sorted.dedup_by_key(|point| *point >> NODE_BITS);
    sorted.into_boxed_slice()
}

fn fill(points: &[u64], slot_bits: u32) -> Box<[u64]> {
    let place = |point: u64| (end_of(point) << slot_bits) >> (64 - PLACE_BITS);
    let mut slots = vec![0; 1 << slot_bits];
    let mut next = 0;
    for (number, slot) in slots.iter_mut().enumerate() {
        let first = next;
        let mut places = NOWHERE;
        while next < points.len() && points[next] >> (64 - slot_bits) == number as u64 {
            let nth = (next - first) as u32;
            if nth < PLACES {
                let unset = NOWHERE & (((1 << FIELD_BITS) - 1) << (nth * FIELD_BITS));
                places = (places ^ unset) | (place(points[next]) << (nth * FIELD_BITS));
            }
            next += 1;
        }
        if next - first > PLACES as usize {
            places = UPPER;
        }
        *slot = (places << FIRST_BITS) | first as u64;
    }
    slots.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::{NOWHERE, PLACES, compare};

    #[test]
    fn four_places_compare_as_one_by_one() {
        let interesting = [0, 1, 2, 254, 255, 256, 257, 510, 511];
        for a in interesting {
            for b in interesting {
                for at in interesting.into_iter().chain(0..512) {
                    let four = [a, b, 511, b];
                    let places = (0..PLACES as usize).map(|nth| four[nth] << (10 * nth)).sum();
                    let before = four.iter().filter(|&&place| place < at).count() as u64;
                    assert_eq!(compare(places, at), (before, four.contains(&at)), "{four:?} {at}");
                }
            }
        }
        assert_eq!(compare(NOWHERE, 510), (0, false));
    }
}

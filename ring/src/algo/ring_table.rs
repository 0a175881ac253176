//! Points of a ring and the table that finds the owner of a position in two cache lines.
//!
//! A point is a `u64`: 40 bits of position, 24 bits for its node. The owner of a position is the
//! node of the first point at or after it, wrapping at the end.
//!
//! A slot of the table covers the positions that share its leading bits. One `u64`: the number
//! of the first point at or after its start, and where inside the slot up to four points stand, 10
//! bits each. The point of a position is the first one plus as many as stand before it, counted
//! without a branch; its node is read from an array of nodes alone. What the 10 bits cannot decide
//! (more points, or a point with the same 10 bits: one position in a hundred) is looked up among
//! the points themselves.
//!
//! Slots and nodes are all that nearly every lookup touches, and they are what is kept small: 1.3
//! MiB for a thousand nodes of 160 points.

use crate::error::BuildError;

/// The most points of one ring (sum over all nodes of virtual nodes times weight).
pub const MAX_POINTS: u64 = (1 << FIRST_BITS) - 1;

/// Bits of a point below its position.
const NODE_BITS: u32 = 24;
const NODE_MASK: u64 = (1 << NODE_BITS) - 1;

/// Bits of a slot for the number of a point.
const FIRST_BITS: u32 = 24;
const PLACES: u32 = 4;
const PLACE_BITS: u32 = 10;
const MAX_PLACE: u64 = (1 << PLACE_BITS) - 1;

/// Up to this many points the table may be longer than it need be: it stays in the inner caches.
const SMALL: u64 = 16_384;
const MIN_SLOT_BITS: u32 = 4;

#[derive(Debug)]
pub(crate) struct RingTable {
    /// Sorted; at most one a position.
    points: Box<[u64]>,
    /// The node of each point, and the first one again at the end.
    nodes: Box<[u16]>,
    /// From the top: the places of the points inside, ascending, [`MAX_PLACE`] for none; the number
    /// of the first point. Descending places mark a slot that has more points.
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

const fn place_in(slot: u64, nth: u32) -> u64 {
    (slot >> (FIRST_BITS + nth * PLACE_BITS)) & MAX_PLACE
}

impl RingTable {
    /// Builds the table from `count` unsorted points, each made by [`point`].
    pub(crate) fn new(count: u64, points: impl Iterator<Item = u64>) -> Result<Self, BuildError> {
        if count > MAX_POINTS {
            let what = "the ring's virtual nodes";
            return Err(BuildError::TooLarge { what, wanted: count, max: MAX_POINTS });
        }
        let slots = if count <= SMALL { count * 3 / 2 } else { count * 4 / 5 };
        let slot_bits = slots.next_power_of_two().trailing_zeros().max(MIN_SLOT_BITS);
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
        let (mut before, mut undecided) = (0, place_in(slot, 0) > place_in(slot, 1));
        for nth in 0..PLACES {
            before += usize::from(place > place_in(slot, nth));
            undecided |= place == place_in(slot, nth);
        }
        if undecided { self.scan(first, position) } else { first + before }
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
        // The copy of the first node at the end makes it the next one twice: harmless.
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
        // Ends: `back` falls.
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
        let mut places = 0;
        // Ends: `next` grows to the number of points.
        while next < points.len() && points[next] >> (64 - slot_bits) == number as u64 {
            if next - first < PLACES as usize {
                places |= place(points[next]) << ((next - first) as u32 * PLACE_BITS);
            }
            next += 1;
        }
        let inside = (next - first) as u32;
        if inside <= PLACES {
            // Nothing stands in the rest: all ones there.
            places |= u64::MAX.checked_shl(inside * PLACE_BITS).unwrap_or(0);
        } else {
            places = MAX_PLACE;
        }
        *slot = (places << FIRST_BITS) | first as u64;
    }
    slots.into_boxed_slice()
}

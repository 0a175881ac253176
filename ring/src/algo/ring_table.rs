//! Points of a ring and the table that finds the owner of a position in one cache line.
//!
//! A point is a `u64`: 40 bits of position, 24 bits for its node. The owner of a position is the
//! node of the first point at or after it, wrapping at the end. A table slot covers the positions
//! that share its leading bits:
//!
//! - no point inside: the node that owns all of it;
//! - one point inside: where it is, and the nodes up to it and after it;
//! - more points: the number of the first one, from where the points are scanned.
//!
//! With at least 1.25 slots a point, seven of eight positions are answered by the first two cases,
//! from the one cache line of their slot and without a branch that depends on the position.

use crate::error::BuildError;

/// The most points of one ring (sum over all nodes of virtual nodes times weight).
pub const POINTS_MAX: u64 = 1 << 24;

/// Bits of a point below its position.
const NODE_BITS: u32 = 24;
const NODE_MASK: u64 = (1 << NODE_BITS) - 1;
/// So that a slot's leading bits and the 32 that it keeps of a position cover all 40.
const SLOT_BITS_MIN: u32 = 8;
const MANY: u16 = u16::MAX;

#[derive(Debug)]
pub(crate) struct RingTable {
    /// Sorted; at most one a position.
    points: Box<[u64]>,
    /// 32 bits of position, the node up to it, the node after it.
    slots: Box<[u64]>,
    /// For every second slot the number of the first point at or after its start.
    starts: Box<[u32]>,
    shift: u32,
}

pub(crate) const fn point(position: u64, node: u16) -> u64 {
    (position & !NODE_MASK) | node as u64
}

const fn node_of(point: u64) -> u16 {
    point as u16
}

/// The last position that the point owns: the ring does not tell positions apart below 40 bits.
const fn end_of(point: u64) -> u64 {
    point | NODE_MASK
}

impl RingTable {
    /// Builds the table from `count` unsorted points, each made by [`point`].
    pub(crate) fn new(
        count: u64,
        points: impl Fn(&mut dyn FnMut(u64)),
    ) -> Result<Self, BuildError> {
        if count > POINTS_MAX {
            let what = "the ring's virtual nodes";
            return Err(BuildError::TooLarge { what, wanted: count, max: POINTS_MAX });
        }
        let bits = slot_bits(count);
        let shift = 64 - bits;
        let points = sort(count as usize, bits, points);
        let (slots, starts) = fill(&points, bits);
        Ok(Self { points, slots, starts, shift })
    }

    /// The node that owns a position.
    #[inline]
    pub(crate) fn owner(&self, position: u64) -> u16 {
        let slot = self.slots[(position >> self.shift) as usize];
        let within = (position << (64 - self.shift)) >> 32;
        let (up_to, after) = ((slot >> 32) as u16, (slot >> 48) as u16);
        if up_to == MANY {
            return self.scan(slot as u32 as usize, position);
        }
        if within > (slot & 0xffff_ffff) { after } else { up_to }
    }

    fn scan(&self, first: usize, position: u64) -> u16 {
        node_of(self.points[self.at_or_after(first, position)])
    }

    /// The first point from `first` on that is at or after the position, wrapping to 0.
    #[inline]
    fn at_or_after(&self, first: usize, position: u64) -> usize {
        let mut at = first;
        while at < self.points.len() && end_of(self.points[at]) < position {
            at += 1;
        }
        if at == self.points.len() { 0 } else { at }
    }

    /// The nodes from a position on, once around.
    #[inline]
    pub(crate) fn walk(&self, position: u64) -> impl Iterator<Item = u16> {
        let pair = (position >> self.shift) as usize / 2;
        let first = self.at_or_after(self.starts[pair] as usize, position);
        let (wrapped, ahead) = self.points.split_at(first);
        ahead.iter().chain(wrapped).map(|&point| node_of(point))
    }

    /// The points in order: the last position of each, and its node.
    pub(crate) fn ends(&self) -> impl ExactSizeIterator<Item = (u64, u16)> {
        self.points.iter().map(|&point| (end_of(point), node_of(point)))
    }

    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.points) + size_of_val(&*self.slots) + size_of_val(&*self.starts)
    }
}

/// Small rings get four slots a point, since their table fits the innermost cache anyway.
fn slot_bits(count: u64) -> u32 {
    let slots = if count <= 4096 { count * 4 } else { count + count / 4 };
    slots.next_power_of_two().trailing_zeros().max(SLOT_BITS_MIN)
}

/// Sorts by counting leading bits, then by insertion among the few that share them: the positions
/// are hashes, so this is linear, and the counting is what the table needs anyway.
fn sort(count: usize, bits: u32, points: impl Fn(&mut dyn FnMut(u64))) -> Box<[u64]> {
    let shift = 64 - bits;
    let mut unsorted = Vec::with_capacity(count);
    let mut ends = vec![0_u32; (1 << bits) + 1];
    points(&mut |point| {
        unsorted.push(point);
        ends[(point >> shift) as usize + 1] += 1;
    });
    let mut sum = 0;
    for end in &mut ends {
        sum += *end;
        *end = sum;
    }
    let mut sorted = vec![0; unsorted.len()];
    for &point in &unsorted {
        let next = &mut ends[(point >> shift) as usize];
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

fn fill(points: &[u64], bits: u32) -> (Box<[u64]>, Box<[u32]>) {
    let count = 1_usize << bits;
    let (mut slots, mut starts) = (Vec::with_capacity(count), Vec::with_capacity(count / 2));
    let mut next = 0;
    for slot in 0..count {
        let first = next;
        if slot % 2 == 0 {
            starts.push(first as u32);
        }
        while next < points.len() && points[next] >> (64 - bits) == slot as u64 {
            next += 1;
        }
        let after = points.get(next).or(points.first()).map_or(0, |&point| node_of(point));
        let (within, up_to) = match next - first {
            0 => (0, after),
            1 => ((end_of(points[first]) << bits) >> 32, node_of(points[first])),
            _ => (first as u64, MANY),
        };
        slots.push(within | (u64::from(up_to) << 32) | (u64::from(after) << 48));
    }
    (slots.into_boxed_slice(), starts.into_boxed_slice())
}

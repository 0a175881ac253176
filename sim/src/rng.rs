//! The generator behind every random choice of a world.

/// A small seeded generator: xoshiro256++ (Blackman and Vigna), seeded by splitmix64.
///
/// The algorithm is part of this crate's contract: a seed gives the same numbers on every
/// platform and in every later version, so that a seed in a bug report stays good.
///
/// # Example
/// ```
/// use voussoir_sim::Rng;
/// let (mut a, mut b) = (Rng::new(7), Rng::new(7));
/// assert_eq!(a.next_u64(), b.next_u64());
/// assert!(a.below(10) < 10);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// A generator for `seed`; any seed will do, also 0.
    pub fn new(seed: u64) -> Self {
        let mut s = seed;
        Self { state: [splitmix(&mut s), splitmix(&mut s), splitmix(&mut s), splitmix(&mut s)] }
    }

    /// An independent generator for a purpose named by `label`.
    ///
    /// Separate purposes get separate streams, so that one more draw in one of them does not
    /// change what the others see.
    pub fn stream(seed: u64, label: u64) -> Self {
        let mut s = seed;
        let mixed = splitmix(&mut s) ^ label.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self::new(mixed)
    }

    /// 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let out = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c2, d2) = (c ^ a, d ^ b);
        self.state = [a ^ d2, b ^ c2, c2 ^ (b << 17), d2.rotate_left(45)];
        out
    }

    /// A number in `0..n`, each equally likely (Lemire's method with rejection).
    ///
    /// # Panics
    /// If `n` is 0.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no answer");
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            let low = product as u64;
            if low >= n || low >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }

    /// A number in `low..=high`; `low` if the range is empty.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.checked_sub(low) {
            None | Some(0) => low,
            Some(u64::MAX) => self.next_u64(),
            Some(span) => low + self.below(span + 1),
        }
    }

    /// A number in `low..=high` whose order of magnitude is equally likely: small values come
    /// as often as large ones.
    pub fn scaled(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(1));
        let doublings = u64::from((high / low).max(1).ilog2());
        let floor = low << self.below(doublings + 1);
        self.between(floor, floor.saturating_mul(2).saturating_sub(1).min(high))
    }

    /// True in `ppm` of a million cases.
    #[inline]
    pub fn chance(&mut self, ppm: u32) -> bool {
        ((self.next_u64() >> 32) * 1_000_000) >> 32 < u64::from(ppm)
    }

    /// One of the items, or `None` if there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len() as u64) as usize) }
    }

    /// Puts the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_vectors() {
        let mut s = 1_234_567;
        assert_eq!(splitmix(&mut s), 6_457_827_717_110_365_317);
        assert_eq!(splitmix(&mut s), 3_203_168_211_198_807_973);
        let mut rng = Rng { state: [1, 2, 3, 4] };
        let want = [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386];
        assert_eq!(want, [(); 4].map(|()| rng.next_u64()));
    }

    #[test]
    fn stays_inside_its_ranges_and_reaches_their_ends() {
        let mut rng = Rng::new(3);
        let mut seen = [0_u32; 7];
        for _ in 0..7_000 {
            seen[rng.below(7) as usize] += 1;
            assert!((10..=12).contains(&rng.between(10, 12)));
            assert!((50..=5_000).contains(&rng.scaled(50, 5_000)));
        }
        assert!(seen.iter().all(|&n| (800..1_200).contains(&n)), "{seen:?}");
        assert_eq!(rng.between(5, 4), 5);
        assert!(!rng.chance(0) && rng.chance(1_000_000));
        let mut items = [1, 2, 3, 4, 5];
        rng.shuffle(&mut items);
        items.sort_unstable();
        assert_eq!(items, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn streams_differ_and_repeat() {
        let first = |seed, label| Rng::stream(seed, label).next_u64();
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(1, 3));
        assert_ne!(first(1, 2), first(2, 2));
    }
}

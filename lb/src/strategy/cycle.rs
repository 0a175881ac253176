//! nginx's smooth weighted sequence, computed once.

/// The order in which `weights` are served in one cycle, as positions: nginx's smooth weighted
/// round robin. `None` if the cycle would be longer than 16,384 or cost too much to compute.
pub(super) fn smooth_cycle(weights: &[u32]) -> Option<Box<[u16]>> {
    const MAX_LEN: u64 = 16_384;
    const MAX_STEPS: u64 = 1 << 22;
    let divisor = weights.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let reduced: Vec<i64> = weights.iter().map(|&weight| i64::from(weight / divisor)).collect();
    let total: i64 = reduced.iter().sum();
    let (len, steps) = (total as u64, (total as u64).saturating_mul(weights.len() as u64));
    if len > MAX_LEN || steps > MAX_STEPS || weights.len() > usize::from(u16::MAX) {
        return None;
    }
    let mut current = vec![0_i64; reduced.len()];
    let mut cycle = Vec::with_capacity(len as usize);
    for _ in 0..total {
        let mut best = 0;
        for at in 0..reduced.len() {
            current[at] += reduced[at];
            // The first of equals wins, as in nginx.
            if current[at] > current[best] {
                best = at;
            }
        }
        current[best] -= total;
        cycle.push(best as u16);
    }
    Some(cycle.into())
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(weights: &[u32]) -> String {
        let cycle = smooth_cycle(weights).expect("short");
        cycle.iter().map(|&at| char::from(b'a' + at as u8)).collect()
    }

    #[test]
    fn the_sequence_is_that_of_nginx() {
        assert_eq!(letters(&[5, 1, 1]), "aabacaa");
        assert_eq!(letters(&[4, 2, 1]), "abacaba");
        assert_eq!(letters(&[20, 20, 20]), "abc");
        assert_eq!(letters(&[7]), "a");
    }

    #[test]
    fn a_long_cycle_is_left_to_edf() {
        assert!(smooth_cycle(&[65_535, 65_534]).is_none());
        assert!(smooth_cycle(&[65_535, 65_535]).is_some());
    }
}

//! From the SRV records of a service (RFC 2782) to endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::DiscoveryError;
use crate::config::EndpointConfig;

/// The largest weight of an endpoint.
const MAX_WEIGHT: u64 = 65_535;

/// One SRV record, its target resolved.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// The endpoints of a service, in the order of their addresses.
///
/// - The lowest priority becomes 0, the next one 1, and so on.
/// - A target's weight is divided among its addresses, so that a target with two of them gets no
///   more than one with a single address.
/// - Weight 0 beside greater ones is the smallest share that can be expressed (RFC 2782, "a very
///   small chance"); where all are 0, they are equal.
/// - An address that several records name has the sum of their weights, at the lowest of their
///   priorities.
pub(super) fn endpoints(services: &[Service]) -> Result<Vec<EndpointConfig>, DiscoveryError> {
    let levels: BTreeSet<u16> = services.iter().map(|service| service.priority).collect();
    let levels: Vec<u16> = levels.into_iter().collect();
    if levels.len() > usize::from(u8::MAX) + 1 {
        let reason = format!("{} priorities, 256 at most", levels.len());
        return Err(DiscoveryError::Failed { reason });
    }
    let mut found: BTreeMap<SocketAddr, (u8, u64)> = BTreeMap::new();
    for (level, priority) in (0_u8..=u8::MAX).zip(&levels) {
        let here: Vec<&Service> = services.iter().filter(|s| s.priority == *priority).collect();
        let mut shares: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for (service, weight) in here.iter().zip(address_weights(&here)) {
            for address in &service.addresses {
                *shares.entry(SocketAddr::new(*address, service.port)).or_default() += weight;
            }
        }
        for (address, weight) in shortened(shares) {
            // A lower level came first and keeps the address.
            found.entry(address).or_insert((level, weight));
        }
    }
    let endpoint = |(address, (level, weight)): (SocketAddr, (u8, u64))| {
        let weight = weight.clamp(1, MAX_WEIGHT) as u32;
        EndpointConfig::new(address.to_string()).with_priority(level).with_weight(weight)
    };
    Ok(found.into_iter().map(endpoint).collect())
}

/// The weight of each address of each service of one priority, in a common unit.
fn address_weights(services: &[&Service]) -> Vec<u64> {
    let has_weights = services.iter().any(|service| service.weight > 0);
    let largest = services.iter().map(|service| u64::from(service.weight)).max().unwrap_or(0);
    let unit = MAX_WEIGHT / largest.max(1);
    let weight = |service: &&Service| {
        let weight = if has_weights { u64::from(service.weight) } else { 1 };
        (weight * unit / service.addresses.len().max(1) as u64).max(1)
    };
    services.iter().map(weight).collect()
}

/// The same ratios in the smallest integers, which keep the cycle of weighted round robin short, or
/// close to them in the largest that an endpoint takes.
fn shortened(mut shares: BTreeMap<SocketAddr, u64>) -> BTreeMap<SocketAddr, u64> {
    let divisor = shares.values().copied().fold(0, greatest_common_divisor).max(1);
    let largest = shares.values().copied().max().unwrap_or(0) / divisor;
    for weight in shares.values_mut() {
        *weight /= divisor;
        if largest > MAX_WEIGHT {
            // At most 256 records of at most `MAX_WEIGHT` each: the product fits.
            *weight = (*weight * MAX_WEIGHT / largest).max(1);
        }
    }
    shares
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    // Ends: `b` falls with each round.
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn service(priority: u16, weight: u16, port: u16, last_bytes: &[u8]) -> Service {
        let addresses = last_bytes.iter().map(|last| Ipv4Addr::new(10, 0, 0, *last).into());
        Service { priority, weight, port, addresses: addresses.collect() }
    }

    fn shown(services: &[Service]) -> Vec<(String, u8, u32)> {
        let endpoints = endpoints(services).expect("few priorities");
        endpoints.into_iter().map(|e| (e.name, e.priority, e.weight)).collect()
    }

    fn at(name: &str, priority: u8, weight: u32) -> (String, u8, u32) {
        (name.to_owned(), priority, weight)
    }

    #[test]
    fn weights_are_divided_among_the_addresses_of_a_target() {
        let found = shown(&[service(10, 30, 80, &[1]), service(10, 30, 80, &[2, 3])]);
        let expected = [at("10.0.0.1:80", 0, 2), at("10.0.0.2:80", 0, 1), at("10.0.0.3:80", 0, 1)];
        assert_eq!(found, expected);
    }

    #[test]
    fn weight_zero_is_a_small_share_beside_others_and_an_equal_one_alone() {
        let found = shown(&[service(0, 0, 80, &[1]), service(0, 5, 80, &[2])]);
        let [(_, _, small), (_, _, large)] = &found[..] else { panic!("{found:?}") };
        assert!(*small == 1 && *large > 10_000, "{found:?}");
        let found = shown(&[service(0, 0, 80, &[1]), service(0, 0, 80, &[2])]);
        assert_eq!(found, [at("10.0.0.1:80", 0, 1), at("10.0.0.2:80", 0, 1)]);
    }

    #[test]
    fn priorities_are_numbered_from_zero_and_an_address_is_listed_once() {
        let services = [
            service(40, 1, 81, &[1]),
            service(7, 2, 80, &[1]),
            service(7, 1, 80, &[1, 2]),
            service(40, 9, 80, &[2]),
        ];
        // 10.0.0.1:80 has 2 and the half of 1, 10.0.0.2:80 the other half.
        let expected = [at("10.0.0.1:80", 0, 5), at("10.0.0.1:81", 1, 1), at("10.0.0.2:80", 0, 1)];
        let found = shown(&services);
        let ratio = found[0].2 as f64 / f64::from(found[2].2);
        assert!((ratio - 5.0).abs() < 0.001, "{found:?}");
        let names = |set: &[(String, u8, u32)]| -> Vec<(String, u8)> {
            set.iter().map(|(name, priority, _)| (name.clone(), *priority)).collect()
        };
        assert_eq!(names(&found), names(&expected));
    }

    #[test]
    fn every_record_gives_weights_that_a_balancer_takes() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let mut services = Vec::new();
            for _ in 0..rng.usize(0..6) {
                let last: Vec<u8> = (0..rng.usize(0..5)).map(|_| rng.u8(0..8)).collect();
                let weight = [0, 1, rng.u16(..), u16::MAX][rng.usize(0..4)];
                services.push(service(rng.u16(0..3), weight, rng.u16(80..82), &last));
            }
            let set = endpoints(&services).expect("three priorities");
            let names: BTreeSet<&str> = set.iter().map(|e| e.name.as_str()).collect();
            assert_eq!(names.len(), set.len(), "an address is listed twice: {services:?}");
            assert!(set.iter().all(|e| (1..=65_535).contains(&e.weight)), "{set:?}");
        }
        let many: Vec<Service> = (0..257).map(|n| service(n, 1, 80, &[1])).collect();
        assert!(endpoints(&many).is_err());
    }
}

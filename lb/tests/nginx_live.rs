//! Asks a real nginx for its smooth weighted sequences and its `ip_hash`. Left out, and says so,
//! where there is no nginx. `VOUSSOIR_NGINX` names the program (default `nginx`).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use test_support::Nginx;
use voussoir_lb::strategy::{IpHash, RoundRobin};
use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome};

fn server(at: usize) -> String {
    format!("127.0.0.{}:1", at + 1)
}

/// Picks once and returns the name.
fn name(balancer: &Balancer, ctx: &Context<'_>) -> String {
    let pick = balancer.pick(ctx, 0).expect("healthy");
    let name = pick.endpoint().name().to_owned();
    pick.finish(0, Outcome::Success);
    name
}

fn sets(count: usize) -> Vec<Vec<u32>> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut sets = vec![vec![5, 1, 1], vec![4, 2, 1]];
    sets.resize_with(count, || (0..rng.usize(1..=7)).map(|_| rng.u32(1..=12)).collect());
    sets
}

#[test]
fn a_thousand_weight_sets_give_the_sequences_of_live_nginx() {
    let sets = sets(1_000);
    let upstream = |weights: &Vec<u32>| {
        weights.iter().enumerate().fold(String::new(), |mut body, (at, weight)| {
            write!(body, "server {} weight={weight} max_fails=0;", server(at)).unwrap();
            body
        })
    };
    let upstreams: Vec<String> = sets.iter().map(upstream).collect();
    let Some(mut nginx) = Nginx::start(&upstreams) else { return };
    let mut connection = nginx.connect();
    for (path, weights) in sets.iter().enumerate() {
        let balancer = Balancer::new(RoundRobin::default(), Config::default()).unwrap();
        let endpoint = |(at, &weight)| EndpointConfig::new(server(at)).with_weight(weight);
        balancer.update(weights.iter().enumerate().map(endpoint), 0).unwrap();
        // One cycle, and the beginning of the next.
        for step in 0..weights.iter().sum::<u32>() + 5 {
            let ours = name(&balancer, &Context::new());
            assert_eq!(
                connection.chosen(path, "X-Real-IP: ::1\r\n"),
                ours,
                "{weights:?}, pick {step}"
            );
        }
    }
}

#[test]
fn ip_hash_is_that_of_live_nginx_also_with_servers_down() {
    let weights = [1, 3, 1, 2, 1];
    let bodies = [None, Some(1), Some(3)].map(|down| {
        let line = |(at, weight)| {
            let down = if Some(at) == down { " down" } else { "" };
            format!("server {} weight={weight} max_fails=0{down};", server(at))
        };
        format!("ip_hash; {}", weights.iter().enumerate().map(line).collect::<String>())
    });
    let Some(mut nginx) = Nginx::start(&bodies) else { return };
    let mut connection = nginx.connect();
    let mut rng = fastrand::Rng::with_seed(11);
    for (path, down) in [None, Some(1), Some(3)].into_iter().enumerate() {
        let balancer = Balancer::new(IpHash::default(), Config::default()).unwrap();
        let endpoint = |(at, &weight)| EndpointConfig::new(server(at)).with_weight(weight);
        balancer.update(weights.iter().enumerate().map(endpoint), 0).unwrap();
        if let Some(down) = down {
            assert!(balancer.set_draining(&server(down), true, 0));
        }
        for _ in 0..1_500 {
            let client = if rng.bool() {
                IpAddr::from(rng.u32(1 << 24..0xE000_0000).to_be_bytes())
            } else {
                IpAddr::from(Ipv6Addr::from(rng.u128(1 << 125..1 << 126)))
            };
            let ours = name(&balancer, &Context::new().with_client(client));
            assert_eq!(
                connection.chosen(path, &format!("X-Real-IP: {client}\r\n")),
                ours,
                "{client}"
            );
        }
    }
}

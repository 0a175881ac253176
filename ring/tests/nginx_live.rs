//! Asks a real nginx which server of an upstream `hash … consistent` chooses. Left out, and says
//! so, where there is no nginx. `VOUSSOIR_NGINX` names the program (default `nginx`).

use std::fmt::Write as _;

use test_support::Nginx;
use voussoir_ring::Partitioner;
use voussoir_ring::compat::nginx::{Consistent, Server};

/// Ports left out, given as 80 and given as another, a Unix socket, IPv6, and weights.
#[test]
fn live_nginx_chooses_the_same_servers() {
    // How `server` lines name them, and how `$upstream_addr` does.
    let named = [
        ("127.0.0.2", "127.0.0.2:80", 1),
        ("127.0.0.3:80", "127.0.0.3:80", 2),
        ("127.0.0.4:1", "127.0.0.4:1", 1),
        ("[::1]", "[::1]:80", 1),
        ("[::1]:2", "[::1]:2", 3),
        ("unix:/nonexistent/a.sock", "unix:/nonexistent/a.sock", 1),
    ];
    let servers: Vec<Server> = named
        .iter()
        .zip(0..)
        .map(|(&(name, _, weight), id)| Server::new(id, name, weight))
        .collect();
    let ours = Consistent::new(&servers).unwrap();
    let mut upstream = "hash $http_key consistent;".to_owned();
    for Server { address, weight, .. } in &servers {
        write!(upstream, "server {address} weight={weight} max_fails=0;").unwrap();
    }
    let Some(mut nginx) = Nginx::start(&[upstream]) else { return };
    let mut connection = nginx.connect();
    for n in 0..2000 {
        let key = format!("key-{n}");
        let (_, expected, _) = named[ours.owner(key.as_bytes()) as usize];
        assert_eq!(connection.chosen(0, &format!("Key: {key}\r\n")), expected, "{key}");
    }
}

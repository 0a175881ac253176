//! Asks a real nginx for its smooth weighted sequences and its `ip_hash`. Left out, and says so,
//! where there is no nginx. `VOUSSOIR_NGINX` names the program (default `nginx`).
//!
//! nginx needs no server behind it: each request fails with 502 and a header names the server that
//! was chosen.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use voussoir_lb::strategy::{IpHash, RoundRobin};
use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome};

struct Nginx {
    child: Child,
    port: u16,
    folder: PathBuf,
}

fn program() -> Option<String> {
    let named = std::env::var("VOUSSOIR_NGINX").ok();
    let candidates = named.into_iter().chain(["nginx", "/usr/sbin/nginx"].map(str::to_owned));
    let mut found = candidates.filter(|program| {
        let version = Command::new(program).arg("-v").stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    });
    let found = found.next();
    if found.is_none() {
        println!("left out: no nginx on this machine");
    }
    found
}

impl Nginx {
    /// `upstreams` are the bodies of the upstreams that `/0`, `/1`, … use.
    fn start(program: &str, upstreams: &[String]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = std::env::temp_dir().join(format!("voussoir-lb-nginx-{port}"));
        std::fs::create_dir_all(&folder).unwrap();
        let (mut blocks, mut locations) = (String::new(), String::new());
        for (at, body) in upstreams.iter().enumerate() {
            writeln!(blocks, "upstream u{at} {{ {body} }}").unwrap();
            writeln!(locations, "location = /{at} {{ proxy_pass http://u{at}; }}").unwrap();
        }
        let config = format!(
            "daemon off; master_process off; pid pid; error_log stderr emerg;
             events {{ worker_connections 64; }}
             http {{
               access_log off; client_body_temp_path body; proxy_temp_path proxy;
               fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
               set_real_ip_from 127.0.0.1; real_ip_header X-Real-IP;
               {blocks}
               server {{
                 listen 127.0.0.1:{port}; keepalive_requests 10000000;
                 proxy_next_upstream off;
                 add_header Chosen $upstream_addr always;
                 {locations}
               }}
             }}"
        );
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let mut command = Command::new(program);
        command.args(["-p", folder.to_str().unwrap(), "-c", "nginx.conf", "-e", "stderr"]);
        let child = command.spawn().expect("nginx starts");
        Self { child, port, folder }
    }

    fn connect(&mut self) -> BufReader<TcpStream> {
        // Ends: nginx listens, or has ended.
        loop {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", self.port)) {
                stream.set_nodelay(true).unwrap();
                return BufReader::new(stream);
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "nginx ended before it listened: {ended:?}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The address of the server that nginx chose.
fn chosen(connection: &mut BufReader<TcpStream>, path: usize, client: &str) -> String {
    let request = format!("GET /{path} HTTP/1.1\r\nHost: a\r\nX-Real-IP: {client}\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes()).unwrap();
    let (mut chosen, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert_ne!(connection.read_line(&mut line).unwrap(), 0, "nginx closed the connection");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name {
            "Chosen" => value.clone_into(&mut chosen),
            "Content-Length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    connection.read_exact(&mut vec![0; length]).unwrap();
    chosen
}

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
    let Some(program) = program() else { return };
    let sets = sets(1_000);
    let upstream = |weights: &Vec<u32>| {
        weights.iter().enumerate().fold(String::new(), |mut body, (at, weight)| {
            write!(body, "server {} weight={weight} max_fails=0;", server(at)).unwrap();
            body
        })
    };
    let mut nginx = Nginx::start(&program, &sets.iter().map(upstream).collect::<Vec<_>>());
    let mut connection = nginx.connect();
    for (path, weights) in sets.iter().enumerate() {
        let balancer = Balancer::new(RoundRobin::default(), Config::default()).unwrap();
        let endpoint = |(at, &weight)| EndpointConfig::new(server(at)).with_weight(weight);
        balancer.update(weights.iter().enumerate().map(endpoint), 0).unwrap();
        // One cycle, and the beginning of the next.
        for step in 0..weights.iter().sum::<u32>() + 5 {
            let ours = name(&balancer, &Context::new());
            assert_eq!(chosen(&mut connection, path, "::1"), ours, "{weights:?}, pick {step}");
        }
    }
}

#[test]
fn ip_hash_is_that_of_live_nginx_also_with_servers_down() {
    let Some(program) = program() else { return };
    let weights = [1, 3, 1, 2, 1];
    let bodies = [None, Some(1), Some(3)].map(|down| {
        let line = |(at, weight)| {
            let down = if Some(at) == down { " down" } else { "" };
            format!("server {} weight={weight} max_fails=0{down};", server(at))
        };
        format!("ip_hash; {}", weights.iter().enumerate().map(line).collect::<String>())
    });
    let mut nginx = Nginx::start(&program, &bodies);
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
            assert_eq!(chosen(&mut connection, path, &client.to_string()), ours, "{client}");
        }
    }
}

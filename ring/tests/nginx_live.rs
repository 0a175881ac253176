//! Asks a real nginx which server of an upstream `hash … consistent` chooses. Left out, and says
//! so, where there is no nginx. `VOUSSOIR_NGINX` names the program (default `nginx`).
//!
//! nginx needs no server behind it: each request fails with 502 and a header names the server that
//! was chosen.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use voussoir_ring::Partitioner;
use voussoir_ring::compat::nginx::{Consistent, Server};

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
    found.next()
}

impl Nginx {
    fn start(program: &str, servers: &[Server]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = std::env::temp_dir().join(format!("voussoir-ring-nginx-{port}"));
        std::fs::create_dir_all(&folder).unwrap();
        let mut lines = String::new();
        for Server { address, weight, .. } in servers {
            writeln!(lines, "server {address} weight={weight} max_fails=0;").unwrap();
        }
        let config = format!(
            "daemon off; master_process off; pid pid; error_log stderr emerg;
             events {{ worker_connections 64; }}
             http {{
               access_log off; client_body_temp_path body; proxy_temp_path proxy;
               fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
               upstream all {{ hash $http_key consistent; {lines} }}
               server {{
                 listen 127.0.0.1:{port}; keepalive_requests 100000;
                 location / {{
                   proxy_pass http://all; proxy_next_upstream off;
                   add_header Chosen $upstream_addr always;
                 }}
               }}
             }}"
        );
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let mut command = Command::new(program);
        command.args(["-p", folder.to_str().unwrap(), "-c", "nginx.conf", "-e", "stderr"]);
        let child = command.spawn().expect("nginx starts");
        Self { child, port, folder }
    }

    fn connect(&mut self) -> TcpStream {
        loop {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", self.port)) {
                return stream;
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

/// The address of the server that nginx chose for `key`.
fn chosen(connection: &mut BufReader<TcpStream>, key: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nKey: {key}\r\n\r\n");
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
    let mut body = vec![0; length];
    std::io::Read::read_exact(connection, &mut body).unwrap();
    chosen
}

/// Ports left out, given as 80 and given as another, a Unix socket, IPv6, and weights.
#[test]
fn live_nginx_chooses_the_same_servers() {
    let Some(program) = program() else {
        println!("left out: no nginx on this machine");
        return;
    };
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
    let mut nginx = Nginx::start(&program, &servers);
    let mut connection = BufReader::new(nginx.connect());
    for n in 0..2000 {
        let key = format!("key-{n}");
        let (_, expected, _) = named[ours.owner(key.as_bytes()) as usize];
        assert_eq!(chosen(&mut connection, &key), expected, "{key}");
    }
}

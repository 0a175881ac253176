//! An nginx that is asked which server it would choose.
//!
//! It needs no server behind it: each request fails with 502, and a header names the server that
//! was chosen.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A running nginx; it is killed when this value is dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Nginx {
    /// Starts one. `upstreams` are the bodies of the upstreams that the paths `/0`, `/1`, … use;
    /// they may use the variable `$http_key`. `None`, and a line on standard error, if there is no
    /// nginx on `PATH` or in `VOUSSOIR_NGINX`.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(upstreams: &[String]) -> Option<Self> {
        let program = crate::program("VOUSSOIR_NGINX", "nginx")?;
        let port = crate::free_port();
        let folder = std::env::temp_dir().join(format!("voussoir-nginx-{port}"));
        write_config(&folder, port, upstreams).expect("the temporary folder is writable");
        let mut command = Command::new(program);
        command.arg("-p").arg(&folder).args(["-c", "nginx.conf", "-e", "stderr"]);
        Some(Self { child: command.spawn().expect("nginx starts"), port, folder })
    }

    /// A connection for requests.
    ///
    /// # Panics
    /// If nginx ended before it listened.
    pub fn connect(&mut self) -> Requests {
        // Ends: nginx listens, or has ended.
        loop {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", self.port)) {
                stream.set_nodelay(true).expect("the stream is connected");
                return Requests(BufReader::new(stream));
            }
            let ended = self.child.try_wait().expect("nginx is a child of this process");
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

fn write_config(folder: &Path, port: u16, upstreams: &[String]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let (mut blocks, mut locations) = (String::new(), String::new());
    for (at, body) in upstreams.iter().enumerate() {
        let _ = writeln!(blocks, "upstream u{at} {{ {body} }}");
        let _ = writeln!(locations, "location = /{at} {{ proxy_pass http://u{at}; }}");
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
    std::fs::write(folder.join("nginx.conf"), config)
}

/// A connection to an [`Nginx`].
#[derive(Debug)]
pub struct Requests(BufReader<TcpStream>);

impl Requests {
    /// The server, as `$upstream_addr` spells it, that the upstream `at` chooses for a request
    /// with these further header lines (`Key: a\r\n`).
    ///
    /// # Panics
    /// If nginx closes the connection or answers with what is no HTTP.
    pub fn chosen(&mut self, at: usize, headers: &str) -> String {
        let request = format!("GET /{at} HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        self.0.get_mut().write_all(request.as_bytes()).expect("nginx keeps the connection");
        let (mut chosen, mut length) = (String::new(), 0);
        // Ends: at the empty line after the headers, or with the connection.
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).expect("nginx keeps the connection");
            assert_ne!(read, 0, "nginx closed the connection");
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap_or_default();
            match name {
                "Chosen" => value.clone_into(&mut chosen),
                "Content-Length" => length = value.parse().expect("a length is a number"),
                _ => {}
            }
        }
        self.0.read_exact(&mut vec![0; length]).expect("nginx sends the whole body");
        chosen
    }
}

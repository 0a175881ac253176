//! Asks a real redis-server in cluster mode for the slots of keys. Ignored by default:
//! `cargo test -p voussoir-ring --test redis_live -- --ignored`
//!
//! `VOUSSOIR_REDIS_SERVER` names the program (default `redis-server`). It is started on a free
//! loopback port with its data in a temporary folder, and stopped after.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use voussoir_ring::compat::redis;
use voussoir_ring::hash;

struct Server {
    child: Child,
    port: u16,
    folder: std::path::PathBuf,
}

impl Server {
    fn start() -> Self {
        let program = std::env::var("VOUSSOIR_REDIS_SERVER");
        let program = program.unwrap_or_else(|_| "redis-server".to_owned());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = std::env::temp_dir().join(format!("voussoir-ring-redis-{port}"));
        std::fs::create_dir_all(&folder).unwrap();
        // The cluster bus would take the port plus 10,000, which may be none.
        let bus = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(&program)
            .args(["--port", &port.to_string(), "--cluster-port", &bus.to_string()])
            .args(["--bind", "127.0.0.1", "--save", "", "--cluster-enabled", "yes"])
            .args(["--dir", folder.to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} does not start: {error}"));
        let mut server = Self { child, port, folder };
        let log = BufReader::new(server.child.stdout.take().unwrap());
        let ready = log.lines().map_while(Result::ok).any(|line| line.contains("Ready to accept"));
        assert!(ready, "redis-server ended before it was ready");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
#[ignore = "needs redis-server"]
fn slots_agree_with_a_live_redis() {
    let server = Server::start();
    let stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let (mut answers, mut commands) = (BufReader::new(stream.try_clone().unwrap()), stream);
    let odd: [&[u8]; 8] =
        [b"", b"{}", b"{", b"}{", b"a{b}c{d}", b"{{x}}", b"\x00\xff{\r\n}", b"foo{}{bar}"];
    let random = (0..5000_u64).map(|n| {
        let bytes = hash::mix(n).to_le_bytes();
        let text =
            bytes.map(|byte| if byte % 5 == 0 { b"{}"[usize::from(byte & 1)] } else { byte });
        text[..(n % 9) as usize].to_vec()
    });
    for key in odd.iter().map(|key| key.to_vec()).chain(random) {
        let mut command = b"*3\r\n$7\r\nCLUSTER\r\n$7\r\nKEYSLOT\r\n".to_vec();
        command.extend(format!("${}\r\n", key.len()).into_bytes());
        command.extend(&key);
        command.extend(b"\r\n");
        commands.write_all(&command).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, format!(":{}\r\n", redis::slot(&key)), "{key:x?}");
    }
}

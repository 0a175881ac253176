//! Asks a real redis-server in cluster mode for the slots of keys. Left out, and says so, where
//! there is none. `VOUSSOIR_REDIS_SERVER` names the program (default `redis-server`).

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use test_support::RedisServer;
use voussoir_ring::compat::redis;
use voussoir_ring::hash;

#[test]
fn slots_agree_with_a_live_redis() {
    // A node writes its view of the cluster into its folder.
    let folder = std::env::temp_dir().join(format!("voussoir-ring-redis-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let options = ["--cluster-enabled", "yes", "--dir", folder.to_str().unwrap()];
    let Some(server) = RedisServer::start(&options) else { return };
    let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
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
    drop(server);
    std::fs::remove_dir_all(&folder).unwrap();
}

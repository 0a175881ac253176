//! PROXY headers and ClientHellos over sockets, from peers that mean well and others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use voussoir_lb::Balancer;
use voussoir_lb::l4::*;

use crate::hello::{HELLO_H2, HELLO_WITHOUT_NAME, hello, records};
use crate::support::*;

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\r\n";

/// Version 2, TCP over IPv4, the same addresses as [`V1`].
const V2: &[u8] = &[
    13, 10, 13, 10, 0, 13, 10, 81, 85, 73, 84, 10, 0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100,
    9, 0xDC, 0x04, 0x01, 0xBB,
];

fn any_range() -> AddressRange {
    "127.0.0.0/8".parse().expect("a range")
}

fn with_proxy_in() -> TcpConfig {
    let mut config = TcpConfig::default();
    config.proxy_in = Some(ProxyInConfig::new([any_range()]));
    config
}

/// A route to `balancer` that notes the clients it was asked about.
fn noting(balancer: Balancer) -> (impl Route + 'static, Arc<Mutex<Vec<SocketAddr>>>) {
    let clients = Arc::new(Mutex::new(Vec::new()));
    let route = {
        let clients = Arc::clone(&clients);
        move |connection: &Connection<'_>| {
            clients.lock().push(connection.client);
            Some(balancer.clone())
        }
    };
    (route, clients)
}

/// Sends `bytes` in two parts that arrive one after the other.
async fn send_cut(stream: &mut TcpStream, bytes: &[u8], cut: usize) {
    stream.write_all(&bytes[..cut]).await.expect("open");
    // The first part is on its way, and the proxy looks at it before the second one is written.
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    stream.write_all(&bytes[cut..]).await.expect("open");
}

#[tokio::test]
async fn a_header_is_taken_off_wherever_it_is_cut() {
    let backend = Backend::echo().await;
    let (route, clients) = noting(balancer(&[backend.address]));
    let running = run(route, with_proxy_in()).await;
    let mut count = 0;
    for header in [V1, V2] {
        let bytes = [header, b"payload"].concat();
        for cut in 0..=bytes.len() {
            let mut client = running.client().await;
            send_cut(&mut client, &bytes, cut).await;
            let mut answer = [0; 7];
            soon(client.read_exact(&mut answer)).await.expect("an echo");
            assert_eq!(&answer, b"payload", "cut at {cut}");
            count += 1;
        }
    }
    let expected: SocketAddr = "192.0.2.7:56324".parse().expect("an address");
    let clients = clients.lock();
    assert_eq!(clients.len(), count);
    assert!(clients.iter().all(|client| *client == expected), "{clients:?}");
}

#[tokio::test]
async fn a_health_check_of_the_proxy_in_front_is_a_client_of_its_own() {
    let backend = Backend::echo().await;
    let (route, clients) = noting(balancer(&[backend.address]));
    let running = run(route, with_proxy_in()).await;
    let mut local = V2.to_vec();
    local[12] = 0x20;
    let headers = [local, b"PROXY UNKNOWN\r\n".to_vec(), b"PROXY UNKNOWN a b c\r\n".to_vec()];
    for header in headers {
        let mut client = running.client().await;
        client.write_all(&header).await.expect("open");
        assert_eq!(exchange(&mut client, b"ping").await.expect("an echo"), b"ping");
        assert_eq!(clients.lock().pop(), Some(client.local_addr().expect("bound")));
    }
}

#[tokio::test]
async fn what_is_no_header_is_reset_and_reaches_no_endpoint() {
    let (backend, mut streams) = Backend::handed().await;
    let mut config = with_proxy_in();
    config.proxy_in.as_mut().expect("set").max_bytes = 100;
    let running = run(balancer(&[backend.address]), config).await;
    let mut long = V2.to_vec();
    (long[14], long[15]) = (0xFF, 0xFF);
    let mut version = V2.to_vec();
    version[12] = 0x31;
    let mut short = V2.to_vec();
    short[15] = 11;
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\r\n\r\n\0\r\nQUIX\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 198.51.100.9 56324\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 65536\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7  198.51.100.9 56324 443\r\n".to_vec(),
        b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
        b"PROXY TCP6 192.0.2.7 198.51.100.9 1 2\r\n".to_vec(),
        b"PROXY UNKNOWN a\rb\r\n".to_vec(),
        b"PROXY UDP4 192.0.2.7 198.51.100.9 1 2\r\n".to_vec(),
        b"proxy TCP4 192.0.2.7 198.51.100.9 1 2\r\n".to_vec(),
        [b"PROXY UNKNOWN ", &[b'x'; 100][..]].concat(),
        vec![0; 64],
        vec![0xFF; 64],
        long,
        version,
        short,
    ];
    for bytes in &garbage {
        let mut client = running.client().await;
        client.write_all(bytes).await.expect("open");
        let end = rest(&mut client).await;
        assert!(end.is_err(), "{:?} was answered by {end:?}", String::from_utf8_lossy(bytes));
    }
    running.idle().await;
    assert_eq!(running.proxy.stats().prelude_failures, garbage.len() as u64);
    assert!(streams.try_recv().is_err(), "an endpoint was connected to");
}

#[tokio::test]
async fn a_header_that_does_not_come_or_ends_early_is_given_up() {
    let backend = Backend::echo().await;
    let mut config = with_proxy_in();
    config.proxy_in.as_mut().expect("set").timeout = Duration::from_millis(200);
    let running = run(balancer(&[backend.address]), config).await;
    // Byte by byte: each one is no new time.
    let mut slow = running.client().await;
    let since = Instant::now();
    let mut is_reset = false;
    for &byte in V1.iter().take(V1.len() - 2) {
        is_reset = is_reset || slow.write_all(&[byte]).await.is_err();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_reset, "every byte was taken");
    assert!(since.elapsed() >= Duration::from_millis(200));
    let mut early = running.client().await;
    early.write_all(&V2[..20]).await.expect("open");
    early.shutdown().await.expect("open");
    rest(&mut early).await.expect_err("a reset");
    running.idle().await;
    assert_eq!(running.proxy.stats().prelude_failures, 2);
}

#[tokio::test]
async fn only_trusted_peers_may_say_who_the_client_is() {
    let backend = Backend::echo().await;
    for untrusted in [Untrusted::Direct, Untrusted::Reject] {
        let (route, clients) = noting(balancer(&[backend.address]));
        let mut config = with_proxy_in();
        let mut proxy_in = ProxyInConfig::new(["10.0.0.0/8".parse().expect("a range")]);
        proxy_in.untrusted = untrusted;
        config.proxy_in = Some(proxy_in);
        let running = run(route, config).await;
        let mut client = running.client().await;
        if untrusted == Untrusted::Reject {
            assert_reset(&mut client).await;
            assert_eq!(running.proxy.stats().rejected_untrusted, 1);
            continue;
        }
        assert_eq!(exchange(&mut client, V1).await.expect("an echo"), V1);
        assert_eq!(clients.lock()[..], [client.local_addr().expect("bound")]);
    }
}

/// What the endpoint gets, when the client of `config` sends `sent` and ends.
async fn received(
    listen: &str,
    config: TcpConfig,
    sent: &[u8],
) -> (Vec<u8>, SocketAddr, SocketAddr) {
    let (backend, mut streams) = Backend::handed().await;
    let running = run_on(listen, balancer(&[backend.address]), config).await;
    let mut client = running.client().await;
    client.write_all(sent).await.expect("open");
    client.shutdown().await.expect("open");
    let mut upstream = soon(streams.recv()).await.expect("a connection");
    let bytes = rest(&mut upstream).await.expect("an end");
    drop(upstream);
    running.idle().await;
    let header = bytes.len() - sent.len().min(bytes.len());
    let counted = running.proxy.stats().bytes_to_upstream as usize;
    assert!(counted <= sent.len(), "{counted} of {} and a header of {header}", sent.len());
    (bytes, client.local_addr().expect("bound"), running.address)
}

#[tokio::test]
async fn a_header_is_sent_byte_for_byte_in_both_versions_and_families() {
    for (listen, family, code) in [("127.0.0.1:0", "TCP4", 0x11), ("[::1]:0", "TCP6", 0x21)] {
        let mut config = TcpConfig::default();
        config.proxy_out = Some(ProxyVersion::V1);
        let (bytes, client, local) = received(listen, config.clone(), b"payload").await;
        let (from, to) = (client.ip(), local.ip());
        let line = format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), local.port());
        assert_eq!(bytes, [line.as_bytes(), b"payload"].concat());

        config.proxy_out = Some(ProxyVersion::V2);
        let (bytes, client, local) = received(listen, config, b"payload").await;
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        expected.extend([0x21, code, 0, if code == 0x11 { 12 } else { 36 }]);
        for address in [client, local] {
            match address.ip() {
                std::net::IpAddr::V4(ip) => expected.extend(ip.octets()),
                std::net::IpAddr::V6(ip) => expected.extend(ip.octets()),
            }
        }
        expected.extend(client.port().to_be_bytes());
        expected.extend(local.port().to_be_bytes());
        expected.extend(b"payload");
        assert_eq!(bytes, expected);
    }
}

#[tokio::test]
async fn what_a_proxy_in_front_said_is_passed_on() {
    let unix = ProxyHeaderText::unix();
    let mut fields = V2.to_vec();
    fields[15] += 7;
    fields.extend([2, 0, 4, b'n', b'a', b'm', b'e']);
    let mut local = V2.to_vec();
    local.truncate(16);
    (local[12], local[13], local[15]) = (0x20, 0, 0);
    let v6: &[u8] = b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n";
    // Header in, the same in version 1, the same in version 2.
    type Case<'a> = (&'a [u8], &'a [u8], Option<&'a [u8]>);
    let cases: [Case<'_>; 6] = [
        (V1, V1, Some(V2)),
        (V2, V1, Some(V2)),
        (&fields, V1, Some(&fields)),
        (&unix, b"PROXY UNKNOWN\r\n", Some(&unix)),
        (&local, b"PROXY UNKNOWN\r\n", Some(&local)),
        (v6, v6, None),
    ];
    for (given, text, binary) in cases {
        let sent = [given, b"payload"].concat();
        for (version, expected) in [(ProxyVersion::V1, Some(text)), (ProxyVersion::V2, binary)] {
            let Some(expected) = expected else { continue };
            let mut config = with_proxy_in();
            config.proxy_out = Some(version);
            let (bytes, ..) = received("127.0.0.1:0", config, &sent).await;
            assert_eq!(bytes, [expected, b"payload"].concat());
        }
    }
}

/// Headers made by hand.
struct ProxyHeaderText;

impl ProxyHeaderText {
    fn unix() -> Vec<u8> {
        let mut header = V2[..16].to_vec();
        (header[13], header[15]) = (0x31, 216);
        header.extend([b'a'; 108]);
        header.extend([b'b'; 108]);
        header
    }
}

/// Routes by name to an endpoint that says its letter, and by protocol where there is no name.
async fn by_name(config: TcpConfig) -> (Running, [Backend; 3]) {
    let backends =
        [Backend::letter(b'a').await, Backend::letter(b'b').await, Backend::letter(b'c').await];
    let [a, b, c] = [0, 1, 2].map(|at: usize| balancer(&[backends[at].address]));
    let names = ServerNames::new()
        .with("a.example", a)
        .with("*.Example.com", b.clone())
        .with("deep.down.example.com", c.clone());
    let route = move |connection: &Connection<'_>| {
        let hello = connection.hello.expect("read before the route");
        let is_h2 = hello.alpn.iter().any(|name| name == b"h2");
        names
            .route(connection)
            .or_else(|| (hello.server_name.is_none() && is_h2).then(|| c.clone()))
    };
    (run(route, config).await, backends)
}

fn with_hello() -> TcpConfig {
    let mut config = TcpConfig::default();
    config.client_hello = Some(ClientHelloConfig::default());
    config
}

/// Sends the hello, cut in two, and checks that the endpoint `letter` got and returned all of it.
async fn assert_reaches(running: &Running, bytes: &[u8], cut: usize, letter: u8) {
    let mut client = running.client().await;
    send_cut(&mut client, bytes, cut).await;
    let mut answer = vec![0; 1 + bytes.len()];
    soon(client.read_exact(&mut answer)).await.expect("an endpoint");
    assert_eq!(answer[0], letter, "cut at {cut}");
    assert_eq!(&answer[1..], bytes, "cut at {cut}");
}

#[tokio::test]
async fn a_name_finds_its_endpoint_wherever_the_hello_is_cut() {
    let (running, _backends) = by_name(with_hello()).await;
    for cut in 0..=HELLO_H2.len() {
        assert_reaches(&running, HELLO_H2, cut, b'b').await;
    }
    let message = hello(Some("deep.down.example.com"), &[]);
    for size in [1, 2, 3, 4, 5, 50, 16_384] {
        let bytes = records(&message, size);
        assert_reaches(&running, &bytes, bytes.len() / 2, b'c').await;
    }
    assert_reaches(&running, &records(&hello(Some("A.EXAMPLE"), &[]), 99), 7, b'a').await;
    let below = records(&hello(Some("x.down.example.com"), &[]), 99);
    assert_reaches(&running, &below, 7, b'b').await;
    assert_reaches(&running, HELLO_WITHOUT_NAME, 3, b'c').await;
}

#[tokio::test]
async fn an_unknown_name_is_told_by_an_alert() {
    let (running, _backends) = by_name(with_hello()).await;
    for name in [Some("example.com"), Some("b.example"), Some("xexample.com"), None] {
        let mut client = running.client().await;
        let bytes = records(&hello(name, &[b"http/1.1"]), 1000);
        client.write_all(&bytes).await.expect("open");
        let answer = rest(&mut client).await.expect("an end");
        assert_eq!(answer, [21, 3, 1, 0, 2, 2, 112], "{name:?}");
    }
    assert_eq!(running.proxy.stats().rejected_route, 4);
}

#[tokio::test]
async fn what_is_no_hello_is_reset() {
    let mut config = with_hello();
    let limits = config.client_hello.as_mut().expect("set");
    (limits.timeout, limits.max_bytes) = (Duration::from_millis(300), 1_000);
    let (running, _backends) = by_name(config).await;
    let huge = records(&hello(Some(&"x".repeat(255)), &[&[b'p'; 255][..]; 4]), 16_384);
    let tiny_records = records(&hello(Some("a.example"), &[&[b'p'; 200][..]]), 1);
    let garbage: [&[u8]; 6] = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0, 4, 2, 0, 0, 0],
        &huge,
        &tiny_records,
    ];
    for bytes in garbage {
        let mut client = running.client().await;
        client.write_all(bytes).await.expect("open");
        rest(&mut client).await.expect_err("a reset");
    }
    // Half a hello, and silence.
    let mut client = running.client().await;
    client.write_all(&HELLO_H2[..100]).await.expect("open");
    let since = Instant::now();
    rest(&mut client).await.expect_err("a reset");
    assert!(since.elapsed() >= Duration::from_millis(250), "{:?}", since.elapsed());
    running.idle().await;
    assert_eq!(running.proxy.stats().prelude_failures, 7);
}

#[tokio::test]
async fn a_header_and_a_hello_come_one_after_the_other() {
    let mut config = with_hello();
    config.proxy_in = Some(ProxyInConfig::new([any_range()]));
    config.proxy_out = Some(ProxyVersion::V2);
    let (running, _backends) = by_name(config).await;
    let bytes = [V1, HELLO_H2, b"more"].concat();
    let passed_on = [V2, HELLO_H2, b"more"].concat();
    for cut in [0, 1, V1.len() - 1, V1.len(), V1.len() + 1, bytes.len() - 2] {
        let mut client = running.client().await;
        send_cut(&mut client, &bytes, cut).await;
        let mut answer = vec![0; 1 + passed_on.len()];
        soon(client.read_exact(&mut answer)).await.expect("an endpoint");
        assert_eq!(answer[0], b'b');
        assert_eq!(answer[1..], passed_on, "cut at {cut}");
    }
}

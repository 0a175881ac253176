//! TLS between nodes over real sockets: who is rejected, with which reason on both sides, and that
//! others are served all the while.

#[path = "support/certs.rs"]
mod certs;
mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use certs::*;
use support::{
    BULK, Echo, Node, REPLY_BYTES, RawHello, SERVICE, SMALL, frame, later, message, soon, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use voussoir_net::{
    BindError, Class, Config, DownReason, Event, Handler, HandshakeError, Name, Peers, SendError,
    Tcp, Tls, TlsConfig, TlsConfigError, TlsError, Transport, Violation,
};

async fn tls_node_with(tls: Tls, peers: &Peers, config: Config) -> Node {
    let (id, any) = (tls.id(), "127.0.0.1:0".parse().unwrap());
    let tcp = Tcp::bind_tls(id, any, Arc::new(peers.clone()), config, tls).await.unwrap();
    peers.insert(id, tcp.address());
    let (sender, got) = mpsc::unbounded_channel();
    tcp.serve(SERVICE, Arc::new(Echo(sender))).unwrap();
    Node { tcp, got }
}

async fn tls_node(tls: Tls, peers: &Peers) -> Node {
    tls_node_with(tls, peers, support::config()).await
}

/// Fails unless the node answers a call of a fresh peer with a good certificate.
async fn still_serves(authority: &Authority, node: &Node) {
    let peers = Peers::from_iter([(node.tcp.local(), node.tcp.address())]);
    let other = tls_node(authority.tls(77), &peers).await;
    let answer = other.tcp.call(node.tcp.local(), SMALL, "still there?".into(), later()).await;
    assert_eq!(answer.as_deref(), Ok(&b"still there?"[..]), "others are served");
}

async fn accept_rejected(node: &Node, events: &mut voussoir_net::Events) -> HandshakeError {
    let is_rejected = |event: &Event| matches!(event, Event::AcceptRejected { .. });
    let event = until(events, "the rejection of who came in", is_rejected).await;
    let Event::AcceptRejected { error, remote } = event else { unreachable!() };
    assert_ne!(remote, node.tcp.address());
    error
}

async fn connect_rejected(peer: u64, events: &mut voussoir_net::Events) -> HandshakeError {
    let is_rejected = |event: &Event| match event {
        Event::ConnectRejected { peer: of, class, .. } => (*of, *class) == (peer, Class::Small),
        _ => false,
    };
    let event = until(events, "the rejection of who dialled", is_rejected).await;
    let Event::ConnectRejected { error, .. } = event else { unreachable!() };
    error
}

/// Node 2, which has `bad`, dials node 1, and node 1 dials it. Returns how node 1 rejects it as a
/// client, as a server, and what node 2 is told.
async fn rejections(authority: &Authority, bad: Tls) -> (TlsError, TlsError, HandshakeError) {
    let peers = Peers::new();
    let good = tls_node(authority.tls(1), &peers).await;
    let bad = tls_node(bad, &peers).await;
    let (mut of_good, mut of_bad) = (good.tcp.events(), bad.tcp.events());
    bad.tcp.connect(1).unwrap();
    let as_client = accept_rejected(&good, &mut of_good).await;
    let told = connect_rejected(1, &mut of_bad).await;
    assert_eq!(bad.tcp.send(1, SMALL, "x".into()), Err(SendError::Down));
    good.tcp.connect(2).unwrap();
    let as_server = connect_rejected(2, &mut of_good).await;
    assert_eq!(good.tcp.send(2, SMALL, "x".into()), Err(SendError::Down));
    still_serves(authority, &good).await;
    let (HandshakeError::Tls(as_client), HandshakeError::Tls(as_server)) = (as_client, as_server)
    else {
        panic!("{as_client:?}, {as_server:?}")
    };
    (as_client, as_server, told)
}

/// The TLS alerts of RFC 8446, section 6.2.
const UNSUPPORTED_CERTIFICATE: u8 = 43;
const CERTIFICATE_REVOKED: u8 = 44;
const CERTIFICATE_EXPIRED: u8 = 45;
const CERTIFICATE_UNKNOWN: u8 = 46;
const UNKNOWN_CA: u8 = 48;

async fn rejected(authority: &Authority, bad: Tls, error: TlsError, alert: u8) {
    let (as_client, as_server, told) = rejections(authority, bad).await;
    assert_eq!((as_client, as_server), (error, error));
    assert_eq!(told, HandshakeError::Tls(TlsError::Alert(alert)), "the other side learns why");
}

#[tokio::test]
async fn messages_and_calls_of_all_sizes_pass() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let one = tls_node(authority.tls(1), &peers).await;
    let mut two = tls_node(authority.tls(2), &peers).await;
    for bytes in [0, 1, 100, 16_383, 16_384, 16_385, 300_000, 1 << 20] {
        let body = vec![bytes as u8; bytes];
        let answer = one.tcp.call(2, SMALL, body.clone().into(), later()).await.unwrap();
        assert_eq!(answer, body);
        one.tcp.send(2, BULK, body.clone().into()).unwrap();
        assert_eq!(soon("the message", two.got.recv()).await.unwrap(), (1, body.into()));
    }
    // A queue that the socket cannot take at once arrives whole and in order.
    for number in 0..50_u32 {
        let mut body = vec![0; 100_000];
        body[..4].copy_from_slice(&number.to_le_bytes());
        one.tcp.send(2, BULK, body.into()).unwrap();
    }
    for number in 0..50_u32 {
        let (_, body) = soon("the message", two.got.recv()).await.unwrap();
        assert_eq!((body.len(), &body[..4]), (100_000, &number.to_le_bytes()[..]));
    }
    assert!(one.tcp.shutdown(later()).await, "all that was sent has left");
}

#[tokio::test]
async fn an_unknown_authority() {
    let authority = Authority::new("ca");
    // It trusts the authority, but has a certificate of another one.
    let bad = authority.tls_of(&Authority::new("another").issue(params(2)));
    rejected(&authority, bad, TlsError::UnknownIssuer, UNKNOWN_CA).await;
    // Neither trusts the other: who dials is the first to see a certificate, and to reject it.
    let bad = Authority::new("another").tls(2);
    let (as_client, as_server, told) = rejections(&authority, bad).await;
    let alert = TlsError::Alert(UNKNOWN_CA);
    assert_eq!((as_client, as_server), (alert, TlsError::UnknownIssuer));
    assert_eq!(told, HandshakeError::Tls(TlsError::UnknownIssuer));
}

#[tokio::test]
async fn a_certificate_out_of_its_time() {
    let authority = Authority::new("ca");
    let mut expired = params(2);
    expired.not_before = (SystemTime::now() - 2 * HOUR).into();
    expired.not_after = (SystemTime::now() - HOUR).into();
    let expired = authority.tls_of(&authority.issue(expired));
    rejected(&authority, expired, TlsError::Expired, CERTIFICATE_EXPIRED).await;
    let mut early = params(2);
    early.not_before = (SystemTime::now() + HOUR).into();
    early.not_after = (SystemTime::now() + 2 * HOUR).into();
    let early = authority.tls_of(&authority.issue(early));
    rejected(&authority, early, TlsError::NotYetValid, CERTIFICATE_EXPIRED).await;
}

#[tokio::test]
async fn a_certificate_for_servers_only() {
    let authority = Authority::new("ca");
    let mut server = params(2);
    server.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let peers = Peers::new();
    let good = tls_node(authority.tls(1), &peers).await;
    let bad = tls_node(authority.tls_of(&authority.issue(server)), &peers).await;
    let (mut of_good, mut of_bad) = (good.tcp.events(), bad.tcp.events());
    bad.tcp.connect(1).unwrap();
    let expected = HandshakeError::Tls(TlsError::Purpose);
    assert_eq!(accept_rejected(&good, &mut of_good).await, expected);
    let told = HandshakeError::Tls(TlsError::Alert(UNSUPPORTED_CERTIFICATE));
    assert_eq!(connect_rejected(1, &mut of_bad).await, told);
    assert!(good.tcp.call(2, SMALL, "as a server".into(), later()).await.is_ok());
}

/// A node takes names as its function says; the other nodes of the test do as usual.
#[tokio::test]
async fn certificates_that_name_no_peer_or_several() {
    let authority = Authority::new("ca");
    let cases = [
        (vec![dns("node-2.example")], TlsError::NoId),
        (vec![uri("voussoir://node/02")], TlsError::NoId),
        (vec![uri("voussoir://node/+2")], TlsError::NoId),
        (vec![uri("voussoir://node/2/3")], TlsError::NoId),
        (vec![uri("voussoir://node/18446744073709551616")], TlsError::NoId),
        (vec![uri("voussoir://node/2"), uri("voussoir://node/3")], TlsError::SeveralIds),
    ];
    for (names, error) in cases {
        let mut named = params(2);
        named.subject_alt_names = names;
        let config = authority.config(&authority.issue(named));
        assert_eq!(Tls::new(config.clone()).unwrap_err(), TlsConfigError::Names(error));
        let of_one = Name::Uri("voussoir://node/1");
        let bad = Tls::with_names(config, move |name| Some(if name == of_one { 1 } else { 2 }));
        let bad = bad.unwrap();
        rejected(&authority, bad, error, CERTIFICATE_UNKNOWN).await;
    }
    // The same id by two names is one id.
    let mut twice = params(2);
    twice.subject_alt_names.push(uri("voussoir://node/2"));
    assert_eq!(authority.tls_of(&authority.issue(twice)).id(), 2);
}

fn by_domain(name: Name<'_>) -> Option<u64> {
    let Name::Dns(name) = name else { return None };
    assert_ne!(name, "panic.example");
    name.strip_prefix("node-")?.strip_suffix(".example")?.parse().ok()
}

#[tokio::test]
async fn ids_from_domain_names_by_a_function_that_may_panic() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let mut nodes = Vec::new();
    for id in [1, 2] {
        let mut named = params(99);
        named.subject_alt_names = vec![dns("panic.example"), dns(&format!("node-{id}.example"))];
        let config = authority.config(&authority.issue(named));
        let tls = Tls::with_names(config, by_domain).unwrap();
        assert_eq!(tls.id(), id);
        nodes.push(tls_node(tls, &peers).await);
    }
    let answer = nodes[0].tcp.call(2, SMALL, "hello".into(), later()).await;
    assert_eq!(answer.as_deref(), Ok(&b"hello"[..]));
}

#[tokio::test]
async fn the_address_of_a_peer_leads_to_another_one() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let one = tls_node(authority.tls(1), &peers).await;
    let two = tls_node(authority.tls(2), &peers).await;
    peers.insert(3, two.tcp.address());
    let mut events = one.tcp.events();
    one.tcp.connect(3).unwrap();
    let error = TlsError::WrongId { claimed: 3, proven: 2 };
    assert_eq!(connect_rejected(3, &mut events).await, HandshakeError::Tls(error));
    assert_eq!(two.tcp.stats().accepted, 0, "it has not even been greeted");
}

#[tokio::test]
async fn a_node_starts_with_its_own_certificate_only() {
    let authority = Authority::new("ca");
    let any = "127.0.0.1:0".parse().unwrap();
    let peers = Arc::new(Peers::new());
    let other = Tcp::bind_tls(1, any, peers, support::config(), authority.tls(2)).await;
    let expected = TlsConfigError::Id { id: 2, expected: 1 };
    assert!(matches!(other.unwrap_err(), BindError::Tls(error) if error == expected));
}

/// A connection of bare rustls to a node, after the TLS handshake.
async fn raw(node: &Node, issued: &Issued) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(node.tcp.address()).await.unwrap();
    let connector = TlsConnector::from(Arc::new(client(Some(issued), &[&TLS13])));
    let name = ServerName::try_from("localhost").unwrap();
    soon("the TLS handshake", connector.connect(name, tcp)).await.unwrap()
}

async fn greet(stream: &mut TlsStream<TcpStream>, hello: &RawHello) -> u16 {
    stream.write_all(&hello.bytes()).await.unwrap();
    let mut reply = [0; REPLY_BYTES];
    soon("a reply", stream.read_exact(&mut reply)).await.expect("a whole reply");
    u16::from_le_bytes([reply[10], reply[11]])
}

#[tokio::test]
async fn an_id_that_the_certificate_does_not_prove() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let node = tls_node(authority.tls(1), &peers).await;
    let mut events = node.tcp.events();
    let issued = authority.issue(params(9));
    // First an honest connection of peer 8, which the liar must not end.
    let mut honest = raw(&node, &authority.issue(params(8))).await;
    assert_eq!(greet(&mut honest, &RawHello { from: 8, ..RawHello::to(&node) }).await, 0);
    let mut liar = raw(&node, &issued).await;
    let code = greet(&mut liar, &RawHello { from: 8, ..RawHello::to(&node) }).await;
    assert_eq!(code, 12, "the other side learns why");
    let error = TlsError::WrongId { claimed: 8, proven: 9 };
    assert_eq!(accept_rejected(&node, &mut events).await, HandshakeError::Tls(error));
    honest.write_all(&message(b"as before")).await.unwrap();
    let mut node = node;
    assert_eq!(soon("the message", node.got.recv()).await.unwrap(), (8, "as before".into()));
    still_serves(&authority, &node).await;
}

#[tokio::test]
async fn a_client_without_a_certificate_or_without_tls_1_3() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let node = tls_node(authority.tls(1), &peers).await;
    let issued = authority.issue(params(9));
    let cases = [
        (client(None, &[&TLS13]), TlsError::NoCertificate),
        (client(Some(&issued), &[&TLS12]), TlsError::Version),
    ];
    for (config, error) in cases {
        let mut events = node.tcp.events();
        let tcp = TcpStream::connect(node.tcp.address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        if let Ok(mut stream) = connected {
            // The client believes that all is well until it reads.
            stream.read_u8().await.unwrap_err();
        }
        assert_eq!(accept_rejected(&node, &mut events).await, HandshakeError::Tls(error));
        still_serves(&authority, &node).await;
    }
    // With both versions offered, the higher one is spoken.
    let both = client(Some(&issued), &[&TLS12, &TLS13]);
    let tcp = TcpStream::connect(node.tcp.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(both)).connect(name, tcp).await.unwrap();
    assert_eq!(greet(&mut stream, &RawHello::to(&node)).await, 0);
}

#[tokio::test]
async fn a_client_of_another_protocol() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let node = tls_node(authority.tls(1), &peers).await;
    let mut events = node.tcp.events();
    let issued = authority.issue(params(9));
    for protocols in [vec![], vec![b"h2".to_vec()]] {
        let mut config = client(Some(&issued), &[&TLS13]);
        config.alpn_protocols = protocols;
        let tcp = TcpStream::connect(node.tcp.address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        if let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
            let _ = stream.read_u8().await;
        }
        let expected = HandshakeError::Tls(TlsError::Protocol);
        assert_eq!(accept_rejected(&node, &mut events).await, expected);
    }
    still_serves(&authority, &node).await;
}

#[tokio::test]
async fn plain_tcp_and_tls_do_not_mix() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let secure = tls_node(authority.tls(1), &peers).await;
    let plain = support::node(2, &peers).await;
    let (mut of_secure, mut of_plain) = (secure.tcp.events(), plain.tcp.events());
    plain.tcp.connect(1).unwrap();
    let plaintext = HandshakeError::Tls(TlsError::Plaintext);
    assert_eq!(accept_rejected(&secure, &mut of_secure).await, plaintext);
    assert_eq!(connect_rejected(1, &mut of_plain).await, HandshakeError::TlsRequired);
    assert_eq!(plain.tcp.send(1, SMALL, "x".into()), Err(SendError::Down));
    secure.tcp.connect(2).unwrap();
    assert_eq!(connect_rejected(2, &mut of_secure).await, plaintext);
    assert_eq!(accept_rejected(&plain, &mut of_plain).await, HandshakeError::TlsUnsupported);
    assert_eq!(secure.tcp.send(2, SMALL, "x".into()), Err(SendError::Down));
    assert_eq!((secure.tcp.stats().accepted, plain.tcp.stats().accepted), (0, 0));
    still_serves(&authority, &secure).await;
    support::still_serves(&plain).await;
}

/// What comes when the session stands: bytes that are no TLS, a record that is too long, an end
/// without `close_notify`, and frames that violate the protocol above.
#[tokio::test]
async fn damage_after_the_handshake_ends_its_connection_alone() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let mut node = tls_node(authority.tls(1), &peers).await;
    let issued = authority.issue(params(9));
    let record = |length: u16, bytes: usize| {
        let mut record = vec![23, 3, 3];
        record.extend(length.to_be_bytes());
        record.extend(vec![7; bytes]);
        record
    };
    let cases = [
        (record(100, 100), TlsError::Damaged),
        (record(u16::MAX, 20_000), TlsError::Oversized),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), TlsError::Protocol),
        (vec![], TlsError::Truncated),
    ];
    for (bytes, error) in cases {
        let mut events = node.tcp.events();
        let mut stream = raw(&node, &issued).await;
        assert_eq!(greet(&mut stream, &RawHello::to(&node)).await, 0);
        stream.write_all(&message(b"before")).await.unwrap();
        let (mut tcp, _session) = stream.into_inner();
        tcp.write_all(&bytes).await.unwrap();
        if bytes.is_empty() {
            tcp.shutdown().await.unwrap();
        }
        let is_violation = |event: &Event| matches!(event, Event::Violation { peer: 9, .. });
        let event = until(&mut events, "the violation", is_violation).await;
        let Event::Violation { violation, .. } = event else { unreachable!() };
        assert_eq!(violation, Violation::Tls(error));
        assert_eq!(node.got.recv().await.unwrap(), (9, "before".into()), "nothing is lost");
        still_serves(&authority, &node).await;
    }
    let mut events = node.tcp.events();
    let mut stream = raw(&node, &issued).await;
    assert_eq!(greet(&mut stream, &RawHello::to(&node)).await, 0);
    stream.write_all(&frame(99, 0, 0, 0, 0, b"")).await.unwrap();
    let is_kind = |event: &Event| {
        matches!(event, Event::Violation { violation: Violation::Kind(99), peer: 9, .. })
    };
    until(&mut events, "the violation within TLS", is_kind).await;
    // An orderly end is none.
    let mut stream = raw(&node, &issued).await;
    assert_eq!(greet(&mut stream, &RawHello::to(&node)).await, 0);
    let violations = node.tcp.stats().violations;
    stream.shutdown().await.unwrap();
    soon("the end", async { while stream.read(&mut [0; 64]).await.unwrap() > 0 {} }).await;
    assert_eq!(node.tcp.stats().violations, violations);
}

#[tokio::test]
async fn garbage_instead_of_a_tls_handshake() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let node = tls_node(authority.tls(1), &peers).await;
    let oversized = [vec![22, 3, 1, 0xff, 0xff], vec![1; 20_000]].concat();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 66], &oversized] {
        let mut events = node.tcp.events();
        let mut tcp = TcpStream::connect(node.tcp.address()).await.unwrap();
        let _ = tcp.write_all(garbage).await;
        let error = accept_rejected(&node, &mut events).await;
        let HandshakeError::Tls(TlsError::Protocol | TlsError::Oversized) = error else {
            panic!("{error:?}")
        };
        still_serves(&authority, &node).await;
    }
}

#[tokio::test]
async fn chains_have_a_longest_length() {
    let authority = Authority::new("ca");
    let peers = Peers::new();
    let node = tls_node(authority.tls(1), &peers).await;
    let first = authority.intermediate("0");
    let (mut issuer, mut between) = (first, String::new());
    between.push_str(&issuer.pem);
    // 2 to 7 certificates between the node and the authority; 6 are taken.
    for depth in 2..8 {
        let next = issuer.intermediate(&depth.to_string());
        between.insert_str(0, &next.pem);
        issuer = next;
        let mut issued = issuer.issue(params(20 + depth));
        issued.chain_pem.push_str(&between);
        let mut events = node.tcp.events();
        let long = tls_node(authority.tls_of(&issued), &peers).await;
        let answer = long.tcp.call(1, SMALL, "x".into(), later()).await;
        if depth < 7 {
            assert!(answer.is_ok(), "{depth} between: {answer:?}");
        } else {
            let error = accept_rejected(&node, &mut events).await;
            assert_eq!(error, HandshakeError::Tls(TlsError::ChainTooLong));
        }
    }
    // A bomb: as many certificates as fit into a handshake.
    let mut bomb = authority.issue(params(9));
    while bomb.chain_pem.len() < 80_000 {
        bomb.chain_pem.push_str(&between);
    }
    let mut events = node.tcp.events();
    let tcp = TcpStream::connect(node.tcp.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(client(Some(&bomb), &[&TLS13])));
    if let Ok(mut stream) = connector.connect(name, tcp).await {
        let _ = stream.read_u8().await;
    }
    let error = accept_rejected(&node, &mut events).await;
    assert_eq!(error, HandshakeError::Tls(TlsError::ChainTooLong));
    still_serves(&authority, &node).await;
}

/// How a reload ends the connections of node 2, in both directions.
async fn ended_by(reload: impl FnOnce(&Authority, &Issued) -> TlsConfig, error: TlsError) {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let (own, of_two) = (authority.issue(params(1)), authority.issue(params(2)));
    let tls = authority.tls_of(&own);
    let one = tls_node(tls.clone(), &peers).await;
    let two = tls_node(authority.tls_of(&of_two), &peers).await;
    let three = tls_node(authority.tls(3), &peers).await;
    for (node, peer) in [(&one, 2), (&two, 1), (&three, 1)] {
        assert!(node.tcp.call(peer, SMALL, "x".into(), later()).await.is_ok());
    }
    let mut events = one.tcp.events();
    let before = three.tcp.stats();
    let mut config = reload(&authority, &of_two);
    config.chain_pem = own.chain_pem.clone().into();
    config.key_pem = own.key_pem.clone().into();
    tls.reload(config).unwrap();
    let (mut is_down, mut is_revoked) = (false, false);
    soon("both connections to end", async {
        while !(is_down && is_revoked) {
            match events.next().await.unwrap() {
                Event::Down { peer, reason, .. } => {
                    assert_eq!(reason, DownReason::Revoked(error));
                    is_down |= peer == 2;
                }
                Event::Revoked { peer, error: why, .. } => {
                    assert_eq!(why, error);
                    is_revoked |= peer == 2;
                }
                _ => {}
            }
        }
    })
    .await;
    let revoked = one.tcp.stats().revoked;
    // It does not come back.
    assert_eq!(connect_rejected(2, &mut events).await, HandshakeError::Tls(error));
    if error == TlsError::UnknownIssuer {
        assert!(revoked >= 2);
    } else {
        assert_eq!(revoked, 2);
        assert!(three.tcp.call(1, SMALL, "x".into(), later()).await.is_ok());
        assert_eq!(three.tcp.stats().connected, before.connected, "others keep their connections");
        still_serves(&authority, &one).await;
    }
}

#[tokio::test]
async fn a_reload_ends_connections_of_revoked_ids() {
    let revoked = |authority: &Authority, issued: &Issued| {
        let mut config = authority.config(issued);
        config.revoked_ids.insert(2);
        config
    };
    ended_by(revoked, TlsError::Revoked).await;
}

#[tokio::test]
async fn a_reload_ends_connections_on_a_revocation_list() {
    let revoked = |authority: &Authority, issued: &Issued| {
        let mut config = authority.config(issued);
        config.revocation_lists_pem = authority.revoke(&[issued.serial]).into();
        config
    };
    ended_by(revoked, TlsError::Revoked).await;
}

#[tokio::test]
async fn a_reload_ends_connections_of_an_authority_that_is_gone() {
    let replaced = |_: &Authority, issued: &Issued| Authority::new("new").config(issued);
    ended_by(replaced, TlsError::UnknownIssuer).await;
}

#[tokio::test]
async fn a_renewed_certificate_passes_a_list_that_revokes_the_old_one() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let (old, own) = (authority.issue(params(2)), authority.issue(params(1)));
    let tls_of_two = authority.tls_of(&old);
    let mut config = authority.config(&own);
    config.revocation_lists_pem = authority.revoke(&[old.serial]).into();
    let one = tls_node(Tls::new(config).unwrap(), &peers).await;
    let two = tls_node(tls_of_two.clone(), &peers).await;
    let (mut events, mut of_two) = (one.tcp.events(), two.tcp.events());
    two.tcp.connect(1).unwrap();
    let revoked = HandshakeError::Tls(TlsError::Revoked);
    assert_eq!(accept_rejected(&one, &mut events).await, revoked);
    let told = HandshakeError::Tls(TlsError::Alert(CERTIFICATE_REVOKED));
    assert_eq!(connect_rejected(1, &mut of_two).await, told);
    tls_of_two.reload(authority.config(&authority.issue(params(2)))).unwrap();
    let is_up = |event: &Event| matches!(event, Event::Up { peer: 1, class: Class::Small });
    until(&mut of_two, "the connection with the new certificate", is_up).await;
    assert!(two.tcp.call(1, SMALL, "x".into(), later()).await.is_ok());
}

#[tokio::test]
async fn a_reload_ends_connections_whose_certificate_has_expired() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let own = authority.issue(params(1));
    let tls = authority.tls_of(&own);
    let one = tls_node(tls.clone(), &peers).await;
    let mut short = params(2);
    // A certificate says whole seconds.
    short.not_after = (SystemTime::now() + Duration::from_secs(3)).into();
    let two = tls_node(authority.tls_of(&authority.issue(short)), &peers).await;
    assert!(two.tcp.call(1, SMALL, "x".into(), later()).await.is_ok());
    let mut events = one.tcp.events();
    tls.reload(authority.config(&own)).unwrap();
    soon("the certificate to expire", async {
        loop {
            match events.try_next() {
                Some(Event::Revoked { peer: 2, error: TlsError::Expired, .. }) => return,
                Some(Event::Revoked { error, .. }) => panic!("{error}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            // The last of these comes after the end of the certificate.
            tls.reload(authority.config(&own)).unwrap();
        }
    })
    .await;
    still_serves(&authority, &one).await;
}

#[tokio::test]
async fn a_reload_that_cannot_be_used_changes_nothing() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let own = authority.issue(params(1));
    let tls = authority.tls_of(&own);
    let one = tls_node(tls.clone(), &peers).await;
    let good = || authority.config(&own);
    let with = |change: fn(&mut TlsConfig)| {
        let mut config = good();
        change(&mut config);
        tls.reload(config).unwrap_err()
    };
    let field = |error: TlsConfigError| match error {
        TlsConfigError::Pem { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(with(|config| config.authorities_pem.clear())), "authorities_pem");
    assert_eq!(field(with(|config| config.authorities_pem.truncate(100))), "authorities_pem");
    assert_eq!(field(with(|config| config.key_pem.clear())), "key_pem");
    let garbage = |config: &mut TlsConfig| {
        config.revocation_lists_pem =
            b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_vec();
    };
    assert_eq!(field(with(garbage)), "revocation_lists_pem");
    let no_chain = with(|config| config.chain_pem.clear());
    assert_eq!(no_chain, TlsConfigError::Names(TlsError::NoCertificate));
    let other = authority.issue(params(2));
    let of_another = tls.reload(authority.config(&other)).unwrap_err();
    assert_eq!(of_another, TlsConfigError::Id { id: 2, expected: 1 });
    let mut mixed = good();
    mixed.key_pem = other.key_pem.into();
    assert!(matches!(tls.reload(mixed).unwrap_err(), TlsConfigError::Key(_)));
    still_serves(&authority, &one).await;
    assert!(!format!("{:?}", good()).contains("PRIVATE"), "no key is shown");
}

/// Connections that begin a TLS handshake and never finish it: they are bounded in number and in
/// time, and others get in.
#[tokio::test]
async fn handshakes_that_never_finish_are_bounded() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let mut config = support::config();
    (config.max_handshakes, config.handshake_timeout) = (64, Duration::from_secs(2));
    let node = tls_node_with(authority.tls(1), &peers, config).await;
    let mut events = node.tcp.events();
    let mut slow = Vec::new();
    for number in 0..100_usize {
        let mut tcp = TcpStream::connect(node.tcp.address()).await.unwrap();
        // Nothing, a part of a record, or the beginning of a message of the handshake.
        let beginnings = [&b""[..], &[22, 3], &[22, 3, 1, 1, 0, 1, 0, 0, 0xff]];
        let _ = tcp.write_all(beginnings[number % 3]).await;
        slow.push(tcp);
    }
    still_serves(&authority, &node).await;
    let ended = tokio::spawn(async move {
        for mut tcp in slow {
            while !matches!(tcp.read(&mut [0; 64]).await, Ok(0) | Err(_)) {}
        }
    });
    soon("all of them to be closed", ended).await.unwrap();
    let timed_out = HandshakeError::TimedOut;
    assert_eq!(accept_rejected(&node, &mut events).await, timed_out);
    assert_eq!(node.tcp.stats().rejected, 100);
    still_serves(&authority, &node).await;
}

/// A peer that takes no more is as bounded over TLS as it is without.
#[tokio::test]
async fn a_peer_that_reads_nothing_fills_the_queue_and_ends() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let two = tls_node(authority.tls(2), &peers).await;
    let through = two.tcp.address();
    // Node 2 behind a relay that stops.
    peers.insert(2, listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let relay = tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(through).await.unwrap();
        let (mut near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = far.into_split();
        let mut stopped = stopped;
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            _ = tokio::io::copy(&mut near_read, &mut far_write) => {}
            _ = tokio::io::copy(&mut far_read, &mut near_write) => {}
        }
        (near_read, near_write, far_read, far_write)
    });
    let mut config = support::config();
    (config.keep_alive, config.dead_after) = (Duration::from_millis(200), Duration::from_secs(2));
    config.small.max_queue_bytes = 1 << 20;
    let one = tls_node_with(authority.tls(1), &peers, config).await;
    let mut events = one.tcp.events();
    assert!(one.tcp.call(2, SMALL, "x".into(), later()).await.is_ok());
    stop.send(true).unwrap();
    let held = relay.await.unwrap();
    support::fill(&one.tcp, 2, SMALL, 10_000).await;
    let error = one.tcp.call(2, SMALL, vec![1; 10_000].into(), later()).await.unwrap_err();
    assert_eq!(error, SendError::Full.into());
    let is_silent =
        |event: &Event| matches!(event, Event::Down { reason: DownReason::Silent, peer: 2, .. });
    until(&mut events, "the end of the connection", is_silent).await;
    drop(held);
}

struct Names(Tcp);

#[async_trait::async_trait]
impl Handler for Names {
    fn message(&self, _: u64, _: Class, _: voussoir_net::Bytes) {}

    async fn call(
        &self,
        from: u64,
        _: voussoir_net::Bytes,
    ) -> Result<voussoir_net::Parts, voussoir_net::Rejected> {
        Ok(voussoir_net::Parts::new(format!("{from} called {}", self.0.local())))
    }
}

#[tokio::test]
async fn handlers_hear_the_id_that_was_proven() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let one = tls_node(authority.tls(1), &peers).await;
    let two = tls_node(authority.tls(2), &peers).await;
    two.tcp.serve(7, Arc::new(Names(two.tcp.clone()))).unwrap();
    let answer = one.tcp.call(2, voussoir_net::Channel::small(7), "".into(), later()).await;
    assert_eq!(answer.as_deref(), Ok(&b"1 called 2"[..]));
    two.tcp.withdraw(7);
}

//! TLS on both sides: a proxy that speaks TLS to a second one, which terminates it.
//!
//! The certificates in `certs/` are for `backend.test`, signed by the authorities `one` and `two`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use voussoir_lb::l7::{
    ClientTls, HttpConfig, HttpProxy, Protocol, Route, Router, ServerTls, TlsError, Upstream,
    UpstreamConfig,
};
use voussoir_lb::strategy::RoundRobin;
use voussoir_lb::{Balancer, Config, EndpointConfig};

use crate::support::*;

const ONE_CA: &[u8] = include_bytes!("certs/one-ca.pem");
const ONE: (&[u8], &[u8]) = (include_bytes!("certs/one.pem"), include_bytes!("certs/one.key"));
const TWO_CA: &[u8] = include_bytes!("certs/two-ca.pem");
const TWO: (&[u8], &[u8]) = (include_bytes!("certs/two.pem"), include_bytes!("certs/two.key"));

/// A proxy that terminates TLS in front of an echo.
async fn terminating(config: HttpConfig) -> (SocketAddr, HttpProxy, ServerTls) {
    let up = upstream(&[echo().await], UpstreamConfig::default());
    let router = Router::new(vec![Route::new("all", up)]).unwrap();
    let proxy = HttpProxy::new(router, config).unwrap();
    let tls = ServerTls::new(ONE.0, ONE.1).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (serving, shown) = (proxy.clone(), tls.clone());
    tokio::spawn(async move { serving.serve_tls(listener, shown).await });
    (address, proxy, tls)
}

/// A proxy whose backend speaks TLS.
async fn towards(to: SocketAddr, roots: &[u8], name: &str, protocol: Protocol) -> SocketAddr {
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).unwrap();
    balancer.update([EndpointConfig::new(to.to_string())], 1).unwrap();
    let mut config = UpstreamConfig::default();
    config.protocol = protocol;
    let tls = ClientTls::new(roots, name).unwrap();
    let up = Upstream::with_tls("tls", balancer, config, tls).unwrap();
    proxy(up, HttpConfig::default()).await.0
}

#[tokio::test]
async fn requests_pass_over_tls_in_both_protocols() {
    let (secure, proxy, _) = terminating(HttpConfig::default()).await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let address = towards(secure, ONE_CA, "backend.test", protocol).await;
        let mut client = Conn::connect(address).await;
        let post = "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
        for _ in 0..3 {
            let answer = client.ask(post).await;
            assert_eq!(answer.status(), 200, "{protocol:?}");
            let text = answer.text();
            assert!(text.ends_with("hello"), "{text}");
            assert!(text.contains("x-forwarded-proto: https"), "{text}");
        }
    }
    assert_eq!(proxy.stats().accepted, 2, "one connection for each protocol");
}

#[tokio::test]
async fn a_backend_that_cannot_be_verified_gets_no_request() {
    let (secure, proxy, _) = terminating(HttpConfig::default()).await;
    for (roots, name) in [(TWO_CA, "backend.test"), (ONE_CA, "other.test")] {
        let address = towards(secure, roots, name, Protocol::Http1).await;
        let mut client = Conn::connect(address).await;
        assert_eq!(client.ask(GET).await.status(), 502, "{name}");
    }
    assert_eq!(proxy.stats().requests, 0);
}

#[tokio::test]
async fn a_certificate_is_replaced_for_connections_to_come() {
    let (secure, _proxy, tls) = terminating(HttpConfig::default()).await;
    let before = towards(secure, ONE_CA, "backend.test", Protocol::Http1).await;
    let mut open = Conn::connect(before).await;
    assert_eq!(open.ask(GET).await.status(), 200);
    assert!(matches!(tls.reload(b"no certificate", TWO.1), Err(TlsError::Pem { .. })));
    assert!(matches!(tls.reload(TWO.0, ONE.1), Err(TlsError::Rejected(_))), "another's key");
    assert_eq!(open.ask(GET).await.status(), 200, "the old one stays");
    tls.reload(TWO.0, TWO.1).unwrap();
    assert_eq!(open.ask(GET).await.status(), 200, "the connection is open");
    let after = towards(secure, TWO_CA, "backend.test", Protocol::Http1).await;
    assert_eq!(Conn::connect(after).await.ask(GET).await.status(), 200);
    let old_roots = towards(secure, ONE_CA, "backend.test", Protocol::Http1).await;
    assert_eq!(Conn::connect(old_roots).await.ask(GET).await.status(), 502);
}

/// Neither a client that speaks plain HTTP nor one that says nothing holds a place.
#[tokio::test]
async fn what_is_no_handshake_is_ended_in_time() {
    let mut config = HttpConfig::default();
    config.header_timeout = Duration::from_millis(200);
    let (secure, proxy, _) = terminating(config).await;
    let mut plain = Conn::connect(secure).await;
    plain.send(GET).await;
    assert!(!plain.rest().await.starts_with(b"HTTP"), "an alert or an end");
    assert_eq!(Conn::connect(secure).await.rest().await, b"");
    assert_eq!(proxy.stats().requests, 0);
}

/// A port scanner, or what a browser opens in advance, would hold up the end of the process.
#[tokio::test]
async fn a_drain_does_not_wait_for_handshakes() {
    let mut config = HttpConfig::default();
    config.header_timeout = Duration::from_secs(3_600);
    let (secure, proxy, _) = terminating(config).await;
    let mut silent = Conn::connect(secure).await;
    let accepted = async {
        while proxy.stats().open == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(accepted).await;
    assert_eq!(soon(proxy.drain(Duration::from_secs(10))).await, 0);
    assert_eq!(silent.rest().await, b"");
}

#[test]
fn bad_certificates_and_names_are_errors() {
    assert!(matches!(ServerTls::new(b"", ONE.1), Err(TlsError::Pem { .. })));
    assert!(matches!(ServerTls::new(ONE.0, b""), Err(TlsError::Pem { .. })));
    assert!(matches!(ServerTls::new(ONE.0, TWO.1), Err(TlsError::Rejected(_))));
    assert!(matches!(ClientTls::new(b"", "backend.test"), Err(TlsError::Pem { .. })));
    assert!(matches!(ClientTls::new(ONE_CA, "no name"), Err(TlsError::Name(_))));
}

//! The layer, and where keys come from.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use tower_layer::Layer;
use tower_service::Service;
use voussoir_limit::tower::*;
use voussoir_limit::{Keyed, Quota};

/// Fails a call to an instance that did not say it was ready; a clone is not ready.
#[derive(Default)]
struct Careful {
    ready: bool,
    /// Of all clones.
    calls: Arc<AtomicU32>,
}

impl Clone for Careful {
    fn clone(&self) -> Self {
        Self { ready: false, calls: Arc::clone(&self.calls) }
    }
}

impl<B> Service<Request<B>> for Careful {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        ready(Ok(self.calls.fetch_add(1, Ordering::Relaxed) + 1))
    }
}

fn request(forwarded: &[&str]) -> Request<()> {
    let mut request = Request::new(());
    for line in forwarded {
        request.headers_mut().append("x-forwarded-for", line.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn the_layer_counts_by_key_and_keeps_the_contract() {
    let limiter = Keyed::new(Quota::gcra(1, Duration::from_secs(60)).burst(2)).unwrap();
    let layer = LimitLayer::new(Arc::new(limiter), ForwardedFor { trusted_hops: 1 });
    let mut service = layer.layer(Careful::default());
    let mut ask = async |from: &[&str]| {
        std::future::poll_fn(|cx| Service::<Request<()>>::poll_ready(&mut service, cx))
            .await
            .unwrap();
        service.call(request(from)).await
    };
    assert_eq!(ask(&["10.0.0.1"]).await.unwrap(), 1);
    assert_eq!(ask(&["10.0.0.1"]).await.unwrap(), 2);
    assert!(matches!(ask(&["10.0.0.1"]).await, Err(LimitError::Rejected(_))));
    // What the client writes before its address does not make it another.
    assert!(matches!(ask(&["9.9.9.9, 10.0.0.1"]).await, Err(LimitError::Rejected(_))));
    assert_eq!(ask(&["10.0.0.2"]).await.unwrap(), 3, "the inner service saw no rejected request");
    assert!(matches!(ask(&[]).await, Err(LimitError::NoKey)));
}

#[test]
fn only_trusted_hops_are_believed() {
    let key = |hops, lines: &[&str]| ForwardedFor { trusted_hops: hops }.key_of(&request(lines));
    let ip = |text: &str| text.parse::<IpAddr>().ok();
    assert_eq!(key(1, &["1.1.1.1, 2.2.2.2, 3.3.3.3"]), ip("3.3.3.3"));
    assert_eq!(key(2, &["1.1.1.1, 2.2.2.2, 3.3.3.3"]), ip("2.2.2.2"));
    assert_eq!(key(2, &["1.1.1.1, 2.2.2.2", "3.3.3.3"]), ip("2.2.2.2"), "lines are one list");
    assert_eq!(key(4, &["1.1.1.1, 2.2.2.2, 3.3.3.3"]), None);
    assert_eq!(key(1, &["unknown"]), None);
    assert_eq!(key(1, &["2.2.2.2:4711"]), ip("2.2.2.2"));
    assert_eq!(key(1, &["2001:db8:1:2:3:4:5:6"]), ip("2001:db8:1:2::"));
    assert_eq!(key(1, &["[2001:db8:1:2:3:4:5:6]"]), ip("2001:db8:1:2::"));
    assert_eq!(key(1, &["[2001:db8:1:2:3:4:5:6]:4711"]), ip("2001:db8:1:2::"));
    assert_eq!(key(1, &["[::ffff:2.2.2.2]"]), ip("2.2.2.2"), "mapped into IPv6");
    for nonsense in ["[]", "[2001:db8::1", "2001:db8::1]", "[2001:db8::1]:", "[2.2.2.2", ""] {
        assert_eq!(key(1, &[nonsense]), None, "{nonsense:?}");
    }
    assert_eq!(key(0, &["1.1.1.1"]), None, "without hops the header is not read");
}

/// Bytes beyond ASCII in what the client wrote hide no entry after them.
#[test]
fn bytes_beyond_ascii_move_no_hop() {
    let mut request = request(&["6.6.6.6"]);
    let line = http::HeaderValue::from_bytes(b"\xff, 2.2.2.2, 3.3.3.3").unwrap();
    request.headers_mut().append("x-forwarded-for", line);
    let key = |hops| ForwardedFor { trusted_hops: hops }.key_of(&request);
    let ip = |text: &str| text.parse::<IpAddr>().ok();
    assert_eq!(key(1), ip("3.3.3.3"));
    assert_eq!(key(2), ip("2.2.2.2"), "not what the client made up in the line before");
    assert_eq!(key(3), None);
}

#[test]
fn keys_of_peers_and_headers() {
    let mut request = request(&["1.1.1.1"]);
    request.extensions_mut().insert(Peer("5.5.5.5:80".parse().unwrap()));
    request.headers_mut().insert("x-api-key", "secret".parse().unwrap());
    assert_eq!(PeerAddress.key_of(&request), "5.5.5.5".parse().ok());
    assert_eq!(ForwardedFor { trusted_hops: 0 }.key_of(&request), "5.5.5.5".parse().ok());
    let header = Header(http::HeaderName::from_static("x-api-key"));
    assert_eq!(header.key_of(&request).as_deref(), Some("secret"));
}

/// A rejected request does not keep what the inner service reserved for it when it became ready.
#[tokio::test]
async fn a_rejected_request_gives_the_inner_permit_back() {
    use http::Response;
    use tower::ServiceExt;

    let inner = tower::service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(())));
    let inner = tower::limit::ConcurrencyLimitLayer::new(1).layer(inner);
    let ready = Duration::from_secs(5);
    // What rejects: the quota, and the want of a key.
    for forwarded in [&["10.0.0.1"][..], &[]] {
        let limiter = || Arc::new(Keyed::new(Quota::gcra(1, Duration::from_secs(60))).unwrap());
        let hops = ForwardedFor { trusted_hops: 1 };

        let service = LimitLayer::new(limiter(), hops).layer(inner.clone());
        let (mut first, mut second) = (service.clone(), service);
        first.ready().await.unwrap().call(request(&["10.0.0.1"])).await.unwrap();
        first.ready().await.unwrap().call(request(forwarded)).await.unwrap_err();
        let other = tokio::time::timeout(ready, second.ready()).await;
        other.expect("the first clone holds no permit").unwrap();
        drop((first, second));

        let service = HttpLimitLayer::new(limiter(), hops).layer(inner.clone());
        let (mut first, mut second) = (service.clone(), service);
        let passed = first.ready().await.unwrap().call(request(&["10.0.0.1"])).await.unwrap();
        assert_eq!(passed.status(), 200);
        let rejected = first.ready().await.unwrap().call(request(forwarded)).await.unwrap();
        assert!(rejected.status().is_client_error());
        let other = tokio::time::timeout(ready, second.ready()).await;
        other.expect("the first clone holds no permit").unwrap();
    }
}

/// The seconds of `Retry-After` are enough: they are rounded up.
#[test]
fn seconds_to_retry_after_are_rounded_up() {
    let limiter = Keyed::<u8>::new(Quota::gcra(1, Duration::from_millis(1001))).unwrap();
    limiter.check_at(&1, 0, 1).unwrap();
    let seconds = |now| limiter.check_at(&1, now, 1).unwrap_err().retry_after_secs();
    assert_eq!([0, 1_000_000, 1_000_999_999].map(seconds), [Some(2), Some(1), Some(1)]);
    assert_eq!(limiter.check_at(&1, 0, 2).unwrap_err().retry_after_secs(), None);
}

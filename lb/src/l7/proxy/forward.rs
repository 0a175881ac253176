//! One request: checked, routed, sent, answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{self, Authority, PathAndQuery, Scheme, Uri};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use super::answer::{Ended, Failure, LogEntry, is_grpc, is_grpc_failure};
use super::attempt::{Answered, Attempts, Head};
use super::connection::{ActiveRequest, Client};
use super::response::{Exchange, ProxyBody};
use super::{Inner, Open, Phase};
use crate::context::Context;
use crate::endpoint::Outcome;
use crate::l7::body::SharedBody;
use crate::l7::config::{KeySource, Protocol};
use crate::l7::gate::GatePermit;
use crate::l7::headers::{
    Hop, Rewrite, has_connection_option, host_value, join_cookies, remove_hop_by_hop,
};
use crate::l7::io::tunnel;
use crate::l7::matching::cookies;
use crate::l7::router::{RequestFacts, Route};
use crate::l7::upstream::Upstream;
use crate::l7::validate::check_request;

/// Time in which both sides of an upgrade must be ready after 101 was seen.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is kept of the request while a backend answers it.
struct Asked {
    /// The protocol that the connection is to be upgraded to.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    /// Set when the client's connection becomes a tunnel.
    is_tunnel: Arc<AtomicBool>,
    is_grpc: bool,
    body: Option<Arc<SharedBody>>,
    expects_continue: bool,
}

pub(super) async fn forward(
    inner: Arc<Inner>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let began = Instant::now();
    inner.counters.requests.fetch_add(1, Relaxed);
    let active = ActiveRequest::new(&client);
    let is_grpc = is_grpc(request.headers());
    let mut log = LogEntry::is_wanted().then(|| log_entry(&client, &request));
    let mut response = match route_and_send(&inner, &client, request, began, &mut log).await {
        Ok(response) => response,
        Err(failure) => {
            let counters = &inner.counters;
            let is_client = failure.status().is_client_error();
            let counter = if is_client { &counters.rejected } else { &counters.failed };
            counter.fetch_add(1, Relaxed);
            if let Some(log) = log {
                log.emit(Ended {
                    endpoint: "",
                    status: failure.status().as_u16(),
                    attempts: 0,
                    bytes: 0,
                    result: "proxy",
                    duration: began.elapsed(),
                });
            }
            failure.response(is_grpc)
        }
    };
    response.body_mut().request = Some(active);
    response
}

fn log_entry(client: &Client, request: &Request<Incoming>) -> Box<LogEntry> {
    Box::new(LogEntry {
        client: client.peer.ip().to_string(),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        ..LogEntry::default()
    })
}

async fn route_and_send(
    inner: &Arc<Inner>,
    client: &Arc<Client>,
    request: Request<Incoming>,
    began: Instant,
    log: &mut Option<Box<LogEntry>>,
) -> Result<Response<ProxyBody>, Failure> {
    let (mut parts, body) = request.into_parts();
    let config = &inner.config;
    let host = check_request(&parts, config.max_header_bytes).map_err(Failure::Request)?;
    let host = host.as_ref().map_or("", Authority::as_str);
    let router = inner.router.load_full();
    let address = config.forwarded.client(client.peer.ip(), &parts.headers);
    let mut facts = RequestFacts::new(host, parts.uri.path(), &parts.method, &parts.headers);
    facts.client = Some(address);
    let routed = router.route(&facts, inner.random.u64());
    let (route, upstream) = routed.ok_or(Failure::NoRoute)?;
    if let Some(log) = log {
        log.client = address.to_string();
        host.clone_into(&mut log.host);
        log.route.clone_from(&route.name);
        upstream.name().clone_into(&mut log.upstream);
    }
    let admitted = route.gate.as_ref().map(|gate| gate.admit(&facts, upstream));
    let permit = admitted.transpose().map_err(Failure::Gate)?;
    let key = hash_key(upstream, &parts);
    let session = session(upstream, &parts.headers);
    let mut context = Context::new().with_client(address);
    context.key = key.as_deref();
    context.session = session.as_deref();
    let asked = prepare(inner, client, &mut parts, body, host)?;
    address_backend(&mut parts, upstream, &route.rewrite, host)?;
    let mut attempts = Attempts {
        inner,
        upstream,
        context,
        head: Head::new(parts),
        body: asked.body.as_ref(),
        expects_continue: asked.expects_continue,
        active: upstream.enter(),
        count: 0,
    };
    let answered = match attempts.run().await {
        Ok(answered) => answered,
        Err(failure) => return Err(end_permit(permit, upstream, failure)),
    };
    let Attempts { mut active, count, .. } = attempts;
    active.end_retries();
    let exchange = Box::new(Exchange {
        inner: Arc::clone(inner),
        log: log.take(),
        began,
        status: answered.response.status().as_u16(),
        attempts: count,
        lease: None,
        pick: None,
        permit,
        head_at: inner.clock.now(),
        outcome: Outcome::Success,
        is_grpc: false,
        request_body: asked.body.clone(),
        _active: active,
        bytes: 0,
    });
    Ok(respond(route, upstream, asked, answered, exchange, session.as_deref()))
}

/// Tells the gate that no backend answered. A failure of the client's, or of this machine, says
/// nothing about backends, nor does it that the healthy ones have all the requests they may have.
fn end_permit(permit: Option<GatePermit>, upstream: &Upstream, failure: Failure) -> Failure {
    let is_of_backends = match failure {
        Failure::Exhausted => false,
        Failure::NoEndpoint => upstream.balancer().availability().borrow().healthy == 0,
        failure => failure.status().is_server_error(),
    };
    if let Some(permit) = permit.filter(|_| is_of_backends) {
        permit.finish(Outcome::Failure);
    }
    failure
}

fn hash_key(upstream: &Upstream, parts: &Parts) -> Option<Vec<u8>> {
    match upstream.config().key.as_ref()? {
        KeySource::Path => Some(parts.uri.path().as_bytes().to_vec()),
        KeySource::Header(name) => Some(parts.headers.get(name)?.as_bytes().to_vec()),
        KeySource::Cookie(name) => {
            let mut all = cookies(&parts.headers);
            all.find(|(found, _)| found == name).map(|(_, value)| value.as_bytes().to_vec())
        }
    }
}

fn session(upstream: &Upstream, headers: &HeaderMap) -> Option<String> {
    let name = upstream.config().session_cookie.as_ref()?;
    cookies(headers).find(|(found, _)| found == name).map(|(_, value)| value.to_owned())
}

/// Removes what is for the client's connection, and adds what backends learn about the client.
fn prepare(
    inner: &Inner,
    client: &Client,
    parts: &mut Parts,
    body: Incoming,
    host: &str,
) -> Result<Asked, Failure> {
    let config = &inner.config;
    let headers = &mut parts.headers;
    let upgrade = wanted_upgrade(&config.upgrades, headers, parts.version)
        .and_then(|protocol| Some((protocol, parts.extensions.remove::<OnUpgrade>()?)));
    let takes_trailers = headers.get_all(header::TE).iter().any(|value| {
        value.to_str().is_ok_and(|te| te.split(',').any(|coding| coding.trim() == "trailers"))
    });
    let is_grpc = is_grpc(headers);
    remove_hop_by_hop(headers).map_err(Failure::Request)?;
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some((protocol, _)) = &upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    let expects = headers.get(header::EXPECT).map(HeaderValue::as_bytes);
    let expects_continue = expects.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    let Client { peer, ref peer_address, is_tls, .. } = *client;
    let hop = Hop { peer, peer_address, is_tls, host };
    config.forwarded.apply(hop, headers);
    let body = (!body.is_end_stream()).then(|| SharedBody::new(body, config.body_timeout));
    let is_tunnel = Arc::clone(&client.is_tunnel);
    let expects_continue = expects_continue && body.is_some();
    Ok(Asked { upgrade, is_tunnel, is_grpc, body, expects_continue })
}

/// The protocol of an upgrade, if the client asks for one and it is allowed.
fn wanted_upgrade(
    allowed: &[String],
    headers: &HeaderMap,
    version: Version,
) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || !has_connection_option(headers, "upgrade") {
        return None;
    }
    let protocol = headers.get(header::UPGRADE)?;
    let text = protocol.to_str().ok()?.trim();
    allowed.iter().any(|name| name.eq_ignore_ascii_case(text)).then(|| protocol.clone())
}

/// Makes the request target and the `Host` of the request to the backend.
fn address_backend(
    parts: &mut Parts,
    upstream: &Upstream,
    rewrite: &Rewrite,
    host: &str,
) -> Result<(), Failure> {
    let target = parts.uri.path_and_query().cloned();
    let target = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let invalid = |_| Failure::Request(crate::l7::RequestError::Target);
    let target = match rewrite.path(target.as_str()) {
        Some(rewritten) => PathAndQuery::try_from(rewritten).map_err(invalid)?,
        None => target,
    };
    let sent = || host_value(&parts.headers, host);
    let host = rewrite.host.clone().or_else(sent).ok_or(Failure::NoRoute)?;
    rewrite.request.apply(&mut parts.headers);
    let mut uri = uri::Parts::default();
    uri.path_and_query = Some(target);
    if upstream.config().protocol == Protocol::Http2 {
        parts.version = Version::HTTP_2;
        uri.scheme = Some(if upstream.is_tls() { Scheme::HTTPS } else { Scheme::HTTP });
        let authority = Authority::try_from(host.as_bytes());
        let unnamed = |_| Failure::Request(crate::l7::RequestError::Host);
        uri.authority = Some(authority.map_err(unnamed)?);
        parts.headers.remove(header::HOST);
        // HTTP/2 knows no `Connection`, and an upgrade needs a connection of its own.
        parts.headers.remove(header::CONNECTION);
        parts.headers.remove(header::UPGRADE);
    } else {
        if parts.version == Version::HTTP_2 {
            join_cookies(&mut parts.headers);
        }
        parts.version = Version::HTTP_11;
        parts.headers.insert(header::HOST, host);
    }
    let malformed = |_| Failure::Request(crate::l7::RequestError::Target);
    parts.uri = Uri::from_parts(uri).map_err(malformed)?;
    Ok(())
}

fn respond(
    route: &Route<Upstream>,
    upstream: &Upstream,
    asked: Asked,
    answered: Answered,
    mut exchange: Box<Exchange>,
    session: Option<&str>,
) -> Response<ProxyBody> {
    let Answered { mut response, lease, pick } = answered;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        exchange.pick = Some(pick);
        return match asked.upgrade {
            Some((protocol, on_client)) if upstream.config().protocol == Protocol::Http1 => {
                lease.detach();
                asked.is_tunnel.store(true, Relaxed);
                switch(&protocol, on_client, &mut response, exchange)
            }
            // Nobody asked for it: what follows on the connection is no HTTP.
            _ => {
                exchange.reject();
                Failure::Backend.response(asked.is_grpc)
            }
        };
    }
    let has_coding = response.headers().contains_key(header::TRANSFER_ENCODING);
    // A `Connection` that lists what every hop needs is the backend's mistake; it goes with the
    // other headers of the connection.
    if remove_hop_by_hop(response.headers_mut()).is_err() {
        response.headers_mut().remove(header::CONNECTION);
    }
    let (mut parts, body) = response.into_parts();
    if has_coding {
        // The coding decided where the body ends; the length may lie (RFC 9112 §6.3).
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    parts.version = Version::default();
    route.rewrite.response.apply(&mut parts.headers);
    bind_session(upstream, pick.endpoint().session(), session, &mut parts.headers);
    let grpc_status = parts.headers.get("grpc-status");
    let is_failure = if asked.is_grpc && grpc_status.is_some() {
        is_grpc_failure(grpc_status)
    } else {
        parts.status.is_server_error() && parts.status != StatusCode::NOT_IMPLEMENTED
    };
    if is_failure {
        exchange.outcome = Outcome::Failure;
    }
    exchange.is_grpc = asked.is_grpc && grpc_status.is_none() && parts.status.is_success();
    exchange.lease = Some(lease);
    exchange.pick = Some(pick);
    let body = ProxyBody::backend(body, exchange, upstream.config().body_timeout);
    Response::from_parts(parts, body)
}

fn bind_session(upstream: &Upstream, token: &str, sent: Option<&str>, headers: &mut HeaderMap) {
    let Some(name) = &upstream.config().session_cookie else { return };
    if sent == Some(token) {
        return;
    }
    if let Ok(cookie) = HeaderValue::from_str(&format!("{name}={token}; Path=/; HttpOnly")) {
        headers.append(header::SET_COOKIE, cookie);
    }
}

/// Answers 101 and joins the two connections.
fn switch(
    protocol: &HeaderValue,
    on_client: OnUpgrade,
    response: &mut Response<Incoming>,
    mut exchange: Box<Exchange>,
) -> Response<ProxyBody> {
    let on_backend = hyper::upgrade::on(&mut *response);
    let mut answer = Response::new(ProxyBody::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    *headers = std::mem::take(response.headers_mut());
    let agreed = headers.get(header::UPGRADE).unwrap_or(protocol).clone();
    let _ = remove_hop_by_hop(headers);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(HeaderName::from_static("upgrade"), agreed);
    let inner = Arc::clone(&exchange.inner);
    inner.counters.upgrades.fetch_add(1, Relaxed);
    let open = Open::new(&inner);
    if let Some(pick) = &mut exchange.pick {
        pick.record(inner.clock.now(), Outcome::Success);
    }
    if let Some(permit) = exchange.permit.take() {
        permit.finish(Outcome::Success);
    }
    let idle = inner.config.tunnel_timeout;
    let mut phase = inner.phase.subscribe();
    tokio::spawn(async move {
        let both = async { tokio::join!(on_client, on_backend) };
        let joined = async {
            if let Ok((Ok(client), Ok(backend))) = timeout(UPGRADE_TIMEOUT, both).await {
                tunnel(TokioIo::new(client), TokioIo::new(backend), idle).await;
            }
        };
        tokio::select! {
            () = joined => {}
            _ = phase.wait_for(|phase| *phase == Phase::Closed) => {}
        }
        exchange.end_tunnel();
        drop(open);
    });
    answer
}

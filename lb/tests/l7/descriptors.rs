//! A proxy whose process has no descriptor left, in a process of its own.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;
use voussoir_lb::Outcome;
use voussoir_lb::l7::{
    Gate, GatePermit, GateRejected, HttpConfig, RequestFacts, Route, Router, Upstream,
    UpstreamConfig,
};

use crate::support::*;

const CHILD: &str = "VOUSSOIR_LB_DESCRIPTORS";

#[derive(Debug, Default)]
struct Told(Arc<Mutex<Vec<Outcome>>>);

impl Gate for Told {
    fn admit(&self, _: &RequestFacts<'_>, _: &Upstream) -> Result<GatePermit, GateRejected> {
        let told = Arc::clone(&self.0);
        Ok(GatePermit::on_end(move |outcome| told.lock().push(outcome)))
    }
}

#[test]
fn a_proxy_without_descriptors_blames_no_endpoint() {
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(without_descriptors());
    }
    let name = "descriptors::a_proxy_without_descriptors_blames_no_endpoint";
    let ended = Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && text.contains("1 passed"), "{ended:?}");
}

async fn without_descriptors() {
    let up = upstream(&[echo().await, echo().await], UpstreamConfig::default());
    let gate = Told::default();
    let told = Arc::clone(&gate.0);
    let route = Route::new("all", up.clone()).with_gate(Arc::new(gate));
    let router = Router::new(vec![route]).unwrap();
    let (address, proxy) = proxy_with(router, HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    while proxy.stats().open == 0 {
        tokio::task::yield_now().await;
    }
    let mut held: Vec<File> = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        held.push(file);
    }
    for _ in 0..10 {
        let answer = client.ask(GET).await;
        assert_eq!(answer.status(), 503, "{}", answer.text());
    }
    let endpoints = up.balancer().stats(1).endpoints;
    assert!(endpoints.iter().all(|found| (found.failures, found.in_flight) == (0, 0)));
    assert_eq!(up.balancer().availability().borrow().healthy, 2);
    assert_eq!(*told.lock(), [], "a breaker hears nothing of it");
    drop(held);
    for _ in 0..4 {
        assert_eq!(client.ask(GET).await.status(), 200);
    }
    assert_eq!(*told.lock(), [Outcome::Success; 4]);
}

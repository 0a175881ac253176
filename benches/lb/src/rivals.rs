//! The rivals: pingora's selections, and tower's power of two choices over two kinds of load.

use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::noop_waker_ref;
use parking_lot::Mutex;
use pingora_load_balancing::LoadBalancer;
use pingora_load_balancing::selection::{
    BackendIter, BackendSelection, Consistent, FNVHash, Random, RoundRobin,
};
use tower::Service;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, Load, PeakEwma, PendingRequests};

use crate::measure::{Subject, Work};

pub fn pingora(endpoints: usize) -> [Subject; 4] {
    [
        select::<RoundRobin>("pingora round robin", endpoints),
        select::<Random>("pingora random", endpoints),
        select::<FNVHash>("pingora FNV hash", endpoints),
        select::<Consistent>("pingora ketama", endpoints),
    ]
}

/// A selection. There is nothing to release: pingora counts no requests.
fn select<S>(name: &str, endpoints: usize) -> Subject
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    let address = |at: usize| format!("10.0.{}.{}:80", at / 250, at % 250);
    let balancer: LoadBalancer<S> =
        LoadBalancer::try_from_iter((0..endpoints).map(address)).expect("addresses");
    let work: Work = Box::new(move |from, picks| {
        for number in from..from + picks {
            let key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
            black_box(balancer.select(black_box(&key), 256));
        }
    });
    Subject::new(name, work)
}

/// A service that is always ready and answers at once.
#[derive(Clone, Debug)]
struct Instantly;

impl Service<()> for Instantly {
    type Response = ();
    type Error = std::convert::Infallible;
    type Future = Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

pub fn tower(endpoints: usize) -> [Subject; 2] {
    let complete = CompleteOnResponse::default;
    let pending = move || PendingRequests::new(Instantly, complete());
    let peak = move || {
        let (default, decay) = (Duration::from_millis(1), 10_000_000_000.0);
        PeakEwma::new(Instantly, default, decay, complete())
    };
    [
        balance("tower p2c, pending requests", (0..endpoints).map(|_| pending()).collect()),
        balance("tower p2c, peak EWMA", (0..endpoints).map(|_| peak()).collect()),
    ]
}

/// A request through the service: it is the caller's alone, so that two threads need a lock.
fn balance<S>(name: &str, services: Vec<S>) -> Subject
where
    S: Service<(), Response = ()> + Load + Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Metric: std::fmt::Debug,
    S::Future: Send,
{
    let balance = Mutex::new(Balance::new(ServiceList::new::<()>(services)));
    let work: Work = Box::new(move |_, picks| {
        let mut cx = Context::from_waker(noop_waker_ref());
        for _ in 0..picks {
            let mut balance = balance.lock();
            assert!(balance.poll_ready(&mut cx).is_ready());
            let response = balance.call(());
            drop(balance);
            assert!(pin!(response).poll(&mut cx).is_ready());
        }
    });
    Subject::new(name, work)
}

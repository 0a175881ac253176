//! The transport over loopback TCP: a call there and back, and messages one way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use voussoir_net::{
    Bytes, Channel, Class, Config, Handler, Instant, Parts, Peers, Rejected, Tcp, Transport,
    async_trait,
};

const CHANNEL: Channel = Channel::small(1);

#[derive(Default)]
struct Echo {
    messages: AtomicU64,
}

#[async_trait]
impl Handler for Echo {
    fn message(&self, _: u64, _: Class, _: Bytes) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    async fn call(&self, _: u64, body: Bytes) -> Result<Parts, Rejected> {
        Ok(Parts::new(body))
    }
}

/// Two nodes that know each other, and what the second one has received.
async fn pair() -> (Tcp, Tcp, Arc<Echo>) {
    let peers = Arc::new(Peers::new());
    let mut nodes = Vec::new();
    for id in 1..=2 {
        let address = "127.0.0.1:0".parse().expect("an address");
        let tcp = Tcp::bind(id, address, peers.clone(), Config::new(1)).await.expect("a free port");
        peers.insert(id, tcp.address());
        nodes.push(tcp);
    }
    let echo = Arc::new(Echo::default());
    let (to, from) = (nodes.pop().expect("two"), nodes.pop().expect("two"));
    to.serve(CHANNEL.service, echo.clone()).expect("a free service");
    (from, to, echo)
}

fn call(c: &mut Criterion) {
    let runtimes: [(&str, Runtime); 2] = [
        ("current-thread", Builder::new_current_thread().enable_all().build().expect("a runtime")),
        ("multi-thread", Builder::new_multi_thread().enable_all().build().expect("a runtime")),
    ];
    for (kind, runtime) in &runtimes {
        let (from, _to, _echo) = runtime.block_on(pair());
        c.bench_function(&format!("net/call 100 B, {kind}"), |b| {
            b.to_async(runtime).iter(|| async {
                let deadline = Instant::now() + Duration::from_secs(5);
                let parts = Parts::new(Bytes::from_static(&[7; 100]));
                from.call(2, CHANNEL, parts, deadline).await.expect("an answer")
            });
        });
    }
}

fn one_way(c: &mut Criterion) {
    const BURST: u64 = 4096;
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (from, _to, echo) = runtime.block_on(pair());
    let mut group = c.benchmark_group("net/one-way");
    group.throughput(Throughput::Elements(BURST));
    group.bench_function("bursts of 4096 x 100 B", |b| {
        b.to_async(&runtime).iter(|| async {
            let goal = echo.messages.load(Ordering::Relaxed) + BURST;
            for _ in 0..BURST {
                let parts = Parts::new(Bytes::from_static(&[7; 100]));
                while from.send(2, CHANNEL, parts.clone()).is_err() {
                    tokio::task::yield_now().await;
                }
            }
            while echo.messages.load(Ordering::Relaxed) < goal {
                tokio::task::yield_now().await;
            }
        });
    });
    group.finish();
}

criterion_group!(benches, call, one_way);
criterion_main!(benches);

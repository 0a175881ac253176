//! Both transports against the suite that users run against theirs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use voussoir_net::memory::{Faults, Memory, Network};
use voussoir_net::testing::{Factory, conformance};
use voussoir_net::{Config, Peers, Tcp, Transport};

/// Handles of a kind that the suite does not see, by id.
struct Started<T>(Mutex<Vec<(u64, T)>>);

impl<T> Started<T> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn take(&self, id: u64) -> Option<T> {
        let mut all = self.0.lock();
        let at = all.iter().position(|(other, _)| *other == id)?;
        Some(all.remove(at).1)
    }
}

struct TcpFactory(Started<Tcp>);

#[async_trait]
impl Factory for TcpFactory {
    async fn start(&self, ids: &[u64]) -> Vec<Arc<dyn Transport>> {
        self.0.0.lock().clear();
        let peers = Peers::new();
        let mut started: Vec<Arc<dyn Transport>> = Vec::new();
        for &id in ids {
            let any = "127.0.0.1:0".parse().unwrap();
            let resolver = Arc::new(peers.clone());
            let tcp = Tcp::bind(id, any, resolver, Config::new(5)).await.unwrap();
            peers.insert(id, tcp.address());
            self.0.0.lock().push((id, tcp.clone()));
            started.push(Arc::new(tcp));
        }
        started
    }

    async fn kill(&self, transport: Arc<dyn Transport>) {
        let tcp = self.0.take(transport.local()).unwrap();
        drop(transport);
        tcp.shutdown(voussoir_net::Instant::now()).await;
    }
}

struct MemoryFactory(Started<Memory>, Faults);

#[async_trait]
impl Factory for MemoryFactory {
    async fn start(&self, ids: &[u64]) -> Vec<Arc<dyn Transport>> {
        self.0.0.lock().clear();
        let mut config = Config::default();
        config.seed = Some(1);
        let network = Network::new(config).unwrap();
        network.set_all_faults(self.1.clone());
        let join = |&id| {
            let memory = network.join(id);
            self.0.0.lock().push((id, memory.clone()));
            Arc::new(memory) as Arc<dyn Transport>
        };
        ids.iter().map(join).collect()
    }

    async fn kill(&self, transport: Arc<dyn Transport>) {
        self.0.take(transport.local()).unwrap().leave();
    }
}

#[cfg(feature = "tls")]
#[path = "support/certs.rs"]
mod certs;

#[cfg(feature = "tls")]
struct TlsFactory(TcpFactory, certs::Authority);

#[cfg(feature = "tls")]
impl TlsFactory {
    fn new() -> Self {
        Self(TcpFactory(Started::new()), certs::Authority::new("ca"))
    }
}

#[cfg(feature = "tls")]
#[async_trait]
impl Factory for TlsFactory {
    async fn start(&self, ids: &[u64]) -> Vec<Arc<dyn Transport>> {
        let nodes = &self.0.0.0;
        nodes.lock().clear();
        let peers = Peers::new();
        let mut started: Vec<Arc<dyn Transport>> = Vec::new();
        for &id in ids {
            let any = "127.0.0.1:0".parse().unwrap();
            let (resolver, config) = (Arc::new(peers.clone()), Config::new(5));
            let tcp = Tcp::bind_tls(id, any, resolver, config, self.1.tls(id)).await.unwrap();
            peers.insert(id, tcp.address());
            nodes.lock().push((id, tcp.clone()));
            started.push(Arc::new(tcp));
        }
        started
    }

    async fn kill(&self, transport: Arc<dyn Transport>) {
        self.0.kill(transport).await;
    }
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_on_one_thread() {
    conformance(&TlsFactory::new()).await;
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_two_threads() {
    conformance(&TlsFactory::new()).await;
}

#[tokio::test]
async fn tcp_on_one_thread() {
    conformance(&TcpFactory(Started::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_on_two_threads() {
    conformance(&TcpFactory(Started::new())).await;
}

#[tokio::test(start_paused = true)]
async fn memory() {
    conformance(&MemoryFactory(Started::new(), Faults::none())).await;
}

#[tokio::test(start_paused = true)]
async fn memory_with_delays() {
    let faults = Faults::delay(Duration::from_millis(1), Duration::from_millis(30));
    conformance(&MemoryFactory(Started::new(), faults)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_on_two_threads() {
    conformance(&MemoryFactory(Started::new(), Faults::none())).await;
}

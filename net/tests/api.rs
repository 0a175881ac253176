//! What users rely on without seeing it: which types cross threads, which traits are objects.

use std::sync::Arc;

use voussoir_net::memory::{FaultCounts, Faults, Memory, Network};
use voussoir_net::{
    BindError, CallError, Config, ConfigError, Event, Events, Handler, Instant, Parts, Peers,
    Publisher, Resolver, SendError, ServeError, Stats, Tcp, Transport,
};

fn crosses_threads<T: Send + Sync + 'static>() {}
fn is_an_error<T: std::error::Error + Send + Sync + 'static>() {}
fn is_sent<T: Send>(_: &T) {}

#[test]
fn types_cross_threads() {
    crosses_threads::<Tcp>();
    crosses_threads::<Memory>();
    crosses_threads::<Network>();
    crosses_threads::<Parts>();
    crosses_threads::<Event>();
    crosses_threads::<Events>();
    crosses_threads::<Publisher>();
    crosses_threads::<Config>();
    crosses_threads::<Stats>();
    crosses_threads::<Faults>();
    crosses_threads::<FaultCounts>();
    is_an_error::<SendError>();
    is_an_error::<CallError>();
    is_an_error::<ServeError>();
    is_an_error::<BindError>();
    is_an_error::<ConfigError>();
}

#[test]
fn traits_are_objects() {
    crosses_threads::<Arc<dyn Transport>>();
    crosses_threads::<Arc<dyn Handler>>();
    crosses_threads::<Arc<dyn Resolver>>();
}

#[tokio::test]
async fn futures_cross_threads() {
    let network = Network::new(Config::default()).unwrap();
    let one = network.join(1);
    let mut events = one.events();
    is_sent(&one.call(2, voussoir_net::Channel::small(1), Parts::default(), Instant::now()));
    is_sent(&events.next());
    let resolver = Arc::new(Peers::new());
    let address = "127.0.0.1:0".parse().unwrap();
    is_sent(&Tcp::bind(1, address, resolver.clone(), Config::default()));
    let tcp = Tcp::bind(1, address, resolver, Config::default()).await.unwrap();
    is_sent(&tcp.shutdown(Instant::now()));
}

//! Two nodes in one process: a message, a call, and what happens when a node ends.
//! `cargo run --example net-minimal`

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use voussoir_net::{
    CallError, Channel, Class, Config, Event, Handler, Instant, Parts, Peers, Rejected, Tcp,
    Transport,
};

const GREETER: Channel = Channel::small(1);

struct Greeter;

#[async_trait]
impl Handler for Greeter {
    fn message(&self, from: u64, class: Class, body: Bytes) {
        println!("node 2 got {body:?} from node {from}, {class:?}");
    }

    async fn call(&self, from: u64, body: Bytes) -> Result<Parts, Rejected> {
        if body.is_empty() {
            return Err(Rejected::ByHandler("whom?".into()));
        }
        println!("node 2 was called by node {from}");
        Ok(Parts::new("hello, ").with([body]))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let peers = Peers::new();
    let any = "127.0.0.1:0".parse()?;
    let one = Tcp::bind(1, any, Arc::new(peers.clone()), Config::new(42)).await?;
    let two = Tcp::bind(2, any, Arc::new(peers.clone()), Config::new(42)).await?;
    peers.insert(2, two.address());
    two.serve(GREETER.service, Arc::new(Greeter))?;
    let mut events = one.events();

    one.send(2, GREETER, "a message".into())?;
    let soon = || Instant::now() + Duration::from_secs(1);
    let answer = one.call(2, GREETER, "world".into(), soon()).await?;
    println!("node 1 got {answer:?}");
    match one.call(2, GREETER, Parts::default(), soon()).await {
        Err(CallError::Rejected(rejected)) => println!("node 1 was rejected: {rejected}"),
        other => return Err(format!("{other:?}").into()),
    }

    two.shutdown(soon()).await;
    while let Some(event) = events.next().await {
        println!("node 1 saw {event:?}");
        if matches!(event, Event::Down { .. }) {
            break;
        }
    }
    let error = one.call(2, GREETER, "world".into(), soon()).await.unwrap_err();
    println!("node 1: {error}, outcome {:?}", error.outcome());
    Ok(())
}

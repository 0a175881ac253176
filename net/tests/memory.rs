//! The faults of the network in memory, on paused time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use voussoir_net::memory::{Faults, Memory, Network};
use voussoir_net::{
    CallError, Channel, Class, Config, DownReason, Event, Handler, Lost, SendError, Transport,
};

const SERVICE: Channel = Channel::small(1);
const UP: Event = Event::Up { peer: 2, class: Class::Small };

fn down(reason: DownReason) -> Event {
    Event::Down { peer: 2, class: Class::Small, reason }
}

/// Records messages, and answers each by a message when told to.
#[derive(Default)]
struct Log {
    got: Mutex<Vec<(u64, Bytes)>>,
    answers: Mutex<Option<Memory>>,
}

#[async_trait::async_trait]
impl Handler for Log {
    fn message(&self, from: u64, _class: Class, body: Bytes) {
        let answerer = self.answers.lock().clone();
        if let (Some(memory), Some(&count @ 1..)) = (answerer, body.first()) {
            memory.send(from, SERVICE, vec![count - 1].into()).unwrap();
        }
        self.got.lock().push((from, body));
    }

    async fn call(
        &self,
        _: u64,
        body: Bytes,
    ) -> Result<voussoir_net::Parts, voussoir_net::Rejected> {
        self.got.lock().push((0, body.clone()));
        Ok(body.into())
    }
}

struct World {
    network: Network,
    one: Memory,
    two: Memory,
    log: Arc<Log>,
}

fn world(seed: u64) -> World {
    let mut config = Config::default();
    config.seed = Some(seed);
    config.small.max_queue_messages = 10;
    let network = Network::new(config).unwrap();
    let (one, two, log) = (network.join(1), network.join(2), Arc::new(Log::default()));
    two.serve(1, log.clone()).unwrap();
    World { network, one, two, log }
}

impl World {
    fn send(&self, number: u8) -> Result<(), SendError> {
        self.one.send(2, SERVICE, vec![number].into())
    }

    fn got(&self) -> Vec<u8> {
        self.log.got.lock().drain(..).map(|(_, body)| body[0]).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn without_delay_a_message_is_there_when_send_returns() {
    let world = world(1);
    world.send(1).unwrap();
    assert_eq!(world.got(), [1]);
}

#[tokio::test(start_paused = true)]
async fn handlers_may_answer_by_messages_without_end() {
    let world = world(1);
    let back = Arc::new(Log::default());
    world.one.serve(1, back.clone()).unwrap();
    *back.answers.lock() = Some(world.one.clone());
    *world.log.answers.lock() = Some(world.two.clone());
    world.send(255).unwrap();
    assert_eq!(world.got().len() + back.got.lock().len(), 256, "neither nested nor lost");
}

#[tokio::test(start_paused = true)]
async fn delays_keep_the_order() {
    let world = world(1);
    let (min, max) = (Duration::from_millis(10), Duration::from_millis(90));
    world.network.set_faults(1, 2, Faults::delay(min, max));
    let began = Instant::now();
    for i in 0..10 {
        world.send(i).unwrap();
    }
    assert_eq!(world.send(10), Err(SendError::Full), "what is on its way is bounded");
    assert!(world.got().is_empty());
    sleep(min.mul_f32(0.8)).await;
    assert!(world.got().is_empty(), "none is early");
    sleep(max).await;
    assert_eq!(world.got(), (0..10).collect::<Vec<_>>());
    // A call takes its way and, since the way back is free, no more.
    let called = Instant::now();
    let answer = world.one.call(2, SERVICE, vec![7].into(), began + Duration::from_secs(9)).await;
    assert_eq!(*answer.unwrap(), [7]);
    assert!((min..=max + Duration::from_millis(1)).contains(&called.elapsed()));
    assert_eq!(world.network.counts().delayed, 11);
}

#[tokio::test(start_paused = true)]
async fn lost_messages_are_counted_and_seeded() {
    let run = |seed| async move {
        let world = world(seed);
        world.network.set_all_faults(Faults::none().with_drop(0.3));
        for i in 0..100 {
            world.send(i).unwrap();
        }
        let got = world.got();
        assert!(got.is_sorted(), "what arrives is in order");
        assert_eq!(world.network.counts().dropped as usize, 100 - got.len());
        assert!((50..90).contains(&got.len()), "{} of 100 at 0.3", got.len());
        got
    };
    assert_eq!(run(1).await, run(1).await, "the same seed, the same losses");
    assert_ne!(run(1).await, run(2).await);
}

#[tokio::test(start_paused = true)]
async fn a_cut_in_one_direction() {
    let world = world(1);
    let back = Arc::new(Log::default());
    world.one.serve(1, back.clone()).unwrap();
    let mut events = world.one.events();
    world.send(1).unwrap();
    assert_eq!(events.next().await, Some(UP));
    world.network.cut(1, 2);
    world.send(2).unwrap();
    assert_eq!(world.got(), [1], "it is lost, and nobody knows yet");
    world.two.send(1, SERVICE, vec![3].into()).unwrap();
    assert_eq!(back.got.lock().len(), 1, "the other direction stands");
    // The request arrives, its answer does not.
    let deadline = Instant::now() + Duration::from_secs(1);
    let called = world.two.call(1, SERVICE, vec![4].into(), deadline).await;
    assert_eq!(called, Err(CallError::Unknown(Lost::Deadline)));
    assert_eq!(back.got.lock().len(), 2);

    let began = Instant::now();
    assert_eq!(events.next().await, Some(down(DownReason::Silent)));
    assert!(began.elapsed() <= Duration::from_secs(3));
    assert_eq!(world.send(5), Err(SendError::Down));
    world.network.mend(1, 2);
    assert_eq!(events.next().await, Some(UP));
    world.send(6).unwrap();
    assert_eq!(world.got(), [6]);
}

#[tokio::test(start_paused = true)]
async fn a_short_partition_goes_unnoticed() {
    let world = world(1);
    let mut events = world.one.events();
    world.send(1).unwrap();
    for _ in 0..3 {
        world.network.isolate(2);
        sleep(Duration::from_secs(2)).await;
        world.send(2).unwrap();
        world.network.heal();
        sleep(Duration::from_millis(1)).await;
    }
    world.send(3).unwrap();
    assert_eq!(world.got(), [1, 3]);
    assert_eq!(events.next().await, Some(UP));
    assert_eq!(events.try_next(), None, "no connection broke");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_peer_fills_the_queue_and_loses_nothing() {
    let world = world(1);
    world.network.hold(1, 2);
    for i in 0..10 {
        world.send(i).unwrap();
    }
    assert_eq!(world.send(10), Err(SendError::Full));
    assert!(world.got().is_empty());
    world.network.release(1, 2);
    assert_eq!(world.got(), (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_loses_what_was_on_its_way() {
    let world = world(1);
    let mut events = world.one.events();
    world.network.set_faults(1, 2, Faults::delay(Duration::from_secs(1), Duration::from_secs(1)));
    world.send(1).unwrap();
    let one = world.one.clone();
    let deadline = Instant::now() + Duration::from_secs(9);
    let call = tokio::spawn(async move { one.call(2, SERVICE, vec![2].into(), deadline).await });
    sleep(Duration::from_millis(500)).await;
    world.network.disconnect(1, 2);
    assert_eq!(call.await.unwrap(), Err(CallError::Unknown(Lost::Disconnected)));
    world.send(3).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.got(), [3]);
    for expected in [UP, down(DownReason::Closed), UP] {
        assert_eq!(events.next().await, Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_is_another_one() {
    let world = world(1);
    let mut events = world.one.events();
    world.network.set_faults(1, 2, Faults::delay(Duration::from_secs(1), Duration::from_secs(1)));
    world.send(1).unwrap();
    world.two.leave();
    assert_eq!(world.send(2), Err(SendError::Down));
    assert_eq!(world.two.send(1, SERVICE, "x".into()), Err(SendError::Closed));
    let again = world.network.join(2);
    let log = Arc::new(Log::default());
    again.serve(1, log.clone()).unwrap();
    world.send(3).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(world.got().is_empty(), "the one that died hears nothing");
    assert_eq!(log.got.lock().len(), 1, "the new one hears nothing of before");
    for expected in [UP, down(DownReason::Closed), UP] {
        assert_eq!(events.next().await, Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_own_the_last_handle() {
    let world = world(1);
    *world.log.answers.lock() = Some(world.two);
    let log = Arc::downgrade(&world.log);
    drop(world.log);
    let again = world.network.join(2);
    assert!(log.upgrade().is_none(), "the handler of the old node is gone");
    assert_eq!(again.send(9, SERVICE, "x".into()), Err(SendError::UnknownPeer));
}

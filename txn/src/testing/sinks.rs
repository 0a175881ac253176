//! Conformance of outbox sinks that are your own.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::participants::{Nonconforming, ensure, note};
use crate::outbox::{Message, Sink};

/// A sink of your own with what it delivers to, of which the kit asks for a new one for each check.
#[async_trait]
pub trait SinkWorld: Send {
    /// The sink.
    fn sink(&self) -> Arc<dyn Sink>;

    /// A topic that the sink takes.
    fn topic(&self) -> String {
        "topic".to_owned()
    }

    /// Ends the sink and what it delivers to as a crash does, and starts it again.
    async fn restart(&mut self);

    /// The ids of the messages of a key that have arrived, in order, as consumers see them: each
    /// once, the first time that it came.
    async fn arrived(&self, key: &str) -> Vec<String>;
}

/// Checks what a relay relies on: what was taken is durable and in order, deliveries that are
/// repeated, dropped or cross a crash have one effect, and an error tells how many were taken.
/// Returns the number of checks.
///
/// # Errors
/// [`Nonconforming`] with each check that failed.
///
/// # Cancel safety
/// Drops the world that it is in.
pub async fn sink_conformance<W, F>(mut make: impl FnMut() -> F) -> Result<usize, Nonconforming>
where
    W: SinkWorld,
    F: Future<Output = W>,
{
    let mut broken = Vec::new();
    macro_rules! checks {
        ($($check:ident),*) => {{
            $(note(&mut broken, stringify!($check), $check(make().await)).await;)*
            [$(stringify!($check)),*].len()
        }};
    }
    let checks = checks!(
        what_was_taken_is_durable_and_in_order,
        a_repeated_delivery_has_one_effect,
        a_delivery_after_a_crash_goes_on_where_it_was,
        a_dropped_delivery_is_made_up_for,
        keys_side_by_side_keep_their_order,
        an_error_counts_what_was_taken
    );
    if broken.is_empty() { Ok(checks) } else { Err(Nonconforming { broken }) }
}

fn messages(topic: &str, key: &str, numbers: std::ops::Range<u64>) -> Vec<Message> {
    let message = |number: u64| {
        Message::new(&format!("{key}-{number}"), number, topic, key, format!("body {number}"))
    };
    numbers.map(message).collect()
}

async fn deliver<W: SinkWorld>(world: &W, messages: &[Message]) -> Result<(), String> {
    world.sink().deliver(messages).await.map_err(|error| format!("it takes nothing: {error}"))
}

/// The first `count` messages of a key have arrived, and no others.
async fn has_arrived<W: SinkWorld>(world: &W, key: &str, count: u64) -> Result<(), String> {
    let expected: Vec<String> = (0..count).map(|number| format!("{key}-{number}")).collect();
    let arrived = world.arrived(key).await;
    ensure(arrived == expected, || format!("{arrived:?} arrived, not {expected:?}"))
}

async fn what_was_taken_is_durable_and_in_order<W: SinkWorld>(mut world: W) -> Result<(), String> {
    let all = messages(&world.topic(), "a", 0..20);
    deliver(&world, &all[..7]).await?;
    deliver(&world, &all[7..8]).await?;
    deliver(&world, &all[8..]).await?;
    world.restart().await;
    has_arrived(&world, "a", 20).await
}

async fn a_repeated_delivery_has_one_effect<W: SinkWorld>(world: W) -> Result<(), String> {
    let all = messages(&world.topic(), "a", 0..9);
    deliver(&world, &all[..5]).await?;
    deliver(&world, &all[..5]).await?;
    // Some that it has, and some that it has not.
    deliver(&world, &all[2..]).await?;
    has_arrived(&world, "a", 9).await
}

async fn a_delivery_after_a_crash_goes_on_where_it_was<W: SinkWorld>(
    mut world: W,
) -> Result<(), String> {
    let all = messages(&world.topic(), "a", 0..9);
    deliver(&world, &all[..5]).await?;
    world.restart().await;
    deliver(&world, &all[3..]).await?;
    world.restart().await;
    has_arrived(&world, "a", 9).await
}

async fn a_dropped_delivery_is_made_up_for<W: SinkWorld>(world: W) -> Result<(), String> {
    let all = messages(&world.topic(), "a", 0..30);
    for polls in 0..10_u32 {
        let sink = world.sink();
        let mut delivery = sink.deliver(&all[..10 + polls as usize]);
        for _ in 0..polls {
            tokio::select! {
                biased;
                _ = &mut delivery => {}
                () = tokio::task::yield_now() => continue,
            }
            break;
        }
    }
    deliver(&world, &all).await?;
    // What the dropped ones still do must change nothing.
    tokio::time::sleep(Duration::from_millis(200)).await;
    has_arrived(&world, "a", 30).await
}

async fn keys_side_by_side_keep_their_order<W: SinkWorld>(world: W) -> Result<(), String> {
    let topic = world.topic();
    let one = |key: &'static str| {
        let (sink, all) = (world.sink(), messages(&topic, key, 0..20));
        async move {
            for few in all.chunks(3) {
                sink.deliver(few).await.map_err(|error| format!("{key}: {error}"))?;
            }
            Ok::<(), String>(())
        }
    };
    let (a, b, c) = tokio::join!(one("a"), one("b"), one("c"));
    a.and(b).and(c)?;
    for key in ["a", "b", "c"] {
        has_arrived(&world, key, 20).await?;
    }
    Ok(())
}

/// A topic of another name follows: a sink may take it, or say how many came before it.
async fn an_error_counts_what_was_taken<W: SinkWorld>(mut world: W) -> Result<(), String> {
    let mut all = messages(&world.topic(), "a", 0..3);
    all.extend(messages("voussoir-kit-no-such-topic", "a", 3..4));
    let result = world.sink().deliver(&all).await;
    world.restart().await;
    let arrived = world.arrived("a").await;
    let taken = match &result {
        Ok(()) => 4,
        Err(error) => error.delivered,
    };
    ensure(taken <= 4 && arrived.len() >= taken.min(3), || {
        format!("it says {result:?}, and {arrived:?} arrived")
    })?;
    let expected: Vec<String> = (0..arrived.len()).map(|number| format!("a-{number}")).collect();
    ensure(arrived == expected, || format!("{arrived:?} arrived"))
}

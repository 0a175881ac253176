//! Runs one connection: reads, writes what is queued, keeps it alive, gives it up.

use std::time::Duration;

use tokio::task::coop;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::pipe::{Flush, Pipe};
use super::socket::{self, Reader, Writer};
use crate::core::liveness::Liveness;
use crate::core::partials::{Partials, Share};
use crate::stats::Counters;
use crate::wire::Incoming;
use crate::wire::inbox::Inbox;
use crate::{DownReason, Violation};

/// The end of a connection that frames come in at.
pub(crate) trait Side: Send {
    /// Takes a frame.
    fn frame(&mut self, frame: Incoming) -> Result<(), Violation>;

    /// Whether the connection may end once everything has been written: the peer has said goodbye
    /// to this side, and nothing of it is under way.
    fn may_end(&self) -> bool;

    /// Asked once per `keep_alive`: whether to ask the peer for a sign of life.
    fn is_pinging(&self) -> bool;

    /// Whether bytes that the peer takes show that it is alive.
    fn counts_written(&self) -> bool;

    /// Whether nothing is to be read now, since what comes would lead to more to write.
    fn is_paused(&self) -> bool;
}

/// The times and counts that all connections share.
#[derive(Clone, Debug)]
pub(crate) struct PumpContext {
    /// Between two pings, and two looks for signs of life.
    pub(crate) keep_alive: Duration,
    pub(crate) dead_after: Duration,
    pub(crate) counters: std::sync::Arc<Counters>,
    pub(crate) partials: std::sync::Arc<Partials>,
}

/// Runs a connection until it ends, and says why it did. Dropping the future ends it too.
pub(crate) async fn run(
    mut reader: Reader,
    writer: &Writer,
    pipe: &Pipe,
    side: &mut dyn Side,
    context: PumpContext,
) -> DownReason {
    let mut inbox = Inbox::new(pipe.own_max_body_bytes());
    let mut share = Share::new(&context.partials);
    let began = Instant::now();
    let mut liveness = Liveness::new(0, context.keep_alive, context.dead_after);
    // The handshake was a sign of life.
    let mut ticks = interval_at(began + context.keep_alive, context.keep_alive);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pings = 0;
    let mut flush = Flush::More;
    loop {
        // A connection that always has something to read must not keep a worker to itself.
        coop::consume_budget().await;
        let wanted = inbox.wanted();
        if wanted == 0 {
            share.release();
        }
        let has_room = wanted == 0 || share.try_hold(wanted);
        let may_read = has_room && !side.is_paused();
        tokio::select! {
            biased;
            _ = ticks.tick() => {
                let now = began.elapsed().as_nanos() as u64;
                if liveness.tick(now) {
                    return DownReason::Silent;
                }
                if side.is_pinging() {
                    pings += 1;
                    pipe.ping(pings);
                }
            }
            read = reader.read(inbox.room()), if may_read => {
                if let Some(error) = read.as_ref().err().and_then(socket::tls_error) {
                    return DownReason::Violation(Violation::Tls(error));
                }
                let bytes = read.unwrap_or(0);
                context.counters.bytes_in.add(bytes);
                liveness.read(bytes);
                if let Err(reason) = take(&mut inbox, side, &mut liveness, bytes) {
                    return reason;
                }
            }
            is_ended = share.is_ended(!has_room) => {
                if is_ended {
                    return DownReason::Overloaded;
                }
            }
            _ = writer.writable(), if flush == Flush::Blocked => {}
            () = std::future::ready(()), if flush == Flush::More => {}
            () = pipe.woken() => {}
        }
        match pipe.flush() {
            Ok((after, bytes)) => {
                flush = after;
                if side.counts_written() {
                    liveness.written(bytes);
                }
            }
            Err(_) => return DownReason::Closed,
        }
        if side.may_end() && pipe.is_quiet() {
            return DownReason::Goodbye;
        }
    }
}

/// Hands every whole frame on.
fn take(
    inbox: &mut Inbox,
    side: &mut dyn Side,
    liveness: &mut Liveness,
    bytes: usize,
) -> Result<(), DownReason> {
    if bytes == 0 {
        let cut = DownReason::Violation(Violation::Truncated);
        return Err(if inbox.is_partial() { cut } else { DownReason::Closed });
    }
    while let Some(frame) = inbox.next().map_err(DownReason::Violation)? {
        liveness.heard();
        side.frame(frame).map_err(DownReason::Violation)?;
    }
    Ok(())
}

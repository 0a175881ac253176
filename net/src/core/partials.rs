//! The memory of frames that have come in part, over all connections of a transport.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// Bounds what all connections hold of unfinished frames.
///
/// When the bound is reached, the connections whose unfinished frames are the oldest are ended
/// until there is room: a peer that is quick completes its frames, so those that hold memory back
/// are the oldest. A connection that needs room waits until they have given theirs back.
pub(crate) struct Partials {
    state: Mutex<State>,
    /// Changes when room was given back.
    room: watch::Sender<()>,
    max_bytes: usize,
}

#[derive(Default)]
struct State {
    /// Sum of the bytes of all holders. Invariant: at most `max_bytes`.
    held: usize,
    /// Sum of the bytes of the holders that are being ended. Invariant: at most `held`.
    ending: usize,
    next: u64,
    /// By number; the frame of the lowest began first.
    holders: BTreeMap<u64, Holder>,
}

struct Holder {
    bytes: usize,
    is_ending: bool,
    end: Arc<Notify>,
}

impl std::fmt::Debug for Partials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partials").field("held", &self.held()).finish_non_exhaustive()
    }
}

impl Partials {
    pub(crate) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), room: watch::Sender::new(()), max_bytes })
    }

    /// Bytes held by all connections now.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().held
    }
}

/// Bytes held by one connection. Dropping the value gives them back.
pub(crate) struct Share {
    partials: Arc<Partials>,
    room: watch::Receiver<()>,
    end: Arc<Notify>,
    /// Its number among the holders, while it is one.
    number: Option<u64>,
}

impl Share {
    pub(crate) fn new(partials: &Arc<Partials>) -> Self {
        let room = partials.room.subscribe();
        Self { partials: Arc::clone(partials), room, end: Arc::default(), number: None }
    }

    /// Asks for so many bytes in all for the unfinished frame. If there is no room, connections
    /// are told to end, perhaps this one: see `is_ended`, which says when to try again.
    pub(crate) fn try_hold(&mut self, bytes: usize) -> bool {
        self.room.mark_unchanged();
        let Partials { state, max_bytes, .. } = &*self.partials;
        let mut state = state.lock();
        let own = self.number.and_then(|number| state.holders.get(&number));
        let more = bytes.saturating_sub(own.map_or(0, |holder| holder.bytes));
        if state.held + more <= *max_bytes {
            let number = *self.number.get_or_insert_with(|| {
                state.next += 1;
                state.next
            });
            state.held += more;
            let end = &self.end;
            let holder = state.holders.entry(number).or_insert_with(|| Holder {
                bytes: 0,
                is_ending: false,
                end: Arc::clone(end),
            });
            holder.bytes += more;
            if holder.is_ending {
                state.ending += more;
            }
            return true;
        }
        let State { held, ending, holders, .. } = &mut *state;
        // Ends: each turn ends one more holder, and without holders there is room for any frame.
        for holder in holders.values_mut().filter(|holder| !holder.is_ending) {
            if *held - *ending + more <= *max_bytes {
                break;
            }
            holder.is_ending = true;
            *ending += holder.bytes;
            holder.end.notify_one();
        }
        false
    }

    /// The frame is complete: gives everything back.
    pub(crate) fn release(&mut self) {
        let Some(number) = self.number.take() else { return };
        {
            let mut state = self.partials.state.lock();
            let Some(holder) = state.holders.remove(&number) else { return };
            state.held -= holder.bytes;
            if holder.is_ending {
                state.ending -= holder.bytes;
                // It has been told, perhaps, and has not looked: now it holds nothing.
                self.end = Arc::default();
            }
        }
        self.partials.room.send_replace(());
    }

    /// Returns true when this connection is to end, to make room; and, if it waits for room, false
    /// when some was given back since the last `try_hold`. Cancel safe.
    pub(crate) async fn is_ended(&mut self, waits: bool) -> bool {
        tokio::select! {
            biased;
            () = self.end.notified() => true,
            // The sender lives as long as `partials`.
            _ = self.room.changed(), if waits => false,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a share has been told to end.
    fn is_told(share: &mut Share) -> bool {
        let mut told = std::pin::pin!(share.is_ended(false));
        told.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn the_oldest_are_ended_until_there_is_room() {
        let partials = Partials::new(100);
        let mut shares: Vec<Share> = (0..4).map(|_| Share::new(&partials)).collect();
        for share in &mut shares[..3] {
            assert!(share.try_hold(30));
        }
        assert!(shares[0].try_hold(40), "100 of 100");
        assert!(!shares[3].try_hold(60), "no room yet");
        assert_eq!(shares.iter_mut().map(is_told).collect::<Vec<_>>(), [true, true, false, false]);
        assert!(!shares[3].try_hold(60), "nobody else is ended while they end");
        assert!(!is_told(&mut shares[2]));
        drop(shares.remove(0));
        assert!(!shares[2].try_hold(60), "60 are held");
        drop(shares.remove(0));
        assert!(shares[1].try_hold(60));
        assert_eq!(partials.held(), 90);
        assert!(!is_told(&mut shares[0]));
    }

    #[test]
    fn a_share_that_grows_while_it_is_being_ended_gives_all_of_it_back() {
        let partials = Partials::new(100);
        let [mut one, mut two, mut three] = [0; 3].map(|_| Share::new(&partials));
        assert!(one.try_hold(40) && two.try_hold(50));
        assert!(!three.try_hold(20), "10 are free");
        two.release();
        assert!(one.try_hold(60), "it has not yet seen that it is to end");
        assert!(is_told(&mut one));
        drop(one);
        assert!(three.try_hold(100) && !two.try_hold(1));
        assert!(is_told(&mut three), "of those that hold, the oldest is ended");
        drop(three);
        let state = partials.state.lock();
        assert_eq!((state.held, state.ending), (0, 0));
    }

    #[test]
    fn a_share_that_gave_everything_back_in_time_is_not_ended() {
        let partials = Partials::new(100);
        let [mut one, mut two] = [0; 2].map(|_| Share::new(&partials));
        assert!(one.try_hold(90));
        assert!(!two.try_hold(50), "the frame of one is the oldest");
        one.release();
        assert!(!is_told(&mut one), "its frame was complete before it looked");
        assert!(two.try_hold(50) && one.try_hold(50));
        assert!(!one.try_hold(60));
        assert!(is_told(&mut two) && !is_told(&mut one));
        drop(two);
        let mut three = Share::new(&partials);
        assert!(!three.try_hold(60));
        assert!(is_told(&mut one), "it is told of its later frame");
    }

    #[test]
    fn a_share_that_needs_more_may_be_the_oldest_itself() {
        let partials = Partials::new(100);
        let (mut one, mut two) = (Share::new(&partials), Share::new(&partials));
        assert!(one.try_hold(60) && two.try_hold(40));
        assert!(!one.try_hold(70));
        assert!(is_told(&mut one) && !is_told(&mut two));
    }

    #[test]
    fn a_complete_frame_gives_back_and_the_next_is_younger() {
        let partials = Partials::new(100);
        let (mut one, mut two) = (Share::new(&partials), Share::new(&partials));
        assert!(one.try_hold(50) && two.try_hold(50));
        one.release();
        assert!(one.try_hold(50), "a new frame");
        assert!(!one.try_hold(60));
        assert!(is_told(&mut two) && !is_told(&mut one), "the frame of two is the older one");
        drop(two);
        assert!(one.try_hold(100));
        drop(one);
        assert_eq!(partials.held(), 0);
    }
}

//! A queue with one reader, which takes everything at once.

use std::mem;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Where anybody leaves something for one task.
///
/// The reader swaps the whole content out, so a burst costs one wake-up and two locks, and
/// nothing is allocated once both vectors have grown. A writer wakes the reader only when it
/// sleeps: what the reader itself causes while it works costs no wake-up. Nor does what it could do
/// nothing about, which `P` says of a reader that sleeps.
#[derive(Debug)]
pub(crate) struct Mailbox<T, P = ()> {
    state: Mutex<State<T, P>>,
}

#[derive(Debug)]
struct State<T, P> {
    items: Vec<T>,
    /// The reader, when it sleeps.
    reader: Option<Waker>,
    /// What it said when it fell asleep.
    patience: P,
    closed: bool,
    /// The reader has found nothing and has not looked since.
    is_awaited: bool,
    /// The reader gives its memory back when it next finds nothing.
    shrinks: bool,
}

impl<T, P> State<T, P> {
    fn add(&mut self, item: T) {
        // Of ten thousand groups that elect their leaders few have more than one at a time.
        if self.items.capacity() == 0 {
            self.items.reserve_exact(1);
        }
        self.items.push(item);
    }
}

impl<T, P: Default> Mailbox<T, P> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                items: Vec::new(),
                reader: None,
                patience: P::default(),
                closed: false,
                is_awaited: false,
                shrinks: false,
            }),
        }
    }

    /// Leaves an item. Gives it back when the mailbox is closed.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        self.push_unless(item, |_| false)
    }

    /// Leaves an item, which does not wake a reader whose patience `may_wait` accepts: it is then
    /// read when something else wakes the reader.
    pub(crate) fn push_unless(&self, item: T, may_wait: impl FnOnce(&P) -> bool) -> Result<(), T> {
        let reader = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(item);
            }
            state.add(item);
            if may_wait(&state.patience) { None } else { state.reader.take() }
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    /// Leaves an item for a reader who will look without being woken.
    pub(crate) fn leave(&self, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(item);
        }
        state.add(item);
        Ok(())
    }

    /// Whether the reader waits for something and there is nothing.
    pub(crate) fn is_awaited(&self) -> bool {
        let state = self.state.lock();
        state.is_awaited && state.items.is_empty()
    }

    /// Gives back memory that is not in use: nothing is expected for a while.
    pub(crate) fn shrink(&self) {
        let mut state = self.state.lock();
        state.items.shrink_to_fit();
        state.shrinks = true;
    }

    /// Nothing more is taken in. Returns what nobody has read.
    pub(crate) fn close(&self) -> Vec<T> {
        let (reader, left) = {
            let mut state = self.state.lock();
            state.closed = true;
            (state.reader.take(), mem::take(&mut state.items))
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        left
    }

    /// Moves everything into `into`, which must be empty, for a reader at work.
    pub(crate) fn take(&self, into: &mut Vec<T>) {
        debug_assert!(into.is_empty(), "what was taken before has to be used up first");
        mem::swap(&mut self.state.lock().items, into);
    }

    /// Moves everything into `into`, which must be empty. Ready with `false` when the mailbox is
    /// closed. Where there is nothing the reader sleeps, with this `patience`, which is asked for
    /// under the lock.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        into: &mut Vec<T>,
        patience: impl FnOnce() -> P,
    ) -> Poll<bool> {
        debug_assert!(into.is_empty(), "what was taken before has to be used up first");
        let mut state = self.state.lock();
        state.is_awaited = state.items.is_empty();
        if !state.items.is_empty() {
            mem::swap(&mut state.items, into);
            return Poll::Ready(true);
        }
        if state.closed {
            return Poll::Ready(false);
        }
        if mem::take(&mut state.shrinks) {
            // Both are empty.
            (*into, state.items) = (Vec::new(), Vec::new());
        }
        state.patience = patience();
        match &mut state.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            reader => *reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// Counts how often it wakes.
    #[derive(Default)]
    pub(in crate::shell) struct Count(pub(in crate::shell) AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_sleeping_reader_is_woken_once_for_a_burst() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mailbox = Mailbox::new();
        let mut taken = Vec::new();
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || ()), Poll::Pending);
        for item in 0..3 {
            mailbox.push(item).unwrap();
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || ()), Poll::Ready(true));
        assert_eq!(taken, [0, 1, 2]);
        assert!(!mailbox.is_awaited(), "it is at work");
        mailbox.push(3).unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "a reader at work needs no waking");
        taken.clear();
        mailbox.take(&mut taken);
        assert_eq!(taken, [3]);
        mailbox.push(5).unwrap();
        taken.clear();
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || ()), Poll::Ready(true));
        taken.clear();
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || ()), Poll::Pending);
        assert!(mailbox.is_awaited());
        mailbox.leave(4).unwrap();
        assert!(!mailbox.is_awaited(), "there is something");
    }

    #[test]
    fn a_mailbox_that_shrinks_keeps_what_is_in_it_and_no_memory_beside() {
        let waker = Waker::from(Arc::new(Count::default()));
        let mut cx = Context::from_waker(&waker);
        let (mailbox, mut taken) = (Mailbox::new(), Vec::new());
        (0..100).for_each(|item| mailbox.push(item).unwrap());
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || ()), Poll::Ready(true));
        taken.clear();
        mailbox.push(7).unwrap();
        mailbox.shrink();
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || ()), Poll::Ready(true));
        assert_eq!(taken, [7]);
        taken.clear();
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || ()), Poll::Pending);
        assert_eq!((taken.capacity(), mailbox.state.lock().items.capacity()), (0, 0));
    }

    #[test]
    fn a_reader_sleeps_through_what_it_said_may_wait() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let (mailbox, mut taken) = (Mailbox::new(), Vec::new());
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || 5), Poll::Pending);
        mailbox.push_unless(5, |patience| 5 <= *patience).unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        mailbox.push_unless(6, |patience| 6 <= *patience).unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || 5), Poll::Ready(true));
        assert_eq!(taken, [5, 6], "in the order in which they came");
        taken.clear();
        assert_eq!(mailbox.poll_take(&mut cx, &mut taken, || 4), Poll::Pending);
        mailbox.push_unless(5, |patience| 5 <= *patience).unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 2, "it is what was said last that counts");
    }

    #[tokio::test]
    async fn closing_gives_back_what_nobody_read() {
        let mailbox = Mailbox::new();
        mailbox.push(1).unwrap();
        assert_eq!(mailbox.close(), [1]);
        assert_eq!(mailbox.push(2), Err(2));
        let mut taken = Vec::new();
        assert!(!poll_fn(|cx| mailbox.poll_take(cx, &mut taken, || ())).await);
    }
}

//! How many operations are begun at once: as many as are answered well within their timeout.

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Duration, Instant, timeout_at};

/// The places of operations that have begun and are not answered. Replicas that are sent more than
/// they answer in time answer everything late: the operations of a burst would all have passed
/// their first phase when their time is over, and none its second. So the others wait, and what has
/// begun goes before them; one that has waited for half of its timeout is not begun.
///
/// The number of places follows the time that the answers take (additive increase, multiplicative
/// decrease): while all are taken, each answer in time adds one, and a later one halves them, once
/// for all that began before. In time is within a quarter of the timeout, or, where the replicas
/// are that far away, within half as much again as the quickest answer of late took, and in any
/// case within half of the timeout.
pub(crate) struct Window {
    places: Semaphore,
    timeout: Duration,
    max: usize,
    size: Mutex<Size>,
}

struct Size {
    /// How many places there are to be. Invariant: from [`Window::MIN`] to `max`.
    target: usize,
    /// How many there are: a place that is taken goes when it is given back.
    places: usize,
    halved: Instant,
    quickest: Quickest,
}

/// The shortest time that an answer has taken of late: nothing waits at a replica so long. Halving
/// the places halves what does wait, so that half as much again as the quickest stays below the
/// time at which they are halved: what is in time does not creep upwards under load.
struct Quickest {
    now: Duration,
    before: Duration,
    since: Instant,
}

impl Quickest {
    /// How many timeouts it looks back, at least.
    const PERIOD: u32 = 8;

    fn new() -> Self {
        Self { now: Duration::MAX, before: Duration::MAX, since: Instant::now() }
    }

    fn note(&mut self, took: Duration, timeout: Duration) {
        if self.since.elapsed() >= Self::PERIOD * timeout {
            *self = Self { before: self.now, ..Self::new() };
        }
        self.now = self.now.min(took);
    }

    /// The longest time that is in time.
    fn limit(&self, timeout: Duration) -> Duration {
        let usual = self.now.min(self.before);
        (usual.saturating_mul(3) / 2).clamp(timeout / 4, timeout / 2)
    }
}

/// The place of an operation, given back when it is dropped.
pub(crate) struct Place<'a> {
    window: &'a Window,
    permit: Option<SemaphorePermit<'a>>,
    began: Instant,
}

impl Window {
    /// At first. Where no more operations run at once, none waits.
    const FIRST: usize = 64;
    /// Also where nothing is answered: what could be is found by trying it.
    const MIN: usize = 16;

    /// At most `max` places, which is 1 or more.
    pub(crate) fn new(timeout: Duration, max: usize) -> Self {
        let first = Self::FIRST.min(max);
        let quickest = Quickest::new();
        let size = Size { target: first, places: first, halved: Instant::now(), quickest };
        Self { places: Semaphore::new(first), timeout, max, size: Mutex::new(size) }
    }

    /// A place, if there is one now.
    pub(crate) fn try_enter(&self) -> Option<Place<'_>> {
        self.places.try_acquire().ok().map(|permit| self.place(permit))
    }

    /// Waits for a place behind those that wait already. None: an operation that ends at `deadline`
    /// has waited for half of its time.
    pub(crate) async fn enter(&self, deadline: Instant) -> Option<Place<'_>> {
        let entered = timeout_at(deadline - self.timeout / 2, self.places.acquire()).await;
        Some(self.place(entered.ok()?.ok()?))
    }

    fn place<'a>(&'a self, permit: SemaphorePermit<'a>) -> Place<'a> {
        Place { window: self, permit: Some(permit), began: Instant::now() }
    }

    /// How many operations are begun at once now.
    pub(crate) fn size(&self) -> usize {
        self.size.lock().target
    }
}

impl Place<'_> {
    /// The operation has ended. An error that came at once says nothing of how busy replicas are.
    pub(crate) fn ended(self, is_ok: bool) {
        let (took, timeout) = (self.began.elapsed(), self.window.timeout);
        let mut size = self.window.size.lock();
        if is_ok {
            size.quickest.note(took, timeout);
        }
        if took > size.quickest.limit(timeout) {
            if self.began >= size.halved {
                size.target = (size.target / 2).max(Window::MIN.min(self.window.max));
                size.halved = Instant::now();
            }
        } else if is_ok && self.window.places.available_permits() == 0 {
            size.target = self.window.max.min(size.target + 1);
        }
    }

    /// Waits for an answer with the place, but for half of the timeout at most: operations that
    /// nobody answers do not hold up those that somebody does.
    pub(crate) async fn hold<T, E>(
        self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::pin!(answer);
        let ends = self.began + self.window.timeout / 2;
        match timeout_at(ends, &mut answer).await {
            Ok(result) => {
                self.ended(result.is_ok());
                result
            }
            Err(_) => {
                self.ended(false);
                answer.await
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut size = self.window.size.lock();
        let Some(permit) = self.permit.take() else { return };
        if size.places > size.target {
            size.places -= 1;
            permit.forget();
            return;
        }
        self.window.places.add_permits(size.target - size.places);
        size.places = size.target;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    async fn end_all(window: &Window, count: usize, after_ms: u64, is_ok: bool) {
        let places: Vec<_> = (0..count).map(|_| window.try_enter().unwrap()).collect();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        for place in places {
            place.ended(is_ok);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn places_follow_the_time_that_answers_take() {
        let window = Window::new(TIMEOUT, 100);
        end_all(&window, 63, 1, true).await;
        assert_eq!(window.size(), 64, "not all were taken");
        end_all(&window, 64, 250, true).await;
        assert_eq!(window.size(), 65, "the first one to end had all taken");
        end_all(&window, 65, 1, false).await;
        assert_eq!(window.size(), 65, "an error at once is no answer");
        end_all(&window, 65, 251, true).await;
        assert_eq!(window.size(), 32, "halved once for all that began before");
        assert_eq!(window.places.available_permits(), 32);
        for _ in 0..3 {
            end_all(&window, window.size(), 251, false).await;
        }
        assert_eq!((window.size(), window.places.available_permits()), (16, 16));
        // A period without a quick answer, and another one that does not look back so far.
        for _ in 0..2 * Quickest::PERIOD {
            end_all(&window, 1, 1_000, true).await;
        }
        end_all(&window, 16, 251, true).await;
        assert_eq!(window.size(), 17, "the replicas are that far away");
        end_all(&window, 17, 400, true).await;
        assert_eq!(window.size(), 16, "they are nearer than that");
        let window = Window::new(TIMEOUT, 100);
        end_all(&window, 64, 501, true).await;
        assert_eq!(window.size(), 32, "two phases do not end in time");
        assert_eq!(Window::new(TIMEOUT, 1).size(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_that_has_waited_for_half_of_its_time_is_not_begun() {
        let window = Window::new(TIMEOUT, 1);
        let (place, began) = (window.try_enter(), Instant::now());
        assert!(window.try_enter().is_none());
        assert!(window.enter(began + TIMEOUT).await.is_none());
        assert_eq!(began.elapsed(), TIMEOUT / 2);
        drop(place);
        assert!(window.enter(Instant::now() + TIMEOUT).await.is_some());
        // What nobody answers gives its place back while it waits.
        let held = window.try_enter().unwrap();
        let held = held.hold(async {
            tokio::time::sleep(3 * TIMEOUT).await;
            Err::<(), ()>(())
        });
        let (_, entered) = tokio::join!(held, window.enter(Instant::now() + 2 * TIMEOUT));
        assert!(entered.is_some());
    }
}

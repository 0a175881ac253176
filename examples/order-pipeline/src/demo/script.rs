//! What happens to the services, and when.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::WORKERS;
use crate::pipeline::Pipeline;
use crate::services::Service;

/// What each service takes for an order. Mails take so long that workers which are killed have some
/// in their hands.
pub(crate) const DELAYS: [Duration; 4] = [DELAY, DELAY, DELAY, Duration::from_millis(50)];
const DELAY: Duration = Duration::from_millis(5);
/// What payment takes while it is slow.
const SLOW: Duration = Duration::from_millis(250);

const PAYMENT: usize = 0;
const SHIPPING: usize = 2;
const NOTIFICATION: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    Calm,
    PaymentIsSlow,
    ShippingIsDead,
    WorkersDie,
    CalmAgain,
}

#[derive(Debug)]
pub(crate) struct Script {
    length: Duration,
    scene: Scene,
    /// What the view says about it.
    pub(crate) now: &'static str,
}

impl Script {
    pub(crate) fn new(length: Duration) -> Self {
        Self { length, scene: Scene::Calm, now: "all is well" }
    }

    /// Changes the services of both forms, when it is time.
    pub(crate) fn play(
        &mut self,
        at: Duration,
        pipeline: &Pipeline,
        services: [&[Arc<Service>]; 2],
        workers: &mut [Vec<JoinHandle<()>>],
    ) {
        let part = at.as_secs_f64() / self.length.as_secs_f64();
        let scene = match part {
            _ if part < 0.2 => Scene::Calm,
            _ if part < 0.45 => Scene::PaymentIsSlow,
            _ if part < 0.7 => Scene::ShippingIsDead,
            _ if part < 0.8 => Scene::WorkersDie,
            _ => Scene::CalmAgain,
        };
        // Ends: the scene moves on with each round.
        while self.scene < scene {
            self.next(pipeline, services, workers);
        }
    }

    /// Plays what is left.
    pub(crate) fn end(
        &mut self,
        pipeline: &Pipeline,
        services: [&[Arc<Service>]; 2],
        workers: &mut [Vec<JoinHandle<()>>],
    ) {
        self.play(self.length, pipeline, services, workers);
    }

    fn next(
        &mut self,
        pipeline: &Pipeline,
        services: [&[Arc<Service>]; 2],
        workers: &mut [Vec<JoinHandle<()>>],
    ) {
        let each = |index: usize, change: &dyn Fn(&Service)| {
            for form in services {
                change(&form[index]);
            }
        };
        let (scene, now) = match self.scene {
            Scene::Calm => {
                each(PAYMENT, &|payment| payment.set_delay(SLOW));
                (Scene::PaymentIsSlow, "payment takes 250 ms")
            }
            Scene::PaymentIsSlow => {
                each(PAYMENT, &|payment| payment.set_delay(DELAY));
                each(SHIPPING, &|shipping| shipping.set_down(true));
                (Scene::ShippingIsDead, "shipping is dead")
            }
            Scene::ShippingIsDead => {
                each(SHIPPING, &|shipping| shipping.set_down(false));
                // With orders in their hands: their leases run out.
                workers[NOTIFICATION].drain(..).for_each(|worker| worker.abort());
                (Scene::WorkersDie, "shipping is back, the workers of notification are killed")
            }
            Scene::WorkersDie | Scene::CalmAgain => {
                let notification = &services[0][NOTIFICATION];
                workers[NOTIFICATION] = pipeline.start(NOTIFICATION, notification, WORKERS);
                (Scene::CalmAgain, "notification has new workers")
            }
        };
        (self.scene, self.now) = (scene, now);
    }
}

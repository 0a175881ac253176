//! Export through the `metrics` facade.
//!
//! No write or read touches the facade: `export` copies the statistics into it, from a timer or
//! when a scrape comes in.

use metrics::{Label, counter, gauge};

use crate::queue::Queue;
use crate::work::WorkQueue;

/// Exports a queue, under the label `queue`.
///
/// What was exported for a topic or a group that has been deleted stays in the recorder as it was
/// last: recorders forget it by an idle time-out.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    queue: Label,
}

impl QueueMetrics {
    /// Exports under this name.
    pub fn new(queue: &str) -> Self {
        Self { queue: Label::new("queue", queue.to_owned()) }
    }

    /// Copies the figures of all partitions that could be opened, and how far each group is behind.
    pub fn export(&self, queue: &Queue) {
        for topic in queue.topics() {
            for (number, slot) in topic.opened_slots() {
                let labels = self.partition(topic.name(), number);
                let stats = slot.partition.stats();
                let count = |metric: &'static str, value| {
                    counter!(metric, labels.clone()).absolute(value);
                };
                let level = |metric: &'static str, value: u64| {
                    gauge!(metric, labels.clone()).set(value as f64);
                };
                level("voussoir_queue_start_offset", stats.start_offset);
                level("voussoir_queue_end_offset", stats.end_offset);
                level("voussoir_queue_stored_bytes", stats.stored_bytes);
                level("voussoir_queue_pending_bytes", stats.pending_bytes as u64);
                level("voussoir_queue_waiters", stats.waiters as u64);
                level("voussoir_queue_producers", stats.producers as u64);
                count("voussoir_queue_appended_batches_total", stats.appended);
                count("voussoir_queue_duplicate_batches_total", stats.duplicates);
                count("voussoir_queue_rejected_batches_total", stats.rejected);
            }
        }
        for group in queue.groups() {
            for lag in queue.lag(&group).unwrap_or_default() {
                let mut labels = self.partition(&lag.partition.topic, lag.partition.partition);
                labels.push(Label::new("group", group.clone()));
                gauge!("voussoir_queue_lag", labels).set(lag.offsets() as f64);
            }
        }
    }

    /// Copies the figures of a work queue, under the label `work`.
    pub fn export_work(&self, work: &str, work_queue: &WorkQueue) {
        let labels = [self.queue.clone(), Label::new("work", work.to_owned())];
        let stats = work_queue.stats();
        let count = |metric: &'static str, value| {
            counter!(metric, labels.iter()).absolute(value);
        };
        let level = |metric: &'static str, value: u64| {
            gauge!(metric, labels.iter()).set(value as f64);
        };
        level("voussoir_queue_work_lag", stats.lag);
        level("voussoir_queue_work_records", stats.records as u64);
        level("voussoir_queue_work_bytes", stats.bytes as u64);
        level("voussoir_queue_work_leased", stats.leased as u64);
        level("voussoir_queue_work_dead_letters", stats.dead_letters as u64);
        count("voussoir_queue_work_delivered_total", stats.delivered);
        count("voussoir_queue_work_acked_total", stats.acked);
        count("voussoir_queue_work_expired_total", stats.expired);
        count("voussoir_queue_work_died_total", stats.died);
        count("voussoir_queue_work_skipped_total", stats.skipped);
    }

    fn partition(&self, topic: &str, partition: u32) -> Vec<Label> {
        vec![
            self.queue.clone(),
            Label::new("topic", topic.to_owned()),
            Label::new("partition", partition.to_string()),
        ]
    }
}

//! Counters of a proxy, and what users are shown of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Defines the public statistics of a proxy and, as `Counters`, what it counts them with.
macro_rules! counters {
    (
        $(#[$stats_doc:meta])* $stats:ident,
        $(#[$active_doc:meta])* active,
        $($(#[$doc:meta])* $name:ident,)*
    ) => {
        $(#[$stats_doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $stats {
            $(#[$active_doc])*
            pub active: usize,
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: std::sync::atomic::AtomicU64,)*
        }

        impl Counters {
            pub(super) fn read(&self, active: usize) -> $stats {
                let read = |counter: &std::sync::atomic::AtomicU64| {
                    counter.load(std::sync::atomic::Ordering::Relaxed)
                };
                $stats { active, $($name: read(&self.$name),)* }
            }
        }
    };
}
pub(in crate::l4) use counters;

pub(in crate::l4) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

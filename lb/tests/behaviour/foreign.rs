//! Strategies of the user: they may be wrong, call back, and panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::*;
use voussoir_lb::Random;
use voussoir_lb::strategy::{Group, Member, Select, Selection};

#[derive(Debug, Default)]
struct Odd {
    balancer: Arc<OnceLock<Balancer>>,
    panics: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Beyond;

impl Strategy for Odd {
    fn compile(&self, _: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        assert!(!self.panics.load(Ordering::Relaxed), "this strategy panics");
        if let Some(balancer) = self.balancer.get() {
            assert_eq!(balancer.stats(0).endpoints.len(), 2);
            assert!(balancer.pick(&Context::new(), 0).is_some());
        }
        Arc::new(Beyond)
    }
}

impl Select for Beyond {
    fn select(&self, _: &[Member], _: &Context<'_>, _: u64, _: &Random) -> Selection {
        Selection::new(usize::MAX - 1)
    }
}

#[test]
fn an_index_out_of_range_leads_to_an_endpoint() {
    let balancer = balancer(Odd::default(), Config::default(), &[1, 1]);
    assert!(balancer.pick(&Context::new(), 0).is_some());
}

#[test]
fn a_strategy_may_call_back() {
    let odd = Odd::default();
    let cell = Arc::clone(&odd.balancer);
    let balancer = balancer(odd, Config::default(), &[1, 1]);
    cell.set(balancer.clone()).expect("once");
    assert!(balancer.set_draining("a", true, 0));
    assert_eq!(names(&balancer, 3, 0), "bbb");
}

#[test]
fn a_strategy_that_panics_leaves_a_balancer_that_works() {
    let odd = Odd::default();
    let panics = Arc::clone(&odd.panics);
    let balancer = balancer(odd, Config::default(), &[1, 1]);
    panics.store(true, Ordering::Relaxed);
    let update = || balancer.update(weighted(&[1, 1, 1]), 0);
    assert!(catch_unwind(AssertUnwindSafe(update)).is_err());
    assert_eq!(balancer.stats(0).endpoints.len(), 3);
    assert!(balancer.pick(&Context::new(), 0).is_some());
    panics.store(false, Ordering::Relaxed);
    balancer.set_draining("a", true, 0);
    balancer.set_draining("b", true, 0);
    assert_eq!(names(&balancer, 3, 0), "ccc");
}

/// A check that changes nothing compiles what the panic has left behind.
#[test]
fn the_next_result_of_a_check_compiles_what_a_panic_has_left() {
    let odd = Odd::default();
    let panics = Arc::clone(&odd.panics);
    let mut config = Config::default();
    config.checks = Some(voussoir_lb::CheckConfig::default());
    let balancer = balancer(odd, config, &[1, 1]);
    let ids: Vec<u64> = balancer.endpoints().iter().map(|endpoint| endpoint.id()).collect();
    balancer.record_check(ids[0], true, 0);
    panics.store(true, Ordering::Relaxed);
    let check = || balancer.record_check(ids[1], true, 0);
    assert!(catch_unwind(AssertUnwindSafe(check)).is_err());
    assert_eq!(names(&balancer, 2, 0), "aa", "the table is the old one");
    panics.store(false, Ordering::Relaxed);
    balancer.record_check(ids[0], true, 0);
    // An index out of range leads to any endpoint, not to a certain one.
    assert!(names(&balancer, 20, 0).contains('b'));
}

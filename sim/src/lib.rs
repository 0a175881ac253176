#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod check;
mod class;
mod clients;
mod config;
mod core;
mod error;
mod explore;
mod history;
mod json;
mod kernel;
mod ledger;
mod node;
mod plan;
mod report;
mod rng;
mod runner;
mod situations;
mod world;

pub use check::{
    Causality, OrderError, SessionGuarantee, check_causal, check_sequential, check_sessions,
};
pub use check::{CheckError, Checked, Counter, Kv, KvOp, KvRet, Model, Register, check, check_kv};
pub use check::{Store, StoreGroup, StoreOp, StoreRet, StoreState};
pub use class::{Counts, FaultClass, FaultSet};
pub use clients::{Answer, CLIENT_ALARMS, Clients, ClientsConfig, Workload};
pub use config::{Config, Limits, MICROSECOND, MILLISECOND, SECOND};
pub use error::ConfigError;
pub use explore::{ExploreError, ExploreLimits, Explored, StateSpace, explore};
pub use history::{Call, CallId, Ended, History};
pub use ledger::{Balance, Guarantee, Ledger, LedgerError};
pub use node::{Boot, Context, Crash, DiskFault, DiskHealth, Node, RequestId};
pub use plan::{Intensity, Plan};
pub use report::{Broken, Failure, Report, Summary};
pub use rng::Rng;
pub use runner::Runner;
pub use situations::Situations;
pub use world::{Step, World};

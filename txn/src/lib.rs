#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod choreography;
mod clock;
mod config;
mod core;
mod definition;
mod digest;
mod driver;
mod error;
pub mod idempotency;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub mod outbox;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub mod postgres;
mod sagas;
pub mod store;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
pub mod two_phase;

pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use clock::{Clock, System};
pub use config::{Config, Retry};
pub use core::Direction;
pub use definition::{Compensatable, Definer, Inputs, Saga, Step, StepCx, StepRef, WithPivot};
pub use error::{
    ConfigError, DefinitionError, OpenError, ResolveError, StartError, StepError, StoreError,
    WaitError,
};
pub use sagas::{Builder, End, Handle, Outcome, Resolution, SagaInfo, SagaState, Sagas, StuckStep};

#![doc = include_str!("../README.md")]

pub mod files;

pub use files::{DiskFiles, File, Files, MemoryFiles};

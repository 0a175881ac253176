//! Samples that are drawn from the hash of the commit: repeating CI on one commit repeats them.

use std::process::Command;

use crate::run::output;

/// The hash of `HEAD`.
pub(crate) fn head() -> Result<String, String> {
    let args = ["rev-parse", "--verify", "HEAD"];
    output(Command::new("git").current_dir(crate::root()).args(args))
}

/// FNV-1a over the parts: an order that is the same on every machine and toolchain.
pub(crate) fn fnv1a(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

//! The interface of a small crate.

use std::fs;

use super::{lines, modules::Crate, problems};

const LIB: &str = r#"
mod inner;
pub mod open { pub use crate::inner::Kept as Renamed; pub fn go<T>(of: T) -> u8 { 0 } }
#[cfg(feature = "net")]
pub mod net { pub struct Wire(pub u8, u16); }
pub use inner::{Kept, Seam};
pub use bytes::Bytes;
pub use inner::deep::*;
fn private() {}
#[doc(hidden)]
pub fn hidden() {}
#[cfg(test)]
mod tests { pub fn not_there() {} }
"#;

const INNER: &str = r"
/// Kept.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Kept { pub size: usize, secret: u8 }
impl Kept {
    pub fn new(
        size: usize, // how large
        name: &str,
    ) -> Self { todo!() }
    fn private(&self) {}
}
impl Drop for Kept { fn drop(&mut self) {} }
pub trait Seam: Send { type Out; fn call(&self); fn more(&self) -> u8 { 1 } }
impl Seam for u8 { type Out = (); fn call(&self) {} }
pub struct Unreachable;
impl Unreachable { pub fn method(&self) {} }
pub mod deep { #[derive(Debug)] pub enum Choice { One, Two { of: u8 } } }
";

const API: &str = "\
Bytes: use bytes::Bytes
Choice: #[derive(Debug)] enum
Choice::One: variant
Choice::Two: variant { of: u8 }
Kept.size: usize
Kept: #[derive(Debug, Clone)] #[non_exhaustive] struct
Kept::new: fn new(size: usize, name: &str) -> Self
Seam: trait Send
Seam::Out: associated type
Seam::call: fn call(&self)
Seam::more: fn more(&self) -> u8 { … }
impl Drop for Kept
impl Seam for u8
net::Wire.0: u8 [feature = \"net\"]
net::Wire: struct [feature = \"net\"]
open::Renamed: use Kept
open::go: fn go<T>(of: T) -> u8
";

#[test]
fn what_can_be_reached_is_listed_and_nothing_else() {
    let root = std::env::temp_dir().join(format!("xtask-api-{}", std::process::id()));
    fs::create_dir_all(root.join("one/src")).unwrap();
    fs::write(root.join("one/src/lib.rs"), LIB).unwrap();
    fs::write(root.join("one/src/inner.rs"), INNER).unwrap();
    let sources = Crate::parse(&root.join("one/src")).unwrap();
    assert_eq!(lines::of(&sources), API);
    fs::write(root.join("one/api.txt"), API).unwrap();
    assert_eq!(problems(&root, "one", &sources), Ok(Vec::new()));
    fs::write(root.join("one/api.txt"), API.replace("usize, name", "u8, name")).unwrap();
    let problems = problems(&root, "one", &sources).unwrap();
    assert!(problems[0].contains("- Kept::new: fn new(size: u8"), "{problems:?}");
    assert!(problems[0].contains("+ Kept::new: fn new(size: usize"), "{problems:?}");
    fs::remove_dir_all(root).unwrap();
}

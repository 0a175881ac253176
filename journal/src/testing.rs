//! For tests, ours and users': a conformance suite for [`Files`](crate::Files), files with a hook,
//! the disk of a node in a world of `voussoir-sim`, and the decoders by themselves. Failing disks
//! are in [`files::crash`](crate::files::crash).

mod conformance;
pub mod decoders;
mod hooked;
mod sim_disk;

pub use self::conformance::{Violation, check_files};
pub use self::hooked::{Call, HookedFiles};
pub use self::sim_disk::{Ruin, SimDisk};

//! For tests, ours and users': the decoders by themselves. Failing disks are in `files::crash`.

pub mod decoders;

//! The codecs of a batch's records. Each is behind a feature of its name.

use bytes::Bytes;

/// Largest window of zstd that is allocated: 8 MiB, which all levels but the "ultra" ones stay
/// below.
#[cfg(feature = "zstd")]
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

use super::FormatError;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip. Feature `gzip`.
    Gzip,
    /// Snappy, in the framing of snappy-java (blocks of 32 KiB); bare blocks are read too. Feature
    /// `snappy`.
    Snappy,
    /// LZ4, in its frame format. Feature `lz4`.
    Lz4,
    /// Zstandard. Feature `zstd`.
    Zstd,
}

impl Compression {
    /// All of them, in the order of their ids.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// Its name, which is also that of its feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    pub(crate) fn is_none(self) -> bool {
        self == Self::None
    }

    pub(super) fn id(self) -> u8 {
        self as u8
    }

    /// Whether this build has it.
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::None => true,
            Self::Gzip => cfg!(feature = "gzip"),
            Self::Snappy => cfg!(feature = "snappy"),
            Self::Lz4 => cfg!(feature = "lz4"),
            Self::Zstd => cfg!(feature = "zstd"),
        }
    }

    pub(super) fn from_id(id: u8) -> Result<Self, FormatError> {
        Self::ALL.get(usize::from(id)).copied().ok_or(FormatError::Header {
            field: "codec",
            value: i64::from(id),
            rule: "must be between 0 and 4",
        })
    }

    /// Compresses `plain`.
    pub(super) fn pack(self, plain: &[u8]) -> Result<Vec<u8>, FormatError> {
        match self {
            Self::None => Ok(plain.to_vec()),
            #[cfg(feature = "gzip")]
            Self::Gzip => gzip::pack(plain).map_err(|error| self.failed(&error)),
            #[cfg(feature = "snappy")]
            Self::Snappy => snappy::pack(plain).map_err(|error| self.failed(&error)),
            #[cfg(feature = "lz4")]
            Self::Lz4 => lz4::pack(plain).map_err(|error| self.failed(&error)),
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd::encode_all(plain, 3).map_err(|error| self.failed(&error)),
            #[cfg(not(all(
                feature = "gzip",
                feature = "snappy",
                feature = "lz4",
                feature = "zstd"
            )))]
            _ => Err(FormatError::CodecMissing { codec: self.name() }),
        }
    }

    /// Decompresses `packed` to at most `max_bytes`.
    pub(super) fn unpack(self, packed: Bytes, max_bytes: usize) -> Result<Bytes, FormatError> {
        match self {
            Self::None => Ok(packed),
            #[cfg(feature = "gzip")]
            Self::Gzip => self.read_all(flate2::read::MultiGzDecoder::new(&packed[..]), max_bytes),
            #[cfg(feature = "snappy")]
            Self::Snappy => snappy::unpack(&packed, max_bytes),
            #[cfg(feature = "lz4")]
            Self::Lz4 => self.read_all(lz4_flex::frame::FrameDecoder::new(&packed[..]), max_bytes),
            #[cfg(feature = "zstd")]
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::new(&packed[..]);
                let mut decoder = decoder.map_err(|error| self.failed(&error))?;
                // The frame's header asks for the window, which is allocated before any byte of it.
                let window = decoder.window_log_max(ZSTD_WINDOW_LOG_MAX);
                window.map_err(|error| self.failed(&error))?;
                self.read_all(decoder, max_bytes)
            }
            #[cfg(not(all(
                feature = "gzip",
                feature = "snappy",
                feature = "lz4",
                feature = "zstd"
            )))]
            _ => {
                // Only codecs need a limit.
                let _ = max_bytes;
                Err(FormatError::CodecMissing { codec: self.name() })
            }
        }
    }

    #[cfg(any(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
    fn failed(self, error: &dyn std::fmt::Display) -> FormatError {
        FormatError::Codec { codec: self.name(), detail: error.to_string() }
    }

    /// Reads a decoder to its end. Memory grows with what comes out, not with what a header says.
    #[cfg(any(feature = "gzip", feature = "lz4", feature = "zstd"))]
    fn read_all(self, from: impl std::io::Read, max_bytes: usize) -> Result<Bytes, FormatError> {
        use std::io::Read;

        let mut out = Vec::new();
        let limit = max_bytes as u64 + 1;
        from.take(limit).read_to_end(&mut out).map_err(|error| self.failed(&error))?;
        if out.len() > max_bytes {
            return Err(FormatError::TooLarge { bytes: limit, limit: max_bytes as u64 });
        }
        Ok(out.into())
    }
}

#[cfg(feature = "gzip")]
mod gzip {
    use std::io::{self, Write};

    pub(super) fn pack(plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain)?;
        encoder.finish()
    }
}

#[cfg(feature = "lz4")]
mod lz4 {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, Error, FrameEncoder, FrameInfo};

    /// Independent blocks of 64 KiB without checksums, as Kafka's Java client has them.
    pub(super) fn pack(plain: &[u8]) -> Result<Vec<u8>, Error> {
        let info = FrameInfo::new()
            .block_size(BlockSize::Max64KB)
            .block_mode(BlockMode::Independent)
            .content_checksum(false);
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(plain).map_err(Error::IoError)?;
        encoder.finish()
    }
}

#[cfg(feature = "snappy")]
mod snappy {
    use bytes::Bytes;
    use snap::raw::{Decoder, Encoder, decompress_len};

    use super::FormatError;

    /// What snappy-java begins a stream with: its name, version 1, readable from version 1 on.
    const START: &[u8] = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01";
    /// The name alone.
    const NAME_BYTES: usize = 8;
    const BLOCK_BYTES: usize = 32 << 10;

    pub(super) fn pack(plain: &[u8]) -> Result<Vec<u8>, snap::Error> {
        let mut out = START.to_vec();
        for block in plain.chunks(BLOCK_BYTES) {
            let packed = Encoder::new().compress_vec(block)?;
            out.extend((packed.len() as u32).to_be_bytes());
            out.extend(packed);
        }
        Ok(out)
    }

    pub(super) fn unpack(packed: &[u8], max_bytes: usize) -> Result<Bytes, FormatError> {
        let mut out = Vec::new();
        if !packed.starts_with(&START[..NAME_BYTES]) {
            unpack_block(packed, &mut out, max_bytes)?;
            return Ok(out.into());
        }
        let cut_off = || failed(&"the stream is cut off");
        let mut rest = packed.get(START.len()..).ok_or_else(cut_off)?;
        // Ends: each round takes at least the four bytes of a length.
        while !rest.is_empty() {
            let (length, blocks) = rest.split_first_chunk::<4>().ok_or_else(cut_off)?;
            let length = u32::from_be_bytes(*length) as usize;
            let (block, blocks) = blocks.split_at_checked(length).ok_or_else(cut_off)?;
            unpack_block(block, &mut out, max_bytes)?;
            rest = blocks;
        }
        Ok(out.into())
    }

    fn unpack_block(block: &[u8], out: &mut Vec<u8>, max_bytes: usize) -> Result<(), FormatError> {
        let length = decompress_len(block).map_err(|error| failed(&error))?;
        let bytes = out.len() as u64 + length as u64;
        if bytes > max_bytes as u64 {
            return Err(FormatError::TooLarge { bytes, limit: max_bytes as u64 });
        }
        // A block of n bytes makes at most 22 n of them: a copy of 64 bytes takes 3.
        if length > block.len().saturating_mul(64) {
            return Err(failed(&"a block says that it is longer than it can be"));
        }
        let at = out.len();
        out.resize(at + length, 0);
        Decoder::new().decompress(block, &mut out[at..]).map_err(|error| failed(&error))?;
        Ok(())
    }

    fn failed(error: &dyn std::fmt::Display) -> FormatError {
        FormatError::Codec { codec: "snappy", detail: error.to_string() }
    }
}

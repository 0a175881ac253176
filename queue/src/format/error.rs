//! What is wrong with bytes that should be a batch.

/// Why bytes are not a batch, or records do not fit into one. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes end before the batch does.
    #[error("the batch is cut off: {have} bytes of {need}")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that the batch needs at least.
        need: usize,
    },
    /// There are bytes behind the batch.
    #[error("{bytes} bytes follow the batch")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// The batch is larger than a log takes. Send smaller batches: Kafka's default limit is 16
    /// bytes above the one here.
    #[error("the batch has {bytes} bytes, at most {limit} are taken; lower the producer's limit")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The version of the message format is not 2. Versions 0 and 1 are not read.
    #[error("message format {found}; only 2 is supported")]
    Magic {
        /// The version found.
        found: i8,
    },
    /// The checksum does not match: the bytes are not those that were written.
    #[error("the checksum is {computed:08x}, the header says {stored:08x}")]
    Crc {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A field of the header has a value that no batch has.
    #[error("`{field}` is {value}, it {rule}")]
    Header {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
        /// What must hold.
        rule: &'static str,
    },
    /// A record cannot be read or written.
    #[error("record {index}: {detail}")]
    Record {
        /// Its number within the batch, from 0.
        index: u32,
        /// What is wrong.
        detail: &'static str,
    },
    /// The batch is compressed with a codec whose feature is not switched on.
    #[error("the batch is compressed with {codec}; build voussoir-queue with the feature {codec}")]
    CodecMissing {
        /// The codec, which is also the name of the feature.
        codec: &'static str,
    },
    /// The compressed records cannot be unpacked.
    #[error("{codec}: {detail}")]
    Codec {
        /// The codec.
        codec: &'static str,
        /// What the codec says.
        detail: String,
    },
}

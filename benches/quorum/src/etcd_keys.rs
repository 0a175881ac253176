//! etcd's keys.

use crate::Error;
use crate::etcd::Client;

/// The part of an answer's header that says when it was given.
#[derive(Clone, PartialEq, prost::Message)]
struct Revision {
    #[prost(int64, tag = "3")]
    revision: i64,
}

/// Linearizable: `serializable`, tag 7, is left out.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub version: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// The result is EQUAL, 0, and the target MOD, 2.
#[derive(Clone, PartialEq, prost::Message)]
struct Compare {
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    /// One of several fields: written also where it is 0.
    #[prost(int64, optional, tag = "6")]
    mod_revision: Option<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Revision>,
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

impl Client {
    /// A linearizable read.
    pub async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        let request = RangeRequest { key: key.to_vec() };
        let found: RangeResponse = self.call("/etcdserverpb.KV/Range", request).await?;
        Ok(found.kvs.into_iter().next())
    }

    pub async fn put(&self, key: &[u8], value: Vec<u8>) -> Result<(), Error> {
        let request = PutRequest { key: key.to_vec(), value };
        self.call::<_, PutResponse>("/etcdserverpb.KV/Put", request).await.map(drop)
    }

    /// Puts a value if the last change of the key was made by this revision, 0: if there is none.
    /// Returns the revision that this made.
    pub async fn cas(&self, key: &[u8], revision: i64, value: Vec<u8>) -> Result<i64, Error> {
        let compare = Compare { target: 2, key: key.to_vec(), mod_revision: Some(revision) };
        let put = RequestOp { put: Some(PutRequest { key: key.to_vec(), value }) };
        let request = TxnRequest { compare: vec![compare], success: vec![put] };
        let done: TxnResponse = self.call("/etcdserverpb.KV/Txn", request).await?;
        if !done.succeeded {
            return Err("the key was changed by somebody else".into());
        }
        Ok(done.header.unwrap_or_default().revision)
    }
}

//! etcd's transaction of one key, a compare-and-set.

use crate::Error;
use crate::etcd::Client;
use crate::etcd_keys::PutRequest;

/// The part of an answer's header that says when it was given.
#[derive(Clone, PartialEq, prost::Message)]
struct Revision {
    #[prost(int64, tag = "3")]
    revision: i64,
}

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

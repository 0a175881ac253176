//! The part of etcd's API, version 3, that the service uses: its messages with the numbers that
//! etcd's `rpc.proto`, `kv.proto` give them, so that a build needs no `protoc`.

#![allow(clippy::trivially_copy_pass_by_ref, reason = "what the derive of prost makes")]

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct Header {
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: ::prost::bytes::Bytes,
    #[prost(int64, tag = "2")]
    pub(super) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) value: ::prost::bytes::Bytes,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(super) limit: i64,
    /// 0 none, 1 ascending, 2 descending.
    #[prost(int32, tag = "5")]
    pub(super) sort_order: i32,
    /// 2: by the revision of creation.
    #[prost(int32, tag = "6")]
    pub(super) sort_target: i32,
    #[prost(bool, tag = "9")]
    pub(super) count_only: bool,
    #[prost(int64, tag = "12")]
    pub(super) min_create_revision: i64,
    #[prost(int64, tag = "13")]
    pub(super) max_create_revision: i64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct RangeAnswer {
    #[prost(message, repeated, tag = "2")]
    pub(super) kvs: Vec<KeyValue>,
    #[prost(int64, tag = "4")]
    pub(super) count: i64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct Put {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(super) lease: i64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct DeleteRange {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct Compare {
    /// 0 equal, 1 greater, 2 less.
    #[prost(int32, tag = "1")]
    pub(super) result: i32,
    /// 1 revision of creation, 2 of the latest change, 3 value.
    #[prost(int32, tag = "2")]
    pub(super) target: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) key: Vec<u8>,
    #[prost(oneof = "With", tags = "5, 6, 7")]
    pub(super) with: Option<With>,
    #[prost(bytes = "vec", tag = "64")]
    pub(super) range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, ::prost::Oneof)]
pub(super) enum With {
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
    #[prost(int64, tag = "6")]
    ModRevision(i64),
    #[prost(bytes, tag = "7")]
    Value(Vec<u8>),
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct Op {
    #[prost(oneof = "OpKind", tags = "1, 2, 3, 4")]
    pub(super) kind: Option<OpKind>,
}

#[derive(Clone, PartialEq, ::prost::Oneof)]
pub(super) enum OpKind {
    #[prost(message, tag = "1")]
    Range(RangeRequest),
    #[prost(message, tag = "2")]
    Put(Put),
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRange),
    #[prost(message, tag = "4")]
    Txn(Txn),
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct Txn {
    #[prost(message, repeated, tag = "1")]
    pub(super) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(super) success: Vec<Op>,
    #[prost(message, repeated, tag = "3")]
    pub(super) failure: Vec<Op>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct TxnAnswer {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    #[prost(bool, tag = "2")]
    pub(super) succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub(super) responses: Vec<OpAnswer>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct OpAnswer {
    #[prost(oneof = "OpAnswerKind", tags = "1")]
    pub(super) kind: Option<OpAnswerKind>,
}

/// Of the answers only those of ranges are looked at.
#[derive(Clone, PartialEq, ::prost::Oneof)]
pub(super) enum OpAnswerKind {
    #[prost(message, tag = "1")]
    Range(RangeAnswer),
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct LeaseGrant {
    #[prost(int64, tag = "1")]
    pub(super) ttl_s: i64,
    #[prost(int64, tag = "2")]
    pub(super) id: i64,
}

/// To end a lease, or to keep it alive.
#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct LeaseId {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
}

/// Of a grant and of a renewal; of one that has ended the time is 0.
#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct LeaseAnswer {
    #[prost(int64, tag = "3")]
    pub(super) ttl_s: i64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) create: Option<WatchCreate>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct WatchCreate {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(super) start_revision: i64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct WatchAnswer {
    #[prost(bool, tag = "4")]
    pub(super) canceled: bool,
    #[prost(message, repeated, tag = "11")]
    pub(super) events: Vec<Event>,
}

/// That there is one is all that is looked at.
#[derive(Clone, PartialEq, ::prost::Message)]
pub(super) struct Event {}

impl Compare {
    /// The key, or any of the range, was created at this revision; 0: it is not there.
    pub(super) fn created_at(key: &[u8], range_end: &[u8], revision: i64) -> Self {
        let with = Some(With::CreateRevision(revision));
        Self { result: 0, target: 1, key: key.into(), with, range_end: range_end.into() }
    }

    pub(super) fn changed_at(key: &[u8], revision: i64) -> Self {
        let with = Some(With::ModRevision(revision));
        Self { result: 0, target: 2, key: key.into(), with, range_end: Vec::new() }
    }

    /// The key is there, and its value is less.
    pub(super) fn value_below(key: &[u8], value: &str) -> Self {
        let with = Some(With::Value(value.into()));
        Self { result: 2, target: 3, key: key.into(), with, range_end: Vec::new() }
    }

    pub(super) fn exists(key: &[u8]) -> Self {
        Self { result: 1, ..Self::created_at(key, &[], 0) }
    }
}

impl Op {
    pub(super) fn get(key: &[u8]) -> Self {
        Self::range(RangeRequest { key: key.into(), ..RangeRequest::default() })
    }

    pub(super) fn range(range: RangeRequest) -> Self {
        Self { kind: Some(OpKind::Range(range)) }
    }

    pub(super) fn put(key: &[u8], value: impl Into<Vec<u8>>, lease: i64) -> Self {
        Self { kind: Some(OpKind::Put(Put { key: key.into(), value: value.into(), lease })) }
    }

    pub(super) fn delete(key: &[u8], range_end: &[u8]) -> Self {
        let delete = DeleteRange { key: key.into(), range_end: range_end.into() };
        Self { kind: Some(OpKind::DeleteRange(delete)) }
    }

    pub(super) fn txn(txn: Txn) -> Self {
        Self { kind: Some(OpKind::Txn(txn)) }
    }
}

impl TxnAnswer {
    pub(super) fn revision(&self) -> i64 {
        self.header.as_ref().map_or(0, |header| header.revision)
    }

    /// The answer to the operation at this place, if it is a range.
    pub(super) fn at(&self, at: usize) -> RangeAnswer {
        match self.responses.get(at).and_then(|answer| answer.kind.clone()) {
            Some(OpAnswerKind::Range(range)) => range,
            None => RangeAnswer::default(),
        }
    }

    /// The first key of the range at this place.
    pub(super) fn first(&self, at: usize) -> Option<KeyValue> {
        self.at(at).kvs.into_iter().next()
    }
}

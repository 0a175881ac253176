//! Three etcd nodes, and their keys over gRPC.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::Error;

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
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
    header: Option<Header>,
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

/// A client of one node.
#[derive(Clone)]
pub struct Client {
    grpc: Grpc<Channel>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Result<Self, Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        Ok(Self { grpc: Grpc::new(endpoint.connect_lazy()) })
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Error>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc.clone();
        grpc.ready().await?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let path = PathAndQuery::from_static(path);
        Ok(grpc.unary(tonic::Request::new(request), path, codec).await?.into_inner())
    }

    async fn is_leader(&self) -> Result<bool, Error> {
        let path = "/etcdserverpb.Maintenance/Status";
        let status: StatusResponse = self.call(path, StatusRequest {}).await?;
        let header = status.header.unwrap_or_default();
        Ok(status.leader != 0 && header.member_id == status.leader)
    }

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

pub struct Etcd {
    _folder: tempfile::TempDir,
    clients: Vec<SocketAddr>,
    nodes: Vec<Child>,
}

impl Etcd {
    pub fn start() -> Result<Self, Error> {
        let program = std::env::var_os("VOUSSOIR_ETCD").unwrap_or_else(|| "etcd".into());
        let folder = tempfile::tempdir()?;
        let addresses = crate::ours::free(6)?;
        let (clients, peers) = addresses.split_at(3);
        let url = |address: &SocketAddr| format!("http://{address}");
        let cluster: Vec<String> = (0..3).map(|at| format!("n{at}={}", url(&peers[at]))).collect();
        let mut nodes = Vec::new();
        for at in 0..3 {
            let (client, peer) = (url(&clients[at]), url(&peers[at]));
            let mut command = Command::new(&program);
            command.args(["--name", &format!("n{at}"), "--initial-cluster", &cluster.join(",")]);
            command.arg("--data-dir").arg(folder.path().join(at.to_string()));
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            nodes.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        }
        Ok(Self { _folder: folder, clients: clients.to_vec(), nodes })
    }

    /// The address of the node that leads.
    pub async fn leader(&self) -> Result<SocketAddr, Error> {
        // Ends: a leader is elected, or half a minute has passed.
        for _ in 0..3_000 {
            for address in &self.clients {
                if Client::new(*address)?.is_leader().await.is_ok_and(|leads| leads) {
                    return Ok(*address);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err("etcd elects no leader".into())
    }

    /// CPU that the nodes have used so far, together.
    pub fn cpu(&self) -> Result<Duration, Error> {
        self.nodes.iter().map(|node| crate::ours::cpu_of(node.id())).sum()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

//! Three etcd nodes, and its lock service over gRPC.

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

#[derive(Clone, PartialEq, prost::Message)]
struct GrantRequest {
    #[prost(int64, tag = "1")]
    ttl: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GrantResponse {
    #[prost(int64, tag = "2")]
    id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LockRequest {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(int64, tag = "2")]
    lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LockResponse {
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnlockRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnlockResponse {}

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

    /// A lease of 10 minutes, which needs no renewal while the bench runs.
    pub async fn lease(&self) -> Result<i64, Error> {
        let path = "/etcdserverpb.Lease/LeaseGrant";
        let granted: GrantResponse = self.call(path, GrantRequest { ttl: 600 }).await?;
        Ok(granted.id)
    }

    /// Locks, and returns the key to unlock.
    pub async fn lock(&self, name: &str, lease: i64) -> Result<Vec<u8>, Error> {
        let request = LockRequest { name: name.as_bytes().to_vec(), lease };
        let locked: LockResponse = self.call("/v3lockpb.Lock/Lock", request).await?;
        Ok(locked.key)
    }

    pub async fn unlock(&self, key: Vec<u8>) -> Result<(), Error> {
        let path = "/v3lockpb.Lock/Unlock";
        self.call::<_, UnlockResponse>(path, UnlockRequest { key }).await.map(drop)
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

    async fn leader_at(&self) -> Result<usize, Error> {
        // Ends: a leader is elected, or half a minute has passed.
        for _ in 0..3_000 {
            for (at, address) in self.clients.iter().enumerate() {
                if Client::new(*address)?.is_leader().await.is_ok_and(|leads| leads) {
                    return Ok(at);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err("etcd elects no leader".into())
    }

    /// The address of the node that leads.
    pub async fn leader(&self) -> Result<SocketAddr, Error> {
        Ok(self.clients[self.leader_at().await?])
    }

    /// A client of the node that leads.
    pub async fn client(&self) -> Result<Client, Error> {
        Client::new(self.leader().await?)
    }

    /// CPU that the nodes have used so far, each.
    pub fn cpu(&self) -> Result<Vec<Duration>, Error> {
        self.nodes.iter().map(|node| crate::ours::cpu_of(node.id())).collect()
    }

    pub async fn kill_leader(&mut self) -> Result<(), Error> {
        let at = self.leader_at().await?;
        self.nodes[at].kill()?;
        self.nodes[at].wait()?;
        Ok(())
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

//! Three etcd nodes, and what a call of them over gRPC takes. Each workspace of rivals with etcd
//! among them includes this file as a module, and adds the calls that it makes to [`Client`].

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::Error;
use crate::process::{cpu_of, free};

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

    pub async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Error>
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
}

pub struct Etcd {
    _folder: tempfile::TempDir,
    clients: Vec<SocketAddr>,
    pub nodes: Vec<Child>,
}

impl Etcd {
    pub fn start() -> Result<Self, Error> {
        let program = std::env::var_os("VOUSSOIR_ETCD").unwrap_or_else(|| "etcd".into());
        let folder = tempfile::tempdir()?;
        let addresses = free(6)?;
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

    /// The place of the node that leads.
    pub async fn leader_at(&self) -> Result<usize, Error> {
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

    /// CPU that the nodes have used so far, each.
    pub fn cpu(&self) -> Result<Vec<Duration>, Error> {
        self.nodes.iter().map(|node| cpu_of(node.id())).collect()
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

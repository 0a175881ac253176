//! etcd's lock service.

use crate::Error;
use crate::etcd::{Client, Etcd};

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

impl Client {
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

impl Etcd {
    /// A client of the node that leads.
    pub async fn client(&self) -> Result<Client, Error> {
        Client::new(self.leader().await?)
    }

    pub async fn kill_leader(&mut self) -> Result<(), Error> {
        let at = self.leader_at().await?;
        self.nodes[at].kill()?;
        self.nodes[at].wait()?;
        Ok(())
    }
}

//! Three nodes of the store.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Parser as _;
use hyper::Method;
use store::args::{Cli, Mode};
use store::client::{Answered, Client};

use crate::Error;
use crate::process::{Process, cpu_of, free};

/// The process of a node: the arguments of `store`.
pub fn node(args: &[String]) -> Result<(), Error> {
    let args = std::iter::once("store").chain(args.iter().map(String::as_str));
    let done = match Cli::try_parse_from(args)?.mode {
        Some(Mode::Create(create)) => store::node::create(create.id, &create.data),
        Some(Mode::Serve(serve)) => store::node::serve(*serve),
        _ => return Err("create or serve".into()),
    };
    done.map_err(|error| error.to_string().into())
}

pub struct Ours {
    _folder: tempfile::TempDir,
    /// Of HTTP.
    pub addresses: Vec<SocketAddr>,
    nodes: Vec<Process>,
}

impl Ours {
    pub fn start() -> Result<Self, Error> {
        let (folder, addresses) = (tempfile::tempdir()?, free(6)?);
        let (http, peers) = addresses.split_at(3);
        let mut nodes = Vec::new();
        for at in 0..3 {
            let (id, data) = ((at + 1).to_string(), folder.path().join(at.to_string()));
            let data = data.to_str().ok_or("the folder has no name in UTF-8")?;
            std::fs::create_dir_all(data)?;
            // Says nothing, and ends.
            Process::start(["node", "create", "--id", &id, "--data", data])?.said()?;
            let (listen, own) = (peers[at].to_string(), http[at].to_string());
            let mut args: Vec<String> =
                ["node", "serve", "--id", &id, "--data", data, "--listen", &listen, "--http", &own]
                    .map(String::from)
                    .to_vec();
            for other in (0..3).filter(|other| *other != at) {
                let peer = format!("{}={},{}", other + 1, peers[other], http[other]);
                args.extend(["--peer".to_owned(), peer]);
            }
            nodes.push(Process::start(args)?);
        }
        Ok(Self { _folder: folder, addresses: http.to_vec(), nodes })
    }

    /// The address of the node that leads.
    pub async fn leader(&self) -> Result<SocketAddr, Error> {
        let client = Client::new(self.addresses.clone());
        let by = Instant::now() + Duration::from_secs(30);
        // Ends: a leader is elected, or half a minute has passed.
        while Instant::now() < by {
            for address in &self.addresses {
                let value = bytes::Bytes::from_static(b"x");
                let (path, at) = ("/kv/leader", by.into());
                let sent = client.send_to(*address, &Method::PUT, path, None, value, at).await;
                if matches!(sent, Ok(Answered::Reply(_))) {
                    return Ok(*address);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err("the store elects no leader".into())
    }

    /// CPU that the nodes have used so far, together.
    pub fn cpu(&self) -> Result<Duration, Error> {
        self.nodes.iter().map(|node| cpu_of(node.id())).sum()
    }
}

//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

pub const USAGE: &str = "\
store                  three nodes, a load, a killed leader, a check
store up [FOLDER]      the same cluster, durable in FOLDER (./data), until Ctrl-C
store create --id ID --data FOLDER
                       begins the data of a node that has never run: once for each node
store serve …          one node, created before:
    --id ID                      its number in the cluster, from 1
    --listen ADDR                where it listens for its peers
    --http ADDR                  where it serves HTTP
    --data FOLDER                where it keeps its journal
    --peer ID=ADDR,HTTP_ADDR     each of the others";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Mode {
    Demo,
    Up { folder: PathBuf },
    Create { id: u64, data: PathBuf },
    Serve(Serve),
}

/// One node.
#[derive(Debug, PartialEq, Eq)]
pub struct Serve {
    pub id: u64,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    pub data: PathBuf,
    pub peers: Vec<Peer>,
    /// End when standard input does: a demo that dies leaves no nodes behind.
    pub exit_with_parent: bool,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub id: u64,
    pub address: SocketAddr,
    pub http: SocketAddr,
}

/// # Errors
/// A sentence on what is wrong with the words.
pub fn parse(words: impl Iterator<Item = String>) -> Result<Mode, String> {
    let mut words = words.peekable();
    match words.next().as_deref() {
        None => Ok(Mode::Demo),
        Some("up") => {
            let folder = words.next().map_or_else(|| PathBuf::from("data"), PathBuf::from);
            words.next().map_or(Ok(Mode::Up { folder }), |word| Err(format!("unknown word {word}")))
        }
        Some("create") => create(words),
        Some("serve") => serve(words).map(Mode::Serve),
        Some(word) => Err(format!("unknown word {word}")),
    }
}

fn create(mut words: impl Iterator<Item = String>) -> Result<Mode, String> {
    let (mut id, mut data) = (None, None);
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--id" => id = Some(node_id(&value)?),
            "--data" => data = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    let (id, data) = (id.ok_or("--id is missing")?, data.ok_or("--data is missing")?);
    Ok(Mode::Create { id, data })
}

fn serve(mut words: impl Iterator<Item = String>) -> Result<Serve, String> {
    let (mut id, mut listen, mut http, mut data) = (None, None, None, None);
    let mut peers = Vec::new();
    let mut exit_with_parent = false;
    while let Some(option) = words.next() {
        if option == "--exit-with-parent" {
            exit_with_parent = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--id" => id = Some(node_id(&value)?),
            "--listen" => listen = Some(address(&value)?),
            "--http" => http = Some(address(&value)?),
            "--data" => data = Some(PathBuf::from(value)),
            "--peer" => peers.push(peer(&value)?),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    let id = id.ok_or("--id is missing")?;
    if peers.iter().any(|peer| peer.id == id) {
        return Err(format!("node {id} is among its own peers"));
    }
    Ok(Serve {
        id,
        listen: listen.ok_or("--listen is missing")?,
        http: http.ok_or("--http is missing")?,
        data: data.ok_or("--data is missing")?,
        peers,
        exit_with_parent,
    })
}

fn node_id(word: &str) -> Result<u64, String> {
    word.parse().ok().filter(|id| *id > 0).ok_or_else(|| format!("{word} is no node id"))
}

fn address(word: &str) -> Result<SocketAddr, String> {
    word.parse().map_err(|_| format!("{word} is no address of the form 127.0.0.1:7001"))
}

fn peer(word: &str) -> Result<Peer, String> {
    let parts = word.split_once('=').and_then(|(id, rest)| Some((id, rest.split_once(',')?)));
    let (id, (peers, http)) =
        parts.ok_or_else(|| format!("{word} is not of the form ID=ADDR,HTTP_ADDR"))?;
    Ok(Peer { id: node_id(id)?, address: address(peers)?, http: address(http)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Mode, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_node_is_described_by_its_options() {
        assert_eq!(parsed(""), Ok(Mode::Demo));
        assert_eq!(parsed("up"), Ok(Mode::Up { folder: "data".into() }));
        let create = Mode::Create { id: 2, data: "d".into() };
        assert_eq!(parsed("create --id 2 --data d"), Ok(create));
        let line = "serve --id 1 --listen 127.0.0.1:1 --http 127.0.0.1:2 --data d \
                    --peer 2=127.0.0.1:3,127.0.0.1:4";
        let Ok(Mode::Serve(node)) = parsed(line) else { panic!("{:?}", parsed(line)) };
        assert_eq!((node.id, node.peers.len(), node.exit_with_parent), (1, 1, false));
        assert_eq!(node.peers[0].http.port(), 4);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = [
            ("sreve", "unknown word sreve"),
            ("create --id 1", "--data is missing"),
            ("create --id 1 --http x", "unknown option --http"),
            ("serve", "--id is missing"),
            ("serve --id 0", "0 is no node id"),
            ("serve --id", "--id needs a value"),
            ("serve --peer 2=x", "2=x is not of the form ID=ADDR,HTTP_ADDR"),
            ("serve --id 1 --peer 1=127.0.0.1:3,127.0.0.1:4", "node 1 is among its own peers"),
        ];
        for (line, message) in wrong {
            assert_eq!(parsed(line), Err(message.to_owned()), "{line}");
        }
    }
}

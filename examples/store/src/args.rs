//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use voussoir_raft::Config;

/// A replicated key-value store over HTTP.
#[derive(Debug, PartialEq, Eq, Parser)]
#[command(name = "store", version, subcommand_required = !cfg!(feature = "demo"))]
pub struct Cli {
    /// The command; the demo, if it is compiled in, when none is given.
    #[command(subcommand)]
    pub mode: Option<Mode>,
    /// The demo with TLS between the nodes, with certificates made for it
    #[cfg(feature = "demo")]
    #[arg(long)]
    pub tls: bool,
    /// The demo of a store in so many shards: a node is added and a hot shard split, under load
    #[cfg(feature = "demo")]
    #[arg(long, value_name = "NUMBER", conflicts_with = "tls", value_parser = shards)]
    pub shards: Option<u32>,
}

/// The number of shards that divide the hashes at first.
fn shards(word: &str) -> Result<u32, String> {
    let number = word.parse().ok().filter(|number| (1..=1024).contains(number));
    number.ok_or_else(|| "expected 1 to 1024, as in 16".to_owned())
}

/// The commands.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum Mode {
    /// Run three nodes under load, kill the leader, bring it back, check everything (the default)
    #[cfg(feature = "demo")]
    Demo,
    /// Run three nodes on this machine, durable in a folder, until Ctrl-C
    Up(Up),
    /// Create the data of a node that has never run: once for each node
    Create(Create),
    /// Run one node; its data was created before
    Serve(Box<Serve>),
    /// Add a node, which runs with --join, to a cluster that serves
    Add(Add),
    /// Replace a node by a new one, which runs with --join: one whose disk was lost, for example
    Replace(Replace),
    /// Give a member of a cluster that serves other addresses: those at which it runs, or soon will
    Move(Move),
    /// Remove a node from a cluster that serves
    Remove(Remove),
    /// Look at a store in shards, add a node to it, or split a shard
    Shards(Shards),
    /// Run three nodes under random kills, stops, partitions and slow links, check everything
    #[cfg(feature = "demo")]
    Soak(Soak),
}

#[derive(Debug, PartialEq, Eq, Args)]
pub struct Up {
    /// Folder with the data of all nodes
    #[arg(default_value = "data")]
    pub folder: PathBuf,
    /// HTTP port of node 1; the others have the following ones
    #[arg(long, default_value_t = 8001)]
    pub http_port: u16,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub struct Create {
    /// Number of the node in its cluster, from 1
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Folder with the data of the node
    #[arg(long)]
    pub data: PathBuf,
}

/// Whom a cluster is asked through.
#[derive(Debug, PartialEq, Eq, Args)]
pub struct To {
    /// HTTP address of any node of the cluster; more of them, in case one does not answer
    #[arg(long = "to", value_name = "HTTP_ADDR", required = true)]
    pub nodes: Vec<SocketAddr>,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub struct Add {
    #[command(flatten)]
    pub to: To,
    /// Number of the new node: one that no node of this cluster ever had
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Address on which the new node listens for its peers
    #[arg(long, value_name = "ADDR")]
    pub peers: SocketAddr,
    /// Address on which the new node serves HTTP, or the URL at which clients reach it
    #[arg(long, value_name = "ADDR", value_parser = http_address)]
    pub http: String,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub struct Replace {
    /// Number of the node that leaves
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub old: u64,
    #[command(flatten)]
    pub new: Add,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub struct Move {
    #[command(flatten)]
    pub to: To,
    /// Number of the node that moves
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Address on which the node listens for its peers
    #[arg(long, value_name = "ADDR")]
    pub peers: SocketAddr,
    /// Address on which the node serves HTTP, or the URL at which clients reach it
    #[arg(long, value_name = "ADDR", value_parser = http_address)]
    pub http: String,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub struct Remove {
    #[command(flatten)]
    pub to: To,
    /// Number of the node that leaves
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub struct Shards {
    /// HTTP address of any node
    #[arg(long, value_name = "HTTP_ADDR")]
    pub to: SocketAddr,
    #[command(subcommand)]
    pub wanted: ShardsWanted,
}

/// What is done to a store in shards.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum ShardsWanted {
    /// Print the map, and the load of each shard
    Show,
    /// Add a node, which runs with --join, and move its part of the data to it
    Add {
        /// Number of the new node: one that no node of this cluster ever had
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        /// Address on which the new node listens for its peers
        #[arg(long, value_name = "ADDR")]
        peers: SocketAddr,
        /// Address on which the new node serves HTTP
        #[arg(long, value_name = "ADDR")]
        http: SocketAddr,
    },
    /// Split the hottest shard where its requests divide evenly
    Split,
    /// Take back a split, before the new shard has begun to fetch its part
    Abort {
        /// Number of the new shard
        #[arg(long)]
        shard: u64,
    },
}

#[cfg(feature = "demo")]
#[derive(Debug, PartialEq, Eq, Args)]
pub struct Soak {
    /// For how many minutes faults are injected
    #[arg(long, default_value = "10", value_parser = minutes)]
    pub minutes: Duration,
    /// Repeats the choices of an earlier run; drawn at random when not given
    #[arg(long)]
    pub seed: Option<u64>,
}

/// One node.
#[derive(Debug, PartialEq, Eq, Args)]
pub struct Serve {
    /// Number of the node in its cluster, from 1
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Address on which the node listens for its peers
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Address on which the node serves HTTP
    #[arg(long, value_name = "ADDR")]
    pub http: SocketAddr,
    /// Folder with the data of the node
    #[arg(long, value_name = "FOLDER")]
    pub data: PathBuf,
    /// Another node: its number, its address for peers, its HTTP address or the URL at which
    /// clients reach it; once for each node
    #[arg(long = "peer", value_name = "ID=ADDR,HTTP_ADDR", value_parser = peer)]
    pub peers: Vec<Peer>,
    /// The node joins a cluster that serves: it waits until `store add` or `store replace` names
    /// it. Keep the option at later starts; the peers are where it can be heard from
    #[arg(long)]
    pub join: bool,
    /// The node is one of a store in shards: so many of hashes at first, and one of ordered keys.
    /// The same on every node, at every start
    #[arg(long, value_name = "NUMBER", value_parser = shards)]
    pub shards: Option<u32>,
    #[command(flatten)]
    pub tls: TlsFiles,
    #[command(flatten)]
    pub timing: Timing,
    #[command(flatten)]
    pub limits: Limits,
    /// How long the node waits for requests in flight after SIGTERM
    #[arg(long, default_value = "5s", value_parser = drain)]
    pub drain: Duration,
    /// Exit when standard input closes, so that a parent that dies leaves no nodes behind
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// TLS between the nodes: all three files, or none for plain TCP. They are read again at SIGHUP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "TLS between nodes")]
pub struct TlsFiles {
    /// The certificates of the authorities that sign the nodes, as PEM
    #[arg(long = "tls-ca", value_name = "FILE", requires = "certificate", requires = "key")]
    pub authorities: Option<PathBuf>,
    /// The certificate of this node, with the name voussoir://node/ID, as PEM
    #[arg(id = "certificate", long = "tls-cert", value_name = "FILE", requires = "authorities")]
    pub certificate: Option<PathBuf>,
    /// The private key of this node, as PEM
    #[arg(id = "key", long = "tls-key", value_name = "FILE", requires = "authorities")]
    pub key: Option<PathBuf>,
}

/// Timeouts of raft. The defaults are for one data centre; use the same on all nodes.
#[derive(Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Timing")]
pub struct Timing {
    /// Time between two heartbeats of the leader; at most half of --election-min
    #[arg(long, default_value = "50ms", value_parser = duration)]
    pub heartbeat: Duration,
    /// The shortest election timeout; must be above the longest round trip between two nodes
    #[arg(long, default_value = "200ms", value_parser = duration)]
    pub election_min: Duration,
    /// The longest election timeout; each node draws its own between the two
    #[arg(long, default_value = "400ms", value_parser = duration)]
    pub election_max: Duration,
    /// A leader steps down when its disk completes no write for this long
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub disk_stall: Duration,
    /// How long raft may take for a request before the client gets an error
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub request_timeout: Duration,
}

/// Limits of the disk and of memory.
#[derive(Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Limit of the journal on the disk, in bytes: at least 64MiB. A third of it may be data:
    /// writes that would make it more are rejected with 507. The same on all nodes
    #[arg(long, default_value = "4GiB", value_parser = bytes)]
    pub max_bytes: u64,
    /// Size of one segment of the journal, at most a sixteenth of --max-bytes; space is freed by
    /// whole segments. By default 16MiB, or less where that is too much
    #[arg(long, value_parser = bytes)]
    pub segment_bytes: Option<u64>,
    /// Bytes of commands after which the node takes a snapshot, of each shard for itself. All logs
    /// together must fit into a third of --max-bytes. By default 256MiB, or less where --max-bytes
    /// and the number of shards ask for it
    #[arg(long, value_parser = snapshot_after)]
    pub snapshot_after: Option<u64>,
    /// Entries kept in the log behind a snapshot, for followers that lag
    #[arg(long, default_value_t = 10_000)]
    pub keep_entries: u64,
}

impl Limits {
    /// How many bytes of keys and values the node takes: beside them the journal holds a snapshot
    /// that is being made, and the log behind it.
    pub fn max_data(&self) -> u64 {
        self.max_bytes / 3
    }

    /// The size of a segment: with less than 4 MiB the longest entry does not fit into a commit.
    pub fn segment_bytes(&self) -> u64 {
        let derived = (self.max_bytes / SEGMENTS) >> 20 << 20;
        self.segment_bytes.unwrap_or_else(|| derived.clamp(4 << 20, 16 << 20))
    }
}

/// Segments that a journal has at least. Those that are written and those that are freed last are
/// no room for data.
const SEGMENTS: u64 = 16;
/// Groups of a store in shards beside those of its hashes: of the map, and of ordered keys.
const MORE_GROUPS: u64 = 2;
/// Which part of what is written between two snapshots is kept behind each, for slow followers.
const KEPT: u64 = 4;

impl Serve {
    /// The groups whose logs are in the journal.
    fn groups(&self) -> u64 {
        self.shards.map_or(1, |shards| u64::from(shards) + MORE_GROUPS)
    }

    /// Bytes of commands after which a group takes a snapshot: as given, or so that the logs of all
    /// groups take a sixth of the journal or so.
    fn snapshot_after(&self) -> u64 {
        let share = match self.groups() {
            1 => self.limits.max_bytes / 16,
            groups => self.limits.max_bytes / 6 / groups,
        };
        self.limits.snapshot_after.unwrap_or(share.clamp(64 << 10, 256 << 20))
    }

    /// Whether the journal can hold what the limits ask for.
    fn check_limits(&self) -> Result<(), String> {
        let (limits, groups) = (&self.limits, self.groups());
        let (max, segment) = (limits.max_bytes, limits.segment_bytes());
        if segment >= 64 << 10 && max / SEGMENTS < segment {
            return Err(format!(
                "--max-bytes {max} is less than {SEGMENTS} segments of {segment} bytes \
                 (--segment-bytes): the journal would be full of what it cannot free yet"
            ));
        }
        let after = self.snapshot_after();
        let logs = (after + after / KEPT).saturating_mul(groups);
        if logs > max / 3 {
            return Err(format!(
                "--snapshot-after {after} lets the logs of {groups} groups grow to {logs} bytes, \
                 more than a third of --max-bytes {max}: leave --snapshot-after out, or raise \
                 --max-bytes"
            ));
        }
        Ok(())
    }

    /// Raft's configuration. Raft checks it at the start.
    pub fn raft(&self) -> Config {
        let voters: Vec<u64> = self.peers.iter().map(|peer| peer.id).chain([self.id]).collect();
        let mut config = Config::new(self.id, if self.join { Vec::new() } else { voters });
        config.dynamic = true;
        config.heartbeat_interval = self.timing.heartbeat;
        config.min_election_timeout = self.timing.election_min;
        config.max_election_timeout = self.timing.election_max;
        config.disk_stall = self.timing.disk_stall;
        config.resend_interval = config.resend_interval.max(self.timing.heartbeat);
        config.proposal_timeout = self.timing.request_timeout;
        config.snapshot_after_bytes = self.snapshot_after();
        config.keep_bytes = config.keep_bytes.min(config.snapshot_after_bytes / KEPT);
        config.keep_entries = self.limits.keep_entries;
        config
    }
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub id: u64,
    pub address: SocketAddr,
    /// Where clients are sent: an address, or a URL.
    pub http: String,
}

fn peer(word: &str) -> Result<Peer, String> {
    let parts = word.split_once('=').and_then(|(id, rest)| Some((id, rest.split_once(',')?)));
    let Some((id, (peers, served))) = parts else {
        return Err("expected ID=ADDR,HTTP_ADDR, as in 2=127.0.0.1:7002,127.0.0.1:8002".to_owned());
    };
    let address = |word: &str| {
        word.parse().map_err(|_| format!("{word} is no address of the form 127.0.0.1:7002"))
    };
    let id = id.parse().ok().filter(|id| *id > 0);
    let id = id.ok_or("a node id is a number from 1")?;
    Ok(Peer { id, address: address(peers)?, http: http_address(served)? })
}

/// Where clients reach a node: its address, or the URL of a proxy in front of it.
///
/// # Errors
/// It is neither.
pub fn http_address(word: &str) -> Result<String, String> {
    let is_url = |url: &axum::http::Uri| {
        let is_http = matches!(url.scheme_str(), Some("http" | "https"));
        is_http && url.authority().is_some() && url.path() == "/" && url.query().is_none()
    };
    if word.parse::<SocketAddr>().is_ok() {
        return Ok(word.to_owned());
    }
    let is_usable = !word.contains(',') && word.parse().is_ok_and(|url| is_url(&url));
    let url = word.trim_end_matches('/').to_owned();
    is_usable.then_some(url).ok_or_else(|| {
        format!("{word} is neither an address as 127.0.0.1:8002 nor a URL as https://two.example")
    })
}

/// Parses a number with a unit: `50ms`, `2s`, `1m`.
fn duration(word: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(word)?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => return Err("expected a number with ms, s or m, as in 50ms".to_owned()),
    };
    millis.map(Duration::from_millis).ok_or_else(|| format!("{word} is too long"))
}

/// An operator who waits longer than a day for requests in flight has mistyped.
fn drain(word: &str) -> Result<Duration, String> {
    let day = Duration::from_secs(86_400);
    let drain = duration(word).ok().filter(|drain| *drain <= day);
    drain.ok_or_else(|| "expected 0ms to 1440m, as in 500ms, 5s or 2m".to_owned())
}

/// With less, a node would take a snapshot after each handful of commands.
fn snapshot_after(word: &str) -> Result<u64, String> {
    let after = bytes(word).ok().filter(|after| (64 << 10..=1 << 40).contains(after));
    after.ok_or_else(|| "expected 64KiB to 1024GiB, as in 256MiB".to_owned())
}

/// Parses a number of bytes, with or without a unit: `4096`, `64KiB`, `16MiB`, `4GiB`.
fn bytes(word: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(word)?;
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("expected a number of bytes, or one with KiB, MiB or GiB".to_owned()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{word} is too large"))
}

fn number_and_unit(word: &str) -> Result<(u64, &str), String> {
    let unit = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (number, unit) = word.split_at(unit);
    let number = number.parse().map_err(|_| format!("{word} does not begin with a number"))?;
    Ok((number, unit))
}

#[cfg(feature = "demo")]
fn minutes(word: &str) -> Result<Duration, String> {
    let minutes: Option<f64> = word.parse().ok();
    let minutes = minutes.filter(|minutes| (0.1..=10_000.0).contains(minutes));
    let seconds = minutes.map(|minutes| minutes * 60.0);
    seconds.map(Duration::from_secs_f64).ok_or("expected minutes from 0.1 to 10000".to_owned())
}

/// Checks what clap cannot: that each peer is named once, and raft's rules for the timeouts.
///
/// # Errors
/// What is wrong, as a sentence for the user.
pub fn check(serve: &Serve) -> Result<(), String> {
    for (at, peer) in serve.peers.iter().enumerate() {
        if peer.id == serve.id {
            return Err(format!("--peer {}: node {} is among its own peers", peer.id, peer.id));
        }
        // The nodes of a store in shards ask each other at these addresses.
        if serve.shards.is_some() && peer.http.parse::<SocketAddr>().is_err() {
            return Err(format!(
                "--peer {}: with --shards {} must be an address",
                peer.id, peer.http
            ));
        }
        if serve.peers[..at].iter().any(|other| other.id == peer.id) {
            return Err(format!("--peer {}: given twice", peer.id));
        }
    }
    serve.check_limits()?;
    serve.raft().validate().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Option<Mode>, String> {
        let words = ["store"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.mode).map_err(|error| error.to_string())
    }

    const SERVE: &str = "serve --id 1 --listen 127.0.0.1:1 --http 127.0.0.1:2 --data d";

    fn served(options: &str) -> Serve {
        match parsed(&format!("{SERVE} {options}")) {
            Ok(Some(Mode::Serve(serve))) => *serve,
            other => panic!("{options}: {other:?}"),
        }
    }

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_node_is_described_by_its_options() {
        let up = Up { folder: "data".into(), http_port: 8001 };
        assert_eq!(parsed("up"), Ok(Some(Mode::Up(up))));
        let create = Create { id: 2, data: "d".into() };
        assert_eq!(parsed("create --id 2 --data d"), Ok(Some(Mode::Create(create))));
        let [to, peers, http] = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let new = Add { to: To { nodes: vec![to] }, id: 4, peers, http: http.to_string() };
        let line = "replace --old 2 --to 127.0.0.1:1 --id 4 --peers 127.0.0.1:2 --http 127.0.0.1:3";
        assert_eq!(parsed(line), Ok(Some(Mode::Replace(Replace { old: 2, new }))));
        let line = "move --to 127.0.0.1:1 --to 127.0.0.1:4 --id 2 --peers 127.0.0.1:2 \
                    --http https://two.example/";
        let to = To { nodes: vec![to, SocketAddr::from(([127, 0, 0, 1], 4))] };
        let moved = Move { to, id: 2, peers, http: "https://two.example".to_owned() };
        assert_eq!(parsed(line), Ok(Some(Mode::Move(moved))));
        let node = served("--peer 2=127.0.0.1:3,127.0.0.1:4 --peer 3=127.0.0.1:5,127.0.0.1:6");
        assert_eq!((node.id, node.peers.len(), node.exit_with_parent), (1, 2, false));
        assert_eq!(node.peers[0].http, "127.0.0.1:4");
        let node = served("--peer 2=127.0.0.1:3,https://two.example/");
        assert_eq!(node.peers[0].http, "https://two.example");
        assert_eq!(check(&node), Ok(()));
    }

    #[test]
    fn without_options_raft_has_its_own_defaults() {
        let mut defaults = Config::new(1, [1]);
        defaults.dynamic = true;
        let ours = served("").raft();
        assert_eq!(ours, defaults);
        assert_eq!(served("--join").raft(), Config::joining(1));
    }

    /// Whatever number of groups: their logs together leave two thirds for data and its snapshot.
    #[test]
    fn the_logs_of_all_groups_fit_into_the_journal() {
        for max in ["64MiB", "100MiB", "1GiB", "4GiB", "1024GiB"] {
            for shards in ["", "--shards 1", "--shards 16", "--shards 64"] {
                let node = served(&format!("--max-bytes {max} {shards}"));
                assert_eq!(check(&node), Ok(()), "{max} {shards}");
                let raft = node.raft();
                let log = raft.snapshot_after_bytes + raft.keep_bytes;
                assert!(log * node.groups() <= node.limits.max_bytes / 3, "{max} {shards}");
                assert!(node.limits.segment_bytes() * 16 <= node.limits.max_bytes);
            }
        }
        let sizes = |options| {
            let node = served(options);
            (node.limits.segment_bytes() >> 20, node.raft().snapshot_after_bytes >> 20)
        };
        assert_eq!((sizes(""), sizes("--max-bytes 128MiB")), ((16, 256), (8, 8)));
        assert_eq!(sizes("--shards 16"), (16, 37));
    }

    #[test]
    fn times_and_sizes_have_units() {
        let node = served("--heartbeat 100ms --election-min 1s --election-max 2s --max-bytes 1GiB");
        let raft = node.raft();
        assert_eq!(raft.heartbeat_interval, Duration::from_millis(100));
        assert_eq!(raft.max_election_timeout, Duration::from_secs(2));
        assert_eq!(node.limits.max_bytes, 1 << 30);
        assert_eq!(served("--drain 1440m --snapshot-after 64KiB").drain.as_secs(), 86_400);
        assert!(bytes("99999999999GiB").is_err() && bytes("4GB").is_err() && bytes("").is_err());
        assert!(duration("50").is_err() && duration("ms").is_err());
    }

    #[cfg(feature = "demo")]
    #[test]
    fn the_demo_is_the_default_and_a_soak_has_a_length() {
        assert_eq!(parsed(""), Ok(None));
        let soak = Soak { minutes: Duration::from_secs(30), seed: Some(7) };
        assert_eq!(parsed("soak --minutes 0.5 --seed 7"), Ok(Some(Mode::Soak(soak))));
        assert!(parsed("soak --minutes 0").unwrap_err().contains("expected minutes"));
    }

    #[test]
    fn a_store_in_shards_is_served_looked_at_and_changed() {
        assert_eq!((served("").shards, served("--shards 16").shards), (None, Some(16)));
        let [to, peers, http] = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let line = "shards --to 127.0.0.1:1 add --id 4 --peers 127.0.0.1:2 --http 127.0.0.1:3";
        let wanted = ShardsWanted::Add { id: 4, peers, http };
        assert_eq!(parsed(line), Ok(Some(Mode::Shards(Shards { to, wanted }))));
        let show = Shards { to, wanted: ShardsWanted::Show };
        assert_eq!(parsed("shards --to 127.0.0.1:1 show"), Ok(Some(Mode::Shards(show))));
        let said = parsed(&format!("{SERVE} --shards 0")).unwrap_err();
        assert!(said.contains("expected 1 to 1024"), "{said}");
        assert!(parsed("shards --to 127.0.0.1:1").is_err());
    }

    #[test]
    fn a_node_has_all_files_of_tls_or_none() {
        let node = served("--tls-ca ca.pem --tls-cert node-1.pem --tls-key node-1.key");
        assert_eq!(node.tls.authorities, Some("ca.pem".into()));
        assert_eq!(node.tls.certificate, Some("node-1.pem".into()));
        assert_eq!(node.tls.key, Some("node-1.key".into()));
        assert_eq!(served("").tls, TlsFiles::default());
    }

    #[cfg(not(feature = "demo"))]
    #[test]
    fn without_the_demo_a_command_is_required() {
        assert!(parsed("").unwrap_err().contains("requires a subcommand"));
    }

    #[test]
    fn bad_options_are_explained() {
        let wrong = [
            ("sreve", "unrecognized subcommand 'sreve'"),
            ("create --id 1", "--data <DATA>"),
            ("serve", "--listen <ADDR>"),
            ("create --id 0 --data d", "0 is not in 1.."),
            ("serve --peer 2=x", "expected ID=ADDR,HTTP_ADDR"),
            ("serve --peer 2=127.0.0.1:3,two.example", "nor a URL as https://two.example"),
            ("serve --peer 2=127.0.0.1:3,https://two/kv", "nor a URL as https://two.example"),
            ("serve --drain 99999999m", "expected 0ms to 1440m"),
            ("serve --drain 99999999999999999999m", "expected 0ms to 1440m"),
            ("serve --tls-ca ca.pem", "--tls-cert <FILE>"),
            ("serve --tls-key node.key", "--tls-ca <FILE>"),
            ("serve --drain 5", "expected 0ms to 1440m"),
            ("serve --snapshot-after 0", "expected 64KiB to 1024GiB"),
            ("serve --snapshot-after 1025GiB", "expected 64KiB to 1024GiB"),
        ];
        for (line, message) in wrong {
            let said = parsed(line).unwrap_err();
            assert!(said.contains(message), "{line}: {said}");
        }
        let wrong = [
            ("--peer 1=127.0.0.1:3,127.0.0.1:4", "node 1 is among its own peers"),
            ("--peer 2=127.0.0.1:3,127.0.0.1:4 --peer 2=127.0.0.1:3,127.0.0.1:4", "given twice"),
            ("--shards 2 --peer 2=127.0.0.1:3,https://two.example", "must be an address"),
            ("--max-bytes 63MiB", "less than 16 segments of 4194304 bytes"),
            ("--max-bytes 256MiB --segment-bytes 17MiB", "less than 16 segments"),
            ("--max-bytes 128MiB --snapshot-after 256MiB", "more than a third of --max-bytes"),
            ("--shards 16 --snapshot-after 256MiB", "the logs of 18 groups grow to 6039797760"),
            (
                "--heartbeat 150ms",
                "`min_election_timeout` must be at least twice `heartbeat_interval`",
            ),
        ];
        for (options, message) in wrong {
            let said = check(&served(options)).unwrap_err();
            assert!(said.contains(message), "{options}: {said}");
        }
    }
}

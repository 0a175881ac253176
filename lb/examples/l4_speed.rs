//! CPU time of the TCP proxy beside nginx (stream) and haproxy (mode tcp), on loopback.
//!
//! `cargo run --release -p voussoir-lb --features l4 --example lb-l4-speed [ROUNDS]`
//!
//! Each proxy is a process with one thread. The load is closed-loop over 32 connections; rounds are
//! interleaved, and the table shows medians with their spread. nginx and haproxy are taken from
//! `VOUSSOIR_NGINX`, `VOUSSOIR_HAPROXY` (`cargo xtask services fetch haproxy`) or the `PATH`; one
//! that is missing is left out. nginx needs `libnginx-mod-stream`; `VOUSSOIR_NGINX_STREAM` is the
//! path of the module where it is not installed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use voussoir_lb::l4::{TcpConfig, TcpProxy};
use voussoir_lb::strategy::LeastConnections;
use voussoir_lb::{Balancer, Clock, Config, EndpointConfig, Monotonic};

type Error = Box<dyn std::error::Error + Send + Sync>;

const CONNECTIONS: usize = 32;
const ROUND: Duration = Duration::from_millis(1_500);
const REQUEST: usize = 100;
const ANSWER: usize = 200;
const BULK: usize = 1 << 20;
const LOADS: [Load; 3] = [Load::Request, Load::Connection, Load::Bulk];

/// What a round repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// A request of 100 bytes and an answer of 200 on a connection that stays open.
    Request,
    /// The same on a connection of its own.
    Connection,
    /// An answer of 1 MiB on a connection that stays open.
    Bulk,
}

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["proxy", kind, listen, upstream] => serve(kind, listen, upstream),
        [] => compare(5),
        [rounds] => compare(rounds.parse()?),
        _ => Err("usage: lb-l4-speed [ROUNDS]".into()),
    }
}

/// The process of a proxy of ours. Ends with its standard input.
fn serve(kind: &str, listen: &str, upstream: &str) -> Result<(), Error> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let upstream = upstream.to_owned();
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        if kind == "plain" {
            return plain(listener, upstream).await;
        }
        let balancer = Balancer::new(LeastConnections::default(), Config::default())?;
        balancer.update([EndpointConfig::new(upstream)], Monotonic.now())?;
        TcpProxy::new(balancer, TcpConfig::default())?.serve(listener).await;
        Ok(())
    })
}

/// What a proxy costs that only copies.
async fn plain(listener: TcpListener, upstream: String) -> Result<(), Error> {
    loop {
        let (mut client, _) = listener.accept().await?;
        let upstream = upstream.clone();
        tokio::spawn(async move {
            client.set_nodelay(true)?;
            let mut upstream = TcpStream::connect(&upstream).await?;
            upstream.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut client, &mut upstream).await
        });
    }
}

struct Proxy {
    name: &'static str,
    address: SocketAddr,
    process: Child,
    folder: Option<PathBuf>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn free_address() -> Result<SocketAddr, Error> {
    Ok(StdListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn start(name: &'static str, upstream: SocketAddr) -> Result<Option<Proxy>, Error> {
    let address = free_address()?;
    let folder = std::env::temp_dir().join(format!("lb-l4-{name}-{}", std::process::id()));
    let (mut command, text) = match name {
        "nginx" | "haproxy" => {
            let variable = format!("VOUSSOIR_{}", name.to_uppercase());
            let program = std::env::var_os(variable).unwrap_or_else(|| name.into());
            let file = folder.join("config");
            std::fs::create_dir_all(&folder)?;
            let mut command = Command::new(program);
            let text = if name == "nginx" {
                command.arg("-p").arg(&folder).arg("-c").arg(&file).args(["-e", "stderr"]);
                nginx(&folder, address, upstream)
            } else {
                command.arg("-db").arg("-f").arg(&file);
                haproxy(address, upstream)
            };
            std::fs::write(file, &text)?;
            (command, Some(folder))
        }
        _ => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["proxy", name, &address.to_string(), &upstream.to_string()]);
            (command, None)
        }
    };
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = match command.spawn() {
        Ok(process) => process,
        Err(error) => {
            eprintln!("{name} is left out: {error}");
            return Ok(None);
        }
    };
    let mut proxy = Proxy { name, address, process, folder: text };
    let until = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(address).is_err() {
        if Instant::now() > until || proxy.process.try_wait()?.is_some() {
            eprintln!("{name} is left out: it does not listen (nginx needs its stream module)");
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Some(proxy))
}

fn nginx(folder: &std::path::Path, listen: SocketAddr, upstream: SocketAddr) -> String {
    let module = std::env::var_os("VOUSSOIR_NGINX_STREAM").map_or_else(
        || PathBuf::from("/usr/lib/nginx/modules/ngx_stream_module.so"),
        PathBuf::from,
    );
    let load = if module.exists() {
        format!("load_module {};\n", module.display())
    } else {
        String::new()
    };
    format!(
        "{load}daemon off; master_process off; pid {}/pid; error_log stderr crit;\n\
         events {{ worker_connections 1024; }}\n\
         stream {{ server {{ listen {listen}; proxy_pass {upstream}; }} }}\n",
        folder.display()
    )
}

fn haproxy(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "global\n nbthread 1\n maxconn 2000\ndefaults\n mode tcp\n timeout connect 5s\n \
         timeout client 60s\n timeout server 60s\nlisten all\n bind {listen}\n \
         server one {upstream}\n"
    )
}

/// CPU time of all threads of a process, in ns.
fn cpu(process: &Child) -> Result<u64, Error> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{}/task", process.id()))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(sum)
}

/// A server that answers each 100 bytes by 200, or by 1 MiB when they begin with a 1.
fn upstream() -> Result<SocketAddr, Error> {
    let listener = StdListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                tokio::spawn(async move {
                    stream.set_nodelay(true)?;
                    let bytes = vec![b'a'; BULK];
                    let mut request = [0; REQUEST];
                    while stream.read_exact(&mut request).await.is_ok() {
                        let len = if request[0] == 1 { BULK } else { ANSWER };
                        stream.write_all(&bytes[..len]).await?;
                    }
                    Ok::<_, std::io::Error>(())
                });
            }
        })
    });
    Ok(address)
}

/// Repeats the load for one round. Returns the latencies in ns.
async fn round(address: SocketAddr, load: Load) -> Result<Vec<u64>, Error> {
    let until = Instant::now() + ROUND;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..if load == Load::Bulk { 4 } else { CONNECTIONS } {
        clients.spawn(client(address, load, until));
    }
    let mut all = Vec::new();
    while let Some(latencies) = clients.join_next().await {
        all.extend(latencies??);
    }
    Ok(all)
}

async fn client(address: SocketAddr, load: Load, until: Instant) -> Result<Vec<u64>, Error> {
    let mut latencies = Vec::new();
    let mut request = [b'x'; REQUEST];
    request[0] = u8::from(load == Load::Bulk);
    let mut answer = vec![0; if load == Load::Bulk { BULK } else { ANSWER }];
    let mut kept: Option<TcpStream> = None;
    loop {
        let begin = Instant::now();
        if begin >= until {
            return Ok(latencies);
        }
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        stream.write_all(&request).await?;
        stream.read_exact(&mut answer).await?;
        latencies.push(begin.elapsed().as_nanos() as u64);
        if load == Load::Connection {
            // Without it the ports of loopback are used up by connections in TIME_WAIT.
            stream.set_zero_linger()?;
        } else {
            kept = Some(stream);
        }
    }
}

/// One round of one proxy.
#[derive(Clone, Copy, Default)]
struct Sample {
    /// CPU time for each repetition, in µs.
    cpu: f64,
    per_second: f64,
    p99: f64,
}

fn compare(rounds: usize) -> Result<(), Error> {
    let upstream = upstream()?;
    let mut proxies = Vec::new();
    for name in ["ours", "plain", "nginx", "haproxy"] {
        proxies.extend(start(name, upstream)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!(
        "{:<11}{:<9}{:>30}{:>12}{:>12}",
        "load", "proxy", "CPU us each [min-max]", "per s", "p99 us"
    );
    for load in LOADS {
        let mut samples = vec![Vec::new(); proxies.len()];
        for at in 0..rounds * proxies.len() {
            // Each round begins with another one.
            let at = (at + at / proxies.len()) % proxies.len();
            let before = cpu(&proxies[at].process)?;
            let begin = Instant::now();
            let mut latencies = runtime.block_on(round(proxies[at].address, load))?;
            let spent = cpu(&proxies[at].process)? - before;
            latencies.sort_unstable();
            samples[at].push(Sample {
                cpu: spent as f64 / 1e3 / latencies.len() as f64,
                per_second: latencies.len() as f64 / begin.elapsed().as_secs_f64(),
                p99: latencies[latencies.len() * 99 / 100] as f64 / 1e3,
            });
        }
        print(load, &proxies, &mut samples);
    }
    idle(&proxies, &runtime)?;
    std::io::stdout().flush()?;
    Ok(())
}

fn print(load: Load, proxies: &[Proxy], samples: &mut [Vec<Sample>]) {
    let mut medians = Vec::new();
    for (proxy, samples) in proxies.iter().zip(samples) {
        samples.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
        let middle = samples[samples.len() / 2];
        let range = (samples[0].cpu, samples[samples.len() - 1].cpu);
        let cpu = format!("{:.2} [{:.2}-{:.2}]", middle.cpu, range.0, range.1);
        let load = format!("{load:?}");
        let (per_second, p99) = (middle.per_second, middle.p99);
        println!("{load:<11}{:<9}{cpu:>30}{per_second:>12.0}{p99:>12.0}", proxy.name);
        medians.push((proxy.name, middle.cpu));
    }
    let of = |wanted: &[&str]| {
        let named = medians.iter().filter(|(name, _)| wanted.contains(name));
        named.map(|(_, cpu)| *cpu).reduce(f64::min)
    };
    if let Some((ours, best)) = of(&["ours"]).zip(of(&["nginx", "haproxy"])) {
        println!("{load:?}: ours / the better of nginx and haproxy = {:.2}", ours / best);
    }
}

/// Memory of each proxy for 1,000 connections that have exchanged a byte and are idle.
fn idle(proxies: &[Proxy], runtime: &tokio::runtime::Runtime) -> Result<(), Error> {
    let resident = |proxy: &Proxy| -> Result<u64, Error> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", proxy.process.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    for proxy in proxies {
        let before = resident(proxy)?;
        let open = runtime.block_on(async {
            let mut open = Vec::new();
            // nginx has 1,024 descriptors here, two for each connection.
            for _ in 0..400 {
                let mut stream = TcpStream::connect(proxy.address).await?;
                stream.write_all(&[b'x'; REQUEST]).await?;
                stream.read_exact(&mut [0; ANSWER]).await?;
                open.push(stream);
            }
            Ok::<_, Error>(open)
        })?;
        let grown = (resident(proxy)?).saturating_sub(before) as f64 / open.len() as f64;
        println!("idle       {:<9}{grown:>30.1} KiB a connection", proxy.name);
    }
    Ok(())
}

//! The proxies as processes, and the backend behind them.

use std::fmt;
use std::io::Read;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use voussoir_lb::l4::{TcpConfig, TcpProxy};
use voussoir_lb::l7::{HttpConfig, HttpProxy, Route, Router, Upstream, UpstreamConfig};
use voussoir_lb::strategy::LeastConnections;
use voussoir_lb::{Balancer, Clock, Config, EndpointConfig, Monotonic};

use super::Result;

/// What is proxied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    L4,
    L7,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L4 => "l4",
            Self::L7 => "l7",
        })
    }
}

/// The process of a proxy of ours. Ends with its standard input.
pub fn serve(kind: &str, layer: &str, listen: &str, backend: &str) -> Result<()> {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let backend = backend.to_owned();
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        match (kind, layer) {
            ("plain", "l4") => return plain_l4(listener, backend).await,
            ("plain", "l7") => return super::plain::serve(listener, backend).await,
            _ => {}
        }
        let balancer = Balancer::new(LeastConnections::default(), Config::default())?;
        balancer.update([EndpointConfig::new(backend)], Monotonic.now())?;
        if layer == "l4" {
            TcpProxy::new(balancer, TcpConfig::default())?.serve(listener).await;
        } else {
            let upstream = Upstream::new("backend", balancer, UpstreamConfig::default())?;
            let router = Router::new(vec![Route::new("all", upstream)])?;
            HttpProxy::new(router, HttpConfig::default())?.serve(listener).await;
        }
        Ok(())
    })
}

/// What a proxy on tokio costs that only copies.
async fn plain_l4(listener: TcpListener, backend: String) -> Result<()> {
    loop {
        let (mut client, _) = listener.accept().await?;
        let backend = backend.clone();
        tokio::spawn(async move {
            client.set_nodelay(true)?;
            let mut backend = TcpStream::connect(&backend).await?;
            backend.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut client, &mut backend).await
        });
    }
}

/// A proxy that runs.
pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    process: Child,
    folder: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    /// CPU time of all threads.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(Duration::from_nanos(sum))
    }

    pub fn resident_kib(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

/// Starts a proxy in front of the backend. `None`, with the reason printed, where it cannot run.
pub fn start(name: &'static str, layer: Layer, backend: SocketAddr) -> Result<Option<Server>> {
    let address = StdListener::bind("127.0.0.1:0")?.local_addr()?;
    let folder = std::env::temp_dir().join(format!("lb-{layer}-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut command = command(name, layer, &folder, address, backend)?;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = match command.spawn() {
        Ok(process) => process,
        Err(error) => {
            eprintln!("{name} is left out: {error}");
            return Ok(None);
        }
    };
    let mut server = Server { name, address, process, folder };
    let until = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(address).is_err() {
        if Instant::now() > until || server.process.try_wait()?.is_some() {
            eprintln!("{name} is left out: it does not listen (nginx needs its stream module)");
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(Some(server))
}

fn command(
    name: &str,
    layer: Layer,
    folder: &Path,
    address: SocketAddr,
    backend: SocketAddr,
) -> Result<Command> {
    if name != "nginx" && name != "haproxy" {
        let mut command = Command::new(std::env::current_exe()?);
        let (layer, address, backend) =
            (layer.to_string(), address.to_string(), backend.to_string());
        command.args(["proxy", name, &layer, &address, &backend]);
        return Ok(command);
    }
    let program = std::env::var_os(format!("VOUSSOIR_{}", name.to_uppercase()));
    let mut command = Command::new(program.unwrap_or_else(|| name.into()));
    let file = folder.join("config");
    if name == "nginx" {
        std::fs::write(&file, nginx(layer, folder, address, backend))?;
        command.arg("-p").arg(folder).arg("-c").arg(&file).args(["-e", "stderr"]);
    } else {
        std::fs::write(&file, haproxy(layer, address, backend))?;
        command.arg("-db").arg("-f").arg(&file);
    }
    Ok(command)
}

fn nginx(layer: Layer, folder: &Path, listen: SocketAddr, backend: SocketAddr) -> String {
    let module = std::env::var_os("VOUSSOIR_NGINX_STREAM").map_or_else(
        || PathBuf::from("/usr/lib/nginx/modules/ngx_stream_module.so"),
        PathBuf::from,
    );
    let load = if module.exists() && layer == Layer::L4 {
        format!("load_module {};\n", module.display())
    } else {
        String::new()
    };
    let folder = folder.display();
    let server = match layer {
        Layer::L4 => format!("stream {{ server {{ listen {listen}; proxy_pass {backend}; }} }}\n"),
        // What ours does too: connections are kept on both sides, the client's address is added,
        // nothing is written to disk.
        Layer::L7 => format!(
            "http {{ access_log off; client_body_temp_path {folder}/body;\n\
             proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
             uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
             upstream backend {{ server {backend}; keepalive 64;\n\
             keepalive_requests 1000000000; }}\n\
             server {{ listen {listen}; keepalive_requests 1000000000; location / {{\n\
             proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
             proxy_max_temp_file_size 0; }} }} }}\n"
        ),
    };
    format!(
        "{load}daemon off; master_process off; pid {folder}/pid; error_log stderr crit;\n\
         events {{ worker_connections 1024; }}\n{server}"
    )
}

fn haproxy(layer: Layer, listen: SocketAddr, backend: SocketAddr) -> String {
    let mode = match layer {
        Layer::L4 => "mode tcp",
        Layer::L7 => "mode http\n option forwardfor\n http-reuse always",
    };
    format!(
        "global\n nbthread 1\n maxconn 2000\ndefaults\n {mode}\n timeout connect 5s\n \
         timeout client 60s\n timeout server 60s\nlisten all\n bind {listen}\n \
         server one {backend}\n"
    )
}

/// A server that answers every request with 200 bytes, or with 1 MiB where the path asks for it.
pub fn backend() -> Result<SocketAddr> {
    const BULK: usize = 1 << 20;
    let listener = StdListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    thread::spawn(move || -> Result<()> {
        Builder::new_current_thread().enable_all().build()?.block_on(async move {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                tokio::spawn(async move {
                    stream.set_nodelay(true)?;
                    let answer = |length| {
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                        [head.into_bytes(), vec![b'a'; length]].concat()
                    };
                    let (small, bulk) = (answer(200), answer(BULK));
                    let mut request = Vec::with_capacity(4096);
                    while stream.read_buf(&mut request).await? > 0 {
                        while let Some(end) =
                            request.windows(4).position(|four| four == b"\r\n\r\n")
                        {
                            let is_bulk = request.starts_with(b"GET /bulk");
                            request.drain(..end + 4);
                            stream.write_all(if is_bulk { &bulk } else { &small }).await?;
                        }
                    }
                    Result::Ok(())
                });
            }
        })
    });
    Ok(address)
}

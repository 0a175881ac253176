//! Streams of 1 KiB messages over plain TCP, over TLS, and over bare rustls on the same kind of
//! socket; CPU per message; handshakes per second. Both ends run on one thread.
//! `cargo run --release --example net-tls-speed --features tls`

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use voussoir_net::{
    Channel, Class, Config, Handler, Peers, SendError, Tcp, Tls, TlsConfig, Transport,
};

const BYTES: usize = 1024;
const MESSAGES: u64 = 400_000;
const SINK: Channel = Channel::small(1);
const HANDSHAKES: u32 = 400;
const ROUNDS: usize = 5;

#[derive(Default)]
struct Sink(AtomicU64);

#[async_trait]
impl Handler for Sink {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An authority and certificates of it.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        Ok(Self { pem: params.self_signed(&key)?.pem(), issuer: Issuer::new(params, key) })
    }

    fn issue(&self, id: u64) -> Result<(String, String), rcgen::Error> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        let uri = format!("voussoir://node/{id}");
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    fn tls(&self, id: u64) -> Result<Tls, Box<dyn Error>> {
        let (chain, key) = self.issue(id)?;
        Ok(Tls::new(TlsConfig::new(&*self.pem, chain, key))?)
    }

    /// Bare rustls, as strict: TLS 1.3, certificates on both sides.
    fn bare(&self) -> Result<(TlsConnector, TlsAcceptor), Box<dyn Error>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes())?)?;
        let roots = Arc::new(roots);
        let own = |id| -> Result<_, Box<dyn Error>> {
            let (chain, key) = self.issue(id)?;
            let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes())?];
            Ok((chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?))
        };
        let versions = &[&rustls::version::TLS13];
        let (chain, key) = own(1)?;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain, key)?;
        client.alpn_protocols = vec![b"voussoir-net/1".to_vec()];
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            roots,
            Arc::clone(&provider),
        );
        let (chain, key) = own(2)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier.build()?)
            .with_single_cert(chain, key)?;
        Ok((TlsConnector::from(Arc::new(client)), TlsAcceptor::from(Arc::new(server))))
    }
}

/// Nanoseconds that this thread has had a CPU.
fn cpu_ns() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Messages a second and CPU nanoseconds a message, of both ends.
#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    cpu_ns: f64,
}

async fn measured(
    work: impl Future<Output = Result<(), Box<dyn Error>>>,
) -> Result<Rate, Box<dyn Error>> {
    let (began, before) = (Instant::now(), cpu_ns());
    work.await?;
    let took = began.elapsed().as_secs_f64();
    let messages = MESSAGES as f64;
    Ok(Rate { per_second: messages / took, cpu_ns: (cpu_ns() - before) / messages })
}

async fn stream(one: &Tcp, sink: &Sink) -> Result<(), Box<dyn Error>> {
    let (body, goal) = (Bytes::from(vec![1; BYTES]), sink.0.load(Ordering::Relaxed) + MESSAGES);
    let mut sent = 0;
    while sent < MESSAGES {
        match one.send(2, SINK, body.clone().into()) {
            Ok(()) => sent += 1,
            Err(SendError::Full) => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    }
    while sink.0.load(Ordering::Relaxed) < goal {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// The same bytes through a stream, `per_write` messages in each write.
async fn bare(authority: &Authority, per_write: usize) -> Result<Rate, Box<dyn Error>> {
    let (connector, acceptor) = authority.bare()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let tcp = TcpStream::connect(listener.local_addr()?).await?;
    tcp.set_nodelay(true)?;
    let (accepted, _) = listener.accept().await?;
    let connect = connector.connect(ServerName::try_from("localhost")?, tcp);
    let (client, server) = tokio::join!(connect, acceptor.accept(accepted));
    let (mut client, mut server) = (client?, server?);
    measured(async move {
        let reader = tokio::spawn(async move {
            let (mut buffer, mut left) = (vec![0; 64 << 10], MESSAGES as usize * BYTES);
            while left > 0 {
                match server.read(&mut buffer).await {
                    Ok(bytes) if bytes > 0 => left -= bytes,
                    _ => break,
                }
            }
            left
        });
        let body = vec![1; BYTES * per_write];
        for _ in 0..MESSAGES as usize / per_write {
            client.write_all(&body).await?;
        }
        client.flush().await?;
        match reader.await? {
            0 => Ok(()),
            left => Err(format!("{left} bytes are missing").into()),
        }
    })
    .await
}

async fn pair(tls: Option<&Authority>) -> Result<(Tcp, Tcp, Arc<Sink>), Box<dyn Error>> {
    let peers = Arc::new(Peers::new());
    let mut nodes = Vec::new();
    for id in [1, 2] {
        let (any, config) = ("127.0.0.1:0".parse()?, Config::new(1));
        let tcp = match tls {
            None => Tcp::bind(id, any, peers.clone(), config).await?,
            Some(tls) => Tcp::bind_tls(id, any, peers.clone(), config, tls.tls(id)?).await?,
        };
        peers.insert(id, tcp.address());
        nodes.push(tcp);
    }
    let (two, one) = (nodes.pop().ok_or("two")?, nodes.pop().ok_or("two")?);
    let sink = Arc::new(Sink::default());
    two.serve(SINK.service, sink.clone())?;
    one.send(2, SINK, "first".into())?;
    while sink.0.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok((one, two, sink))
}

/// Handshakes of a client of bare rustls with a node, one after the other.
async fn handshakes(authority: &Authority) -> Result<f64, Box<dyn Error>> {
    let (_one, two, _sink) = pair(Some(authority)).await?;
    let (connector, _) = authority.bare()?;
    let began = Instant::now();
    for _ in 0..HANDSHAKES {
        let tcp = TcpStream::connect(two.address()).await?;
        connector.connect(ServerName::try_from("localhost")?, tcp).await?;
    }
    Ok(f64::from(HANDSHAKES) / began.elapsed().as_secs_f64())
}

fn report(name: &str, rates: &mut [Rate]) -> f64 {
    rates.sort_unstable_by(|a, b| a.per_second.total_cmp(&b.per_second));
    let Rate { per_second, cpu_ns } = rates[rates.len() / 2];
    println!("{name:<44} {per_second:>9.0} messages/s {cpu_ns:>7.0} ns CPU each");
    per_second
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let authority = Authority::new()?;
    let (plain, _two, plain_sink) = pair(None).await?;
    let (tls, _two_of_tls, tls_sink) = pair(Some(&authority)).await?;
    let mut rates: [Vec<Rate>; 4] = Default::default();
    // In turn, so that what disturbs the machine disturbs all of them.
    for _ in 0..ROUNDS {
        rates[0].push(measured(stream(&plain, &plain_sink)).await?);
        rates[1].push(measured(stream(&tls, &tls_sink)).await?);
        rates[2].push(bare(&authority, 1).await?);
        rates[3].push(bare(&authority, 64).await?);
    }
    println!("1 KiB messages one way, both ends on one thread, median of {ROUNDS} rounds:");
    let of_plain = report("net over plain TCP", &mut rates[0]);
    let of_tls = report("net over TLS", &mut rates[1]);
    let of_single = report("bare rustls, one message a write", &mut rates[2]);
    let of_many = report("bare rustls, 64 messages a write", &mut rates[3]);
    println!("net over TLS / net over plain TCP        {:.2}", of_tls / of_plain);
    println!("net over TLS / bare rustls, one a write  {:.2}", of_tls / of_single);
    println!("net over TLS / bare rustls, 64 a write   {:.2}", of_tls / of_many);
    println!(
        "handshakes, client and node together     {:.0} a second",
        handshakes(&authority).await?
    );
    Ok(())
}

//! The least that a proxy over hyper costs: no router, no balancer, no limits, no checks.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use super::Result;

/// Connections to the backend that are idle.
type Pool = Arc<Mutex<Vec<SendRequest<Incoming>>>>;

pub async fn serve(listener: TcpListener, backend: String) -> Result<()> {
    let (pool, backend) = (Pool::default(), Arc::<str>::from(backend));
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        let (pool, backend) = (Arc::clone(&pool), Arc::clone(&backend));
        let service =
            service_fn(move |request| forward(request, Arc::clone(&pool), Arc::clone(&backend)));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(client), service));
    }
}

async fn forward(
    mut request: Request<Incoming>,
    pool: Pool,
    backend: Arc<str>,
) -> Result<Response<Incoming>> {
    let kept = pool.lock().pop();
    let mut sender = match kept {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(&*backend).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender
        }
    };
    request.headers_mut().remove(CONNECTION);
    request.headers_mut().insert(HOST, backend.parse()?);
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    // hyper answers `ready` only once the body was read.
    pool.lock().push(sender);
    Ok(response)
}

//! The run without arguments: backends, a load, faults, reloads, a drain, a verdict. 30 seconds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::gateway::Gateway;
use crate::reload::Watched;
use crate::view::View;

pub mod backend;
mod certificate;
mod file;
mod load;

use backend::Backend;
use certificate::Certificate;
use file::{Stage, text};
use load::Load;

/// Any error.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Clients of HTTP/1.1, each with a connection that must stay open for the whole run.
const CLIENTS: usize = 24;
/// Clients of HTTP/2 over TLS, and the requests that each has under way.
const HTTP2: (usize, usize) = (2, 8);
/// How long the load lasts.
const LOAD: Duration = Duration::from_secs(25);
/// Time between two frames of the table.
const FRAME: Duration = Duration::from_secs(1);
/// What the slow backend takes longer for each answer.
const SLOW: Duration = Duration::from_millis(200);
/// Requests of a second each that are under way when the gateway drains.
const SLOW_REQUESTS: usize = 4;

/// What happens, and when.
#[derive(Clone, Copy, Debug)]
enum Event {
    Slow,
    Kill,
    Write(Stage),
    Restart,
    Recover,
}

const SCRIPT: [(u64, Event, &str); 8] = [
    (3, Event::Slow, "backend 2 takes 200 ms longer for each answer"),
    (6, Event::Kill, "backend 3 is killed by SIGKILL, with the requests that it serves"),
    (
        9,
        Event::Write(Stage::Joined),
        "the file adds backend 5; backend 3, which is down, stays in it",
    ),
    (12, Event::Write(Stage::Broken), "the file names a pool that does not exist"),
    (
        14,
        Event::Write(Stage::Changed),
        "the file changes the strategy, and gives /api a pool and a limit",
    ),
    (17, Event::Restart, "backend 3 starts again; it gets requests once its checks pass"),
    (20, Event::Recover, "backend 2 is as fast as the others again"),
    (22, Event::Write(Stage::Left), "the file removes backend 1"),
];

/// Runs the demo.
///
/// # Errors
/// A request failed, or a fault or a reload did not have the effect that it must have.
///
/// # Cancel safety
/// Dropping the future ends the load and the backends.
pub async fn run() -> Result<(), Error> {
    Demo::start().await?.run().await
}

struct Demo {
    backends: Vec<Backend>,
    folder: tempfile::TempDir,
    certificate: Certificate,
    gateway: Gateway,
    watched: Watched,
    view: View,
    /// What the run must have shown, and has not yet.
    findings: Vec<String>,
    /// Picks of the dead backend when the reload found it down.
    picks_while_down: Option<u64>,
    /// Retries of the pools that were replaced.
    old_retries: u64,
}

impl Demo {
    async fn start() -> Result<Self, Error> {
        let mut backends = Vec::new();
        for _ in 0..5 {
            backends.push(Backend::start().await?);
        }
        let folder = tempfile::tempdir()?;
        let certificate = Certificate::make(folder.path())?;
        let first = text(Stage::First, &backends, &certificate);
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, &first)?;
        let gateway = Gateway::start(&first, folder.path()).await?;
        let watched = Watched::new(&path, &first)?;
        let (view, findings) = (View::default(), Vec::new());
        let (picks_while_down, old_retries) = (None, 0);
        Ok(Self {
            backends,
            folder,
            certificate,
            gateway,
            watched,
            view,
            findings,
            picks_while_down,
            old_retries,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("gateway.toml")
    }

    async fn run(mut self) -> Result<(), Error> {
        let load = Load::new()?;
        let clients = self.start_clients(&load)?;
        let began = Instant::now();
        let mut script = SCRIPT.iter().peekable();
        // Ends after LOAD.
        while began.elapsed() < LOAD {
            let is_due = |&&(second, ..): &&(u64, Event, &str)| began.elapsed().as_secs() >= second;
            if let Some((_, event, text)) = script.next_if(is_due) {
                self.view.say(text);
                self.perform(*event).await?;
            }
            let folder = self.folder.path().to_owned();
            tokio::select! {
                text = self.watched.changed() => self.reload(&text, &folder).await,
                () = sleep(FRAME) => {
                    let summary = load.summary();
                    self.view.draw(&self.gateway.overview().read(), &summary);
                }
            }
        }
        load.stop();
        for client in clients {
            client.await?;
        }
        self.look_at_backends();
        self.drain(&load).await?;
        self.conclude(&load)
    }

    fn start_clients(&mut self, load: &Arc<Load>) -> Result<Vec<JoinHandle<()>>, Error> {
        let addresses = self.gateway.addresses();
        let [plain, secure] = *addresses else { return Err("two listeners".into()) };
        let tls = load::connector(&self.certificate)?;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(tokio::spawn(Arc::clone(load).http1_client(plain)));
        }
        let (connections, streams) = HTTP2;
        for _ in 0..connections {
            let client = Arc::clone(load).http2_client(secure, tls.clone(), streams);
            clients.push(tokio::spawn(client));
        }
        self.view.say(&format!(
            "{CLIENTS} clients of http://{plain} and {connections} of https://{secure} with \
             HTTP/2, {streams} requests each; 4 backends"
        ));
        Ok(clients)
    }

    async fn perform(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Slow => self.backends[1].set_delay(SLOW).await,
            Event::Recover => self.backends[1].set_delay(Duration::ZERO).await,
            Event::Kill => self.backends[2].kill().await,
            Event::Restart => {
                self.check_that_the_dead_one_got_nothing();
                self.backends[2].restart().await
            }
            Event::Write(stage) => {
                let text = text(stage, &self.backends, &self.certificate);
                Ok(replace(&self.path(), &text)?)
            }
        }
    }

    async fn reload(&mut self, text: &str, folder: &Path) {
        let before = self.retries();
        let applied = self.gateway.apply(text, folder).await;
        // The counts of a pool that is replaced begin again.
        self.old_retries += before.saturating_sub(self.retries());
        match applied {
            Ok(()) => self.view.say("the new configuration is in use"),
            Err(error) => {
                self.view.say(&format!("gateway.toml: {error}; the old one stays in use"));
            }
        }
        let is_first = self.gateway.overview().read().reloads == 1;
        if is_first && self.picks_while_down.is_none() {
            match self.found(2) {
                Some((false, picks)) => self.picks_while_down = Some(picks),
                other => self.findings.push(format!("the reload forgot a dead backend: {other:?}")),
            }
        }
    }

    fn retries(&self) -> u64 {
        self.gateway.overview().read().pools().iter().map(|pool| pool.upstream.retries).sum()
    }

    /// Whether a backend is healthy, and its picks, in the pool `web`.
    fn found(&self, backend: usize) -> Option<(bool, u64)> {
        let name = self.backends[backend].address.to_string();
        let pools = self.gateway.overview().read().pools();
        let web = pools.into_iter().find(|pool| pool.name == "web")?;
        let found = web.balancer.endpoints.into_iter().find(|found| found.name == name)?;
        Some((found.healthy, found.picks))
    }

    /// The second reload has replaced the pool, whose counts begin again; its health does not.
    fn check_that_the_dead_one_got_nothing(&mut self) {
        match (self.picks_while_down, self.found(2)) {
            (Some(_), Some((false, 0))) => {}
            other => self.findings.push(format!("a dead backend got requests: {other:?}")),
        }
    }

    fn look_at_backends(&mut self) {
        for (backend, what) in [(2, "the backend that came back"), (4, "the backend that joined")] {
            match self.found(backend) {
                Some((true, 1..)) => {}
                other => self.findings.push(format!("{what} got no requests: {other:?}")),
            }
        }
        if let Some(found) = self.found(0) {
            self.findings.push(format!("the backend that left is still there: {found:?}"));
        }
    }

    /// Drains while requests are under way: each of them must be answered.
    async fn drain(&mut self, load: &Arc<Load>) -> Result<(), Error> {
        let plain = *self.gateway.addresses().first().ok_or("no listener")?;
        let before = self.gateway.overview().read().http().requests;
        let slow: Vec<_> = (0..SLOW_REQUESTS)
            .map(|number| tokio::spawn(Arc::clone(load).slow_request(plain, number)))
            .collect();
        let until = Instant::now() + Duration::from_secs(5);
        while self.gateway.overview().read().http().requests < before + SLOW_REQUESTS as u64 {
            if Instant::now() >= until {
                return Err("the gateway does not read requests".into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        self.view.say(&format!("draining with {SLOW_REQUESTS} requests under way"));
        let cut = self.gateway.drain(Duration::from_secs(10)).await;
        if cut > 0 {
            self.findings.push(format!("the drain cut {cut} connections"));
        }
        for request in slow {
            request.await?;
        }
        Ok(())
    }

    fn conclude(mut self, load: &Load) -> Result<(), Error> {
        let (done, failed) = (load.done.load(Relaxed), load.failed.load(Relaxed));
        let http2 = load.done_http2.load(Relaxed);
        let retries = self.old_retries + self.retries();
        let overview = self.gateway.overview();
        let overview = overview.read();
        let (applied, rejected) = (overview.reloads, overview.rejected_reloads);
        self.view.say(&format!(
            "{done} requests, {http2} of them over HTTP/2; {failed} failed; {}",
            load.total()
        ));
        self.view.say(&format!(
            "{applied} reloads applied, {rejected} rejected; {retries} requests were sent again to \
             another backend"
        ));
        if (applied, rejected) != (3, 1) {
            self.findings
                .push(format!("{applied} reloads applied, {rejected} rejected; must be 3 and 1"));
        }
        if failed > 0 {
            let why = load.first_failure.lock().clone().unwrap_or_default();
            self.findings.push(format!("{failed} requests failed; the first: {why}"));
        }
        if done < 1_000 || http2 < 100 {
            self.findings.push("too few requests to say anything".to_owned());
        }
        if self.findings.is_empty() {
            self.view.say("every request was answered; every fault and reload had its effect");
            return Ok(());
        }
        Err(self.findings.join("; ").into())
    }
}

/// Replaces the file at once, as an editor does.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, text)?;
    std::fs::rename(next, path)
}

//! The demonstration: the leader is killed, paused past its lease, and resigned in turn. A copy of
//! the template does without this folder: delete it, and take `demo` out of the default features.

mod processes;
mod view;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::Error;
use crate::args::Demo;
use crate::guarded::{self, Event};
use crate::ledger::{self, Author, Ledger};

use processes::Processes;
use view::{Happened, View};

/// Time to live of a session: how long the others wait for one that has died.
const TTL: Duration = Duration::from_secs(2);
/// Lines of one leader between two events.
const CALM_LINES: u64 = 15;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(demo: &Demo) -> Result<(), Error> {
    tokio::select! {
        ended = play(demo) => ended,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

async fn play(demo: &Demo) -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("ledger");
    let (sender, events) = mpsc::channel(1024);
    let observer = move |event| {
        // The demo has ended when nobody receives.
        let _ = sender.blocking_send(event);
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let ledger = guarded::serve(listener, Ledger::open(&file)?, Arc::new(observer));
    let ledger = tokio::spawn(ledger);

    let mut processes = Processes::create(folder.path(), address, TTL)?;
    for id in processes.ids() {
        processes.start(id)?;
    }
    println!("three processes, one group of the lock service; a session lives {TTL:?}");
    let mut stage = Stage { processes, events, view: View::new(), leader: None };
    let played = stage.rounds(demo.rounds).await;
    if let Err(error) = played {
        let logs = stage.processes.logs();
        return Err(format!("{error}\n{logs}").into());
    }
    stage.processes.end_all().await?;
    ledger.abort();
    stage.look_at_the_rest().await?;
    stage.view.sum_up();
    check(&file, &stage.view)
}

/// The processes, and what is seen of them at the ledger.
struct Stage {
    processes: Processes,
    events: mpsc::Receiver<Event>,
    view: View,
    /// Whose line was added last.
    leader: Option<Author>,
}

impl Stage {
    async fn rounds(&mut self, rounds: u64) -> Result<(), Error> {
        let begun = Instant::now();
        let leader = self.next_leader(0).await?;
        let took = begun.elapsed();
        self.view
            .say(format!("process {} leads in term {} after {took:.1?}", leader.node, leader.term));
        for _ in 0..rounds {
            self.kill().await?;
            self.pause().await?;
            self.resign().await?;
        }
        self.calm().await.map(drop)
    }

    /// The leader is killed: its session has to end before the next leads.
    async fn kill(&mut self) -> Result<(), Error> {
        let old = self.calm().await?;
        self.processes.kill(old.node).await?;
        let at = Instant::now();
        self.view.say(format!("kill -9 of process {}, which leads in term {}", old.node, old.term));
        self.takes_over(Happened::Killed, old, at).await?;
        self.processes.start(old.node)?;
        self.view.say(format!("process {} is restarted", old.node));
        Ok(())
    }

    /// The leader is paused between its check and its write, for longer than its lease.
    async fn pause(&mut self) -> Result<(), Error> {
        let old = self.calm().await?;
        let entered = |event: &Event| *event == Event::Entered(old);
        self.wait_for("a step of the leader", entered).await?;
        self.processes.pause(old.node)?;
        let at = Instant::now();
        self.view.say(format!("process {} is paused while it computes a line", old.node));
        self.takes_over(Happened::Paused, old, at).await?;
        self.calm().await?;
        self.processes.resume(old.node)?;
        self.view.say(format!("process {} goes on, and writes its line", old.node));
        let late = Event::Refused { author: old, is_line: true };
        self.wait_for("the late write", |event| *event == late).await?;
        let term = old.term;
        self.view.say(format!("its late write of term {term} is refused by the ledger"));
        Ok(())
    }

    /// The leader is told to give the leadership to the next.
    async fn resign(&mut self) -> Result<(), Error> {
        let old = self.calm().await?;
        self.processes.resign(old.node)?;
        let at = Instant::now();
        self.view.say(format!("process {} is told to resign", old.node));
        self.takes_over(Happened::Resigned, old, at).await
    }

    async fn takes_over(&mut self, why: Happened, old: Author, at: Instant) -> Result<(), Error> {
        let new = self.next_leader(old.term).await?;
        let took = at.elapsed();
        self.view.took_over(why, took);
        let Author { term, node } = new;
        self.view.say(format!("process {node} works in term {term}, {took:.2?} later"));
        Ok(())
    }

    /// Waits for the first line of a term after this one.
    async fn next_leader(&mut self, term: u64) -> Result<Author, Error> {
        let is_new = |event: &Event| matches!(event, Event::Added(by) if by.term > term);
        self.wait_for("the next leader", is_new).await?;
        Ok(self.leader.ok_or("nobody leads")?)
    }

    /// Waits until the leader has added its lines, and returns it.
    async fn calm(&mut self) -> Result<Author, Error> {
        for _ in 0..CALM_LINES {
            self.wait_for("lines", |event| matches!(event, Event::Added(_))).await?;
        }
        Ok(self.leader.ok_or("nobody leads")?)
    }

    /// Counts what happened until the last connection of the ledger has ended.
    async fn look_at_the_rest(&mut self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        // Ends: no connection is left, or the deadline.
        loop {
            let event = timeout_at(until, self.events.recv()).await;
            match event.map_err(|_| format!("the ledger did not end within {PATIENCE:?}"))? {
                Some(event) => self.view.look(event),
                None => return Ok(()),
            }
        }
    }

    /// Waits for an event, and counts those before it.
    async fn wait_for(&mut self, what: &str, is_it: impl Fn(&Event) -> bool) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        // Ends: the event, or the deadline.
        loop {
            let event = timeout_at(until, self.events.recv()).await;
            let event = event.map_err(|_| format!("{what} did not come within {PATIENCE:?}"))?;
            let event = event.ok_or("the ledger has ended")?;
            self.processes.no_crash()?;
            if let Event::Added(author) = event {
                self.leader = Some(author);
            }
            self.view.look(event);
            if is_it(&event) {
                return Ok(());
            }
        }
    }
}

/// The file as it is on the disk: terms never fall, each has one author, and no line is missing,
/// twice, or out of order.
fn check(file: &Path, view: &View) -> Result<(), Error> {
    let lines = ledger::read(&std::fs::read_to_string(file)?)?;
    let (mut last, mut number, mut terms) = (Author { term: 0, node: 0 }, 0, 0);
    for line in &lines {
        let author = line.author;
        let is_ok = author.term > last.term || author == last;
        if !is_ok {
            return Err(format!("a write of {author:?} was accepted after {last:?}").into());
        }
        terms += u64::from(author.term > last.term);
        last = author;
        if let Some((found, _)) = &line.text {
            if *found != number + 1 {
                return Err(format!("line {found} follows line {number}").into());
            }
            number = *found;
        }
    }
    if number != view.added() {
        return Err(format!("{} lines were acknowledged, {number} are there", view.added()).into());
    }
    if view.late_lines() == 0 {
        return Err("no late write was refused".into());
    }
    println!("exact: {number} lines of {terms} terms, none accepted out of order, none lost");
    Ok(())
}

//! `GET /metrics`: what raft and the journal count, as Prometheus text.

use std::fmt::{Display, Write};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use crate::http::App;

/// The handler.
pub async fn text(State(app): State<App>) -> Response {
    let content_type = [(CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, Text::of(&app).0).into_response()
}

struct Text(String);

impl Text {
    fn of(app: &App) -> Self {
        let mut text = Self(String::new());
        let status = app.raft.status().borrow().clone();
        let leads = u8::from(status.leader == Some(status.id));
        text.gauge("store_is_leader", "1 where this node leads.", leads);
        text.gauge("store_term", "The current term.", status.term);
        text.gauge("store_commit_index", "The last committed entry.", status.commit);
        text.gauge("store_applied_index", "The last applied entry.", status.applied);
        text.gauge("store_keys", "Keys held.", app.kv.read().count());

        let raft = app.raft.stats();
        text.counter("store_proposals_total", "Commands proposed here.", raft.proposals);
        text.counter("store_reads_total", "Linearizable reads asked here.", raft.reads);
        text.counter("store_messages_sent_total", "Messages to peers.", raft.messages_sent);
        text.counter("store_sends_failed_total", "Messages not taken.", raft.sends_failed);
        text.counter("store_snapshots_taken_total", "Snapshots taken.", raft.snapshots_taken);
        text.counter("store_snapshots_sent_total", "Snapshots sent.", raft.snapshots_sent);

        let journal = app.journal.stats();
        text.counter("store_journal_commits_total", "Journal commits.", journal.commits);
        text.counter("store_journal_syncs_total", "Syncs of the journal.", journal.syncs);
        text.counter("store_journal_bytes_total", "Bytes written.", journal.bytes_written);
        text.gauge("store_journal_segments", "Segments in use or ready.", journal.segments);
        text
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.line(name, help, "gauge", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.line(name, help, "counter", value);
    }

    fn line(&mut self, name: &str, help: &str, kind: &str, value: impl Display) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
}

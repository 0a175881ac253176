//! The configuration file of the demo at each of its stages.

use super::backend::Backend;
use super::certificate::Certificate;

/// Which configuration the file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Four backends.
    First,
    /// The fifth has joined.
    Joined,
    /// A route names a pool that does not exist.
    Broken,
    /// Another strategy, and a pool of its own for `/api`.
    Changed,
    /// The first has left.
    Left,
}

/// The text of the file.
pub(super) fn text(stage: Stage, backends: &[Backend], certificate: &Certificate) -> String {
    let quoted: Vec<String> =
        backends.iter().map(|backend| format!("\"{}\"", backend.address)).collect();
    let web = match stage {
        Stage::First => &quoted[..4],
        Stage::Left => &quoted[1..],
        Stage::Joined | Stage::Broken | Stage::Changed => &quoted[..],
    }
    .join(", ");
    let strategy = if stage < Stage::Changed { "peak-ewma" } else { "least-request" };
    let target = if stage == Stage::Broken { "wbe" } else { "web" };
    let mut text = format!(
        r#"[[listeners]]
address = "127.0.0.1:0"

[[listeners]]
address = "127.0.0.1:0"
tls = {{ certificate = "{}", key = "{}" }}

"#,
        certificate.certificate.display(),
        certificate.key.display()
    );
    if stage >= Stage::Changed {
        text.push_str(
            r#"[[routes]]
name = "api"
path = "/api/*"
pool = "api"
limit = { requests = 1_000_000, by = "client" }

"#,
        );
    }
    text.push_str(&format!(
        r#"[[routes]]
name = "all"
pool = "{target}"

[pools.web]
endpoints = [{web}]
strategy = "{strategy}"
health = {{ path = "/health", interval_ms = 300, timeout_ms = 200, rise = 2, fall = 2 }}
outliers = {{ ejection_ms = 2_000 }}
retry = {{ budget_percent = 50, min_budget = 32 }}
breaker = {{ failure_percent = 80 }}
"#
    ));
    if stage >= Stage::Changed {
        text.push_str(&format!(
            r#"
[pools.api]
endpoints = [{}, {}]
health = {{ path = "/health", interval_ms = 300 }}
"#,
            quoted[3], quoted[4]
        ));
    }
    text
}

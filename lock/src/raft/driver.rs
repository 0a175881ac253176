//! The timers of a node, while it leads.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use voussoir_raft::Role;

use super::Group;
use crate::core::{Answer, Command};

/// Commands of timers under way at a time.
const MAX_COMMANDS: usize = 64;
/// How long a command may take until it counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// After which a command that was lost is due again.
const PAUSE: Duration = Duration::from_millis(100);

/// Leads whenever the node does. Ends when the node stops.
pub(super) async fn drive(group: Group) {
    // Ends: the node stops.
    loop {
        let mut status = group.raft.status();
        let leading = status.wait_for(|status| status.role == Role::Leader).await;
        let Ok(term) = leading.map(|status| status.term) else { return };
        let ended = tokio::select! {
            biased;
            () = lead(&group) => continue,
            ended = status.wait_for(|s| s.role != Role::Leader || s.term != term) => ended.is_ok(),
        };
        group.replica.end_reign();
        // The node has stopped, and its last status was missed.
        if !ended {
            return;
        }
    }
}

/// Begins a reign and keeps its timers. Never ends by itself.
async fn lead(group: &Group) {
    let reign = loop {
        let begun = group.propose(&Command::BeginReign, Instant::now() + PATIENCE).await;
        match begun {
            Ok(Answer::Reign { reign }) => break reign,
            answer => {
                tracing::debug!(target: "voussoir::lock", ?answer, "the reign has not begun");
                sleep(PAUSE).await;
            }
        }
    };
    group.replica.begin_reign(reign);
    tracing::info!(target: "voussoir::lock", reign, "this node keeps the timers of sessions");
    let mut commands = JoinSet::new();
    loop {
        while commands.len() < MAX_COMMANDS
            && let Some(command) = group.replica.poll_timer()
        {
            commands.spawn(fire(group.clone(), command));
        }
        tokio::select! {
            biased;
            () = group.replica.timer(), if commands.len() < MAX_COMMANDS => {}
            Some(_) = commands.join_next() => {}
        }
    }
}

async fn fire(group: Group, command: Command) {
    let fired = group.propose(&command, Instant::now() + PATIENCE).await;
    if let Err(error) = fired {
        tracing::debug!(target: "voussoir::lock", %error, ?command, "a timer's command was lost");
        group.replica.retry_timer(&command, PAUSE.as_nanos() as u64);
    }
}

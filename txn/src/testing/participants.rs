//! Conformance of participants of two-phase commit that are your own.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::two_phase::{Applied, Decision, Gid, InDoubt, Participant, PrepareError, Vote};

/// How long a call may take.
const MAX_WAIT: Duration = Duration::from_secs(30);
const COORDINATOR: &str = "kit";

/// A participant of your own with the database that it is over, of which the kit asks for a new one
/// for each check.
#[async_trait]
pub trait ParticipantWorld: Send {
    /// The participant, as a coordinator of the name `kit` has it.
    fn participant(&self) -> Arc<dyn Participant>;

    /// Begins a branch and changes something in it, as your application does.
    async fn begin(&mut self, gid: &Gid);

    /// Ends the participant and what it is over as a crash does, and starts it again.
    async fn restart(&mut self);

    /// How often the change of this branch has taken effect, for all to see.
    async fn effects(&self, gid: &Gid) -> u32;
}

/// What a participant or sink of your own does not keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", broken.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
#[non_exhaustive]
pub struct Nonconforming {
    /// Each check that failed.
    pub broken: Vec<Broken>,
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broken {
    /// The name of the check.
    pub check: &'static str,
    /// What was found.
    pub why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.why)
    }
}

/// Runs one check in a world of its own, and notes what it finds.
pub(super) async fn note(
    broken: &mut Vec<Broken>,
    check: &'static str,
    run: impl Future<Output = Result<(), String>>,
) {
    let result = match tokio::time::timeout(MAX_WAIT, run).await {
        Ok(result) => result,
        Err(_) => Err(format!("it does not end within {MAX_WAIT:?}")),
    };
    if let Err(why) = result {
        broken.push(Broken { check, why });
    }
}

pub(super) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// Checks what a coordinator and its recovery rely on: votes and decisions that are repeated, that
/// cross a crash, that are about branches nobody knows, and that contradict each other. Returns
/// the number of checks.
///
/// # Errors
/// [`Nonconforming`] with each check that failed.
///
/// # Cancel safety
/// Drops the world that it is in.
pub async fn participant_conformance<W, F>(
    mut make: impl FnMut() -> F,
) -> Result<usize, Nonconforming>
where
    W: ParticipantWorld,
    F: Future<Output = W>,
{
    let mut broken = Vec::new();
    macro_rules! checks {
        ($($check:ident),*) => {{
            $(note(&mut broken, stringify!($check), $check(Checked(make().await))).await;)*
            [$(stringify!($check)),*].len()
        }};
    }
    let checks = checks!(
        a_commit_takes_effect_once_and_not_before,
        an_abort_takes_no_effect,
        a_prepared_branch_survives_a_crash_and_commits,
        a_prepared_branch_survives_a_crash_and_aborts,
        a_branch_that_is_not_prepared_does_not_survive_a_crash,
        a_repeated_commit_is_done,
        a_repeated_abort_is_done,
        an_unknown_branch_is_aborted_and_never_prepared,
        a_repeated_vote_changes_nothing,
        a_vote_after_the_abort_is_not_hidden,
        a_commit_after_the_abort_is_no_success,
        branches_are_independent,
        lists_are_of_one_coordinator_and_bounded
    );
    if broken.is_empty() { Ok(checks) } else { Err(Nonconforming { broken }) }
}

struct Checked<W>(W);

fn gid(number: u64) -> Result<Gid, String> {
    format!("vs1:{COORDINATOR}:1:{number}:0").parse().map_err(|error| format!("{error}"))
}

impl<W: ParticipantWorld> Checked<W> {
    /// A branch that has begun.
    async fn begun(&mut self, number: u64) -> Result<Gid, String> {
        let gid = gid(number)?;
        self.0.begin(&gid).await;
        Ok(gid)
    }

    /// A branch that has voted.
    async fn prepared(&mut self, number: u64) -> Result<Gid, String> {
        let gid = self.begun(number).await?;
        let vote = self.0.participant().prepare(&gid).await;
        ensure(matches!(vote, Ok(Vote::Prepared)), || format!("its vote is {vote:?}"))?;
        Ok(gid)
    }

    async fn listed(&self, max: usize) -> Result<Vec<InDoubt>, String> {
        let listed = self.0.participant().in_doubt(COORDINATOR, max).await;
        listed.map_err(|error| format!("it lists nothing: {error}"))
    }

    async fn is_listed(&self, gid: &Gid, expected: bool) -> Result<(), String> {
        let listed = self.listed(1000).await?.iter().any(|branch| branch.gid == *gid);
        ensure(listed == expected, || format!("that {gid} is in doubt is {listed}"))
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<(), String> {
        let applied = self.0.participant().finish(gid, decision).await;
        ensure(matches!(applied, Ok(Applied::Done)), || format!("{decision:?}: {applied:?}"))
    }

    async fn has_effects(&self, gid: &Gid, expected: u32) -> Result<(), String> {
        let effects = self.0.effects(gid).await;
        ensure(effects == expected, || format!("{gid} has {effects} effects, not {expected}"))
    }

    async fn is_over(&self, gid: &Gid, effects: u32) -> Result<(), String> {
        self.is_listed(gid, false).await?;
        self.has_effects(gid, effects).await
    }
}

async fn a_commit_takes_effect_once_and_not_before<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    world.is_listed(&gid, true).await?;
    world.has_effects(&gid, 0).await?;
    world.finish(&gid, Decision::Commit).await?;
    world.is_over(&gid, 1).await
}

async fn an_abort_takes_no_effect<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    world.finish(&gid, Decision::Abort).await?;
    world.is_over(&gid, 0).await
}

async fn a_prepared_branch_survives_a_crash_and_commits<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    world.0.restart().await;
    world.is_listed(&gid, true).await?;
    world.has_effects(&gid, 0).await?;
    world.finish(&gid, Decision::Commit).await?;
    world.0.restart().await;
    world.is_over(&gid, 1).await
}

async fn a_prepared_branch_survives_a_crash_and_aborts<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    world.0.restart().await;
    world.finish(&gid, Decision::Abort).await?;
    world.0.restart().await;
    world.is_over(&gid, 0).await
}

async fn a_branch_that_is_not_prepared_does_not_survive_a_crash<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.begun(1).await?;
    world.0.restart().await;
    world.is_over(&gid, 0).await?;
    let vote = world.0.participant().prepare(&gid).await;
    ensure(!matches!(vote, Ok(Vote::Prepared)), || "it votes for a branch that is lost".into())?;
    world.finish(&gid, Decision::Abort).await
}

async fn a_repeated_commit_is_done<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    world.finish(&gid, Decision::Commit).await?;
    world.finish(&gid, Decision::Commit).await?;
    world.has_effects(&gid, 1).await?;
    world.0.restart().await;
    world.finish(&gid, Decision::Commit).await?;
    world.is_over(&gid, 1).await
}

async fn a_repeated_abort_is_done<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    world.finish(&gid, Decision::Abort).await?;
    world.finish(&gid, Decision::Abort).await?;
    world.0.restart().await;
    world.finish(&gid, Decision::Abort).await?;
    world.is_over(&gid, 0).await
}

async fn an_unknown_branch_is_aborted_and_never_prepared<W: ParticipantWorld>(
    world: Checked<W>,
) -> Result<(), String> {
    let gid = gid(99)?;
    let vote = world.0.participant().prepare(&gid).await;
    ensure(!matches!(vote, Ok(Vote::Prepared)), || "it votes for a branch never begun".into())?;
    world.finish(&gid, Decision::Abort).await?;
    world.is_over(&gid, 0).await
}

async fn a_repeated_vote_changes_nothing<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    match world.0.participant().prepare(&gid).await {
        // It says that the branch is rolled back, now and later.
        Err(PrepareError::Refused(_)) => world.is_over(&gid, 0).await,
        Ok(Vote::ReadOnly) => Err("a branch that is prepared votes that it is read-only".into()),
        _ => {
            world.is_listed(&gid, true).await?;
            world.finish(&gid, Decision::Commit).await?;
            world.is_over(&gid, 1).await
        }
    }
}

async fn a_vote_after_the_abort_is_not_hidden<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    world.finish(&gid, Decision::Abort).await?;
    let vote = world.0.participant().prepare(&gid).await;
    if matches!(vote, Ok(Vote::Prepared)) {
        // The recovery has to find it.
        world.is_listed(&gid, true).await?;
        world.finish(&gid, Decision::Abort).await?;
    }
    world.is_over(&gid, 0).await
}

async fn a_commit_after_the_abort_is_no_success<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let gid = world.prepared(1).await?;
    world.finish(&gid, Decision::Abort).await?;
    let applied = world.0.participant().finish(&gid, Decision::Commit).await;
    ensure(!matches!(applied, Ok(Applied::Done)), || "it says that it has committed".into())?;
    world.is_over(&gid, 0).await
}

async fn branches_are_independent<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let (one, two) = (world.prepared(1).await?, world.prepared(2).await?);
    world.finish(&one, Decision::Commit).await?;
    world.is_listed(&two, true).await?;
    world.has_effects(&two, 0).await?;
    world.finish(&two, Decision::Abort).await?;
    world.is_over(&one, 1).await?;
    world.is_over(&two, 0).await
}

async fn lists_are_of_one_coordinator_and_bounded<W: ParticipantWorld>(
    mut world: Checked<W>,
) -> Result<(), String> {
    let mut gids = Vec::new();
    for number in 1..=3 {
        gids.push(world.prepared(number).await?);
    }
    let other = world.0.participant().in_doubt("another", 10).await;
    let other = other.map_err(|error| format!("it lists nothing: {error}"))?;
    ensure(other.is_empty(), || format!("another coordinator is given {other:?}"))?;
    let two = world.listed(2).await?;
    ensure(two.len() == 2, || format!("of three branches two are asked for: {two:?}"))?;
    for gid in &gids {
        world.finish(gid, Decision::Abort).await?;
    }
    world.is_over(&gids[2], 0).await
}

//! Calls to nodes over a link: classes, answers that are too long, what an answer means, and nodes
//! that do not know the membership yet.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::link::{Class, Link};
use crate::membership::{Lineage, Membership};
use crate::node::Stranger;
use crate::table::{CallError, Reply, Request};
use crate::wire::{Answer, Ask, Envelope};

/// The pauses before a question is repeated that may be, until a deadline: random, and longer each
/// time.
struct Pauses {
    longest: Duration,
    deadline: Instant,
}

impl Pauses {
    /// The longest ones: the first time, and at last.
    const FIRST: Duration = Duration::from_millis(10);
    const LAST: Duration = Duration::from_millis(160);

    fn until(deadline: Instant) -> Self {
        Self { longest: Self::FIRST, deadline }
    }

    /// Pauses. False, at once: the deadline comes first.
    async fn next(&mut self) -> bool {
        let ends = Instant::now() + self.longest.mul_f64(fastrand::f64().midpoint(1.0));
        let is_in_time = ends < self.deadline;
        if is_in_time {
            self.longest = Self::LAST.min(2 * self.longest);
            sleep_until(ends).await;
        }
        is_in_time
    }
}

/// What a call is of.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// The replicas that the caller knows of. A node that serves an earlier membership is told.
    pub(crate) membership: Arc<Membership>,
    /// The epoch of collected tombstones.
    pub(crate) epoch: u64,
}

impl Scope {
    pub(crate) fn new(membership: &Arc<Membership>, epoch: u64) -> Self {
        Self { membership: Arc::clone(membership), epoch }
    }

    pub(crate) fn envelope(&self, max_answer_bytes: usize, ask: Ask) -> Envelope {
        let mut membership = self.membership.stamp();
        membership.epoch = membership.epoch.max(Membership::FIRST_EPOCH);
        Envelope { max_answer_bytes, epoch: self.epoch, membership, ask }
    }
}

/// Calls a node. What the node did not do is [`CallError::NotSent`], whoever says so, or
/// [`CallError::Busy`].
/// [`Answer::Membership`] is the answer of a node that serves a later membership, and did nothing;
/// [`Answer::OtherCluster`] that of one which is of another cluster, or of another past of it.
pub(crate) async fn call(
    link: &Arc<dyn Link>,
    to: u64,
    class: Class,
    scope: &Scope,
    ask: Ask,
    deadline: Instant,
) -> Result<(u64, Answer), CallError> {
    let key = match &ask {
        Ask::Table(request) => request.key().cloned(),
        _ => None,
    };
    let (seen, answer) = call_member(link, to, class, scope, ask.clone(), deadline).await?;
    match answer {
        Answer::TooLong { is_written: false } if class == Class::Small => {
            call_member(link, to, Class::Bulk, scope, ask, deadline).await
        }
        Answer::TooLong { is_written: true } => {
            // The write was made. The key's state holds it, now or later.
            let Some(key) = key else { return Err(CallError::Unknown) };
            let mut pauses = Pauses::until(deadline);
            // Ends: by the deadline.
            loop {
                let get = Ask::Table(Request::Get { key: key.clone() });
                match call_once(link, to, Class::Bulk, scope, get, deadline).await {
                    Ok((seen, Answer::Table(Reply::Value { state }))) => {
                        return Ok((seen, Answer::Table(Reply::Written { state })));
                    }
                    Err(_) if pauses.next().await => {}
                    _ => return Err(CallError::Unknown),
                }
            }
        }
        answer => Ok((seen, answer)),
    }
}

/// Asks nodes who the replicas are until the deadline, and returns the first membership that one of
/// them serves, of the cluster that is named, if one is.
///
/// # Errors
/// None of those that answered in time knows, or is of that cluster: then one that is of another.
/// At once if all are of others.
///
/// A client's own list is no membership: a majority of it need not be one of the replicas.
pub(crate) async fn find_membership(
    link: &Arc<dyn Link>,
    ids: &[u64],
    lineage: Lineage,
    deadline: Instant,
) -> Result<Membership, Option<Stranger>> {
    let scope = Scope::new(&Arc::new(Membership::unknown(lineage)), 0);
    let (mut stranger, mut pauses) = (None, Pauses::until(deadline));
    let now = Instant::now();
    // A message may be lost: the first question takes a part of the time.
    let mut ends = now + deadline.saturating_duration_since(now) / 4;
    // Ends: by the deadline.
    loop {
        let (mut asked, mut strangers) = (JoinSet::new(), 0);
        for id in ids.iter().copied() {
            let (link, scope) = (Arc::clone(link), scope.clone());
            asked.spawn(async move {
                let ask = Ask::Membership { offer: None };
                (id, call(&link, id, Class::Small, &scope, ask, ends).await)
            });
        }
        // Ends: each turn takes one of them.
        while let Some(answered) = asked.join_next().await {
            let Ok((id, Ok((_, answer)))) = answered else { continue };
            match answer {
                Answer::Membership { membership, .. }
                    if membership.epoch() >= Membership::FIRST_EPOCH
                        && scope.membership.is_kin(&membership) =>
                {
                    return Ok(membership);
                }
                Answer::OtherCluster { lineage } => {
                    stranger = Some(Stranger { node: Some(id), lineage });
                    strangers += 1;
                }
                _ => {}
            }
        }
        if strangers == ids.len() || !pauses.next().await {
            return Err(stranger);
        }
        ends = deadline;
    }
}

/// Calls a node, and tells it of the membership if it serves an earlier one.
async fn call_member(
    link: &Arc<dyn Link>,
    to: u64,
    class: Class,
    scope: &Scope,
    ask: Ask,
    deadline: Instant,
) -> Result<(u64, Answer), CallError> {
    let known = scope.membership.epoch();
    let is_question = matches!(ask, Ask::Membership { .. });
    let answered = call_once(link, to, class, scope, ask.clone(), deadline).await?;
    let (seen, Answer::Membership { membership, .. }) = &answered else { return Ok(answered) };
    if !scope.membership.is_kin(membership) {
        // It takes no offer of this cluster, and nothing that it tells counts.
        let lineage = membership.lineage();
        return Ok((*seen, Answer::OtherCluster { lineage }));
    }
    if is_question || membership.epoch() > known {
        return Ok(answered);
    }
    // The first membership is in everybody's configuration, and no word of it is a decision.
    if membership.epoch() == known || known <= Membership::FIRST_EPOCH {
        return Err(CallError::NotSent);
    }
    let offer = Ask::Membership { offer: Some(Membership::clone(&scope.membership)) };
    // Nothing was done so far, and the offer is no part of what was asked.
    let told = call_once(link, to, class, scope, offer, deadline).await;
    let Ok((_, Answer::Membership { membership, .. })) = told else {
        return Err(CallError::NotSent);
    };
    if membership.epoch() < known {
        return Err(CallError::NotSent);
    }
    match call_once(link, to, class, scope, ask, deadline).await? {
        (_, Answer::Membership { membership, .. }) if membership.epoch() <= known => {
            Err(CallError::NotSent)
        }
        answered => Ok(answered),
    }
}

/// Repeats until the deadline what a busy node has refused.
pub(crate) async fn until_not_busy<F: Future<Output = Option<Answer>>>(
    deadline: Instant,
    ask: impl Fn() -> F,
) -> Option<Answer> {
    let mut pauses = Pauses::until(deadline);
    // Ends: by the deadline.
    loop {
        let answer = ask().await;
        if answer != Some(Answer::Busy) || !pauses.next().await {
            return answer;
        }
    }
}

async fn call_once(
    link: &Arc<dyn Link>,
    to: u64,
    class: Class,
    scope: &Scope,
    ask: Ask,
    deadline: Instant,
) -> Result<(u64, Answer), CallError> {
    let (mut class, mut envelope) = (class, scope.envelope(class.max_bytes(), ask));
    let mut request = envelope.encode();
    if request.len() > class.max_bytes() {
        class = Class::Bulk;
        envelope.max_answer_bytes = class.max_bytes();
        request = envelope.encode();
    }
    if request.len() > class.max_bytes() {
        return Err(CallError::NotSent);
    }
    let answer: Bytes = link.call(to, class, request, deadline).await?;
    match Answer::decode(answer) {
        Ok((_, Answer::Busy)) => Err(CallError::Busy),
        Ok(answer) => Ok(answer),
        Err(error) => {
            tracing::debug!(target: "voussoir::quorum", node = to, %error, "no answer of ours");
            Err(CallError::Unknown)
        }
    }
}

//! Checks of needs: one that is met holds, and the use of one that is refused is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{
    Check, Lab, PATIENCE, PROCESSING, Verdict, ensure, is_quiet, number, numbers, read, read_some,
    refused, said, send,
};
use crate::backend::{BackendError, Delivery, MESSAGE_ID, Need, Output, Refused};
use crate::format::Record;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("exactly_once", |lab| Box::pin(exactly_once(lab))),
    ("message_ids", |lab| Box::pin(message_ids(lab))),
    ("key_order", |lab| Box::pin(key_order(lab))),
    ("fenced_commits", |lab| Box::pin(fenced_commits(lab))),
    ("delivery_counts", |lab| Box::pin(delivery_counts(lab))),
    ("deleted_groups", |lab| Box::pin(deleted_groups(lab))),
];

/// The verdict of a check whose need the back end refuses, as it should.
pub(super) const REFUSED: &str = "refused";

/// Whether the need is met; that `require` says the same.
fn provides(lab: &Lab, need: Need) -> Result<Option<Refused>, String> {
    let answer = lab.backend.provides(need).err();
    let required = lab.backend.require(&[need]).err();
    ensure(answer == required, || format!("provides: {answer:?}, require: {required:?}"))?;
    Ok(answer)
}

/// That an error is about a need.
fn is_about(error: &BackendError, name: Need) -> Verdict {
    let kind = std::mem::discriminant(&name);
    let is_it = matches!(error, BackendError::Refused(refused)
        if std::mem::discriminant(&refused.need) == kind);
    ensure(is_it, || format!("{error} does not name {name:?}"))
}

/// Records are moved from one topic to another while members die, go back and are replaced: each is
/// there once.
async fn exactly_once(lab: Lab) -> Verdict {
    let (source, producer) = lab.topic("in", 3).await?;
    let (target, _) = lab.topic("out", 2).await?;
    let subscription = lab.subscription("movers", &source).delivery(Delivery::ExactlyOnce);
    if provides(&lab, Need::ExactlyOnce)?.is_some() {
        let consumer = lab.backend.consumer(subscription).await;
        is_about(&refused("exactly once", consumer)?, Need::ExactlyOnce)?;
        return not_in_other_deliveries(&lab, &source, &target).await.and(Err(REFUSED.to_owned()));
    }
    send(&producer, &source, 0..60, |number| number.to_string()).await?;
    let mut subscription = subscription;
    subscription.max_poll_records = 7;
    let mut mover = lab.open(&subscription).await?;
    let (mut moved, mut rounds) = (0, 0);
    let until = Instant::now() + PATIENCE;
    while moved < 60 {
        ensure(Instant::now() < until, || format!("{moved} of 60 were moved"))?;
        let came = said("poll", mover.poll(Duration::from_millis(200)).await)?;
        rounds += 1;
        let copy = |read: &crate::backend::Received| {
            Output::new(&target, Record::new(number(read).to_string()))
        };
        let outputs: Vec<Output> = came.iter().map(copy).collect();
        match rounds % 4 {
            // It dies with results that nobody will see.
            1 => mover = lab.open(&subscription).await?,
            2 => said("rewind", mover.rewind().await)?,
            3 => {
                let bad = [outputs, vec![Output::new(&lab.name("nowhere"), Record::new(""))]];
                let result = mover.commit_with(bad.concat()).await;
                refused("a result for an unknown topic", result)?;
            }
            _ => {
                said("commit_with", mover.commit_with(outputs).await)?;
                moved += came.len();
            }
        }
    }
    is_quiet(&mut mover).await?;
    let mut reader = lab.member("readers", &target).await?;
    let read = read(&mut reader, 60).await?;
    ensure(numbers(&read) == (0..60).collect::<Vec<_>>(), || format!("{:?}", numbers(&read)))?;
    not_in_other_deliveries(&lab, &source, &target).await
}

/// `commit_with` is for `ExactlyOnce` only, writes nothing elsewhere, and goes back.
async fn not_in_other_deliveries(lab: &Lab, source: &str, target: &str) -> Verdict {
    let producer = said("producer", lab.backend.producer().await)?;
    send(&producer, source, 100..101, |_| "k".to_owned()).await?;
    let mut consumer = lab.member("others", source).await?;
    let first = numbers(&read_some(&mut consumer, 1).await?);
    let output = Output::new(target, Record::new("never"));
    let error = refused("commit_with", consumer.commit_with(vec![output]).await)?;
    is_about(&error, Need::ExactlyOnce)?;
    let again = numbers(&read_some(&mut consumer, first.len()).await?);
    ensure(again.first() == first.first(), || format!("{first:?} came again as {again:?}"))?;
    let mut reader = lab.member("others", target).await?;
    let is_never = |read: &crate::backend::Received| number(read) == usize::MAX;
    let came = said("poll", reader.poll(super::QUIET).await)?;
    ensure(!came.iter().any(is_never), || "a refused commit has sent its record".to_owned())
}

/// A record that is sent again with its id is stored once, and answered with its position.
async fn message_ids(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 3).await?;
    let record = |number: usize, id: &str| {
        Record::new(number.to_string()).key("k").header(MESSAGE_ID, id.to_owned())
    };
    let need = Need::MessageIds(Duration::from_secs(1));
    if provides(&lab, need)?.is_some() {
        let mut consumer = lab.member("g", &topic).await?;
        let error = refused("an id", producer.send_one(&topic, record(0, "a")).await)?;
        is_about(&error, need)?;
        is_quiet(&mut consumer).await?;
        return Err(REFUSED.to_owned());
    }
    let far = Need::MessageIds(Duration::from_secs(1_000_000_000));
    ensure(provides(&lab, far)?.is_some(), || "no back end remembers ids for 30 years".to_owned())?;
    let first = said("send", producer.send_one(&topic, record(0, "a")).await)?;
    let other = said("send", producer.send_one(&topic, record(1, "b")).await)?;
    ensure(first != other, || "another id is another record".to_owned())?;
    // From a producer that has started again.
    let producer = said("producer", lab.backend.producer().await)?;
    let again = said("send", producer.send_one(&topic, record(0, "a")).await)?;
    ensure(first == again, || format!("{first:?} was answered again as {again:?}"))?;
    let mut consumer = lab.member("g", &topic).await?;
    let read = read(&mut consumer, 2).await?;
    ensure(numbers(&read) == [0, 1], || format!("{:?}", numbers(&read)))
}

/// Records of a key come in order, and what comes again comes before what is behind it.
async fn key_order(lab: Lab) -> Verdict {
    const KEYS: usize = 4;
    if provides(&lab, Need::KeyOrder)?.is_some() {
        return Err(REFUSED.to_owned());
    }
    let (topic, producer) = lab.topic("t", 3).await?;
    send(&producer, &topic, 0..40, |number| format!("key {}", number % KEYS)).await?;
    let mut subscription = lab.subscription("g", &topic);
    subscription.max_poll_records = 6;
    let mut consumer = lab.open(&subscription).await?;
    let (mut seen, mut committed) = (BTreeMap::new(), BTreeMap::new());
    let (mut rounds, mut went_back) = (0, 0);
    let until = Instant::now() + PATIENCE;
    while committed.values().sum::<usize>() < 40 {
        ensure(Instant::now() < until, || format!("{committed:?} of 40 were committed"))?;
        for read in said("poll", consumer.poll(Duration::from_millis(200)).await)? {
            let (key, place) = (number(&read) % KEYS, number(&read) / KEYS);
            let next = seen.entry(key).or_insert(0);
            ensure(place == *next, || format!("key {key}: {place} came instead of {next}"))?;
            *next += 1;
        }
        rounds += 1;
        match rounds % 5 {
            2 => {
                said("rewind", consumer.rewind().await)?;
                went_back += usize::from(seen != committed);
                seen.clone_from(&committed);
            }
            4 => {
                said("close", consumer.close().await)?;
                consumer = lab.open(&subscription).await?;
                went_back += usize::from(seen != committed);
                seen.clone_from(&committed);
            }
            _ => {
                said("commit", consumer.commit().await)?;
                committed.clone_from(&seen);
            }
        }
    }
    ensure(went_back > 0, || "nothing ever came again".to_owned())
}

/// A member whose time is over, and whose records another one has, commits nothing.
async fn fenced_commits(lab: Lab) -> Verdict {
    if provides(&lab, Need::FencedCommits)?.is_some() {
        return Err(REFUSED.to_owned());
    }
    let (topic, producer) = lab.topic("t", 1).await?;
    send(&producer, &topic, 0..5, |number| number.to_string()).await?;
    let mut slow = lab.member("g", &topic).await?;
    read(&mut slow, 5).await?;
    let mut other = lab.member("g", &topic).await?;
    // It joins, and then waits for the slow one until that is removed.
    let began = Instant::now();
    let taken = numbers(&read_some(&mut other, 5).await?);
    ensure(taken == [0, 1, 2, 3, 4], || format!("the other member was given {taken:?}"))?;
    ensure(began.elapsed() < 4 * PROCESSING, || format!("after {:?}", began.elapsed()))?;
    let error = refused("a late commit", slow.commit().await)?;
    let is_lost = matches!(error, BackendError::Lost { .. });
    ensure(is_lost, || format!("a late commit: {error}"))?;
    drop(slow);
    // Nothing of it counts: the other one may still go back.
    said("rewind", other.rewind().await)?;
    read_some(&mut other, 5).await?;
    said("commit", other.commit().await)
}

async fn delivery_counts(lab: Lab) -> Verdict {
    let is_refused = provides(&lab, Need::DeliveryCounts)?.is_some();
    let (topic, producer) = lab.topic("t", 1).await?;
    send(&producer, &topic, 0..1, |_| "k".to_owned()).await?;
    let mut subscription = lab.subscription("g", &topic);
    // Nothing may come again because it took long.
    subscription.processing_timeout = Duration::from_secs(60);
    let mut consumer = lab.open(&subscription).await?;
    for wanted in 1..4 {
        let read = read(&mut consumer, 1).await?;
        let found = read.first().and_then(|read| read.deliveries);
        let wanted = (!is_refused).then_some(wanted);
        ensure(found == wanted, || format!("{found:?} deliveries instead of {wanted:?}"))?;
        said("rewind", consumer.rewind().await)?;
    }
    if is_refused { Err(REFUSED.to_owned()) } else { Ok(()) }
}

/// A group without members can be deleted: one of its name begins anew, and the others go on.
async fn deleted_groups(lab: Lab) -> Verdict {
    let no_key = |number: usize| number.to_string();
    let (topic, producer) = lab.topic("t", 2).await?;
    let group = lab.name("g");
    if provides(&lab, Need::DeletedGroups)?.is_some() {
        let error = refused("a deletion", lab.backend.delete_group(&group).await)?;
        return is_about(&error, Need::DeletedGroups).and(Err(REFUSED.to_owned()));
    }
    send(&producer, &topic, 0..10, no_key).await?;
    let mut other = lab.member("other", &topic).await?;
    let mut first = lab.member("g", &topic).await?;
    for member in [&mut other, &mut first] {
        read(member, 10).await?;
        said("commit", member.commit().await)?;
    }
    let error = refused("a group with a member", lab.backend.delete_group(&group).await)?;
    let is_rejected = matches!(error, BackendError::Rejected { .. });
    ensure(is_rejected, || format!("a group with a member: {error}"))?;
    send(&producer, &topic, 10..12, no_key).await?;
    read(&mut first, 2).await?;
    said("commit", first.commit().await)?;
    said("close", first.close().await)?;
    said("delete_group", lab.backend.delete_group(&group).await)?;
    said("delete_group of none", lab.backend.delete_group(&group).await)?;
    let mut second = lab.member("g", &topic).await?;
    let again = read(&mut second, 12).await?;
    ensure(numbers(&again) == (0..12).collect::<Vec<_>>(), || format!("{:?}", numbers(&again)))?;
    said("commit", second.commit().await)?;
    let more = read(&mut other, 2).await?;
    ensure(numbers(&more) == [10, 11], || format!("{:?}", numbers(&more)))
}

//! Checks of groups: what is committed, what comes again, and to whom.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Check, Lab, PATIENCE, QUIET, Verdict, ensure, is_quiet, number, numbers, read, read_some, said,
    send,
};
use crate::backend::Delivery;
use crate::config::Start;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("commits_hold", |lab| Box::pin(commits_hold(lab))),
    ("uncommitted_records_come_again", |lab| Box::pin(uncommitted_records_come_again(lab))),
    ("a_rewind_goes_back", |lab| Box::pin(a_rewind_goes_back(lab))),
    ("groups_are_independent", |lab| Box::pin(groups_are_independent(lab))),
    ("members_share", |lab| Box::pin(members_share(lab))),
    ("at_most_once", |lab| Box::pin(at_most_once(lab))),
    ("at_most_once_while_members_come", |lab| Box::pin(at_most_once_while_members_come(lab))),
    ("a_dropped_poll_loses_nothing", |lab| Box::pin(a_dropped_poll_loses_nothing(lab))),
    ("a_new_group_may_begin_at_the_end", |lab| Box::pin(a_new_group_may_begin_at_the_end(lab))),
    ("a_group_begins_once", |lab| Box::pin(a_group_begins_once(lab))),
    ("a_poll_need_not_wait", |lab| Box::pin(a_poll_need_not_wait(lab))),
];

fn no_key(number: usize) -> String {
    number.to_string()
}

/// What was committed does not come again, to anybody.
async fn commits_hold(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 3).await?;
    send(&producer, &topic, 0..40, no_key).await?;
    let mut first = lab.member("g", &topic).await?;
    read(&mut first, 40).await?;
    said("commit", first.commit().await)?;
    send(&producer, &topic, 40..50, no_key).await?;
    let more = read(&mut first, 10).await?;
    ensure(numbers(&more) == (40..50).collect::<Vec<_>>(), || format!("{:?}", numbers(&more)))?;
    said("commit", first.commit().await)?;
    said("commit of nothing", first.commit().await)?;
    said("close", first.close().await)?;
    let mut second = lab.member("g", &topic).await?;
    is_quiet(&mut second).await?;
    // Nor after the time of whoever has held them.
    tokio::time::sleep(super::PROCESSING).await;
    is_quiet(&mut second).await
}

/// What was not committed comes again: after a close at once, after a death when its time is over.
async fn uncommitted_records_come_again(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 3).await?;
    send(&producer, &topic, 0..30, no_key).await?;
    let mut first = lab.member("g", &topic).await?;
    read(&mut first, 30).await?;
    said("commit", first.commit().await)?;
    send(&producer, &topic, 30..50, no_key).await?;
    read(&mut first, 20).await?;
    said("close", first.close().await)?;
    let mut second = lab.member("g", &topic).await?;
    let again = read(&mut second, 20).await?;
    ensure(numbers(&again) == (30..50).collect::<Vec<_>>(), || format!("{:?}", numbers(&again)))?;
    drop(second);
    let mut third = lab.member("g", &topic).await?;
    let again = read(&mut third, 20).await?;
    ensure(numbers(&again) == (30..50).collect::<Vec<_>>(), || format!("{:?}", numbers(&again)))?;
    said("commit", third.commit().await)?;
    is_quiet(&mut third).await
}

async fn a_rewind_goes_back(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 2).await?;
    send(&producer, &topic, 0..10, no_key).await?;
    let mut consumer = lab.member("g", &topic).await?;
    read(&mut consumer, 10).await?;
    said("commit", consumer.commit().await)?;
    send(&producer, &topic, 10..30, no_key).await?;
    for _ in 0..2 {
        let read = read(&mut consumer, 20).await?;
        let wanted: Vec<usize> = (10..30).collect();
        ensure(numbers(&read) == wanted, || format!("{:?}", numbers(&read)))?;
        said("rewind", consumer.rewind().await)?;
    }
    read(&mut consumer, 20).await?;
    said("commit", consumer.commit().await)?;
    said("rewind", consumer.rewind().await)?;
    is_quiet(&mut consumer).await
}

/// Each group is given every record of each of its topics.
async fn groups_are_independent(lab: Lab) -> Verdict {
    let (one, producer) = lab.topic("one", 2).await?;
    let (two, _) = lab.topic("two", 1).await?;
    send(&producer, &one, 0..20, no_key).await?;
    send(&producer, &two, 20..30, no_key).await?;
    // A name that no server takes as it is.
    for group in ["a", "b", "a group.of > all * kinds"] {
        let mut subscription = lab.subscription(group, &one);
        subscription.topics.push(two.clone());
        subscription.max_poll_records = 7;
        let mut consumer = lab.open(&subscription).await?;
        let read = read(&mut consumer, 30).await?;
        let wanted: Vec<usize> = (0..30).collect();
        ensure(numbers(&read) == wanted, || format!("{group}: {:?}", numbers(&read)))?;
        for read in read {
            let wanted = if number(&read) < 20 { &one } else { &two };
            ensure(*read.topic == **wanted, || format!("{} is of {}", number(&read), read.topic))?;
        }
        said("commit", consumer.commit().await)?;
    }
    Ok(())
}

/// Two members share the records of a topic: each record comes once, and each member works.
async fn members_share(lab: Lab) -> Verdict {
    const RECORDS: usize = 300;
    let (topic, producer) = lab.topic("t", 6).await?;
    let mut subscription = lab.subscription("g", &topic);
    subscription.max_poll_records = 10;
    let mut members = [lab.open(&subscription).await?, lab.open(&subscription).await?];
    // Both join before there are records, as long as it takes.
    for _ in 0..6 {
        for member in &mut members {
            said("poll", member.poll(Duration::from_millis(50)).await)?;
        }
    }
    send(&producer, &topic, 0..RECORDS, no_key).await?;
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    let mut work = [0, 0];
    let until = Instant::now() + PATIENCE;
    let mut quiet = 0;
    // Ends: when all have come and some polls were empty.
    while times.len() < RECORDS || quiet < 4 {
        ensure(Instant::now() < until, || format!("{} of {RECORDS} came", times.len()))?;
        for (member, work) in members.iter_mut().zip(&mut work) {
            let came = said("poll", member.poll(Duration::from_millis(50)).await)?;
            quiet = if came.is_empty() { quiet + 1 } else { 0 };
            ensure(came.len() <= 10, || format!("a poll of 10 has {}", came.len()))?;
            *work += came.len();
            for read in &came {
                *times.entry(number(read)).or_default() += 1;
            }
            said("commit", member.commit().await)?;
        }
    }
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    ensure(twice.is_empty(), || format!("more than once: {twice:?}"))?;
    ensure(work.iter().all(|work| *work > 0), || format!("members did {work:?}"))
}

/// What a poll has returned never comes again, though nobody commits.
async fn at_most_once(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 2).await?;
    send(&producer, &topic, 0..20, no_key).await?;
    let subscription = lab.subscription("g", &topic).delivery(Delivery::AtMostOnce);
    let mut first = lab.open(&subscription).await?;
    read(&mut first, 20).await?;
    drop(first);
    tokio::time::sleep(super::PROCESSING).await;
    send(&producer, &topic, 20..25, no_key).await?;
    let mut second = lab.open(&subscription).await?;
    let read = read(&mut second, 5).await?;
    ensure(numbers(&read) == (20..25).collect::<Vec<_>>(), || format!("{:?}", numbers(&read)))?;
    said("commit", second.commit().await)?;
    said("rewind", second.rewind().await)?;
    is_quiet(&mut second).await
}

/// Members that come, and one that leaves, make no poll of another fail, and no record comes twice
/// or never.
async fn at_most_once_while_members_come(lab: Lab) -> Verdict {
    const RECORDS: usize = 400;
    const MEMBERS: usize = 4;
    let (topic, producer) = lab.topic("t", 6).await?;
    let mut subscription = lab.subscription("g", &topic).delivery(Delivery::AtMostOnce);
    subscription.max_poll_records = 3;
    // Nobody may be removed because it took long.
    subscription.processing_timeout = Duration::from_secs(60);
    let (came, mut coming) = mpsc::unbounded_channel();
    let mut members = JoinSet::new();
    let mut sent = 0;
    for at in 0..MEMBERS {
        let mut member = lab.open(&subscription).await?;
        let came = came.clone();
        // The second one leaves half way.
        let most = if at == 1 { RECORDS / 10 } else { usize::MAX };
        members.spawn(async move {
            let mut count = 0;
            // Ends: with the channel, or as the one that leaves.
            while count < most {
                for read in said("poll", member.poll(Duration::from_millis(50)).await)? {
                    count += 1;
                    if came.send(number(&read)).is_err() {
                        return Ok(());
                    }
                }
                if came.is_closed() {
                    return Ok(());
                }
            }
            said("close", member.close().await)
        });
        for _ in 0..RECORDS / MEMBERS {
            send(&producer, &topic, sent..sent + 1, no_key).await?;
            sent += 1;
        }
    }
    drop(came);
    let (mut numbers, until) = (Vec::new(), Instant::now() + PATIENCE);
    while numbers.len() < RECORDS {
        match timeout_at(until, coming.recv()).await {
            Ok(Some(number)) => numbers.push(number),
            Ok(None) | Err(_) => break,
        }
    }
    // For what should not come.
    tokio::time::sleep(QUIET).await;
    coming.close();
    while let Some(number) = coming.recv().await {
        numbers.push(number);
    }
    while let Some(ended) = members.join_next().await {
        ended.map_err(|error| error.to_string())??;
    }
    numbers.sort_unstable();
    ensure(numbers == (0..RECORDS).collect::<Vec<_>>(), || {
        format!("{} of {RECORDS} records came: {numbers:?}", numbers.len())
    })
}

/// Polls that are dropped at any time lose nothing and double nothing.
async fn a_dropped_poll_loses_nothing(lab: Lab) -> Verdict {
    const RECORDS: usize = 60;
    let (topic, producer) = lab.topic("t", 2).await?;
    let mut subscription = lab.subscription("g", &topic);
    subscription.max_poll_records = 3;
    // Nothing may come again because it took long.
    subscription.processing_timeout = Duration::from_secs(60);
    let mut consumer = lab.open(&subscription).await?;
    let sending = {
        let topic = topic.clone();
        tokio::spawn(async move {
            for at in 0..RECORDS {
                send(&producer, &topic, at..at + 1, no_key).await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<(), String>(())
        })
    };
    let (mut all, mut dropped, until) = (Vec::new(), 0, Instant::now() + PATIENCE);
    let mut patience = 0;
    while all.len() < RECORDS {
        ensure(Instant::now() < until, || format!("{} of {RECORDS} came", all.len()))?;
        // From not at all to long enough for several answers of a server.
        patience = (patience + 1) % 12;
        let poll = consumer.poll(Duration::from_secs(1));
        match timeout(Duration::from_micros(300 * patience), poll).await {
            Ok(came) => all.extend(said("poll", came)?),
            Err(_elapsed) => dropped += 1,
        }
    }
    sending.await.map_err(|error| error.to_string())??;
    ensure(dropped >= 10, || format!("{dropped} polls were dropped: too few to say anything"))?;
    all.extend(read_some(&mut consumer, 0).await?);
    is_quiet(&mut consumer).await?;
    ensure(numbers(&all) == (0..RECORDS).collect::<Vec<_>>(), || format!("{:?}", numbers(&all)))
}

async fn a_new_group_may_begin_at_the_end(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 2).await?;
    send(&producer, &topic, 0..5, no_key).await?;
    let mut subscription = lab.subscription("g", &topic);
    subscription.start = Start::Latest;
    let mut consumer = lab.open(&subscription).await?;
    is_quiet(&mut consumer).await?;
    send(&producer, &topic, 5..8, no_key).await?;
    let read = read(&mut consumer, 3).await?;
    ensure(numbers(&read) == [5, 6, 7], || format!("{:?}", numbers(&read)))?;
    subscription.start = Start::Stored;
    let nowhere = lab.backend.consumer(subscription).await;
    super::refused("a group that begins nowhere", nowhere).map(|_| ())
}

/// A group that has begun at the end goes on from there, though nobody has read or committed
/// anything yet when its member is replaced (KIP-842).
async fn a_group_begins_once(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 2).await?;
    send(&producer, &topic, 0..5, no_key).await?;
    let mut subscription = lab.subscription("g", &topic);
    subscription.start = Start::Latest;
    let mut first = lab.open(&subscription).await?;
    is_quiet(&mut first).await?;
    said("close", first.close().await)?;
    send(&producer, &topic, 5..9, no_key).await?;
    let mut second = lab.open(&subscription).await?;
    let read = read(&mut second, 4).await?;
    ensure(numbers(&read) == [5, 6, 7, 8], || format!("{:?}", numbers(&read)))
}

/// A member whose polls do not wait joins, and is given records (KIP-266).
async fn a_poll_need_not_wait(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 1).await?;
    send(&producer, &topic, 0..3, no_key).await?;
    let mut member = lab.member("g", &topic).await?;
    let (mut came, until) = (Vec::new(), Instant::now() + PATIENCE);
    while came.len() < 3 {
        ensure(Instant::now() < until, || format!("{} of 3 records came", came.len()))?;
        came.extend(said("poll", member.poll(Duration::ZERO).await)?);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    ensure(numbers(&came) == [0, 1, 2], || format!("{:?}", numbers(&came)))
}

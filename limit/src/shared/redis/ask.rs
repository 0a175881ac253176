//! Questions to one server.

use redis::{ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind};

use super::call::Call;
use super::link::Links;
use crate::shared::counter::StoreError;

/// Granted, remaining, wait, reset, unreadable.
pub(super) type Answer = (i64, i64, i64, i64, i64);

pub(super) const SCRIPT: &str = include_str!("take.lua");

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    Store(StoreError),
    /// Another server of the cluster keeps the key.
    Redirected(Redirect),
}

/// Which server a call is to be sent to.
#[derive(Debug)]
pub(super) struct Redirect {
    /// Host and port.
    pub(super) address: String,
    pub(super) slot: u16,
    /// The slot is on its way: only this call is to be sent there, behind `ASKING`.
    pub(super) asking: bool,
}

/// Runs all calls in one round trip, and a second one for the calls whose server did not have the
/// script. `hash` is the SHA-1 of the script.
pub(super) async fn ask(
    links: &Links,
    hash: &str,
    calls: &[Call],
    asking: bool,
) -> Vec<Result<Answer, Failure>> {
    let link = match links.get().await {
        Ok(link) => link,
        Err(error) => return calls.iter().map(|_| Err(Failure::Store(error.clone()))).collect(),
    };
    let sent = links.sent(&link);
    let answers = ask_at_once(&mut link.connection.clone(), hash, calls, asking).await;
    let is_broken = match &answers {
        Ok(answers) => {
            sent.answered();
            // Another server may be the primary now, under the same address.
            answers.iter().filter_map(|answer| answer.as_ref().err()).any(is_demoted)
        }
        Err(error) => !matches!(error.kind(), ErrorKind::Server(_)),
    };
    if is_broken {
        links.close(&link);
    }
    match answers {
        Ok(answers) => answers.into_iter().map(|answer| answer.map_err(|e| failure(&e))).collect(),
        Err(error) => calls.iter().map(|_| Err(failure(&error))).collect(),
    }
}

async fn ask_at_once(
    connection: &mut redis::aio::MultiplexedConnection,
    hash: &str,
    calls: &[Call],
    asking: bool,
) -> RedisResult<Vec<RedisResult<Answer>>> {
    let add = |pipe: &mut Pipeline, call: &Call, name, script| {
        if asking {
            pipe.cmd("ASKING").ignore();
        }
        pipe.add_command(call.command(name, script));
    };
    let mut pipe = redis::pipe();
    pipe.ignore_errors();
    for call in calls {
        add(&mut pipe, call, "EVALSHA", hash);
    }
    let mut answers: Vec<RedisResult<Answer>> = pipe.query_async(connection).await?;
    let unknown = |answer: &RedisResult<Answer>| answer.as_ref().is_err_and(is_unknown_script);
    if answers.iter().any(unknown) {
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        // The first brings the script along; the server runs the others after it.
        let (mut name, mut script) = ("EVAL", SCRIPT);
        for (call, _) in calls.iter().zip(&answers).filter(|(_, answer)| unknown(answer)) {
            add(&mut pipe, call, name, script);
            (name, script) = ("EVALSHA", hash);
        }
        let again: Vec<RedisResult<Answer>> = pipe.query_async(connection).await?;
        let places = answers.iter_mut().filter(|answer| unknown(answer));
        places.zip(again).for_each(|(place, answer)| *place = answer);
    }
    Ok(answers)
}

/// Whether it says that the script is not loaded: then nothing was done.
fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether the server says that it is a replica, or has lost its primary.
fn is_demoted(error: &RedisError) -> bool {
    let kinds = [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown];
    kinds.iter().any(|kind| error.kind() == ErrorKind::Server(*kind))
}

fn failure(error: &RedisError) -> Failure {
    match error.redirect_node() {
        Some((address, slot)) => {
            let asking = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
            Failure::Redirected(Redirect { address: address.to_owned(), slot, asking })
        }
        None => Failure::Store(understood(error)),
    }
}

/// Translates the error of one take. The script fails only before its single write, so an error of
/// the server means that nothing was taken.
pub(super) fn understood(error: &RedisError) -> StoreError {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Server(kind) => match kind {
            // The server is starting, or does not serve this key.
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ReadOnly => StoreError::Unreachable(text),
            ServerErrorKind::NoPerm => not_permitted(&text),
            _ => refused(text),
        },
        ErrorKind::Extension => refused(text),
        ErrorKind::ClusterConnectionNotFound => StoreError::Unreachable(text),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => StoreError::Invalid(text),
        _ if error.is_connection_refusal() => StoreError::Unreachable(text),
        _ => StoreError::NoAnswer(text),
    }
}

fn refused(text: String) -> StoreError {
    // A missing permission inside the script is reported by the text of the script's error.
    if text.contains("ACL failure") || text.contains("no permissions") {
        return not_permitted(&text);
    }
    // Another script holds the whole server up.
    if text.contains("BUSY ") { StoreError::Unreachable(text) } else { StoreError::Refused(text) }
}

fn not_permitted(text: &str) -> StoreError {
    let command = text.split('\'').nth(1).unwrap_or_default().to_ascii_lowercase();
    let advice = match command.as_str() {
        "" => "grant the keys of the prefix (`~<prefix>*`)".to_owned(),
        "info" => {
            "grant it (`ACL SETUSER <user> +info`) or choose `WhenLost::Fresh`, which needs no INFO"
                .to_owned()
        }
        other => format!("grant it (`ACL SETUSER <user> +{other}`)"),
    };
    StoreError::NotPermitted(format!("{text}; {advice}"))
}

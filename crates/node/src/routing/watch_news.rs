//! How the news of a watch travel from node to node.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryFutureExt};
use meridian_gateway::{Room, WatchedValue};
use meridian_proto::shard::{self as wire, shard_client::ShardClient};
use meridian_types::{DatabaseId, Epoch, Position, Versionstamp, limits};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::network::call_failure::Failed;
use crate::routing::nodes::{Feeding, Wanted};
use crate::routing::watch_inbox::Inbox;
use crate::watches::{News, Shown};

pub(crate) fn request(group: wire::ShardEpoch, wanted: &Wanted) -> wire::WatchRequest {
    let stamp = |stamp: Option<Versionstamp>| {
        stamp.map(|stamp| Bytes::copy_from_slice(&stamp.0)).unwrap_or_default()
    };
    let key = |(key, shown): (&Bytes, &Shown)| wire::ShownKey {
        key: key.clone(),
        shown: shown.map(stamp),
    };
    wire::WatchRequest {
        group: Some(group),
        database: Bytes::copy_from_slice(&wanted.database.0),
        keys: wanted.keys.iter().zip(&wanted.shown).map(key).collect(),
        min_sequence: wanted.min_sequence,
    }
}

/// The watch that a gateway asks this node for.
///
/// # Errors
/// The name of the field that is out of its range.
pub(crate) fn wanted(request: wire::WatchRequest) -> Result<Wanted, &'static str> {
    let database = request.database.as_ref().try_into().map_err(|_| "database")?;
    if request.keys.len() > limits::MAX_WATCHED_KEYS {
        return Err("keys");
    }
    let shown = |shown: Bytes| match shown.as_ref() {
        [] => Ok(None),
        bytes => Versionstamp::from_slice(bytes).map(Some).ok_or("shown"),
    };
    let (mut keys, mut told) = (Vec::new(), Vec::new());
    for key in request.keys {
        keys.push(Bytes::copy_from_slice(&key.key));
        told.push(key.shown.map(shown).transpose()?);
    }
    let keys = Arc::from(keys);
    let min_sequence = request.min_sequence;
    Ok(Wanted { database: DatabaseId(database), keys, shown: told, min_sequence })
}

pub(crate) fn to_wire(news: &News) -> wire::WatchNews {
    wire::WatchNews {
        epoch: news.position.epoch.0.into(),
        sequence: news.position.sequence,
        keys: news.values.iter().map(|value| WatchedValue::to_wire(value.as_ref())).collect(),
    }
}

/// Another node's news, from the first. They are received in a task of their own, from the call on.
/// `open` lives as long as the call does.
pub(crate) async fn begun(
    mut client: ShardClient<Channel>,
    request: wire::WatchRequest,
    room: Room,
    open: impl Send + 'static,
) -> Result<Feeding, Failed> {
    let keys = request.keys.len();
    let call = async move { client.watch(request).await.map(Response::into_inner) };
    let read = move |read: Result<wire::WatchNews, Status>| {
        let _open = &open;
        from_wire(read.map_err(Failed::from_status)?, keys)
    };
    let mut inbox = Inbox::of(call.try_flatten_stream().map(read), room);
    match inbox.next_kept().await {
        Some(Ok((news, kept))) => Ok(Ok((news, kept, inbox.boxed()))),
        Some(Err(failed)) => Err(failed),
        None => match inbox.lacked() {
            Some(none) => Ok(Err(none)),
            None => Err(Failed::Unknown("the watch ended at once".to_owned())),
        },
    }
}

fn from_wire(news: wire::WatchNews, keys: usize) -> Result<News, Failed> {
    let malformed = |what: &str| Failed::Unknown(format!("malformed news of a watch: {what}"));
    let epoch = u16::try_from(news.epoch).map_err(|_| malformed("epoch"))?;
    if news.keys.len() != keys {
        return Err(malformed("keys"));
    }
    let values = news.keys.into_iter().map(WatchedValue::from_wire).collect::<Result<_, _>>();
    let values = values.map_err(malformed)?;
    Ok(News { position: Position::new(Epoch(epoch), news.sequence), values })
}

#[cfg(test)]
mod tests;

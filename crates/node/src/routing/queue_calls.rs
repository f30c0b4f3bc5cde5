//! Calls between gateways and leaders about queues, on the wire.

use std::time::Duration;

use bytes::Bytes;
use meridian_gateway::{QueuedMessage, Reports};
use meridian_proto::queue::{self as wire, listen_part, report, report_response};
use meridian_proto::{node_id, node_id_to_wire, shard as shard_wire};
use meridian_queue::{Answer, Incarnation, ListenerId, MAX_CREDITS, MessageKey, Report};
use meridian_types::{DatabaseId, MessageId, QueueId};

use crate::network::call_failure::Failed;
use crate::queues::{BESIDE_BYTES, Handed, Listener, NotListening, Part};
use crate::read::execution::counted;
use crate::read::messages::MessageBudget;

/// News of a leader for a listener's gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Alive,
    Messages(Vec<QueuedMessage>),
    Released(Vec<MessageKey>),
}

/// Why a listener's session is over.
#[derive(Debug)]
pub(crate) enum Over {
    /// The listener is not to come again.
    Refused(String),
    /// It goes on elsewhere, or later.
    Failed(Failed),
    /// A part was not taken, by the client or for want of memory. The leader is to have it back.
    NotTaken,
}

pub(super) fn key_to_wire(key: &MessageKey) -> wire::MessageKey {
    let id = Bytes::copy_from_slice(&key.id.to_bytes());
    wire::MessageKey { due_ms: key.due_ms, id }
}

pub(super) fn key(key: &wire::MessageKey) -> Option<MessageKey> {
    Some(MessageKey { due_ms: key.due_ms, id: MessageId::from_slice(&key.id)? })
}

fn keys(wire: &[wire::MessageKey]) -> Result<Vec<MessageKey>, &'static str> {
    if wire.len() > MAX_CREDITS as usize {
        return Err("keys");
    }
    wire.iter().map(key).collect::<Option<_>>().ok_or("keys")
}

fn incarnation(wire: &[u8]) -> Result<Incarnation, &'static str> {
    let bytes = wire.try_into().map_err(|_| "incarnation")?;
    Ok(Incarnation(u128::from_be_bytes(bytes)))
}

/// The fields `database` and `named`. Where there is a name, an older node finds no database.
pub(super) fn queue_to_wire(queue: &QueueId) -> (Bytes, Option<wire::NamedQueue>) {
    let database = Bytes::copy_from_slice(&queue.database.0);
    if queue.name.is_default() {
        return (database, None);
    }
    (Bytes::new(), Some(wire::NamedQueue { database, name: queue.name.to_string() }))
}

pub(super) fn queue(
    database: &[u8],
    named: Option<wire::NamedQueue>,
) -> Result<QueueId, &'static str> {
    let id = |bytes: &[u8]| bytes.try_into().map(DatabaseId).map_err(|_| "database");
    match named {
        None => Ok(id(database)?.into()),
        Some(named) => {
            let name = named.name.parse().map_err(|_| "name")?;
            Ok(QueueId { database: id(&named.database)?, name })
        }
    }
}

/// The field that is missing or out of its range, else.
pub(crate) fn listener(request: wire::ListenRequest) -> Result<Listener, &'static str> {
    let listener = request.listener.as_ref().try_into().map_err(|_| "listener")?;
    Ok(Listener {
        queue: queue(&request.database, request.named)?,
        listener: ListenerId(listener),
        credits: request.credits,
        lease: (request.lease_ms > 0).then(|| Duration::from_millis(request.lease_ms)),
        held: keys(&request.held)?,
        resumed: request.resumed,
        incarnation: incarnation(&request.incarnation)?,
    })
}

/// The field that is missing or out of its range, else.
pub(crate) fn reports(request: wire::ReportRequest) -> Result<Reports, &'static str> {
    let queue = queue(&request.database, request.named)?;
    let listener = request.listener.as_ref().try_into().map_err(|_| "listener")?;
    if request.reports.len() > MAX_CREDITS as usize {
        return Err("reports");
    }
    let one = |wire: wire::Report| {
        let said = match wire.report? {
            report::Report::Done(_) => Report::Done,
            report::Report::Failed(failed) => {
                Report::Failed { retry_after: failed.retry_after_ms.map(Duration::from_millis) }
            }
            report::Report::Extended(extended) => {
                Report::Extended { by: Duration::from_millis(extended.by_ms) }
            }
        };
        Some((key(wire.key.as_ref()?)?, said))
    };
    let reports = request.reports.into_iter().map(one).collect::<Option<_>>().ok_or("reports")?;
    Ok(Reports { queue, listener: ListenerId(listener), reports })
}

pub(crate) fn listener_to_wire(
    group: shard_wire::ShardEpoch,
    listener: &Listener,
) -> wire::ListenRequest {
    let (database, named) = queue_to_wire(&listener.queue);
    wire::ListenRequest {
        group: Some(group),
        database,
        named,
        listener: Bytes::copy_from_slice(&listener.listener.0),
        credits: listener.credits,
        lease_ms: listener.lease.as_ref().map_or(0, ms),
        held: listener.held.iter().map(key_to_wire).collect(),
        resumed: listener.resumed,
        incarnation: Bytes::copy_from_slice(&listener.incarnation.0.to_be_bytes()),
    }
}

pub(crate) fn reports_to_wire(
    group: shard_wire::ShardEpoch,
    reports: &Reports,
) -> wire::ReportRequest {
    let (database, named) = queue_to_wire(&reports.queue);
    wire::ReportRequest {
        group: Some(group),
        database,
        named,
        listener: Bytes::copy_from_slice(&reports.listener.0),
        reports: reports.reports.iter().map(report_to_wire).collect(),
    }
}

fn ms(time: &Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn report_to_wire((key, report): &(MessageKey, Report)) -> wire::Report {
    let report = match report {
        Report::Done => report::Report::Done(wire::Done {}),
        Report::Failed { retry_after } => {
            report::Report::Failed(wire::Failed { retry_after_ms: retry_after.as_ref().map(ms) })
        }
        Report::Extended { by } => report::Report::Extended(wire::Extended { by_ms: ms(by) }),
    };
    wire::Report { key: Some(key_to_wire(key)), report: Some(report) }
}

pub(crate) fn answers_to_wire(answers: &[Answer]) -> wire::Answers {
    wire::Answers { took_effect: answers.iter().map(|answer| *answer == Answer::Done).collect() }
}

pub(crate) fn answers(response: wire::ReportResponse) -> Result<Vec<Answer>, Failed> {
    let answer = |took_effect| if took_effect { Answer::Done } else { Answer::Late };
    match response.result {
        Some(report_response::Result::Answers(answers)) => {
            Ok(answers.took_effect.into_iter().map(answer).collect())
        }
        Some(report_response::Result::NotLeader(hint)) => {
            Err(Failed::NotLeader(node_id(hint.leader)))
        }
        Some(report_response::Result::Unavailable(reason)) => Err(Failed::NotDone(reason)),
        None => Err(Failed::Unknown("an empty answer".to_owned())),
    }
}

/// A part of a session, for the gateway that it is of.
pub(crate) fn told(part: Result<Part, NotListening>) -> Result<Told, Over> {
    match part {
        Ok(Part::Alive) => Ok(Told::Alive),
        Ok(Part::Messages(handed)) => {
            Ok(Told::Messages(handed.into_inner().into_iter().map(message).collect()))
        }
        Ok(Part::Released(keys)) => Ok(Told::Released(keys)),
        Err(not_listening) => Err(over(not_listening)),
    }
}

pub(crate) fn over(not_listening: NotListening) -> Over {
    match not_listening {
        NotListening::NotLeader(leader) => Over::Failed(Failed::NotLeader(leader)),
        NotListening::Refused(reason) => Over::Refused(reason.to_owned()),
        NotListening::Unavailable(reason) => Over::Failed(Failed::NotDone(reason.to_owned())),
    }
}

/// Of a call that is no session.
pub(crate) fn failed(not_listening: NotListening) -> Failed {
    match not_listening {
        NotListening::NotLeader(leader) => Failed::NotLeader(leader),
        NotListening::Refused(reason) | NotListening::Unavailable(reason) => {
            Failed::NotDone(reason.to_owned())
        }
    }
}

fn message(Handed { key, lease, message }: Handed) -> QueuedMessage {
    QueuedMessage {
        key,
        attempt: message.attempts.saturating_add(1),
        payload: message.payload,
        enqueued_ms: message.enqueued_ms,
        lease,
    }
}

pub(crate) fn part_to_wire(part: Result<Part, NotListening>) -> wire::ListenPart {
    use listen_part::Part as Wire;
    let part = match told(part) {
        Ok(Told::Alive) => Wire::Listening(wire::Listening {}),
        Ok(Told::Messages(messages)) => {
            let messages = messages.into_iter().map(message_to_wire).collect();
            Wire::Messages(wire::Messages { messages })
        }
        Ok(Told::Released(keys)) => {
            Wire::Released(wire::MessageKeys { keys: keys.iter().map(key_to_wire).collect() })
        }
        Err(Over::Refused(reason)) => Wire::Refused(reason),
        Err(Over::Failed(Failed::NotLeader(leader))) => {
            Wire::NotLeader(shard_wire::NotLeader { leader: node_id_to_wire(leader) })
        }
        Err(Over::Failed(
            Failed::NotDone(reason)
            | Failed::Busy(reason)
            | Failed::Unreachable(reason)
            | Failed::Unknown(reason),
        )) => Wire::Unavailable(reason),
        Err(Over::NotTaken) => Wire::Unavailable("what came was not taken".to_owned()),
    };
    wire::ListenPart { part: Some(part) }
}

fn message_to_wire(message: QueuedMessage) -> wire::Message {
    wire::Message {
        key: Some(key_to_wire(&message.key)),
        attempt: message.attempt,
        payload: message.payload,
        enqueued_ms: message.enqueued_ms,
        lease_ms: message.lease.as_ref().map(ms),
    }
}

/// A part from another process, if it is well formed.
pub(crate) fn told_from_wire(part: wire::ListenPart) -> Result<Told, Over> {
    use listen_part::Part as Wire;
    let malformed = || Over::Failed(Failed::Unknown("a malformed part".to_owned()));
    match part.part {
        Some(Wire::Listening(_)) => Ok(Told::Alive),
        Some(Wire::Messages(messages)) => {
            let messages = messages.messages.into_iter().map(message_from_wire);
            messages.collect::<Option<_>>().map(Told::Messages).ok_or_else(malformed)
        }
        Some(Wire::Released(released)) => {
            let keys = released.keys.iter().map(key).collect::<Option<_>>();
            keys.map(Told::Released).ok_or_else(malformed)
        }
        Some(Wire::NotLeader(hint)) => Err(Over::Failed(Failed::NotLeader(node_id(hint.leader)))),
        Some(Wire::Refused(reason)) => Err(Over::Refused(reason)),
        Some(Wire::Unavailable(reason)) => Err(Over::Failed(Failed::NotDone(reason))),
        None => Err(malformed()),
    }
}

/// A part from another process counts as long as it is in memory.
pub(crate) fn held_by(
    messages: &MessageBudget,
    database: DatabaseId,
    mut told: Told,
) -> Result<Told, Over> {
    if let Told::Messages(told) = &mut told {
        let bytes = told.iter().map(|message| message.payload.len() + BESIDE_BYTES).sum();
        let held = messages.take_now(database, bytes).ok_or(Over::NotTaken)?;
        if let Some(last) = told.last_mut() {
            last.payload = counted(std::mem::take(&mut last.payload), held);
        }
    }
    Ok(told)
}

fn message_from_wire(message: wire::Message) -> Option<QueuedMessage> {
    Some(QueuedMessage {
        key: key(message.key.as_ref()?)?,
        attempt: message.attempt,
        payload: message.payload,
        enqueued_ms: message.enqueued_ms,
        lease: message.lease_ms.map(Duration::from_millis),
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// The fields of each request that say its queue, as versions without names know them: such a
    /// node refuses a request whose database has not sixteen bytes.
    #[derive(prost::Message)]
    struct OldRequest {
        #[prost(bytes = "bytes", tag = "2")]
        database: Bytes,
    }

    fn listener_of(queue: QueueId) -> Listener {
        Listener {
            queue,
            listener: ListenerId([2; 16]),
            credits: 3,
            lease: None,
            held: Vec::new(),
            incarnation: Incarnation(4),
            resumed: true,
        }
    }

    /// It would hand out messages of the unnamed queue, and settle them.
    #[test]
    fn node_without_names_finds_no_database_in_a_request_about_a_named_queue() {
        let (database, group) = (DatabaseId([1; 16]), shard_wire::ShardEpoch::default());
        let named = QueueId { database, name: "emails".parse().unwrap() };
        let seen = |request: &[u8]| OldRequest::decode(request).unwrap().database;
        for (queue, expected) in [(database.into(), &[1; 16][..]), (named, &[])] {
            let listen = listener_to_wire(group, &listener_of(queue.clone()));
            let reports = Reports {
                queue: queue.clone(),
                listener: ListenerId([2; 16]),
                reports: vec![(MessageKey::FIRST, Report::Done)],
            };
            let report = reports_to_wire(group, &reports);
            for request in [listen.encode_to_vec(), report.encode_to_vec()] {
                assert_eq!(seen(&request), expected, "{queue:?}");
            }
            assert_eq!(listener(listen).unwrap().queue, queue);
            assert_eq!(super::reports(report).unwrap().queue, queue);
        }
    }

    #[test]
    fn what_is_wrong_in_the_queue_of_a_request_is_named() {
        let of = |database: &'static [u8], name: &str| wire::NamedQueue {
            database: Bytes::from_static(database),
            name: name.to_owned(),
        };
        assert_eq!(queue(&[1; 15], None), Err("database"));
        assert_eq!(queue(&[1; 16], Some(of(&[1; 15], "emails"))), Err("database"));
        for name in ["a\n", &"n".repeat(65)] {
            assert_eq!(queue(&[], Some(of(&[1; 16], name))), Err("name"));
        }
    }
}

//! The bytes that clients send and get, and each limit at and beyond it.

use meridian_types::DatabaseId;

use super::*;

const ID: &str = "0102030405060708090a0b0c";
const LISTENER: &str = "00112233-4455-6677-8899-aabbccddeeff";

fn key() -> MessageKey {
    MessageKey { due_ms: 7, id: ID.parse().unwrap() }
}

fn id() -> ListenerId {
    listener(LISTENER).unwrap()
}

fn read_enqueue(
    body: &[u8],
    now_ms: u64,
) -> Result<Result<EnqueueRequest, Invalid>, InvalidQueueRequest> {
    super::enqueue(body, V8Format::default(), now_ms)
}

fn limit(field: &'static str, limit: u64) -> InvalidQueueRequest {
    InvalidQueueRequest::Limit { field, limit }
}

#[test]
fn lines_of_a_stream_are_golden() {
    let message = QueuedMessage {
        key: key(),
        attempt: 2,
        payload: Bytes::from_static(b"\xff\x0fo"),
        enqueued_ms: 5,
        lease: None,
    };
    let text = |line: &[u8]| String::from_utf8(line.to_vec()).unwrap();
    assert_eq!(
        text(&open_line(id())),
        format!("{{\"type\":\"open\",\"listener\":\"{LISTENER}\"}}\n")
    );
    let golden = format!(
        "{{\"type\":\"message\",\"id\":\"{ID}\",\"due\":7,\"attempt\":2,\"payload\":\"/w9v\",\
         \"encoding\":\"v8\",\"enqueued\":5}}\n"
    );
    assert_eq!(text(&lines(&Heard::Messages(vec![message.clone()]))), golden);
    let released = format!("{{\"type\":\"release\",\"id\":\"{ID}\",\"due\":7}}\n");
    assert_eq!(text(&lines(&Heard::Released(vec![key()]))), released);
    assert_eq!(text(&ping_line()), "{\"type\":\"ping\"}\n");
    assert_eq!(text(&end_line("gone")), "{\"type\":\"end\",\"reason\":\"gone\"}\n");
    let polled = format!(
        "{{\"listener\":\"{LISTENER}\",\"messages\":[{{\"id\":\"{ID}\",\"due\":7,\"attempt\":2,\
         \"payload\":\"/w9v\",\"encoding\":\"v8\",\"enqueued\":5,\"leaseMs\":30000}}]}}"
    );
    let leased = QueuedMessage { lease: Some(Duration::from_secs(30)), ..message };
    assert_eq!(text(&super::polled(id(), &[leased])), polled);
    assert_eq!(text(&answers(&[Answer::Done, Answer::Late])), "{\"results\":[\"done\",\"late\"]}");
}

#[test]
fn lines_take_no_more_bytes_than_are_counted_before_they_are_made() {
    let key = MessageKey {
        due_ms: u64::MAX,
        id: MessageId { enqueued: Versionstamp([255; 10]), index: u16::MAX },
    };
    for bytes in [0, 1, 2, 3, 65_536] {
        let message = QueuedMessage {
            key,
            attempt: u32::MAX,
            payload: vec![7; bytes].into(),
            enqueued_ms: u64::MAX,
            lease: Some(Duration::MAX),
        };
        for heard in [Heard::Messages(vec![message; 2]), Heard::Released(vec![key; 2])] {
            let (made, counted) = (lines(&heard).len(), max_line_bytes(&heard));
            assert!(made <= counted, "{made} of {counted} bytes");
        }
    }
}

#[test]
fn listener_without_a_body_has_an_id_and_the_usual_credits() {
    let [first, second] = [listen(b"").unwrap(), listen(b"{}").unwrap()];
    assert_eq!((first.credits, first.held.len()), (DEFAULT_CREDITS, 0));
    assert_ne!(first.listener, second.listener);
}

#[test]
fn listener_comes_back_with_what_it_holds() {
    let body = format!(
        "{{\"listener\":\"{LISTENER}\",\"credits\":5,\"held\":[{{\"id\":\"{ID}\",\"due\":7}}]}}"
    );
    let asked = listen(body.as_bytes()).unwrap();
    assert_eq!((asked.listener, asked.credits, asked.held), (id(), 5, vec![key()]));
}

#[test]
fn credits_and_what_is_held_are_bounded() {
    let credits = |credits: u32| listen(format!("{{\"credits\":{credits}}}").as_bytes()).err();
    assert_eq!(credits(1000), None);
    assert_eq!(credits(1001), Some(limit("credits", 1000)));
    assert_eq!(credits(0), Some(InvalidQueueRequest::Field("credits")));
    let held = |count: usize| {
        let key = format!("{{\"id\":\"{ID}\",\"due\":7}}");
        listen(format!("{{\"held\":[{}]}}", vec![key; count].join(",")).as_bytes()).err()
    };
    assert_eq!((held(1000), held(1001)), (None, Some(limit("held", 1000))));
}

#[test]
fn polls_are_bounded_in_messages_and_times() {
    let poll = |body: &str| poll(body.as_bytes()).err();
    assert_eq!(poll(""), None);
    assert_eq!(poll("{\"max\":1000,\"waitMs\":60000,\"leaseMs\":3600000}"), None);
    assert_eq!(poll("{\"max\":1001}"), Some(limit("max", 1000)));
    assert_eq!(poll("{\"waitMs\":60001}"), Some(limit("waitMs", 60_000)));
    assert_eq!(poll("{\"leaseMs\":3600001}"), Some(limit("leaseMs", 3_600_000)));
    for field in ["max", "leaseMs"] {
        let zero = format!("{{\"{field}\":0}}");
        assert!(matches!(poll(&zero), Some(InvalidQueueRequest::Field(of)) if of == field));
    }
}

#[test]
fn each_verdict_is_a_report() {
    let of = |verdict: &str| {
        let body = format!(
            "{{\"listener\":\"{LISTENER}\",\"reports\":[{{\"id\":\"{ID}\",\"due\":7,{verdict}}}]}}"
        );
        reports(body.as_bytes()).map(|ReportRequest { queue, listener, reports }| {
            assert_eq!((queue, listener, reports[0].0), (QueueName::default(), id(), key()));
            reports[0].1
        })
    };
    let failed = |ms: Option<u64>| Report::Failed { retry_after: ms.map(Duration::from_millis) };
    let extended = |ms| Report::Extended { by: Duration::from_millis(ms) };
    for (verdict, report) in [
        ("\"verdict\":\"ack\"", Report::Done),
        ("\"verdict\":\"nack\"", failed(None)),
        ("\"verdict\":\"nack\",\"delayMs\":0", failed(Some(0))),
        ("\"verdict\":\"extend\"", extended(30_000)),
        ("\"verdict\":\"extend\",\"extendMs\":5", extended(5)),
    ] {
        assert_eq!(of(verdict), Ok(report), "{verdict}");
    }
    let month = limits::MAX_ENQUEUE_DELAY_MS;
    assert!(of(&format!("\"verdict\":\"nack\",\"delayMs\":{month}")).is_ok());
    let late = of(&format!("\"verdict\":\"nack\",\"delayMs\":{}", month + 1));
    assert_eq!(late, Err(limit("delayMs", month)));
    assert_eq!(
        of("\"verdict\":\"extend\",\"extendMs\":3600001"),
        Err(limit("extendMs", 3_600_000))
    );
    assert!(matches!(of("\"verdict\":\"perhaps\""), Err(InvalidQueueRequest::Json { .. })));
    for (verdict, field) in [("ack", "extendMs"), ("nack", "extendMs"), ("extend", "delayMs")] {
        let odd = of(&format!("\"verdict\":\"{verdict}\",\"{field}\":5"));
        assert_eq!(odd, Err(InvalidQueueRequest::Field(field)));
    }
}

#[test]
fn refusals_repeat_nothing_that_the_client_sent() {
    let refused = listen(b"{\"authorization\":1}").err().unwrap();
    assert!(!refused.to_string().contains("authorization"), "{refused}");
    assert!(matches!(listen(b"[").err(), Some(InvalidQueueRequest::Json { line: 1, .. })));
    for (body, wants) in [
        ("{\"credit\":5}", ": expected one of `listener`, `credits`, `held`, `queue`)"),
        ("{\"credits\":\"authorization\"}", ": expected u32)"),
        ("{\"credits\":-1}", ": expected u32)"),
        ("{\"credits\":1,\"credits\":1}", ": duplicate field `credits`)"),
        ("{\"held\":[{\"due\":1}]}", ": missing field `id`)"),
    ] {
        let refused = listen(body.as_bytes()).err().unwrap().to_string();
        assert!(refused.contains(wants) && !refused.contains("authorization"), "{refused}");
    }
}

#[test]
fn message_has_its_delay_its_schedule_and_its_keys() {
    let body = b"{\"payload\":\"/w9v\",\"delayMs\":10,\"backoffMs\":[],\
                 \"keysIfUndelivered\":[\"AmEA\"],\"id\":\"order 7\"}";
    let EnqueueRequest { transaction, id } = read_enqueue(body, 1000).unwrap().unwrap();
    let enqueue = &transaction.enqueues[0];
    assert_eq!((enqueue.due_ms, enqueue.backoff_ms.as_deref()), (1010, Some(&[][..])));
    assert_eq!(enqueue.keys_if_undelivered, [Bytes::from_static(b"\x02a\0")]);
    let again = read_enqueue(body, 2000).unwrap().unwrap();
    assert_eq!(id, again.id);
    let plain = read_enqueue(b"{\"payload\":\"/w9v\"}", 1000).unwrap().unwrap();
    assert_eq!((plain.id, plain.transaction.enqueues[0].backoff_ms.clone()), (None, None));
    assert_eq!(
        plain.transaction.enqueues[0].due_ms, 0,
        "at once, whatever the gateway's clock says"
    );
}

/// In every request the same, and the unnamed queue where there is none.
#[test]
fn queue_is_named_in_each_request_and_what_is_wrong_with_its_name_is_said() {
    fn listen_name(body: &str) -> Result<QueueName, InvalidQueueRequest> {
        listen(body.as_bytes()).map(|listen| listen.queue)
    }
    let name = |fields: &str| -> Result<QueueName, InvalidQueueRequest> {
        let of = |rest: &str| format!("{{{fields}{rest}}}");
        let report = of(&format!("\"listener\":\"{LISTENER}\",\"reports\":[]"));
        let (enqueue, change) = (of("\"payload\":\"/w9v\""), of("\"cancel\":[]"));
        let (listen, poll) = (of("\"credits\":1"), of("\"max\":1"));
        let found = listen_name(&listen)?;
        for other in [
            super::poll(poll.as_bytes()).map(|poll| poll.queue),
            reports(report.as_bytes()).map(|reports| reports.queue),
            super::list(DatabaseId([7; 16]), listen.replace("credits", "limit").as_bytes())
                .map(|list| list.queue.name),
            read_enqueue(enqueue.as_bytes(), 0)
                .map(|enqueue| enqueue.unwrap().transaction.enqueues[0].queue.clone()),
            super::change(change.as_bytes()).map(|_| found.clone()),
        ] {
            assert_eq!(other, Ok(found.clone()), "{fields}");
        }
        Ok(found)
    };
    assert_eq!(name(""), Ok(QueueName::default()));
    assert_eq!(name("\"queue\":\"\","), Ok(QueueName::default()));
    assert_eq!(name("\"queue\":\"emails\","), Ok("emails".parse().unwrap()));
    let unfit = |text: String| {
        let body = format!("{{\"queue\":\"{text}\"}}");
        let refused = listen_name(&body).unwrap_err();
        assert_eq!(super::poll(body.as_bytes()).err(), Some(refused.clone()));
        assert_eq!(super::change(body.as_bytes()).err(), Some(refused.clone()));
        refused.to_string()
    };
    assert_eq!(unfit("n".repeat(65)), "The name of a queue exceeds the limit of 64 bytes.");
    assert_eq!(unfit("a\\u0000".to_owned()), "The name of a queue has a control character.");
}

#[test]
fn message_beyond_a_limit_is_refused() {
    let of = |fields: &str| {
        read_enqueue(format!("{{\"payload\":\"/w9v\",{fields}}}").as_bytes(), 0).err()
    };
    let month = limits::MAX_ENQUEUE_DELAY_MS;
    assert_eq!(of(&format!("\"delayMs\":{month}")), None);
    assert_eq!(of(&format!("\"delayMs\":{}", month + 1)), Some(limit("delayMs", month)));
    let id = |length| of(&format!("\"id\":\"{}\"", "x".repeat(length)));
    assert_eq!((id(256), id(257)), (None, Some(limit("id", 256))));
    let bad = read_enqueue(b"{\"payload\":\"?\"}", 0).err();
    assert_eq!(bad, Some(InvalidQueueRequest::Field("payload")));
    for text in ["", "aGVsbG8="] {
        let body = format!("{{\"payload\":\"{text}\"}}");
        assert_eq!(read_enqueue(body.as_bytes(), 0).err(), Some(InvalidQueueRequest::NotV8));
    }
    assert_eq!(
        of("\"id\":\"\""),
        Some(InvalidQueueRequest::Field("id")),
        "a variable that is unset"
    );
    // The limits of an atomic write hold here, too.
    let payload = |bytes: usize| {
        let payload = STANDARD.encode(vec![V8_HEADER; bytes]);
        read_enqueue(format!("{{\"payload\":\"{payload}\"}}").as_bytes(), 0).unwrap().is_ok()
    };
    assert_eq!((payload(65_536), payload(65_537)), (true, false));
}

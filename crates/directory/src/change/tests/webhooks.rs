//! Webhooks are set, rotated and removed, and people are shown no key.

use super::*;
use crate::webhook::{Webhook, WebhookKey, WebhookSettings};

fn key(byte: u8) -> WebhookKey {
    WebhookKey::new(&[byte; 32]).unwrap()
}

/// Of keys of one byte, many times over.
pub(super) fn settings(url: &str, current: Option<u8>, next: Option<u8>) -> WebhookSettings {
    let (key, next_key) = (current.map(key), next.map(key));
    WebhookSettings { url: Some(url.to_owned()), key, next_key, ..WebhookSettings::default() }
}

fn set(settings: WebhookSettings) -> Change {
    Change::SetWebhook { id: DATABASE, queue: String::new(), settings }
}

fn only(cluster: &Cluster) -> &Webhook {
    let [webhook] = &cluster.databases[&DATABASE].webhooks[..] else { panic!("one webhook") };
    webhook
}

const URL: &str = "https://example.com/hook";

#[test]
fn webhook_is_set_changed_in_part_rotated_and_removed() {
    let needs = |settings| refused(&cluster(), &set(settings));
    assert_eq!(needs(settings(URL, None, None)), "a new webhook needs a key");
    let without_url = WebhookSettings { url: None, ..settings(URL, Some(1), None) };
    assert_eq!(needs(without_url), "a new webhook needs a URL");
    let next = done(&cluster(), &set(settings(URL, Some(1), None)));
    let stored = only(&next).clone();
    assert_eq!((stored.url.as_str(), stored.concurrency, stored.timeout_ms), (URL, 10, 30_000));
    let part = WebhookSettings {
        concurrency: Some(3),
        timeout_ms: Some(5000),
        next_key: Some(key(2)),
        ..WebhookSettings::default()
    };
    let next = done(&next, &set(part));
    let changed = Webhook { concurrency: 3, timeout_ms: 5000, next_key: Some(key(2)), ..stored };
    assert_eq!(only(&next), &changed);
    let (id, queue) = (DATABASE, String::new());
    let rotate = Change::RotateWebhookKey { id, queue: queue.clone() };
    let rotated = done(&next, &rotate);
    assert_eq!((&only(&rotated).key, &only(&rotated).next_key), (&key(2), &None));
    assert_eq!(refused(&rotated, &rotate), "the webhook has no next key");
    let anew = done(&next, &set(WebhookSettings { key: Some(key(3)), ..Default::default() }));
    assert_eq!((&only(&anew).key, &only(&anew).next_key), (&key(3), &None));
    let remove = Change::RemoveWebhook { id, queue };
    let removed = done(&next, &remove);
    assert_eq!(removed.databases[&DATABASE].webhooks, []);
    assert_eq!(refused(&removed, &remove), "the queue has no webhook");
    assert_eq!(refused(&removed, &rotate), "the queue has no webhook");
}

#[test]
fn webhook_out_of_its_limits_is_refused() {
    let present = done(&cluster(), &set(settings(URL, Some(1), None)));
    let refused = |settings| refused(&present, &set(settings));
    let part = |concurrency, timeout_ms| {
        refused(WebhookSettings { concurrency, timeout_ms, ..Default::default() })
    };
    assert!(part(Some(0), None).contains("1 to 1000"));
    assert!(part(Some(1001), None).contains("1 to 1000"));
    assert!(part(None, Some(999)).contains("1000 to 600000 ms"));
    assert!(part(None, Some(600_001)).contains("1000 to 600000 ms"));
    assert!(refused(settings("ftp://x/", None, None)).contains("not of ftp"));
    assert_eq!(refused(settings(URL, None, Some(1))), "the next key is the current one");
    let mut hidden = settings(URL, Some(2), None);
    hidden.hide_keys();
    assert_eq!(refused(hidden), "the key is missing");
    let forged =
        r#"{"fingerprint":"00000000","base64":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}"#;
    let forged = Some(serde_json::from_str(forged).unwrap());
    let forged = WebhookSettings { key: forged, ..Default::default() };
    assert_eq!(refused(forged), "the key is not that of its fingerprint");
    let settings = settings(URL, Some(1), None);
    let of = |queue: &str| Change::SetWebhook {
        id: DATABASE,
        queue: queue.to_owned(),
        settings: settings.clone(),
    };
    assert!(super::refused(&present, &of("a\nb")).contains("control character"));
    let filled =
        (1..100).fold(present.clone(), |cluster, number| done(&cluster, &of(&number.to_string())));
    assert_eq!(super::refused(&filled, &of("mail")), "a database has at most 100 webhooks");
    let mut database = database("other", "a");
    database.webhooks = vec![only(&present).clone()];
    let id = DatabaseId([9; 16]);
    let create = Change::CreateDatabase { id, database, own_shard: false };
    assert_eq!(super::refused(&present, &create), "a new database has no webhook");
}

#[test]
fn stored_webhook_is_golden() {
    let next = done(&cluster(), &set(settings(URL, Some(1), Some(2))));
    let json = r#"{"queue":"","url":"https://example.com/hook","concurrency":10,"timeout_ms":30000,"key":{"fingerprint":"72cd6e84","base64":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="},"next_key":{"fingerprint":"75877bb4","base64":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="}}"#;
    assert_eq!(serde_json::to_string(only(&next)).unwrap(), json);
    assert_eq!(&serde_json::from_str::<Webhook>(json).unwrap(), only(&next));
    let read: Cluster = serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap();
    assert_eq!(read, next);
}

/// The directory's leader of a version without webhooks refuses them: it knows no such change.
#[test]
fn webhook_is_a_change_of_its_own_that_older_leaders_cannot_read() {
    #[derive(Debug, serde::Deserialize)]
    enum Before {
        #[allow(dead_code, reason = "it stands for the changes of before")]
        SetDatabase { id: DatabaseId },
    }
    let json = serde_json::to_string(&set(settings(URL, Some(1), None))).unwrap();
    let read = serde_json::from_str::<Before>(&json).unwrap_err().to_string();
    assert!(read.contains("unknown variant `SetWebhook`"), "{read}");
}

#[test]
fn keys_of_webhooks_are_shown_to_nodes_alone() {
    let change = set(settings(URL, Some(1), Some(2)));
    let next = done(&cluster(), &change);
    let is_shown = |text: &str| text.contains("AQEB") || text.contains("AgIC");
    let json = |cluster: &Cluster| serde_json::to_string(cluster).unwrap();
    assert!(is_shown(&json(&next.for_nodes())), "they sign with it");
    assert!(!is_shown(&json(&next.without_secrets(None))));
    assert!(json(&next.without_secrets(None)).contains("72cd6e84"));
    let shown = change.without_keys();
    assert_eq!(change.without_secrets(), shown);
    assert!(!is_shown(&serde_json::to_string(&shown).unwrap()));
    // Whatever is logged of them.
    let debug = format!("{next:?} {change:?} {:?}", only(&next));
    assert!(!is_shown(&debug) && debug.contains("72cd6e84"), "{debug}");
}

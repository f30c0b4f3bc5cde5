//! The audit log of a gateway.

use meridian_gateway::{Sample, WhenFull};

use super::*;

fn audit(fields: &str) -> String {
    with("[gateway]\n", &format!("[gateway]\n[gateway.audit]\n{fields}\n"))
}

#[test]
fn audit_log_lies_beside_the_file_and_has_all_requests_without_keys_by_default() {
    let settings = |text: &str| parse(&audit(text)).unwrap().gateway.audit.unwrap();
    let by_default = settings("file = \"audit.jsonl\"");
    let expected = AuditSettings {
        file: "/etc/meridian/audit.jsonl".into(),
        sample: Sample::ALL,
        keys: false,
        values: false,
        when_full: WhenFull::Drop,
    };
    assert_eq!(by_default, expected);
    let other =
        "file = \"/var/log/a\"\nsample = 0.01\nkeys = true\nvalues = true\nwhen_full = \"refuse\"";
    let expected = AuditSettings {
        file: "/var/log/a".into(),
        sample: Sample::new(0.01).unwrap(),
        keys: true,
        values: true,
        when_full: WhenFull::Refuse,
    };
    assert_eq!(settings(other), expected);
    // A whole number is a number as well.
    assert_eq!(settings("file = \"a\"\nsample = 1").sample, Sample::ALL);
}

#[test]
fn audit_log_that_cannot_be_meant_is_refused() {
    let refused = |fields: &str| refused_text(&audit(fields));
    assert_eq!(refused("file = \"\""), "gateway.audit.file is empty");
    assert_eq!(
        refused("file = \"a\"\nsample = 1.5"),
        "gateway.audit.sample is 1.5: it must lie between 0 and 1"
    );
    assert_eq!(
        refused("file = \"a\"\nvalues = true"),
        "gateway.audit.values is for lines that have keys: set gateway.audit.keys, too"
    );
    assert!(refused("file = \"a\"\nwhen_full = \"wait\"").contains("expected `drop` or `refuse`"));
    assert!(refused("sample = 1.0").ends_with("missing field `file`"));
}

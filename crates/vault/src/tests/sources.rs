//! Where master keys are read, and what is refused of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::KeyError;
use crate::command::output_within;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn key_is_read_raw_and_as_text_and_other_lengths_are_refused() {
    let bytes = key_bytes(7);
    let parse = |content: &[u8]| MasterKey::parse(content, "the test").map(|key| key.id());
    let base64 = STANDARD.encode(bytes);
    let texts = [
        hex(&bytes),
        format!("{}\n", hex(&bytes).to_uppercase()),
        format!(" {base64}\n"),
        base64.trim_end_matches('=').to_owned(),
    ];
    assert_eq!(parse(&bytes).unwrap(), id(7));
    for text in texts {
        assert_eq!(parse(text.as_bytes()).unwrap(), id(7), "{text}");
    }
    // 32 digits are the first half of a key, as a file has it that is being written.
    let half = hex(&bytes)[..32].to_owned();
    for wrong in ["", "short", &half, &hex(&bytes[1..]), &format!("{}0", hex(&bytes)), "*/"] {
        assert!(matches!(parse(wrong.as_bytes()), Err(KeyError::Malformed { .. })), "{wrong}");
    }
    assert!(matches!(parse(&[0; 32]), Err(KeyError::Trivial { .. })));
}

#[test]
fn key_file_that_others_may_open_is_refused() {
    let node = Node::new();
    let path = node.key(1);
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = KeySource::File(path.clone()).read().unwrap_err();
        assert!(matches!(refused, KeyError::Exposed { .. }), "{refused}");
    }
    let missing = KeySource::File(path.with_extension("gone")).read().unwrap_err();
    assert!(missing.to_string().contains("key-1.gone"), "{missing}");
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

#[test]
fn command_tells_a_key_and_its_failure_says_why() {
    let told = KeySource::Command(shell(&format!("echo {}", hex(&key_bytes(3)))));
    assert_eq!(told.read().unwrap().id(), id(3));
    let refused = |script: &str| KeySource::Command(shell(script)).read().unwrap_err().to_string();
    let failed = refused("echo not today >&2; echo more >&2; exit 3");
    assert!(failed.contains("not today") && !failed.contains("more"), "{failed}");
    assert!(refused("yes").contains("more than 4096 bytes"));
    assert!(refused("exit 0").contains("no key of 32 bytes"));
    let none = KeySource::Command(vec!["/no/such/program".to_owned()]).read().unwrap_err();
    assert!(none.to_string().contains("does not start"), "{none}");
}

#[test]
fn command_that_hangs_is_ended_with_all_that_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let began = Instant::now();
    let refused = output_within(&shell(&script), Duration::from_millis(500)).unwrap_err();
    assert!(refused.to_string().contains("takes longer"), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(20));
    let child = fs::read_to_string(&pid).unwrap();
    let path = format!("/proc/{}/stat", child.trim());
    while let Ok(stat) = fs::read_to_string(&path) {
        // No process waits for it here, so that it may stay as a zombie.
        if stat.contains(") Z") {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "the child of the command lives: {stat}"
        );
        std::thread::yield_now();
    }
}

//! V8 values: what is read is printed within bounds, written, and read as the same value again; and
//! the portable format says the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use meridian_fuzz::{times, within};
use meridian_values::{Stored, inspect, json, v8};

/// The text of a value of a few bytes may be long, and has a bound.
const PRINTING_BYTES: usize = 256 << 20;

fuzz_target!(|data: &[u8]| {
    // Sums read numbers by themselves.
    let numeric = within(times(8, data.len()), || v8::decode(data));
    let bound = times(1024, data.len());
    let portable = within(bound, || v8::portable(Bytes::copy_from_slice(data)));
    assert_eq!(portable.len(), data.len());
    assert_eq!(v8::portable(portable.clone()), portable, "what is portable stays");
    let Ok(graph) = within(bound, || v8::read(data)) else { return };
    let written = within(bound, || v8::write(&graph));
    let again = v8::read(&written).expect("a written value is read");
    assert_eq!(v8::write(&again), written);
    let told = v8::read(&portable).expect("the portable format is read");
    assert_eq!(v8::write(&told), written, "the portable format says something else");
    let text = within(PRINTING_BYTES, || inspect::stored(&Stored::V8(graph), false));
    assert!(text.len() < 64 << 20, "{}", text.len());
    let again = Stored::V8(again);
    assert_eq!(inspect::stored(&again, false), text);
    if let Ok(number) = numeric {
        let number = v8::read(&v8::encode(&number)).expect("a number is read");
        assert_eq!(inspect::stored(&Stored::V8(number), false), text);
    }
    within(PRINTING_BYTES, || inspect::stored(&again, true));
    if let Some(json) = within(PRINTING_BYTES, || json::value(&again)) {
        assert!(json.len() < 16 << 20);
        is_json(&json);
    }
});

fn is_json(text: &str) {
    // JSON has lone surrogates, which strings of Rust have not.
    if text.contains("\\ud") {
        return;
    }
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        assert!(error.to_string().starts_with("recursion limit"), "{error}");
    }
}

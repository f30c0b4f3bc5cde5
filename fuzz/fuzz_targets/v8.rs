//! V8 values: what is read is printed within bounds, written, and read as the same value again; and
//! the portable format says the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use meridian_values::{Stored, inspect, json, v8};

fuzz_target!(|data: &[u8]| {
    // Sums read numbers by themselves.
    let numeric = v8::decode(data);
    let portable = v8::portable(Bytes::copy_from_slice(data));
    assert_eq!(portable.len(), data.len());
    let Ok(graph) = v8::read(data) else { return };
    let written = v8::write(&graph);
    let again = v8::read(&written).expect("a written value is read");
    assert_eq!(v8::write(&again), written);
    let text = inspect::stored(&Stored::V8(graph), false);
    let told = v8::read(&portable).expect("the portable format is read");
    assert_eq!(inspect::stored(&Stored::V8(told), false), text);
    if let Ok(number) = numeric {
        let number = v8::read(&v8::encode(&number)).expect("a number is read");
        assert_eq!(inspect::stored(&Stored::V8(number), false), text);
    }
    assert!(text.len() < 64 << 20, "{}", text.len());
    let again = Stored::V8(again);
    inspect::stored(&again, true);
    assert!(json::value(&again).is_none_or(|json| json.len() < 16 << 20));
});

//! Values as people write them: what is read is stored and read back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_fuzz::{times, within};
use meridian_values::{Key, Stored, inspect, literal, v8};

fuzz_target!(|text: &str| {
    let bound = times(1024, text.len());
    drop(within(bound, || literal::parse_key_word(text)));
    // A bigint may be too large for a key.
    if let Ok(key) = within(bound, || literal::parse_key(text))
        && let Ok(written) = key.encode()
    {
        let read = Key::decode(&written).expect("a written key is read");
        assert_eq!(read.to_string(), key.to_string());
    }
    let Ok(value) = within(bound, || literal::parse(text)) else { return };
    let shown = inspect::stored(&value, false);
    if let Stored::V8(graph) = value {
        let written = within(bound, || v8::write(&graph));
        let stored = v8::read(&written).expect("a written value is read");
        assert_eq!(v8::write(&stored), written);
        assert_eq!(inspect::stored(&Stored::V8(stored), false), shown);
    }
});

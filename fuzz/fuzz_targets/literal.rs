//! Values as people write them: what is read is stored and read back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_values::{Stored, inspect, literal, v8};

fuzz_target!(|text: &str| {
    drop(literal::parse_key_word(text));
    if let Ok(key) = literal::parse_key(text) {
        drop(key.encode());
    }
    let Ok(value) = literal::parse(text) else { return };
    let shown = inspect::stored(&value, false);
    if let Stored::V8(graph) = value {
        let stored = v8::read(&v8::write(&graph)).expect("a written value is read");
        assert_eq!(inspect::stored(&Stored::V8(stored), false), shown);
    }
});

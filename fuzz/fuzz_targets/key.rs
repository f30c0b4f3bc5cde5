//! Keys: a key that is read is written as it was, or in fewer bytes that are read as the same key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_values::{Key, inspect, json};

fuzz_target!(|data: &[u8]| {
    let Ok(key) = Key::decode(data) else { return };
    let written = key.encode().expect("a key that was read fits");
    assert!(written.len() <= data.len());
    let again = Key::decode(&written).expect("a written key is read");
    // By its text, since NaN is not equal to itself.
    assert_eq!(again.to_string(), key.to_string());
    inspect::key(&key, true);
    json::key(&key);
});

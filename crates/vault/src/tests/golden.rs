//! Stored bytes, made by another implementation (Node's `crypto`) from the formats as described.

use std::fs;

use super::*;
use crate::{Content, HEADER_BYTES};

const KEYRING: &str = "6d6572696469616e206b657972696e6720310aa650adf988730113606162636465666768696a6b\
    9bd65f6fdc2805ac76c87ae7eb7c7540182fa0b106454dc5601277beb194f36e7b28273fae8307c59211048288be0021\
    56f9a8e114c9a50a98e8c70757e1edf9b73e2d22d26b4ce1fd319e4c75c645cf372e09308e55bbda7ce5ee919c063652\
    6951736694592c5c257bfb3b";
const STREAM_HEADER: &str = "896d6572696469616e207661756c740a0101000007000000404142434445464748494a4b\
    c2988c000219a124e5ed3d1db7493d7449f7606f830039144f7e74deab2ed3e4595a5475c22b937ffd80c46cff60eae5";
const STREAM: &str = "9428288fa85d5f43f37797c97dac0d8333be9cc8f698266f09";
const CHUNKS_HEADER: &str = "896d6572696469616e207661756c740a0102000007000000404142434445464748494a4b\
    c2988c000219a124e5ed3d1db7493d7449f7606f830039144f7e74deab2ed3e4eb0cbb1c12b74ecec39653c067b6ee82";
const CHUNK: &str =
    "6c8404db1cb46fc52fa8e144bf3e644c649224aeac0b7a179559627f6381a0452e35746ec94449a2";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.as_chunks::<2>().0.iter().map(byte).collect()
}

fn header(hex: &str) -> Vec<u8> {
    let mut header = bytes(hex);
    header.resize(HEADER_BYTES, 0);
    header
}

#[test]
fn keyring_and_files_that_were_stored_are_read_golden() {
    let node = Node::new();
    fs::write(node.path("keyring"), bytes(KEYRING)).unwrap();
    fs::write(node.path("high-water"), [header(CHUNKS_HEADER), bytes(CHUNK)].concat()).unwrap();
    let key = node.key(1);
    fs::write(&key, (128..160).collect::<Vec<u8>>()).unwrap();
    let settings = EncryptionSettings { key: KeySource::File(key), ..node.settings(2) };
    let folder = node.open(&settings).unwrap();
    let status = vault(&folder).status();
    assert_eq!((status.master.to_string().as_str(), status.data_key), ("a650adf988730113", 7));
    assert_eq!(status.data_key_ms, 2000);
    assert_eq!(read(&folder, &node.path("high-water")).unwrap(), b"golden content of a file");
    let opened = vault(&folder).open_stream(&node.path("db/1.sst"), &header(STREAM_HEADER), 5000);
    let cipher = match opened {
        Ok(Content::Encrypted(cipher)) => cipher,
        other => panic!("{other:?}"),
    };
    let mut content = bytes(STREAM);
    cipher.apply(0, &mut content);
    assert_eq!(content, b"golden content of a table");
}

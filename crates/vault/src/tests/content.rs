//! The content of files, and damage of them that is found.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};

use zeroize::Zeroizing;

use super::*;
use crate::files::CHUNK_BYTES;
use crate::header::{self, Kind};
use crate::key::{DataKey, KEY_BYTES, TAG_BYTES};
use crate::{Content, FileCipher, HEADER_BYTES};

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn file_of_any_length_is_read_as_it_was_written_and_from_anywhere() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    let path = node.path("high-water");
    let chunk = CHUNK_BYTES;
    for length in [0, 1, 100, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk + 17] {
        let written = content(length);
        let mut file = folder.create(&path).unwrap();
        for piece in written.chunks(1000) {
            file.write_all(piece).unwrap();
        }
        file.finish().unwrap();
        assert_eq!(read(&folder, &path).unwrap(), written);
        let mut reader = folder.read(&path).unwrap();
        assert_eq!(reader.content_bytes(), length as u64);
        for back in [0, 1, 72, chunk, length].into_iter().filter(|back| *back <= length) {
            reader.seek(SeekFrom::End(-i64::try_from(back).unwrap())).unwrap();
            let mut end = Vec::new();
            reader.read_to_end(&mut end).unwrap();
            assert_eq!(end, written[length - back..]);
        }
    }
}

#[test]
fn encrypted_file_tells_nothing_of_its_content_and_two_of_the_same_differ() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    let text = b"secret text that is not to be read in the folder".repeat(3000);
    node.write(&folder, "orphans/a.orphans", &text);
    node.write(&folder, "orphans/b.orphans", &text);
    let stored = |name| fs::read(node.path(name)).unwrap();
    let (a, b) = (stored("orphans/a.orphans"), stored("orphans/b.orphans"));
    let holds = |bytes: &[u8]| bytes.windows(6).any(|window| window == b"secret");
    assert!(!holds(&a) && !holds(&b));
    assert!(
        a[HEADER_BYTES..].iter().zip(&b[HEADER_BYTES..]).filter(|(x, y)| x == y).count() < 1000
    );
    // The search finds it where it is.
    node.write(&Folder::from(node.data.path()), "orphans/c.orphans", &text);
    assert!(holds(&stored("orphans/c.orphans")));
}

#[test]
fn chunk_that_was_changed_moved_cut_off_or_added_is_found() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    let path = node.path("high-water");
    node.write(&folder, "high-water", &content(3 * CHUNK_BYTES + 100));
    let whole = fs::read(&path).unwrap();
    let chunk = CHUNK_BYTES + TAG_BYTES;
    let (header, body) = whole.split_at(HEADER_BYTES);
    let mut swapped = body.to_vec();
    swapped[..2 * chunk].rotate_left(chunk);
    let mut changed = body.to_vec();
    changed[chunk + 5] ^= 1;
    let doubled = [&body[..chunk], body].concat();
    let damaged = [
        swapped,
        changed,
        doubled,
        body[..3 * chunk].to_vec(),
        body[..body.len() - 1].to_vec(),
        body[..chunk + 3].to_vec(),
        [body, &[0; 16]].concat(),
        Vec::new(),
    ];
    for (number, damaged) in damaged.iter().enumerate() {
        fs::write(&path, [header, damaged].concat()).unwrap();
        let error = read(&folder, &path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{number}: {error}");
    }
    for at in (0..84).filter(|at| !(18..20).contains(at)) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, &changed).unwrap();
        let found = read(&folder, &path);
        let is_plain = at < 16 && found.as_ref().is_ok_and(|read| *read == changed);
        assert!(is_plain || found.is_err(), "byte {at} of the header");
    }
    fs::write(&path, &whole).unwrap();
    assert!(read(&folder, &path).is_ok());
}

#[test]
fn encrypted_file_is_not_read_without_its_vault() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    node.write(&folder, "high-water", b"what was kept");
    let error = read(&Folder::from(node.data.path()), &node.path("high-water")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

/// The same stream from whatever offset it is begun, and the one of the standard: the first block
/// is the zero block under the zero key, by NIST.
#[test]
fn stream_of_a_file_is_that_of_its_key_at_every_offset_golden() {
    let cipher = FileCipher::new(&Zeroizing::new([0; KEY_BYTES]));
    let mut whole = vec![0; 200];
    cipher.apply(0, &mut whole);
    let block: String = whole[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(block, "dc95c078a2408989ad48a21492842087");
    for from in 0..whole.len() {
        let mut rest = vec![0; whole.len() - from];
        cipher.apply(from as u64, &mut rest);
        assert_eq!(rest, whole[from..]);
    }
    let mut far = [0; 16];
    cipher.apply(1 << 40, &mut far);
    assert_ne!(far, whole[..16]);
}

#[test]
fn header_is_read_by_its_data_key_for_its_own_kind_alone() {
    let node = Node::new();
    let folder = node.open(&node.settings(1)).unwrap();
    let path = node.path("db/000001.sst");
    let (header, _) = vault(&folder).begin_stream(&path).unwrap().unwrap();
    assert_eq!(header.len(), HEADER_BYTES);
    for name in ["db/000001.dbtmp", "db/OPTIONS-000007"] {
        assert!(vault(&folder).begin_stream(&node.path(name)).unwrap().is_none(), "{name}");
    }
    let opened = |head: &[u8], bytes| vault(&folder).open_stream(&path, head, bytes);
    assert!(matches!(opened(&header, 4096), Ok(Content::Encrypted(_))));
    assert!(matches!(opened(&header[..128], 5000), Ok(Content::Encrypted(_))));
    // A crash, or a full disk, while the header was written.
    assert!(matches!(opened(&header[..128], 4095), Ok(Content::Empty)));
    assert!(matches!(opened(&header[..3], 3), Ok(Content::Empty)));
    assert!(matches!(opened(&[], 0), Ok(Content::Plain)));
    assert!(matches!(opened(&[0; 128], 8192), Ok(Content::Plain)));
    let (chunks, _) = vault(&folder).begin(Kind::Chunks).unwrap().unwrap();
    assert!(matches!(opened(&chunks, 5000), Err(VaultError::DamagedHeader { .. })));
    let other = DataKey::new(1, 0, Zeroizing::new([9; KEY_BYTES]));
    assert!(header::open(&header, Kind::Stream, &other).is_none());
}

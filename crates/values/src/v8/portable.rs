//! Values in the format that every client reads.
//!
//! Deno writes format 16 from 2.8 on; Node, Python and older versions of Deno read up to 15, and
//! refuse the rest by the byte of the version alone. The formats differ in the lengths of buffers
//! and views: 16 writes them in up to 64 bits, 15 in 32. The lengths of present bytes are far below
//! that in any value that fits under a key. The limit of a resizable buffer's growth need not be: a
//! value in which it is 4 GiB or more can only be written in 16.

use bytes::Bytes;

use crate::graph::Object;

use super::input::VARINT_BYTES;
use super::read::is_portable;
use super::{NEWEST_VERSION, WRITTEN_VERSION, tag};

/// The same value in format 15, if it is one in format 16 that can be said so. Everything else is
/// left as it is, also bytes that are no value.
pub fn portable(data: Bytes) -> Bytes {
    let [tag::VERSION, version, rest @ ..] = data.as_ref() else { return data };
    if u32::from(*version) != NEWEST_VERSION || (may_differ(rest) && !is_portable(&data)) {
        return data;
    }
    [&[tag::VERSION, WRITTEN_VERSION], rest].concat().into()
}

/// Whether the formats may read something else in these bytes: in the length of a buffer that can
/// grow, or in a length of more bytes than 15 reads, which no V8 writes.
fn may_differ(rest: &[u8]) -> bool {
    let mut continued = rest.split(|byte| *byte < 0x80);
    rest.contains(&tag::RESIZABLE_BUFFER)
        || (rest.contains(&tag::BUFFER) && continued.any(|run| run.len() >= VARINT_BYTES))
}

/// Whether format 15 can say the length up to which a buffer may grow.
pub(super) fn fits_portable(object: &Object) -> bool {
    let Object::Buffer(buffer) = object else { return true };
    buffer.max_length.is_none_or(|length| u32::try_from(length).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v8::read;

    #[test]
    fn values_of_format_16_become_those_of_15_and_others_stay() {
        for (data, expected) in [
            (&b"\xff\x10I\x02"[..], &b"\xff\x0fI\x02"[..]),
            (b"\xff\x10\"\x01~", b"\xff\x0f\"\x01~"),
            (b"\xff\x0fI\x02", b"\xff\x0fI\x02"),
            (b"\xff\x11I\x02", b"\xff\x11I\x02"),
            (b"\xff\x10", b"\xff\x0f"),
            (b"\xff", b"\xff"),
            (b"", b""),
            (b"\x10\xff", b"\x10\xff"),
        ] {
            assert_eq!(portable(Bytes::from_static(data)), expected, "{data:?}");
        }
    }

    #[test]
    fn buffer_that_may_grow_beyond_4_gib_stays_in_format_16() {
        let growing = |max: &[u8]| [b"\xff\x10A\x01~\x01", max, b"\x07$\x00\x01"].concat();
        let (small, largest, beyond) =
            (growing(b"\x10"), growing(b"\xff\xff\xff\xff\x0f"), growing(b"\x80\x80\x80\x80\x10"));
        for data in [small, largest] {
            let portable = portable(data.clone().into());
            assert_eq!((portable[1], &portable[2..]), (15, &data[2..]));
            assert_eq!(read(&portable).unwrap(), read(&data).unwrap());
        }
        assert_eq!(portable(beyond.clone().into()), beyond);
        // In 15 the length would be another: 0.
        let relabelled = [b"\xff\x0f", &beyond[2..]].concat();
        assert_ne!(read(&relabelled).ok(), read(&beyond).ok());
        // The longest that both read as the same.
        let long = Bytes::from_static(b"\xff\x10B\x81\x80\x80\x80\x00\x07");
        assert_eq!(read(&portable(long.clone())).unwrap(), read(&long).unwrap());
        assert_eq!(portable(long)[1], 15);
        // Bytes that cannot be read are not touched.
        let cut = b"\xff\x10A\x01~\x05";
        assert_eq!(portable(Bytes::from_static(cut)), &cut[..]);
    }

    #[test]
    fn value_with_a_length_that_only_format_16_reads_stays_in_it() {
        let long_length = b"\xff\x10B\x83\x80\x80\x80\x80\x00abc";
        let long_offset = b"\xff\x10B\x03abcVB\x81\x80\x80\x80\x80\x00\x02\x00";
        for data in [&long_length[..], long_offset] {
            assert!(read(data).is_ok());
            assert_eq!(portable(Bytes::copy_from_slice(data)), data);
            let relabelled = [b"\xff\x0f", &data[2..]].concat();
            assert_ne!(read(&relabelled).ok(), read(data).ok());
        }
    }
}

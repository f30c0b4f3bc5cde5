//! Bytes to tags, varints and numbers.

use num_bigint::{BigInt, Sign};

use super::tag;

/// Bytes of a varint at most, but for the lengths of buffers and views in the newest format.
pub(super) const VARINT_BYTES: usize = 5;

/// The bytes end too early, or claim to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut;

/// Bytes that are read from the front. Claimed lengths are compared with what is there before
/// anything is made of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { rest: data, length: data.len() }
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> usize {
        self.length - self.rest.len()
    }

    pub(super) fn byte(&mut self) -> Result<u8, Cut> {
        let (&byte, rest) = self.rest.split_first().ok_or(Cut)?;
        self.rest = rest;
        Ok(byte)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Cut> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Cut)?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(super) fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], Cut> {
        self.bytes(LEN)?.try_into().map_err(|_| Cut)
    }

    /// The next byte that is not padding.
    pub(super) fn tag(&mut self) -> Result<u8, Cut> {
        loop {
            let byte = self.byte()?;
            if byte != tag::PADDING {
                return Ok(byte);
            }
        }
    }

    /// The next tag, which stays.
    pub(super) fn peek_tag(&self) -> Option<u8> {
        self.rest.iter().copied().find(|byte| *byte != tag::PADDING)
    }

    /// At most five bytes; what does not fit 32 bits is dropped, as V8 does.
    pub(super) fn varint(&mut self) -> Result<u32, Cut> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }

    /// At most ten bytes; what does not fit 64 bits is dropped. For the lengths of buffers and views.
    pub(super) fn long_varint(&mut self) -> Result<u64, Cut> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }

    pub(super) fn zigzag(&mut self) -> Result<i32, Cut> {
        let encoded = self.varint()?;
        let magnitude = (encoded >> 1).cast_signed();
        Ok(if encoded & 1 == 0 { magnitude } else { !magnitude })
    }

    pub(super) fn double(&mut self) -> Result<f64, Cut> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    /// A bit field (lowest bit: the sign, next 30: the length in bytes), and the magnitude,
    /// little-endian.
    pub(super) fn bigint(&mut self) -> Result<BigInt, Cut> {
        let bitfield = self.varint()?;
        let sign = if bitfield & 1 == 0 { Sign::Plus } else { Sign::Minus };
        let len = usize::try_from((bitfield & 0x7fff_fffe) >> 1).map_err(|_| Cut)?;
        Ok(BigInt::from_bytes_le(sign, self.bytes(len)?))
    }
}

/// A varint: seven bits at a time, the lowest first, each byte but the last with its top bit set.
pub(super) fn push_varint(mut value: u64, data: &mut Vec<u8>) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            data.push(low & 0x7f);
            return;
        }
        data.push(low | 0x80);
    }
}

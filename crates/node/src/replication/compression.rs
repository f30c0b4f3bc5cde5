//! The compression of log batches on their way between nodes: one zstd stream for each
//! subscription. Shipments refer back to earlier ones, so that small shipments take as little as
//! large ones.
//!
//! Both sides of a stream have its state, and belong to one subscription: they end with it, and
//! with whatever is refused. A frame ends where nothing was shipped for a while, and both sides
//! give back their memory. Where one of them has no memory for it, each part is a frame of its own.

use std::io::{self, Write};

use meridian_memory::{ByteBudget, Held};
use meridian_proto::shipping::{Batches, StoredBatches};
use meridian_types::Position;
use prost::Message;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};
use zstd::stream::write::Encoder;

use crate::replication::wire::position_to_wire;

const LEVEL: i32 = 1;
/// How far back a stream refers: 64 KiB. Twice as much takes twice the memory, and makes shipments
/// of JSON smaller by 0 to 3 %.
const WINDOW_LOG: u32 = 16;
/// The memory of a stream at its compressing end, and at its decompressing end.
const COMPRESSOR_BYTES: usize = 576 << 10;
pub(crate) const DECOMPRESSOR_BYTES: usize = 384 << 10;
/// Decompressed batches of one message at most.
const MAX_STORED_BYTES: u32 = 64 << 20;
/// The first bytes of a frame. Frames of earlier versions of zstd, which are read too, have no
/// bound on their window.
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// Why a part is not what follows. Nothing that comes behind it can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidPart {
    #[error("part {found} came where part {due} was due")]
    OutOfOrder { found: u64, due: u64 },
    #[error("an earlier part was refused")]
    Broken,
    #[error("{0} bytes are more than a part may hold")]
    TooLarge(u32),
    #[error("it does not hold the {0} bytes that it says")]
    OtherSize(u32),
    #[error("no zstd frame begins here")]
    NoFrame,
    #[error("something lies behind the end of the frame")]
    BehindTheEnd,
    #[error("its frame goes on, but each was to end with its part")]
    Unended,
    #[error("zstd: {0}")]
    Zstd(#[from] io::Error),
}

/// The side that ships.
pub(crate) struct Compressor {
    /// Where the memory of a frame that goes on comes from; `None` where the other side has none.
    memory: Option<ByteBudget>,
    frame: Option<(Encoder<'static, Vec<u8>>, Held)>,
    parts: u64,
}

impl Compressor {
    pub(crate) fn new(memory: Option<ByteBudget>) -> Self {
        Self { memory, frame: None, parts: 0 }
    }

    /// The next part: it has to arrive, or nothing that comes behind it can be read.
    ///
    /// # Errors
    /// When zstd has no memory. The stream has to end then.
    pub(crate) fn compress(
        &mut self,
        previous: Position,
        batches: &StoredBatches,
    ) -> io::Result<Batches> {
        let stored = batches.encode_to_vec();
        let stored_bytes = u32::try_from(stored.len()).map_err(io::Error::other)?;
        let (mut encoder, memory) = match self.frame.take() {
            Some((encoder, memory)) => (encoder, Some(memory)),
            None => {
                let mut encoder = Encoder::new(Vec::new(), LEVEL)?;
                encoder.window_log(WINDOW_LOG)?;
                (
                    encoder,
                    self.memory.as_ref().and_then(|memory| memory.try_take(COMPRESSOR_BYTES).ok()),
                )
            }
        };
        encoder.write_all(&stored)?;
        let zstd = match memory {
            None => encoder.finish()?,
            Some(memory) => {
                encoder.flush()?;
                let zstd = std::mem::take(encoder.get_mut());
                self.frame = Some((encoder, memory));
                zstd
            }
        };
        Ok(self.part(previous, zstd, stored_bytes))
    }

    /// Ends the frame, if there is one, and gives back its memory. The part holds no batches and
    /// has to arrive too.
    ///
    /// # Errors
    /// As [`Self::compress`].
    pub(crate) fn end_frame(&mut self, previous: Position) -> io::Result<Option<Batches>> {
        let Some((encoder, _)) = self.frame.take() else { return Ok(None) };
        let zstd = encoder.finish()?;
        Ok(Some(self.part(previous, zstd, 0)))
    }

    fn part(&mut self, previous: Position, zstd: Vec<u8>, stored_bytes: u32) -> Batches {
        let part = self.parts;
        self.parts += 1;
        Batches {
            previous: Some(position_to_wire(previous)),
            zstd: zstd.into(),
            part,
            stored_bytes,
        }
    }
}

/// The side that is shipped to.
pub(crate) struct Decompressor {
    /// For a frame that goes on; `None`: none does.
    memory: Option<Held>,
    frame: Option<Decoder<'static>>,
    /// The number of the part that comes next; `None` when one was refused.
    due: Option<u64>,
}

impl Decompressor {
    /// `memory`: [`DECOMPRESSOR_BYTES`], unless each part is a frame of its own.
    pub(crate) fn new(memory: Option<Held>) -> Self {
        Self { memory, frame: None, due: Some(0) }
    }

    /// The content of the next part: encoded batches, and never more bytes than it claims. Their
    /// own checksums say whether they are as they were sent.
    ///
    /// # Errors
    /// When it is not the next part, or holds what it may not. Everything behind it is refused
    /// then.
    pub(crate) fn decompress(&mut self, batches: &Batches) -> Result<Vec<u8>, InvalidPart> {
        let due = self.due.take().ok_or(InvalidPart::Broken)?;
        if batches.part != due {
            return Err(InvalidPart::OutOfOrder { found: batches.part, due });
        }
        let (zstd, said) = (&batches.zstd, batches.stored_bytes);
        if said > MAX_STORED_BYTES {
            return Err(InvalidPart::TooLarge(said));
        }
        let bytes = usize::try_from(said).map_err(io::Error::other)?;
        let mut decoder = match self.frame.take() {
            Some(decoder) => decoder,
            None if zstd.starts_with(&MAGIC) => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
                decoder
            }
            None => return Err(InvalidPart::NoFrame),
        };
        // One byte more than are due: what fills it is too much, and what does not has been
        // decompressed to the end.
        let mut stored = Vec::with_capacity(bytes + 1);
        let (mut input, mut output) = (InBuffer::around(zstd), OutBuffer::around(&mut stored));
        let ended = loop {
            let hint = decoder.run(&mut input, &mut output)?;
            if output.pos() > bytes {
                return Err(InvalidPart::OtherSize(said));
            }
            if hint == 0 || input.pos() == zstd.len() {
                break hint == 0;
            }
        };
        if input.pos() < zstd.len() {
            return Err(InvalidPart::BehindTheEnd);
        }
        if output.pos() < bytes {
            return Err(InvalidPart::OtherSize(said));
        }
        if !ended {
            if self.memory.is_none() {
                return Err(InvalidPart::Unended);
            }
            self.frame = Some(decoder);
        }
        self.due = due.checked_add(1);
        Ok(stored)
    }
}

#[cfg(test)]
mod tests;

//! Packets that lie in one buffer at a fixed stride, as one UDP send with segmentation takes them.
use std::ops::Range;

use crate::{MAX_TEXT, TAG};

/// Where packets lie in a buffer: `header`, text and tag, again every `stride` bytes. All numbers but `count` are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// From the beginning of one packet to that of the next.
    pub stride: usize,
    /// Before each text; it is left alone and is not part of what the tag protects.
    pub header: usize,
    /// Text of every packet but the last.
    pub length: usize,
    /// Text of the last packet.
    pub last_length: usize,
    /// Packets.
    pub count: usize,
}

/// Why a run cannot be sealed. Each is a fault of the caller; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A packet would reach into the next one.
    #[error("packets of the run overlap")]
    Overlap,
    /// The last packet would reach behind the buffer.
    #[error("the buffer is shorter than the run")]
    Buffer,
    /// A text is longer than [`MAX_TEXT`].
    #[error("a text of the run is too long")]
    Text,
    /// Counters would begin anew, which would use a nonce twice.
    #[error("the counters of the run pass 2^64 - 1")]
    Counters,
}

impl Run {
    pub(crate) fn check(&self, first_counter: u64, buffer: usize) -> Result<(), RunError> {
        let Some(before_last) = self.count.checked_sub(1) else { return Ok(()) };
        first_counter.checked_add(before_last as u64).ok_or(RunError::Counters)?;
        if self.last_length > MAX_TEXT || (before_last > 0 && self.length > MAX_TEXT) {
            return Err(RunError::Text);
        }
        let around = self.header.checked_add(TAG).ok_or(RunError::Buffer)?;
        if before_last > 0 && around.checked_add(self.length).is_none_or(|packet| packet > self.stride) {
            return Err(RunError::Overlap);
        }
        let last = before_last.checked_mul(self.stride).ok_or(RunError::Buffer)?;
        let end = around.checked_add(self.last_length).and_then(|packet| packet.checked_add(last));
        if end.is_none_or(|end| end > buffer) { Err(RunError::Buffer) } else { Ok(()) }
    }

    pub(crate) fn text_of(&self, index: usize) -> usize {
        if index + 1 == self.count { self.last_length } else { self.length }
    }

    /// The text's place in the part of the buffer that begins with the packet.
    pub(crate) fn text(&self, index: usize) -> Range<usize> {
        self.header..self.header + self.text_of(index)
    }
}

//! A sealed packet on its way to being an opened one.

/// One packet to open: the text with its tag behind it, and the counter that makes its nonce.
#[derive(Debug)]
pub struct Sealed<'p> {
    pub(crate) counter: u64,
    pub(crate) bytes: &'p mut [u8],
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Not looked at yet.
    Closed,
    Authentic,
    /// The tag is wrong or missing, or the text is too long. The bytes are still sealed, or were wiped.
    Refused,
}

impl<'p> Sealed<'p> {
    /// A packet under `counter`; `bytes` are the sealed text and the tag, without any header.
    pub fn new(counter: u64, bytes: &'p mut [u8]) -> Self {
        Self { counter, bytes, outcome: Outcome::Closed }
    }

    /// The counter it was made with.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// The text, without the tag, if the packet was opened and is authentic; nothing otherwise.
    pub fn into_text(self) -> Option<&'p mut [u8]> {
        match self.outcome {
            Outcome::Authentic => self.bytes.split_last_chunk_mut::<{ crate::TAG }>().map(|(text, _)| text),
            Outcome::Closed | Outcome::Refused => None,
        }
    }

    /// Whether the packet was opened and is authentic.
    pub fn is_authentic(&self) -> bool {
        self.outcome == Outcome::Authentic
    }
}

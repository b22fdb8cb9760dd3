//! Packets that are sealed or opened at once.

/// The most packets of a group: lanes of 64 bits in a register of 512.
pub(crate) const LANES: usize = 8;

/// Up to eight packets under one key.
pub(crate) struct Group<'t> {
    /// How many of the following are there; the others are ignored.
    pub(crate) count: usize,
    pub(crate) counters: [u64; LANES],
    /// Texts without header and tag, each at most [`crate::MAX_TEXT`] bytes.
    pub(crate) texts: [&'t mut [u8]; LANES],
}

impl<'t> Group<'t> {
    pub(crate) fn new() -> Self {
        Self { count: 0, counters: [0; LANES], texts: Default::default() }
    }

    /// Adds a packet and tells its lane.
    ///
    /// # Panics
    /// If the group is full.
    pub(crate) fn add(&mut self, counter: u64, text: &'t mut [u8]) -> usize {
        let lane = self.count;
        self.counters[lane] = counter;
        self.texts[lane] = text;
        self.count += 1;
        lane
    }
}

//! Which way is faster for some packets.
//!
//! The numbers are nanoseconds on one machine (AMD EPYC of family 26, 'Zen 5'); only their ratio matters, and a wrong one costs time, not
//! correctness. `cargo bench -p postern-aead` measures them again. See `docs/decisions/0009-several-packets-at-once.md`.

/// What `ring` needs for a packet, and for each 64 bytes of it.
const RING: usize = 165;
const RING_BLOCK: usize = 21;
/// What a group needs before it begins: keys, powers of r, the idle part of the last pass.
const GROUP: usize = 290;
/// Cipher, for each 64 bytes of each packet, with one block a packet more for its one-time key.
const GROUP_BLOCK: usize = 5;
/// Tags, for each 64 bytes of the longest packet: all lanes wait for it.
const GROUP_STEP: usize = 12;
/// As much again for those of them that the shortest packet does not have.
const GROUP_RAGGED: usize = 10;

/// Whether packets with these lengths (bytes of text, at most eight of them) are faster together than one by one.
pub(crate) fn together(lengths: impl Iterator<Item = usize>) -> bool {
    let (mut ring, mut blocks, mut longest, mut shortest) = (0, 0, 0, usize::MAX);
    for length in lengths {
        let own = length.min(crate::MAX_TEXT) / 64 + 1;
        ring += RING + RING_BLOCK * own;
        blocks += own + 1;
        longest = longest.max(own);
        shortest = shortest.min(own);
    }
    if blocks == 0 {
        return false;
    }
    GROUP + GROUP_BLOCK * blocks + GROUP_STEP * longest + GROUP_RAGGED * (longest - shortest) < ring
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_short_packets_go_one_by_one_and_many_together() {
        for (lengths, answer) in [
            (&[][..], false),
            (&[64], false),
            (&[1_424], false),
            (&[9_008, 64], false),
            (&[9_008, 64, 64], false),
            (&[1_424; 2], true),
            (&[80; 3], true),
            (&[0; 8], true),
            (&[1_424; 8], true),
            (&[9_008; 8], true),
            (&[1_424, 80, 80], true),
            (&[usize::MAX; 8], true),
        ] {
            assert_eq!(together(lengths.iter().copied()), answer, "{lengths:?}");
        }
    }
}

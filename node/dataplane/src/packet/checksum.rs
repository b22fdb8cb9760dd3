//! The internet checksum (RFC 1071): sums of 16-bit words in one's complement, accumulated in 64 bits.
//!
//! Sums are kept in the machine's own byte order, because the one's complement sum does not care (RFC 1071 §2 B);
//! [`Sum::finish`] gives the two bytes as they stand in a header.

use std::net::IpAddr;

/// A running sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds bytes that begin at an even offset of what is summed. Only the last piece may have odd length.
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        // Eight independent 32-bit lanes in 64-bit accumulators: the compiler makes vector code of this, and
        // 2^32 words would be needed to overflow a lane.
        let mut lanes = [0u64; 8];
        let mut blocks = bytes.chunks_exact(32);
        for block in &mut blocks {
            for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
                *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        let mut sum: u64 = lanes.iter().map(|lane| u64::from(fold(*lane))).sum();
        let mut pairs = blocks.remainder().chunks_exact(2);
        for pair in &mut pairs {
            sum += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
        }
        if let [last] = pairs.remainder() {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(u64::from(fold(self.0)) + u64::from(fold(sum)))
    }

    /// Adds a 16-bit number as it stands in network order.
    #[must_use]
    pub fn add_u16(self, value: u16) -> Self {
        Self(u64::from(fold(self.0)) + u64::from(value.to_be()))
    }

    /// Adds the pseudo-header of an upper layer (RFC 9293 §3.1, RFC 8200 §8.1); `length` in bytes of that layer.
    /// Addresses of two families add nothing that a header could match.
    #[must_use]
    pub fn add_pseudo_header(self, source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Self {
        let sum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.add_bytes(&source.octets()).add_bytes(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.add_bytes(&source.octets()).add_bytes(&destination.octets())
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => self,
        };
        let length = length as u32;
        sum.add_u16((length >> 16) as u16).add_u16(length as u16).add_u16(u16::from(protocol))
    }

    /// Returns the folded sum, not complemented: what a virtio header with partial checksum wants in the field.
    pub fn partial(self) -> [u8; 2] {
        fold(self.0).to_ne_bytes()
    }

    /// Returns the checksum as its two bytes stand in a header.
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.0)).to_ne_bytes()
    }

    /// Tells whether what was summed held its own right checksum.
    pub fn is_right(self) -> bool {
        fold(self.0) == 0xffff
    }
}

const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// Returns the checksum of one piece of bytes, as it stands in a header.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    Sum::ZERO.add_bytes(bytes).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_sums_as_printed() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::ZERO.add_bytes(&bytes).partial(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn the_fast_sum_equals_the_slow_one(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
            prop_assert_eq!(checksum(&bytes), slow(&bytes).to_be_bytes());
            let cut = (cut * 2).min(bytes.len() / 2 * 2);
            let sum = Sum::ZERO.add_bytes(&bytes[..cut]).add_bytes(&bytes[cut..]);
            prop_assert_eq!(sum.finish(), slow(&bytes).to_be_bytes(), "in two pieces");
        }
    }
}

//! The checksum of a block.

use protocol::units::BLOCK_BYTES;

/// One block's size as memory is counted.
pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// CRC-32 of a block of zeros.
const ZERO_CRC: u32 = zero_crc();

/// Stands for the checksum 0 of a block that is not zero: 0 is kept for "all zero".
const INSTEAD_OF_ZERO: u32 = 1;

const fn zero_crc() -> u32 {
    // The reflected IEEE polynomial, bit by bit; only ever run by the compiler.
    let mut crc = u32::MAX;
    let mut bits = BLOCK_BYTES * 8;
    while bits > 0 {
        crc = if crc & 1 == 1 {
            (crc >> 1) ^ 0xEDB8_8320
        } else {
            crc >> 1
        };
        bits -= 1;
    }
    !crc
}

/// The checksum of `content` as a block, zeros after its end: its CRC-32 xor'ed with that of a
/// block of zeros, so that 0 says "all zero". CRC-32 is linear, so another block with this
/// remainder is easily made; it gets 1, or it would read back as zeros.
#[must_use]
pub fn block_sum(content: &[u8]) -> u32 {
    debug_assert!(content.len() <= BLOCK);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(content);
    if content.len() < BLOCK {
        hasher.update(&ZEROS[..BLOCK - content.len()]);
    }
    match hasher.finalize() ^ ZERO_CRC {
        0 if content == &ZEROS[..content.len()] => 0,
        0 => INSTEAD_OF_ZERO,
        sum => sum,
    }
}

/// A checksum that `content` does not have and that is not 0: marks a block whose old part could
/// not be read, so that it stays an error until it is repaired.
pub(crate) fn broken_sum(content: &[u8]) -> u32 {
    match block_sum(content) ^ 0x5A5A_5A5A {
        0 => 0xA5A5_A5A5,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_zero_and_nothing_else_does() {
        assert_eq!(block_sum(&[0; BLOCK]), 0);
        assert_eq!(block_sum(&[]), 0);
        let mut block = [0; BLOCK];
        block[17] = 3;
        assert_ne!(block_sum(&block), 0);
        assert_eq!(block_sum(&block[..18]), block_sum(&block));
        assert_ne!(block_sum(&block), broken_sum(&block));
    }

    #[test]
    fn a_block_made_to_have_the_checksum_of_zeros_does_not_read_as_zeros() {
        // The generator polynomial itself, as a message, has remainder 0: adding it to a block of
        // zeros changes bytes and not the CRC.
        let mut block = [0_u8; BLOCK];
        let poly: u64 = 0x1_DB71_0641;
        for (at, byte) in poly.to_le_bytes().iter().enumerate() {
            block[100 + at] = *byte;
        }
        assert_eq!(crc32fast::hash(&block), ZERO_CRC);
        assert_eq!(block_sum(&block), INSTEAD_OF_ZERO);
    }
}

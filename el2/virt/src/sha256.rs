// SPDX-License-Identifier: MIT OR Apache-2.0
//! SHA-256 (FIPS 180-4) over whole blocks of 64 bytes, eight little-endian words each.
//!
//! What is hashed here is a multiple of a block long, so no part of one is ever kept. Why it is not a crate:
//! docs/adr/0017.

use core::array;

/// Eight words of 64 bits, in the byte order of memory.
pub type Block = [u64; 8];

/// A hash that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sha256 {
    state: [u32; 8],
    blocks: u64,
}

/// FIPS 180-4, 5.3.3: fractions of the square roots of the first eight primes.
const START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// FIPS 180-4, 4.2.2: fractions of the cube roots of the first 64 primes.
#[rustfmt::skip]
const ROUNDS: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

impl Sha256 {
    /// Of nothing so far.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: START, blocks: 0 }
    }

    /// Goes on with one block.
    pub fn block(&mut self, block: &Block) {
        compress(&mut self.state, block);
        self.blocks = self.blocks.wrapping_add(1);
    }

    /// The hash of all blocks, as four words in the byte order of memory.
    #[must_use]
    pub fn finish(mut self) -> [u64; 4] {
        // FIPS 180-4, 5.1.1: a one bit, zeros, and the length in bits, big-endian; after whole blocks a block of its own.
        compress(&mut self.state, &[0x80, 0, 0, 0, 0, 0, 0, self.blocks.wrapping_mul(512).swap_bytes()]);
        let word = |n: usize| u64::from(at(&self.state, n).swap_bytes());
        array::from_fn(|n| word(n.wrapping_mul(2)) | word(n.wrapping_mul(2).wrapping_add(1)) << 32)
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

/// Word `n` of a ring of a power of two.
fn at<const N: usize>(ring: &[u32; N], n: usize) -> u32 {
    ring.get(n & N.wrapping_sub(1)).copied().unwrap_or(0)
}

/// FIPS 180-4, 6.2.2.
fn compress(state: &mut [u32; 8], block: &Block) {
    // The message schedule, sixteen words of it at a time.
    let mut ring: [u32; 16] = array::from_fn(|n| {
        let word = block.get(n >> 1).copied().unwrap_or(0);
        (if n & 1 == 0 { word as u32 } else { (word >> 32) as u32 }).swap_bytes()
    });
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (t, constant) in ROUNDS.iter().enumerate() {
        let w = at(&ring, t);
        let first = h
            .wrapping_add(e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25))
            .wrapping_add(e & f ^ !e & g)
            .wrapping_add(*constant)
            .wrapping_add(w);
        let second = (a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22)).wrapping_add(a & b ^ a & c ^ b & c);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(first), c, b, a, first.wrapping_add(second));
        // Word t + 16 takes the place of word t.
        let (one, fourteen) = (at(&ring, t.wrapping_add(1)), at(&ring, t.wrapping_add(14)));
        let next = w
            .wrapping_add(one.rotate_right(7) ^ one.rotate_right(18) ^ one >> 3)
            .wrapping_add(at(&ring, t.wrapping_add(9)))
            .wrapping_add(fourteen.rotate_right(17) ^ fourteen.rotate_right(19) ^ fourteen >> 10);
        if let Some(place) = ring.get_mut(t & 15) {
            *place = next;
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest as _;
    use std::vec::Vec;

    fn ours(bytes: &[u8]) -> Vec<u8> {
        let mut hash = Sha256::new();
        for block in bytes.as_chunks::<64>().0 {
            hash.block(&array::from_fn(|n| u64::from_le_bytes(block[8 * n..][..8].try_into().unwrap())));
        }
        hash.finish().iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..32).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
    }

    #[test]
    fn nists_vectors_of_whole_blocks() {
        // FIPS 180-4's compression, by a message that the standard pads itself: "abc" as its one padded block is not a
        // message of ours, so the constants are shown by messages of whole blocks (NIST CAVP SHA256ShortMsg, Len 0 and
        // 512).
        assert_eq!(ours(&[]), hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
        let message = "5a86b737eaea8ee976a0a24da63e7ed7eefad18a101c1211e2b3650c5187c2a8\
                       a650547208251f6d4237e661c7bf4c77f335390394c37fa1a9f9be836ac28509";
        let message = [&hex(&message[..64])[..], &hex(&message[64..])].concat();
        assert_eq!(ours(&message), hex("42e61e174fbb3897d6dd6cef3dd2802fe67b331953b06114a65c772859dfc1aa"));
    }

    #[test]
    fn it_is_the_sha256_of_others() {
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        for blocks in 0..if cfg!(miri) { 3 } else { 70 } {
            let bytes: Vec<u8> = (0..blocks * 64)
                .map(|_| {
                    word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    (word >> 56) as u8
                })
                .collect();
            assert_eq!(ours(&bytes), sha2::Sha256::digest(&bytes).to_vec(), "{blocks} blocks");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a frame holds, as far as it matters who wrote it.

/// Where in a frame a label stands: not at its edges only, so that half a scrub is none.
pub(crate) const PLACES: [usize; 3] = [0, 257, 511];

const HOST: u64 = 0x1057_da7a_0000_0001;
const SECRET: u64 = 0x5ec2_e700_0000_0000;
const TOP: u64 = 0xffff_ff00_0000_0000;

/// Who wrote what a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Label {
    /// Nothing but zeros.
    Zero,
    /// The host.
    Host,
    /// A guest: the VM of this generation in this slot.
    Secret {
        /// The slot.
        slot: u8,
        /// The low bits of the generation.
        generation: u16,
    },
    /// Nobody that the rig knows: a table, or a frame that was overwritten in part.
    Other,
}

impl Label {
    /// What the VM with this handle writes.
    #[must_use]
    pub const fn of_vm(handle: u64) -> Self {
        Self::Secret { slot: handle as u8, generation: (handle >> 16) as u16 }
    }

    /// The word that says it.
    #[must_use]
    pub(crate) const fn word(self) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Host => HOST,
            Self::Secret { slot, generation } => SECRET | (generation as u64) << 8 | slot as u64,
            Self::Other => 0x07e2,
        }
    }

    /// What a frame with these words holds.
    pub(crate) fn of_words(words: [u64; 3]) -> Self {
        match words {
            [first, middle, last] if first == middle && middle == last => {}
            // The host's, with records of a list at its beginning; neither zeros nor what a guest wrote.
            [first, HOST, HOST] if first != 0 && first & TOP != SECRET => return Self::Host,
            _ => return Self::Other,
        }
        match words[0] {
            0 => Self::Zero,
            HOST => Self::Host,
            word if word & TOP == SECRET => Self::Secret { slot: word as u8, generation: (word >> 8) as u16 },
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_survives_its_word_and_half_a_scrub_is_seen() {
        for label in [Label::Zero, Label::Host, Label::of_vm(3 << 16 | 1)] {
            assert_eq!(Label::of_words([label.word(); 3]), label);
        }
        assert_eq!(Label::of_words([0, 0, Label::Host.word()]), Label::Other);
        assert_eq!(Label::of_words([0, Label::Host.word(), Label::Host.word()]), Label::Other);
        assert_eq!(Label::of_words([Label::of_vm(3).word(), HOST, HOST]), Label::Other);
        assert_eq!(Label::of_words([0x4_0200, HOST, HOST]), Label::Host);
    }
}

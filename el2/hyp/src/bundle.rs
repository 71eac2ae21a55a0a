// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bundle: what the manifest behind our Image header says, and whether it can be true.
//!
//! Guarantees that every offset handed out lies in the bundle, is a 2 MB multiple where it must be,
//! and that the parts do not overlap. Does not know where the bundle was loaded.

use crate::stop::Stop;

/// Bytes of a stage-2 block: everything here is placed in whole ones.
pub const BLOCK: u64 = 2 << 20;
/// First manifest word: "FHBUNDL1" in memory order.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FHBUNDL1");
/// What stands right behind the payload's last byte.
pub const TRAILER: [u8; 16] = *b"FREEHOLD-TRAILER";
/// Bytes of an arm64 Image header.
pub const IMAGE_HEADER: usize = 64;
/// Largest bundle that is believed.
const MAX_BYTES: u64 = 1 << 30;

/// A manifest whose numbers fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Offset of the payload from the image start. Below it, all is el2's.
    pub payload_offset: u64,
    /// Bytes of the payload's file.
    pub payload_len: u64,
    /// Bytes that the payload takes in memory.
    pub payload_image_size: u64,
    /// Offset of the slot for the edited DTB.
    pub dtb_slot_offset: u64,
    /// Bytes of that slot.
    pub dtb_slot_len: u64,
}

const PLACE: &str = "the bundle manifest, offset";

impl Bundle {
    /// Checks the manifest's words against each other and against the size of el2's own part.
    ///
    /// # Errors
    /// A `Stop` for each number that cannot be true.
    pub fn check(words: &[u64; 8], own_size: u64) -> Result<Self, Stop> {
        let [magic, payload_offset, payload_len, payload_image_size, dtb_slot_offset, dtb_slot_len, _, _] = *words;
        if magic != MAGIC {
            return Err(Stop::with("no payload is bundled (use `cargo xtask image`)", PLACE, 64));
        }
        if !payload_offset.is_multiple_of(BLOCK) || payload_offset < own_size || payload_offset > MAX_BYTES {
            return Err(Stop::with("payload offset is wrong", PLACE, payload_offset));
        }
        if payload_len < IMAGE_HEADER as u64 || payload_len > MAX_BYTES {
            return Err(Stop::with("payload length is wrong", PLACE, payload_len));
        }
        if payload_image_size == 0 || payload_image_size > MAX_BYTES {
            return Err(Stop::with("payload image size is wrong", PLACE, payload_image_size));
        }
        let bundle = Self { payload_offset, payload_len, payload_image_size, dtb_slot_offset, dtb_slot_len };
        if !dtb_slot_offset.is_multiple_of(BLOCK) || dtb_slot_offset < bundle.payload_end() {
            return Err(Stop::with(
                "payload is larger than its place, or the DTB slot overlaps it",
                PLACE,
                dtb_slot_offset,
            ));
        }
        if dtb_slot_len != BLOCK || dtb_slot_offset > MAX_BYTES.saturating_mul(4) {
            return Err(Stop::with("DTB slot is wrong", PLACE, dtb_slot_len));
        }
        Ok(bundle)
    }

    /// Offset behind the payload: its file with the trailer, or its memory, whichever is longer.
    fn payload_end(&self) -> u64 {
        let file = self.payload_len.saturating_add(TRAILER.len() as u64);
        self.payload_offset.saturating_add(file.max(self.payload_image_size))
    }

    /// Offset of the trailer.
    pub fn trailer_offset(&self) -> u64 {
        self.payload_offset.saturating_add(self.payload_len)
    }

    /// Bytes from the image start to the end of the DTB slot.
    pub fn total(&self) -> u64 {
        self.dtb_slot_offset.saturating_add(self.dtb_slot_len)
    }

    /// Checks the payload's own Image header and the trailer behind the payload.
    ///
    /// # Errors
    /// The payload is no arm64 Image, does not fit the manifest, or was cut off.
    pub fn check_payload(&self, header: &[u8; IMAGE_HEADER], trailer: &[u8; 16]) -> Result<(), Stop> {
        let place = "payload offset";
        if *trailer != TRAILER {
            return Err(Stop::with("payload is truncated (no trailer behind it)", place, self.trailer_offset()));
        }
        if header.get(0x38..0x3c) != Some(b"ARM\x64") {
            return Err(Stop::with("payload is no arm64 Image (bad magic)", place, self.payload_offset));
        }
        let text_offset = word(header, 8);
        if text_offset != 0 {
            return Err(Stop::with("payload has a non-zero text offset", place, text_offset));
        }
        let size = word(header, 16);
        if size == 0 || size > self.payload_image_size {
            return Err(Stop::with("payload is larger in memory than the manifest says", place, size));
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let end = at.saturating_add(8);
    bytes.get(at..end).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [u64; 8] = [MAGIC, BLOCK, 1000, 5000, 2 * BLOCK, BLOCK, 0, 0];

    fn what(words: [u64; 8]) -> &'static str {
        Bundle::check(&words, BLOCK).unwrap_err().what()
    }

    fn with(at: usize, value: u64) -> [u64; 8] {
        let mut words = GOOD;
        words[at] = value;
        words
    }

    #[test]
    fn a_true_manifest_is_taken() {
        let bundle = Bundle::check(&GOOD, BLOCK).unwrap();
        assert_eq!(bundle.trailer_offset(), BLOCK + 1000);
        assert_eq!(bundle.total(), 3 * BLOCK);
    }

    #[test]
    fn each_wrong_number_is_refused_by_name() {
        assert!(what(with(0, 0)).starts_with("no payload is bundled"));
        for offset in [0, 4096, BLOCK + 1, u64::MAX, u64::MAX - BLOCK + 1] {
            assert_eq!(what(with(1, offset)), "payload offset is wrong");
        }
        for len in [0, 63, MAX_BYTES + 1, u64::MAX] {
            assert_eq!(what(with(2, len)), "payload length is wrong");
        }
        for size in [0, u64::MAX] {
            assert_eq!(what(with(3, size)), "payload image size is wrong");
        }
        for slot in [0, BLOCK, 2 * BLOCK + 4096] {
            assert!(what(with(4, slot)).starts_with("payload is larger than its place"));
        }
        for len in [0, 4096, u64::MAX] {
            assert_eq!(what(with(5, len)), "DTB slot is wrong");
        }
        assert_eq!(what(with(4, u64::MAX - BLOCK + 1)), "DTB slot is wrong");
    }

    #[test]
    fn each_number_may_be_as_large_as_its_limit() {
        let far = (MAX_BYTES + BLOCK).next_multiple_of(BLOCK);
        for words in [
            [MAGIC, MAX_BYTES, 64, 5000, far, BLOCK, 0, 0],
            [MAGIC, BLOCK, 64, 1, 2 * BLOCK, BLOCK, 0, 0],
            [MAGIC, BLOCK, MAX_BYTES, 1, far + BLOCK, BLOCK, 0, 0],
            [MAGIC, BLOCK, 1000, MAX_BYTES, far, BLOCK, 0, 0],
            [MAGIC, BLOCK, 1000, 5000, 4 * MAX_BYTES, BLOCK, 0, 0],
        ] {
            assert!(Bundle::check(&words, BLOCK).is_ok(), "{words:#x?}");
        }
        assert_eq!(what([MAGIC, BLOCK, 1000, 5000, 4 * MAX_BYTES + BLOCK, BLOCK, 0, 0]), "DTB slot is wrong");
    }

    #[test]
    fn a_payload_that_fills_its_place_without_room_for_the_trailer_is_refused() {
        assert!(what(with(2, BLOCK)).starts_with("payload is larger than its place"));
        assert!(Bundle::check(&with(2, BLOCK - 16), BLOCK).is_ok());
    }

    fn header(text_offset: u64, size: u64) -> [u8; 64] {
        let mut header = [0; 64];
        header[8..16].copy_from_slice(&text_offset.to_le_bytes());
        header[16..24].copy_from_slice(&size.to_le_bytes());
        header[0x38..0x3c].copy_from_slice(b"ARM\x64");
        header
    }

    #[test]
    fn payload_is_checked_against_its_own_header_and_trailer() {
        let bundle = Bundle::check(&GOOD, BLOCK).unwrap();
        assert_eq!(bundle.check_payload(&header(0, 5000), &TRAILER), Ok(()));
        let refused = |header: [u8; 64], trailer: [u8; 16]| bundle.check_payload(&header, &trailer).unwrap_err().what();
        assert!(refused(header(0, 5000), [0; 16]).contains("truncated"));
        assert!(refused([0; 64], TRAILER).contains("bad magic"));
        assert!(refused(header(0x80000, 5000), TRAILER).contains("text offset"));
        assert!(refused(header(0, 5001), TRAILER).contains("larger in memory"));
        assert!(refused(header(0, 0), TRAILER).contains("larger in memory"));
    }
}

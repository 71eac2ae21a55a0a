// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layout of a bundle: el2, the payload, the trailer, and the memory behind them.
//!
//! el2 reads the manifest at boot and refuses what does not fit; both sides write these numbers down once.

use super::arm64;

/// Blocks that the host's stage 2 maps in one piece: carve-outs and the payload start on one.
const BLOCK: u64 = 2 << 20;
/// Memory behind the payload for the edited device tree.
pub(super) const DTB_SLOT: u64 = BLOCK;
/// Stands right behind the payload's file bytes, so that el2 can tell a file that was cut.
pub(super) const TRAILER: &[u8; 16] = b"FREEHOLD-TRAILER";
const MAGIC: &[u8; 8] = b"FHBUNDL1";
const MANIFEST: usize = 0x40;
const MANIFEST_LEN: usize = 64;

/// Builds the bundle of a flat `el2` and a checked `payload` that takes `payload_image_size` bytes of memory.
///
/// # Errors
/// One line if `el2` is not what the build makes.
pub(super) fn build(el2: &[u8], payload: &[u8], payload_image_size: u64) -> Result<Vec<u8>, String> {
    if el2.get(0x38..0x3c) != Some(b"ARM\x64") {
        return Err("no arm64 Image header".to_owned());
    }
    if el2.get(MANIFEST..MANIFEST + MANIFEST_LEN).is_none_or(|m| m.iter().any(|b| *b != 0)) {
        return Err("the manifest's place behind the header is not 64 zero bytes".to_owned());
    }
    if !(el2.len() as u64).is_multiple_of(BLOCK) {
        return Err(format!("{} bytes are not whole 2 MiB blocks", el2.len()));
    }
    let payload_offset = el2.len() as u64;
    let in_memory = payload_image_size.max((payload.len() + TRAILER.len()) as u64);
    let dtb_slot_offset = (payload_offset + in_memory).next_multiple_of(BLOCK);
    let manifest = [
        u64::from_le_bytes(*MAGIC),
        payload_offset,
        payload.len() as u64,
        payload_image_size,
        dtb_slot_offset,
        DTB_SLOT,
        0,
        0,
    ];
    let mut image = Vec::with_capacity(el2.len() + payload.len() + TRAILER.len());
    image.extend_from_slice(el2);
    for (at, word) in (MANIFEST..).step_by(8).zip(manifest) {
        image[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    image[16..24].copy_from_slice(&(dtb_slot_offset + DTB_SLOT).to_le_bytes());
    image.extend_from_slice(payload);
    image.extend_from_slice(TRAILER);
    debug_assert!(arm64::check(&image).is_ok(), "a bundle is an Image itself");
    Ok(image)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A flat el2 of one block.
    pub(crate) fn el2() -> Vec<u8> {
        let mut el2 = vec![0u8; BLOCK as usize];
        el2[16] = 1;
        el2[24] = 0xa;
        el2[0x38..0x3c].copy_from_slice(b"ARM\x64");
        el2
    }

    fn word(image: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_manifest_says_where_everything_is() {
        let payload = arm64::tests::image(5000);
        let image = build(&el2(), &payload, 0x30_0000).unwrap();
        let manifest: Vec<u64> = (0..8).map(|i| word(&image, 0x40 + i * 8)).collect();
        assert_eq!(&image[0x40..0x48], b"FHBUNDL1");
        assert_eq!(&manifest[1..], [BLOCK, 5000, 0x30_0000, 3 * BLOCK, BLOCK, 0, 0]);
        assert_eq!(word(&image, 16), 4 * BLOCK, "image_size covers el2, the payload's memory and the slot");
        let at = manifest[1] as usize;
        assert_eq!(&image[at..at + 5000], payload);
        assert_eq!(&image[at + 5000..], TRAILER);
    }

    #[test]
    fn the_slot_never_overlaps_the_trailer() {
        let payload = arm64::tests::image(BLOCK as usize);
        let image = build(&el2(), &payload, BLOCK).unwrap();
        assert_eq!(word(&image, 0x60), 3 * BLOCK);
    }

    #[test]
    fn an_el2_that_is_not_ours_is_refused() {
        let payload = arm64::tests::image(5000);
        let refusal = |change: fn(&mut Vec<u8>)| {
            let mut el2 = el2();
            change(&mut el2);
            build(&el2, &payload, 0x1000).unwrap_err()
        };
        assert!(refusal(|e| e[0x38] = 0).contains("header"));
        assert!(refusal(|e| e[0x7f] = 1).contains("manifest"));
        assert!(refusal(|e| e.push(0)).contains("blocks"));
    }
}

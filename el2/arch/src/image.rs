// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the parts of the running image lie, and the bundle manifest behind its header.

use core::ops::Range;

macro_rules! linker_symbols {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident;)*) => {
        mod symbols {
            unsafe extern "C" {
                $(pub(super) static $symbol: u8;)*
            }
        }
        $($(#[$doc])* pub fn $name() -> usize {
            &raw const symbols::$symbol as usize
        })*
    };
}

linker_symbols! {
    /// First byte of the image: its Image header.
    start = __image_start;
    /// End of the executable part.
    text_end = __text_end;
    /// End of the read-only part; what follows is data, bss and stacks.
    rodata_end = __rodata_end;
    /// First byte of the stacks (each with its guard page below).
    stacks_start = __stacks_start;
    /// End of the stacks.
    stacks_end = __stacks_end;
    /// First byte of the boot CPU's stack until it leaves for the host (a guard page is below).
    boot_stack_start = __boot_stack_start;
    /// End of everything that the linker placed, page aligned.
    end = __image_end;
}

/// The whole image as an address range.
pub fn range() -> Range<usize> {
    start()..end()
}

/// Offset of the manifest from the image start: right behind the 64-byte Image header.
pub const MANIFEST_OFFSET: usize = 64;

/// Returns the eight words of the bundle manifest, as the bundler left them.
pub fn manifest() -> [u64; 8] {
    let words = (start() + MANIFEST_OFFSET) as *const [u64; 8];
    // SAFETY: the entry code places 64 bytes of manifest at this offset, 8-byte aligned (the image
    // is at least 4 KB aligned); volatile, because the bundler patches them after the link.
    unsafe { words.read_volatile() }
}

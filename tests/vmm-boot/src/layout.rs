// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are in the guest's address space.
//!
//! RAM is where crosvm and kvmtool put it. From its start: the kernel, the device tree, the initial file system.

use std::fmt;

use crate::image::Image;

/// Start of RAM.
pub const RAM: u64 = 0x8000_0000;
/// The most CPUs that a guest has.
pub const CPUS: u32 = 8;
/// Bits of the guest's address space.
pub const ADDRESS_BITS: u32 = 40;
/// The interrupt controller's distributor.
pub const DISTRIBUTOR: u64 = 0x3fff_0000;
/// Bytes of it.
pub const DISTRIBUTOR_BYTES: u64 = 0x1_0000;
/// Bytes of each CPU's redistributor; they end where the distributor begins.
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// The serial port.
pub const SERIAL: u64 = 0x0100_0000;
/// Bytes of the page that it is alone in.
pub const SERIAL_BYTES: u64 = 0x1000;
/// Its shared interrupt, counted from 0.
pub const SERIAL_SPI: u32 = 0;
/// The most that a device tree takes.
pub const TREE_BYTES: u64 = 0x1_0000;
/// Interrupts of the controller: 32 private ones and the shared ones.
pub const INTERRUPTS: u32 = 64;

const BLOCK: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// What a stock kernel needs beside what is loaded, to reach its first program.
const WORKING: u64 = 32 << 20;

/// Start of the redistributors of `cpus` CPUs.
#[must_use]
pub const fn redistributors(cpus: u32) -> u64 {
    DISTRIBUTOR - cpus as u64 * REDISTRIBUTOR_BYTES
}

/// Why there is no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Memory is not so many bytes.
    Memory,
    /// Memory goes beyond the address space.
    Beyond(u64),
    /// The kernel alone needs more.
    Kernel {
        /// Bytes that it needs.
        needs: u64,
        /// Bytes of memory.
        memory: u64,
    },
    /// The initial file system has no place any more.
    Initrd {
        /// Bytes that it has.
        bytes: u64,
        /// Bytes left for it.
        room: u64,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory is not a multiple of 2 MiB, or nothing"),
            Self::Beyond(most) => write!(f, "at most {} GiB", most >> 30),
            Self::Kernel { needs, memory } => {
                write!(f, "the kernel needs {} MiB of memory, and the guest has {}", mib(*needs), memory >> 20)
            }
            Self::Initrd { bytes, room } => {
                write!(f, "the initrd has {} MiB, and memory has room for {}", mib(*bytes), room >> 20)
            }
        }
    }
}

const fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Whether a guest can have so much memory.
///
/// # Errors
/// Why not.
pub fn check_memory(bytes: u64) -> Result<(), Wrong> {
    let most = (1 << ADDRESS_BITS) - RAM;
    if bytes > most {
        return Err(Wrong::Beyond(most));
    }
    if bytes == 0 || !bytes.is_multiple_of(BLOCK) { Err(Wrong::Memory) } else { Ok(()) }
}

/// Where what is loaded goes: guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of memory.
    pub memory: u64,
    /// The kernel, and its first instruction.
    pub kernel: u64,
    /// The device tree.
    pub tree: u64,
    /// Start and end of the initial file system.
    pub initrd: Option<(u64, u64)>,
    /// End of all that is loaded, whole pages.
    pub end: u64,
}

/// Finds a place for everything.
///
/// # Errors
/// What does not fit.
pub fn place(memory: u64, image: &Image, initrd: Option<u64>) -> Result<Layout, Wrong> {
    check_memory(memory)?;
    let kernel = RAM + image.text_offset;
    // The device tree is to be alone in its block: the kernel maps it by a block.
    let tree = (kernel + image.size).next_multiple_of(BLOCK);
    let after = tree + TREE_BYTES;
    let end_of_memory = RAM + memory;
    let room = end_of_memory.checked_sub(after + WORKING);
    let room = room.ok_or(Wrong::Kernel { needs: after + WORKING - RAM, memory })?;
    let initrd = match initrd {
        Some(bytes) if bytes > room => return Err(Wrong::Initrd { bytes, room }),
        Some(bytes) => Some((after, after + bytes)),
        None => None,
    };
    let end = initrd.map_or(after, |(_, end)| end).next_multiple_of(PAGE);
    Ok(Layout { memory, kernel, tree, initrd, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64) -> Image {
        Image { bytes: vec![0; 4096], text_offset: 0, size }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        assert_eq!(place(0, &image(1), None), Err(Wrong::Memory));
        assert_eq!(place((2 << 20) + 4096, &image(1), None), Err(Wrong::Memory));
        assert!(matches!(place(1 << 40, &image(1), None), Err(Wrong::Beyond(_))));
        let small = place(64 << 20, &image(64 << 20), None);
        assert_eq!(small, Err(Wrong::Kernel { needs: (96 << 20) + TREE_BYTES, memory: 64 << 20 }));
        let room = (256 << 20) - (64 << 20) - TREE_BYTES - WORKING;
        assert!(place(256 << 20, &image(64 << 20), Some(room)).is_ok());
        let large = place(256 << 20, &image(64 << 20), Some(room + 1));
        assert_eq!(large, Err(Wrong::Initrd { bytes: room + 1, room }));
        assert!(place(256 << 20, &image(64 << 20), Some(u64::MAX)).is_err());
    }

    #[test]
    fn nothing_overlaps_and_all_is_aligned() {
        for size in [1, 45 << 20, (46 << 20) + 1] {
            for text_offset in [0, 0x8_0000] {
                let kernel = Image { text_offset, ..image(size) };
                let layout = place(256 << 20, &kernel, Some(5_000_001)).unwrap();
                let (start, end) = layout.initrd.unwrap();
                assert_eq!(layout.kernel, RAM + text_offset);
                assert!(layout.kernel + size <= layout.tree && layout.tree + TREE_BYTES <= start);
                assert_eq!((layout.tree % BLOCK, start % PAGE, layout.end % PAGE), (0, 0, 0));
                assert!(end <= layout.end && layout.end <= RAM + layout.memory);
            }
        }
    }

    #[test]
    fn devices_lie_below_memory_and_apart() {
        let lowest = redistributors(CPUS);
        assert!(SERIAL + SERIAL_BYTES <= lowest);
        assert_eq!(lowest + u64::from(CPUS) * REDISTRIBUTOR_BYTES, DISTRIBUTOR);
        const { assert!(DISTRIBUTOR + DISTRIBUTOR_BYTES <= RAM) };
        assert_eq!((lowest % 0x1_0000, DISTRIBUTOR % 0x1_0000), (0, 0));
    }
}

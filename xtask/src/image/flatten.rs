// SPDX-License-Identifier: MIT OR Apache-2.0
//! From an ELF file to the bytes that a boot loader copies.

use anyhow::{Context as _, Result, bail};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

/// How far a flat image reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// To the end of what the file holds; memory behind it is its own affair.
    File,
    /// Over all memory that the segments name.
    Memory,
}

/// Lays out the loadable segments of `file` from their lowest address, zero-filled to a multiple of `unit` bytes.
///
/// # Errors
/// If `file` is not an ELF file for arm64, loads nothing, or would come out larger than 64 MiB.
pub(crate) fn flatten(file: &[u8], unit: u64, extent: Extent) -> Result<Vec<u8>> {
    let parsed = ElfFile64::<Endianness>::parse(file).context("not a 64-bit ELF file")?;
    let (endian, header) = (parsed.endian(), parsed.elf_header());
    if header.e_machine(endian) != elf::EM_AARCH64 {
        bail!("an ELF file for another machine than arm64");
    }
    let length = |p: &elf::ProgramHeader64<Endianness>| match extent {
        Extent::File => p.p_filesz(endian),
        Extent::Memory => p.p_memsz(endian),
    };
    let loads = || parsed.elf_program_headers().iter().filter(|p| p.p_type(endian) == elf::PT_LOAD && length(p) > 0);
    let base = loads().map(|p| p.p_vaddr(endian)).min().context("an ELF file that loads nothing")?;
    let end = loads().filter_map(|p| p.p_vaddr(endian).checked_add(length(p))).max().unwrap_or(base);
    let size = (end - base).next_multiple_of(unit);
    if size > 64 << 20 {
        bail!("its segments span {size:#x} bytes");
    }
    let mut flat = vec![0u8; usize::try_from(size)?];
    for load in loads() {
        let data = load.data(endian, file).ok().context("a segment lies outside of the file")?;
        let at = usize::try_from(load.p_vaddr(endian) - base)?;
        flat.get_mut(at..at + data.len())
            .context("a segment is longer in the file than in memory")?
            .copy_from_slice(data);
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_arm64_elf_is_refused() {
        assert!(flatten(b"", 1, Extent::Memory).is_err());
        assert!(flatten(b"\x7fELF and nothing more", 1, Extent::File).is_err());
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        if cfg!(target_arch = "x86_64") {
            assert!(flatten(&own, 1, Extent::File).unwrap_err().to_string().contains("another machine"));
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading: the header, the reservations, and the structure block as a stream of events.

use crate::stop::Stop;
use core::ops::Range;

/// Bytes of the header.
pub const HEADER_SIZE: usize = 40;
/// Largest blob: what the arm64 boot protocol allows.
const MAX_SIZE: usize = 2 << 20;
/// Deepest tree that is walked.
const MAX_DEPTH: usize = 16;

const MAGIC: u32 = 0xd00d_feed;
const OLDEST_COMPATIBLE: u32 = 16;
const TOKEN_BEGIN: u32 = 1;
const TOKEN_END: u32 = 2;
const TOKEN_PROPERTY: u32 = 3;
const TOKEN_NOP: u32 = 4;
const TOKEN_STOP: u32 = 9;

/// Reads the blob's size out of its header.
///
/// # Errors
/// This is no device tree, or it says that it is larger than one may be.
pub fn total_size(header: &[u8]) -> Result<usize, Stop> {
    if be32(header, 0) != Some(MAGIC) {
        return Err(Stop::with("DTB is corrupt (bad magic)", "DTB offset", 0));
    }
    let size = be32(header, 4).map_or(0, |size| size as usize);
    if !(HEADER_SIZE..=MAX_SIZE).contains(&size) {
        return Err(Stop::with("DTB is corrupt (size)", "DTB offset", 4));
    }
    Ok(size)
}

/// A blob whose header, reservations and structure have been walked once from end to end.
#[derive(Clone, Debug)]
pub struct Dtb<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    reservations: &'a [u8],
    boot_cpu: u32,
}

/// One step through the structure block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A node starts.
    Begin(&'a str),
    /// A property of the innermost open node.
    Property {
        /// Its name.
        name: &'a str,
        /// Its bytes.
        value: &'a [u8],
    },
    /// The innermost node ends.
    End,
}

impl<'a> Dtb<'a> {
    /// Checks the whole blob.
    ///
    /// # Errors
    /// A `Stop` that says what is wrong at which offset.
    pub fn parse(blob: &'a [u8]) -> Result<Self, Stop> {
        let size = total_size(blob)?;
        let corrupt = |offset| Stop::with("DTB is corrupt (header)", "DTB offset", offset);
        let blob = blob.get(..size).ok_or(Stop::with("DTB is truncated", "DTB offset", blob.len() as u64))?;
        let word = |at: usize| be32(blob, at).map(|word| word as usize).ok_or(corrupt(at as u64));
        if be32(blob, 24).is_none_or(|oldest| oldest > 17) || be32(blob, 20).is_none_or(|v| v < OLDEST_COMPATIBLE) {
            return Err(corrupt(20));
        }
        let part = |offset: usize, len: usize, at: u64| {
            let end = offset.checked_add(len).ok_or(corrupt(at))?;
            blob.get(offset..end).ok_or(corrupt(at))
        };
        if word(8)? % 4 != 0 {
            return Err(corrupt(8));
        }
        let dtb = Self {
            structure: part(word(8)?, word(36)?, 8)?,
            strings: part(word(12)?, word(32)?, 12)?,
            reservations: reservations(blob, word(16)?).ok_or(corrupt(16))?,
            boot_cpu: be32(blob, 28).unwrap_or(0),
        };
        dtb.check_structure()?;
        Ok(dtb)
    }

    fn check_structure(&self) -> Result<(), Stop> {
        let mut events = self.events();
        let mut depth = 0usize;
        let mut roots = 0usize;
        let mut after_child = [false; MAX_DEPTH];
        let corrupt = |at: usize| Stop::with("DTB is corrupt (structure)", "structure offset", at as u64);
        loop {
            let at = events.at;
            match events.step().ok_or(corrupt(at))? {
                Some(Event::Begin(_)) => {
                    if depth == 0 {
                        roots = roots.saturating_add(1);
                    } else if let Some(flag) = after_child.get_mut(depth.saturating_sub(1)) {
                        *flag = true;
                    }
                    *after_child.get_mut(depth).ok_or(corrupt(at))? = false;
                    depth = depth.saturating_add(1);
                }
                Some(Event::Property { .. }) => {
                    // Properties stand before the first subnode, and inside a node.
                    let late = after_child.get(depth.wrapping_sub(1)).copied().unwrap_or(true);
                    if late {
                        return Err(corrupt(at));
                    }
                }
                Some(Event::End) => depth = depth.checked_sub(1).ok_or(corrupt(at))?,
                None if depth == 0 && roots == 1 => return Ok(()),
                None => return Err(corrupt(at)),
            }
        }
    }

    /// The events of the structure block.
    pub fn events(&self) -> Events<'a> {
        Events { structure: self.structure, strings: self.strings, at: 0 }
    }

    /// The strings block.
    pub(super) fn strings(&self) -> &'a [u8] {
        self.strings
    }

    /// Physical identifier of the boot CPU, as the header has it.
    pub(super) fn boot_cpu(&self) -> u32 {
        self.boot_cpu
    }

    /// The reserved ranges of the header, without the closing entry.
    pub fn reservations(&self) -> impl Iterator<Item = Range<u64>> + 'a {
        self.reservations.chunks_exact(16).filter_map(|entry| {
            let start = be64(entry, 0)?;
            Some(start..start.saturating_add(be64(entry, 8)?))
        })
    }

    /// Calls `visit` for every node, parents first.
    ///
    /// # Errors
    /// The first error that `visit` returns.
    pub fn for_each_node(&self, mut visit: impl FnMut(&Node<'a, '_>) -> Result<(), Stop>) -> Result<(), Stop> {
        let mut events = self.events();
        let mut path = [""; MAX_DEPTH];
        let mut buses = [Bus::NONE; MAX_DEPTH];
        let mut depth = 0usize;
        while let Some(event) = events.next() {
            match event {
                Event::Begin(name) => {
                    let properties = events.clone();
                    if let (Some(slot), Some(own)) = (path.get_mut(depth), buses.get_mut(depth)) {
                        *slot = name;
                        *own = Bus::of(properties.clone());
                    }
                    let above = buses.get(..depth).unwrap_or(&[]);
                    depth = depth.saturating_add(1);
                    let node = Node {
                        path: path.get(1..depth).unwrap_or(&[]),
                        cells: above.last().map_or(Cells::DEFAULT, |bus| bus.cells),
                        above,
                        properties,
                    };
                    visit(&node)?;
                }
                Event::End => depth = depth.saturating_sub(1),
                Event::Property { .. } => {}
            }
        }
        Ok(())
    }
}

fn reservations(blob: &[u8], offset: usize) -> Option<&[u8]> {
    let rest = blob.get(offset..)?;
    let mut len = 0usize;
    loop {
        let entry = rest.get(len..len.checked_add(16)?)?;
        if entry.iter().all(|byte| *byte == 0) {
            return rest.get(..len);
        }
        len = len.checked_add(16)?;
    }
}

/// Iterator over the events of a structure block. Ends at the closing token, or where the block is
/// corrupt (a parsed `Dtb` has been checked, so there it never is).
#[derive(Clone, Debug)]
pub struct Events<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    at: usize,
}

impl<'a> Events<'a> {
    /// The next event; `Some(None)` is the closing token, `None` means corrupt.
    fn step(&mut self) -> Option<Option<Event<'a>>> {
        loop {
            let token = be32(self.structure, self.at)?;
            let body = self.at.checked_add(4)?;
            match token {
                TOKEN_NOP => self.at = body,
                TOKEN_BEGIN => {
                    let name = text(self.structure, body)?;
                    self.at = aligned(body.checked_add(name.len())?.checked_add(1)?)?;
                    return Some(Some(Event::Begin(name)));
                }
                TOKEN_PROPERTY => {
                    let len = be32(self.structure, body)? as usize;
                    let name = text(self.strings, be32(self.structure, body.checked_add(4)?)? as usize)?;
                    let start = body.checked_add(8)?;
                    let end = start.checked_add(len)?;
                    let value = self.structure.get(start..end)?;
                    self.at = aligned(end)?;
                    return Some(Some(Event::Property { name, value }));
                }
                TOKEN_END => {
                    self.at = body;
                    return Some(Some(Event::End));
                }
                TOKEN_STOP => return Some(None),
                _ => return None,
            }
        }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        self.step().flatten()
    }
}

/// How a node's children write addresses and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    /// `#address-cells`.
    pub address: usize,
    /// `#size-cells`.
    pub size: usize,
}

/// What a node is to its children: how they write addresses, and where those lie in its parent's.
#[derive(Clone, Copy, Debug)]
struct Bus<'a> {
    cells: Cells,
    ranges: Option<&'a [u8]>,
}

impl<'a> Bus<'a> {
    const NONE: Self = Self { cells: Cells::DEFAULT, ranges: None };

    fn of(properties: Events<'a>) -> Self {
        let mut bus = Self::NONE;
        for event in properties {
            match event {
                Event::Property { name: "#address-cells", value } => {
                    bus.cells.address = be32(value, 0).map_or(usize::MAX, |n| n as usize);
                }
                Event::Property { name: "#size-cells", value } => {
                    bus.cells.size = be32(value, 0).map_or(usize::MAX, |n| n as usize);
                }
                Event::Property { name: "ranges", value } => bus.ranges = Some(value),
                Event::Property { .. } => {}
                Event::Begin(_) | Event::End => break,
            }
        }
        bus
    }

    /// Where a child's address lies for the parent, whose children write addresses of `outer` cells.
    fn translate(&self, address: u64, outer: usize) -> Option<u64> {
        let ranges = self.ranges?;
        if ranges.is_empty() {
            return Some(address);
        }
        if !(1..=2).contains(&self.cells.address) || !(1..=2).contains(&outer) || !(1..=2).contains(&self.cells.size) {
            return None;
        }
        let inner = self.cells.address.checked_mul(4)?;
        let outer = outer.checked_mul(4)?;
        let entry = inner.checked_add(outer)?.checked_add(self.cells.size.checked_mul(4)?)?;
        ranges.chunks_exact(entry).find_map(|range| {
            let (from, rest) = range.split_at_checked(inner)?;
            let (to, size) = rest.split_at_checked(outer)?;
            let offset = address.checked_sub(number(from)).filter(|offset| *offset < number(size))?;
            number(to).checked_add(offset)
        })
    }
}

impl Cells {
    const DEFAULT: Self = Self { address: 2, size: 1 };

    /// Splits a `reg` value into (address, size) pairs; `None` if it is no whole number of pairs, or
    /// the cells are wider than 64 bits.
    pub fn pairs<'v>(self, value: &'v [u8]) -> Option<impl Iterator<Item = (u64, u64)> + 'v> {
        if !(1..=2).contains(&self.address) || self.size > 2 {
            return None;
        }
        let address = self.address.checked_mul(4)?;
        let entry = address.checked_add(self.size.checked_mul(4)?)?;
        if !value.len().is_multiple_of(entry) {
            return None;
        }
        Some(value.chunks_exact(entry).map(move |pair| {
            let (address, size) = pair.split_at_checked(address).unwrap_or((pair, &[]));
            (number(address), number(size))
        }))
    }
}

/// A node, as a walk meets it.
#[derive(Clone, Debug)]
pub struct Node<'a, 'w> {
    /// Names from below the root down to this node; empty for the root.
    pub path: &'w [&'a str],
    /// How its own `reg` is written.
    pub cells: Cells,
    /// The nodes above, the root first.
    above: &'w [Bus<'a>],
    properties: Events<'a>,
}

impl<'a> Node<'a, '_> {
    /// The bytes of a property.
    pub fn property(&self, wanted: &str) -> Option<&'a [u8]> {
        for event in self.properties.clone() {
            match event {
                Event::Property { name, value } if name == wanted => return Some(value),
                Event::Property { .. } => {}
                Event::Begin(_) | Event::End => return None,
            }
        }
        None
    }

    /// The first string of a property.
    pub fn string(&self, name: &str) -> Option<&'a str> {
        text(self.property(name)?, 0)
    }

    /// Translates an address of this node's `reg` to a CPU's; `None` where a bus above hides it.
    pub fn to_cpu(&self, address: u64) -> Option<u64> {
        let parents = self.above.iter().rev().skip(1);
        self.above
            .iter()
            .skip(1)
            .rev()
            .zip(parents)
            .try_fold(address, |address, (bus, parent)| bus.translate(address, parent.cells.address))
    }

    /// Whether one of the strings of `compatible` is `wanted`.
    pub fn is_compatible(&self, wanted: &str) -> bool {
        let list = self.property("compatible").unwrap_or(&[]);
        list.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
    }

    /// Whether `status` does not switch the node off.
    pub fn is_enabled(&self) -> bool {
        self.string("status").is_none_or(|status| status == "okay" || status == "ok")
    }

    /// Whether this is a device of QEMU's that does DMA by itself, past any SMMU.
    pub fn has_own_dma(&self) -> bool {
        self.is_compatible("qemu,fw-cfg-mmio") || self.is_compatible("virtio,mmio")
    }

    /// Whether this is a memory node of the root.
    pub fn is_memory(&self) -> bool {
        self.path.len() == 1 && self.string("device_type") == Some("memory")
    }
}

/// Reads a big-endian word.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    word.try_into().ok().map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    word.try_into().ok().map(u64::from_be_bytes)
}

/// A big-endian number of up to eight bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    let len = rest.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(rest.get(..len)?).ok()
}

fn aligned(at: usize) -> Option<usize> {
    at.checked_next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtb::testing::board;

    /// The board's blob with a word of the header changed.
    fn with(at: usize, word: u32) -> Vec<u8> {
        let mut blob = board().blob();
        blob[at..at + 4].copy_from_slice(&word.to_be_bytes());
        blob
    }

    /// A blob of this structure, without strings.
    fn of(structure: &[u32], reserved: &[u64]) -> Vec<u8> {
        let structure_at = 40 + reserved.len() * 8;
        let len = structure.len() * 4;
        let total = structure_at + len;
        let header = [0xd00d_feed, total, structure_at, total, 40, 17, 16, 3, 0, len];
        let header = header.iter().flat_map(|word| (*word as u32).to_be_bytes());
        let reserved = reserved.iter().flat_map(|word| word.to_be_bytes());
        header.chain(reserved).chain(structure.iter().flat_map(|word| word.to_be_bytes())).collect()
    }

    #[test]
    fn a_version_that_this_reader_understands_is_taken() {
        for (at, word, taken) in [(24, 17, true), (24, 16, true), (24, 18, false), (24, u32::MAX, false)]
            .into_iter()
            .chain([(20, 16, true), (20, 17, true), (20, 99, true), (20, 15, false), (20, 0, false)])
        {
            assert_eq!(Dtb::parse(&with(at, word)).is_ok(), taken, "{word} at {at}");
        }
    }

    #[test]
    fn a_structure_is_one_whole_root() {
        const ROOT: [u32; 3] = [TOKEN_BEGIN, 0, TOKEN_END];
        let parse =
            |parts: &[&[u32]]| Dtb::parse(&of(&parts.concat(), &[0, 0])).map(|_| ()).map_err(|stop| stop.what());
        let corrupt = Err("DTB is corrupt (structure)");
        assert_eq!(parse(&[&ROOT, &[TOKEN_STOP]]), Ok(()));
        assert_eq!(parse(&[&[TOKEN_NOP], &ROOT, &[TOKEN_NOP, TOKEN_STOP]]), Ok(()), "a NOP is nothing");
        assert_eq!(parse(&[&[TOKEN_STOP]]), corrupt, "no root");
        assert_eq!(parse(&[&ROOT, &ROOT, &[TOKEN_STOP]]), corrupt, "two roots");
        assert_eq!(parse(&[&ROOT[..2], &[TOKEN_STOP]]), corrupt, "not ended");
        assert_eq!(parse(&[&ROOT, &[TOKEN_END, TOKEN_STOP]]), corrupt, "ended twice");
        assert_eq!(parse(&[&ROOT]), corrupt, "no end of the block");
        assert_eq!(parse(&[&ROOT, &[77, TOKEN_STOP]]), corrupt, "an unknown token");
    }

    #[test]
    fn the_header_names_the_boot_cpu_and_what_is_reserved() {
        let structure = [TOKEN_BEGIN, 0, TOKEN_END, TOKEN_STOP];
        let blob = of(&structure, &[0x1_4000_0000, 0x1000, 0x5000, 0x20, 0, 0]);
        let dtb = Dtb::parse(&blob).unwrap();
        assert_eq!(dtb.boot_cpu(), 3);
        assert_eq!(dtb.reservations().collect::<Vec<_>>(), [0x1_4000_0000..0x1_4000_1000, 0x5000..0x5020]);
        assert!(Dtb::parse(&of(&structure, &[0x5000, 0x20])).is_err(), "no closing entry");
    }
}

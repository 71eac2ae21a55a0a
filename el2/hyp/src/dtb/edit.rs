// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rewriting: the tree is streamed into a new blob, and changed on the way.
//!
//! The changes, and no others: carve-outs leave `/memory`; the timer loses its virtual interrupt, so
//! that the host uses the physical one (D11); devices that do DMA by QEMU's own hand and pass no SMMU
//! (`fw-cfg`, `virtio,mmio`) are left out; stage 2 hides their registers. Keeps I2 for the carve-outs as far as an honest kernel
//! goes; what a hostile one reaches is stage 2's affair.

use super::read::{Cells, Dtb, Event, HEADER_SIZE, Node, number};
use crate::layout::{Span, overlap};
use crate::stop::Stop;
use arrayvec::ArrayVec;
use core::mem::take;

const NAMES: &str = "interrupt-names";
const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const COMPATIBLE: u32 = 16;
/// Cells of one interrupt under a GIC.
const INTERRUPT_CELLS: usize = 3;
/// The timer's interrupts in the order of its binding.
const TIMER_ORDER: [&str; 5] = ["sec-phys", "phys", "virt", "hyp-phys", "hyp-virt"];
/// Most ranges that one memory node may have after the carve-outs are taken out.
const MAX_RANGES: usize = 32;

const FULL: Stop = Stop::new("edited DTB does not fit its slot", "DTB slot");

/// Writes `source`, edited, into `out` and returns its size.
///
/// # Errors
/// It does not fit, or a node that must be edited is malformed.
pub fn rewrite(source: &Dtb<'_>, carve_outs: &[Span], out: &mut [u8]) -> Result<usize, Stop> {
    let mut sink = Sink { out, at: HEADER_SIZE };
    let reservations_at = sink.at;
    for span in source.reservations() {
        sink.bytes(&span.start.to_be_bytes())?;
        sink.bytes(&span.end.saturating_sub(span.start).to_be_bytes())?;
    }
    sink.bytes(&[0; 16])?;
    let structure_at = sink.at;
    // The one name that is added stands behind the names that are there already.
    let added_name = source.strings().len();
    write_structure(source, carve_outs, added_name, &mut sink)?;
    let strings_at = sink.at;
    sink.bytes(source.strings())?;
    sink.bytes(NAMES.as_bytes())?;
    sink.bytes(&[0])?;
    let total = sink.at;
    let header = [
        MAGIC,
        word(total)?,
        word(structure_at)?,
        word(strings_at)?,
        word(reservations_at)?,
        VERSION,
        COMPATIBLE,
        source.boot_cpu(),
        word(total.saturating_sub(strings_at))?,
        word(strings_at.saturating_sub(structure_at))?,
    ];
    sink.at = 0;
    for value in header {
        sink.word(value)?;
    }
    Ok(total)
}

fn word(value: usize) -> Result<u32, Stop> {
    u32::try_from(value).map_err(|_| FULL)
}

/// What happens to the properties of the node being written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Copy,
    Memory(Cells),
    Timer(Virt),
}

/// Where a timer has its virtual interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Virt {
    /// Where the binding puts it: the timer names none.
    Unnamed,
    /// At this position among its names, if it is there.
    Named(Option<usize>),
}

fn write_structure(source: &Dtb<'_>, carve_outs: &[Span], added_name: usize, sink: &mut Sink<'_>) -> Result<(), Stop> {
    let mut kinds = Kinds::default();
    source.for_each_node(|node| kinds.note(node))?;
    let mut index = 0usize;
    let mut depth = 0usize;
    let mut dropped_above: Option<usize> = None;
    let mut edit = Edit::Copy;
    for event in source.events() {
        match event {
            Event::Begin(name) => {
                if dropped_above.is_none() && kinds.is_dropped(index) {
                    dropped_above = Some(depth);
                }
                depth = depth.saturating_add(1);
                if dropped_above.is_none() {
                    sink.begin(name)?;
                    edit = kinds.edit(index);
                    if edit == Edit::Timer(Virt::Unnamed) {
                        sink.property(added_name, &[&names_without_virt(&TIMER_ORDER)])?;
                    }
                }
                index = index.saturating_add(1);
            }
            Event::End => {
                depth = depth.saturating_sub(1);
                match dropped_above {
                    None => sink.word(2)?,
                    Some(above) if above == depth => dropped_above = None,
                    Some(_) => {}
                }
            }
            Event::Property { name, value } if dropped_above.is_none() => {
                let at = name_offset(source, name);
                match (edit, name) {
                    (Edit::Memory(cells), "reg") => write_memory(cells, value, carve_outs, at, sink)?,
                    (Edit::Timer(Virt::Unnamed), "interrupts") => write_without(value, Some(2), at, sink)?,
                    (Edit::Timer(Virt::Named(virt)), "interrupts") => write_without(value, virt, at, sink)?,
                    (Edit::Timer(_), NAMES) => {
                        let (before, after) = around_virt(value);
                        sink.property(at, &[before, after])?;
                    }
                    _ => sink.property(at, &[value])?,
                }
            }
            Event::Property { .. } => {}
        }
    }
    sink.word(9)
}

/// Most nodes that are edited or dropped.
const MAX_MARKS: usize = 128;

/// The nodes to treat, by their number in the walk.
#[derive(Default)]
struct Kinds {
    seen: usize,
    dropped: ArrayVec<usize, MAX_MARKS>,
    edited: ArrayVec<(usize, EditKind), MAX_MARKS>,
}

type EditKind = Edit;

impl Kinds {
    fn note(&mut self, node: &Node<'_, '_>) -> Result<(), Stop> {
        let index = take(&mut self.seen);
        self.seen = index.saturating_add(1);
        let full = Stop::with("more nodes to edit than are supported", "DTB, limit", MAX_MARKS as u64);
        if node.has_own_dma() {
            self.dropped.try_push(index).map_err(|_| full)?;
        } else if node.is_memory() {
            self.edited.try_push((index, Edit::Memory(node.cells))).map_err(|_| full)?;
        } else if node.is_compatible("arm,armv8-timer") || node.is_compatible("arm,armv7-timer") {
            self.edited.try_push((index, Edit::Timer(virt_of(node)?))).map_err(|_| full)?;
        }
        Ok(())
    }

    fn is_dropped(&self, index: usize) -> bool {
        self.dropped.contains(&index)
    }

    fn edit(&self, index: usize) -> Edit {
        self.edited.iter().find(|(at, _)| *at == index).map_or(Edit::Copy, |(_, edit)| *edit)
    }
}

/// Where a timer has its virtual interrupt.
fn virt_of(node: &Node<'_, '_>) -> Result<Virt, Stop> {
    let wrong = Stop::new("timer is malformed", "/timer interrupts");
    let interrupts = node.property("interrupts").ok_or(wrong)?;
    let count = interrupts.len() / (4 * INTERRUPT_CELLS);
    let Some(names) = node.property(NAMES) else {
        // Without names, the binding's order: four interrupts, five with FEAT_VHE.
        return if (4..=5).contains(&count) { Ok(Virt::Unnamed) } else { Err(wrong) };
    };
    let mut positions = names.split(|byte| *byte == 0).enumerate().filter(|(_, name)| *name == b"virt");
    let virt = positions.next().map(|(position, _)| position);
    if positions.next().is_some() { Err(wrong) } else { Ok(Virt::Named(virt)) }
}

/// What stands before and behind `virt` in a list of names.
fn around_virt(names: &[u8]) -> (&[u8], &[u8]) {
    let mut start = 0usize;
    for name in names.split_inclusive(|byte| *byte == 0) {
        let end = start.saturating_add(name.len());
        if name.strip_suffix(&[0]).unwrap_or(name) == b"virt" {
            return (names.get(..start).unwrap_or(&[]), names.get(end..).unwrap_or(&[]));
        }
        start = end;
    }
    (names, &[])
}

/// The first names of the binding's order, without the virtual timer's.
fn names_without_virt(order: &[&str]) -> ArrayVec<u8, 64> {
    let mut list = ArrayVec::new();
    // The fifth interrupt, of EL2's virtual timer, is of no use at EL1 and need not have a name.
    for name in order.iter().take(4).filter(|name| **name != "virt") {
        let _ = list.try_extend_from_slice(name.as_bytes());
        let _ = list.try_push(0);
    }
    list
}

fn write_without(interrupts: &[u8], position: Option<usize>, name: usize, sink: &mut Sink<'_>) -> Result<(), Stop> {
    let size = 4 * INTERRUPT_CELLS;
    let wrong = Stop::new("timer is malformed", "/timer interrupts");
    let Some(at) = position.and_then(|position| position.checked_mul(size)) else {
        return sink.property(name, &[interrupts]);
    };
    let before = interrupts.get(..at).ok_or(wrong)?;
    let after = interrupts.get(at..).and_then(|rest| rest.get(size..)).ok_or(wrong)?;
    sink.property(name, &[before, after])
}

fn write_memory(cells: Cells, reg: &[u8], carve_outs: &[Span], name: usize, sink: &mut Sink<'_>) -> Result<(), Stop> {
    let wrong = Stop::new("memory is malformed", "/memory reg");
    let many = Stop::with("more RAM ranges than are supported", "/memory reg, limit", MAX_RANGES as u64);
    let mut ranges = ArrayVec::<Span, MAX_RANGES>::new();
    for (start, size) in cells.pairs(reg).ok_or(wrong)? {
        ranges.try_push(start..start.checked_add(size).ok_or(wrong)?).map_err(|_| many)?;
    }
    for hole in carve_outs {
        for range in take(&mut ranges) {
            let whole = !overlap(&range, hole);
            let pieces = if whole {
                [range, 0..0]
            } else {
                [range.start..hole.start.max(range.start), hole.end.min(range.end)..range.end]
            };
            for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                ranges.try_push(piece).map_err(|_| many)?;
            }
        }
    }
    let mut value = ArrayVec::<u8, { MAX_RANGES * 16 }>::new();
    for range in &ranges {
        push_cells(&mut value, range.start, cells.address).ok_or(wrong)?;
        push_cells(&mut value, range.end.saturating_sub(range.start), cells.size).ok_or(wrong)?;
    }
    sink.property(name, &[&value])
}

fn push_cells<const N: usize>(value: &mut ArrayVec<u8, N>, number: u64, cells: usize) -> Option<()> {
    let bytes = number.to_be_bytes();
    let (high, low) = bytes.split_at_checked(4)?;
    if cells == 2 {
        value.try_extend_from_slice(high).ok()?;
    } else if self::number(high) != 0 {
        return None;
    }
    value.try_extend_from_slice(low).ok()
}

/// Where in the strings block a property's name stands. Both are slices of the same blob.
fn name_offset(source: &Dtb<'_>, name: &str) -> usize {
    name.as_ptr().addr().saturating_sub(source.strings().as_ptr().addr())
}

/// The blob that is being written.
struct Sink<'o> {
    out: &'o mut [u8],
    at: usize,
}

impl Sink<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let end = self.at.checked_add(bytes.len()).ok_or(FULL)?;
        self.out.get_mut(self.at..end).ok_or(FULL)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    fn word(&mut self, word: u32) -> Result<(), Stop> {
        self.bytes(&word.to_be_bytes())
    }

    fn pad(&mut self) -> Result<(), Stop> {
        while !self.at.is_multiple_of(4) {
            self.bytes(&[0])?;
        }
        Ok(())
    }

    fn begin(&mut self, name: &str) -> Result<(), Stop> {
        self.word(1)?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.pad()
    }

    fn property(&mut self, name: usize, parts: &[&[u8]]) -> Result<(), Stop> {
        let len = parts.iter().fold(0usize, |len, part| len.saturating_add(part.len()));
        self.word(3)?;
        self.word(word(len)?)?;
        self.word(word(name)?)?;
        for part in parts {
            self.bytes(part)?;
        }
        self.pad()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtb::machine::Machine;
    use crate::dtb::testing::{Tree, board};

    fn edited(tree: &Tree, carve_outs: &[Span]) -> Vec<u8> {
        let blob = tree.blob();
        let mut out = vec![0; 1 << 16];
        let size = rewrite(&Dtb::parse(&blob).unwrap(), carve_outs, &mut out).unwrap();
        out.truncate(size);
        out
    }

    fn property(blob: &[u8], path: &[&str], name: &str) -> Option<Vec<u8>> {
        let mut found = None;
        Dtb::parse(blob)
            .unwrap()
            .for_each_node(|node| {
                if node.path == path {
                    found = node.property(name).map(<[u8]>::to_vec);
                }
                Ok(())
            })
            .unwrap();
        found
    }

    #[test]
    fn carve_outs_leave_memory_and_all_else_stays() {
        let blob = edited(&board(), &[0x4020_0000..0x4060_0000, 0xbfe0_0000..0xc000_0000]);
        let machine = Machine::read(&Dtb::parse(&blob).unwrap()).unwrap();
        assert_eq!(machine.banks.as_slice(), [0x4000_0000..0x4020_0000, 0x4060_0000..0xbfe0_0000]);
        let before = board().blob();
        let before = Machine::read(&Dtb::parse(&before).unwrap()).unwrap();
        assert_eq!(
            (&machine.cpus, &machine.reserved, &machine.initrd, &machine.gic, machine.console),
            (&before.cpus, &before.reserved, &before.initrd, &before.gic, before.console)
        );
    }

    #[test]
    fn memory_is_cut_into_as_many_ranges_as_are_supported_and_no_more() {
        let holes = |count: u64| (0..count).map(|n| 0x4020_0000 + (n << 22)..0x4040_0000 + (n << 22));
        let blob = edited(&board(), &holes(31).collect::<Vec<_>>());
        let reg = property(&blob, &["memory@40000000"], "reg").unwrap();
        assert_eq!(reg.len(), 32 * 16, "each hole makes one more");
        assert_eq!(reg[31 * 16..], [0x47c0_0000_u64, 0x7840_0000].map(u64::to_be_bytes).concat());
        let (blob, mut out) = (board().blob(), vec![0; 1 << 16]);
        let many = rewrite(&Dtb::parse(&blob).unwrap(), &holes(32).collect::<Vec<_>>(), &mut out);
        assert!(many.is_err());
    }

    #[test]
    fn a_number_is_written_in_its_cells_or_not_at_all() {
        let written = |number, cells| {
            let mut value = ArrayVec::<u8, 8>::new();
            push_cells(&mut value, number, cells).map(|()| value.to_vec())
        };
        assert_eq!(written(0x1_0000_0002, 2), Some(vec![0, 0, 0, 1, 0, 0, 0, 2]));
        assert_eq!(written(0xffff_fffe, 1), Some(vec![255, 255, 255, 254]));
        assert_eq!(written(0x1_0000_0000, 1), None);
    }

    #[test]
    fn timer_loses_its_virtual_interrupt_and_gains_names() {
        let blob = edited(&board(), &[]);
        let names = property(&blob, &["timer"], "interrupt-names").unwrap();
        assert_eq!(names, b"sec-phys\0phys\0hyp-phys\0");
        let interrupts = property(&blob, &["timer"], "interrupts").unwrap();
        let numbers: Vec<u8> = interrupts.chunks(12).map(|one| one[7]).collect();
        assert_eq!(numbers, [13, 14, 10]);
    }

    #[test]
    fn each_timer_loses_its_own_virtual_interrupt() {
        let two = [1, 27, 4, 1, 30, 4];
        let tree = board().with_timer("first", "virt\0phys", &two).with_timer("second", "phys\0virt", &two);
        let blob = edited(&tree.with_timer("third", "phys\0hyp-phys", &two), &[]);
        for (timer, names, number) in [("first", &b"phys\0"[..], 30), ("second", b"phys\0", 27)] {
            assert_eq!(property(&blob, &[timer], "interrupt-names").unwrap(), names);
            assert_eq!(property(&blob, &[timer], "interrupts").unwrap(), [0, 0, 0, 1, 0, 0, 0, number, 0, 0, 0, 4]);
        }
        assert_eq!(property(&blob, &["third"], "interrupt-names").unwrap(), b"phys\0hyp-phys\0");
        assert_eq!(property(&blob, &["third"], "interrupts").unwrap().len(), 24);
    }

    #[test]
    fn a_timer_that_names_two_virtual_interrupts_is_a_stop() {
        let blob = board().with_timer("first", "virt\0virt", &[1, 27, 4, 1, 30, 4]).blob();
        let stop = rewrite(&Dtb::parse(&blob).unwrap(), &[], &mut vec![0; 1 << 16]).unwrap_err();
        assert_eq!(stop.what(), "timer is malformed");
    }

    #[test]
    fn a_timer_that_is_edited_already_is_left_alone() {
        let once = edited(&board(), &[]);
        let mut out = vec![0; 1 << 16];
        let size = rewrite(&Dtb::parse(&once).unwrap(), &[], &mut out).unwrap();
        for name in ["interrupts", "interrupt-names"] {
            assert_eq!(property(&out[..size], &["timer"], name), property(&once, &["timer"], name));
        }
    }

    #[test]
    fn devices_with_their_own_dma_are_left_out() {
        let before = board().blob();
        let after = edited(&board(), &[]);
        for path in [["fw-cfg@9020000"], ["virtio_mmio@a000000"]] {
            assert!(property(&before, &path, "compatible").is_some());
            assert!(property(&after, &path, "compatible").is_none());
        }
        assert!(property(&after, &["chosen"], "bootargs").is_some(), "what follows is still there");
    }

    #[test]
    fn a_slot_that_is_too_small_is_a_stop_at_every_size() {
        let blob = board().blob();
        let dtb = Dtb::parse(&blob).unwrap();
        let whole = edited(&board(), &[]).len();
        for size in 0..whole {
            assert_eq!(rewrite(&dtb, &[], &mut vec![0; size]).unwrap_err(), FULL);
        }
        assert_eq!(rewrite(&dtb, &[], &mut vec![0; whole]), Ok(whole));
    }

    #[test]
    fn no_flipped_byte_and_no_cut_makes_reading_or_editing_panic() {
        let good = board().blob();
        let mut out = vec![0; 1 << 16];
        let mut try_blob = |blob: &[u8]| {
            if let Ok(dtb) = Dtb::parse(blob) {
                let _ = Machine::read(&dtb);
                let _ = rewrite(&dtb, &[0x4020_0000..0x4060_0000], &mut out);
            }
        };
        for at in 0..good.len() {
            try_blob(&good[..at]);
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                try_blob(&bad);
            }
        }
    }

    #[test]
    fn a_cut_blob_is_refused_at_every_length() {
        let good = board().blob();
        for len in 0..good.len() {
            assert!(Dtb::parse(&good[..len]).is_err(), "{len}");
        }
    }
}

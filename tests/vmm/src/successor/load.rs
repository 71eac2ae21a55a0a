// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads the kernel that the host goes on as, by the older of the two calls: Debian's kernel has no other. What the newer
//! one would do is done here: places, a device tree, and the few instructions that hand it over.

use std::fs;

use crate::hostile::ram;

const LOAD: i64 = libc::SYS_kexec_load;
/// `KEXEC_ARCH_AARCH64`.
const AARCH64: u64 = 183 << 16;
/// `KEXEC_ON_CRASH`.
const ON_CRASH: u64 = 1;
const MIB: u64 = 1 << 20;
/// Where the kernel's Image says how much memory it needs.
const IMAGE_SIZE: usize = 16;

#[repr(C)]
struct Segment {
    from: *const u8,
    bytes: usize,
    to: u64,
    room: usize,
}

fn segment(from: &[u8], to: u64, room: u64) -> Segment {
    let room = usize::try_from(room.next_multiple_of(4096)).unwrap_or(usize::MAX);
    Segment { from: from.as_ptr(), bytes: from.len(), to, room }
}

/// `x0` = device tree, `x1` to `x3` = 0, and to the kernel: the boot protocol's entry, with the MMU off.
fn handover(tree: u64, kernel: u64) -> Vec<u8> {
    // LDR x0, +24; MOV x1, xzr; MOV x2, xzr; MOV x3, xzr; LDR x4, +16; BR x4; and the two addresses.
    let code: [u32; 6] = [0x5800_00c0, 0xaa1f_03e1, 0xaa1f_03e2, 0xaa1f_03e3, 0x5800_0084, 0xd61f_0080];
    let addresses = [tree, kernel].into_iter().flat_map(u64::to_le_bytes);
    code.into_iter().flat_map(u32::to_le_bytes).chain(addresses).collect()
}

/// Loads what comes next when it is asked for; see [`load`].
///
/// Into the upper half of memory: an interrupt controller whose LPIs are on keeps its tables where this kernel had them, and
/// the next one writes to them there.
pub(super) fn next(from: &str, into: &str) -> Result<(), String> {
    let tree = fs::read("/sys/firmware/fdt").map_err(|e| format!("the device tree: {e}"))?;
    let upper = |(first, frames): (u64, u64)| ((first + frames / 2) << 12, (frames - frames / 2) << 12);
    let rooms = ram().into_iter().map(upper).collect();
    load(tree, rooms, AARCH64, from, into)
}

/// Loads what comes next when this kernel dies, into the memory that was kept for it, and has it stay there; see [`load`].
pub(super) fn on_crash(from: &str, into: &str) -> Result<(), String> {
    let tree = fs::read("/sys/firmware/fdt").map_err(|e| format!("the device tree: {e}"))?;
    let kept = kept().ok_or("no memory is kept for a crash kernel")?;
    let tree = confined(&tree, kept).ok_or("a device tree of an unknown form")?;
    load(tree, vec![kept], AARCH64 | ON_CRASH, from, into)
}

/// Where `crashkernel=` has memory kept, and how much.
fn kept() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/iomem").ok()?;
    let (range, _) = text.lines().find(|line| line.ends_with(": Crash kernel"))?.trim().split_once(' ')?;
    let (first, last) = range.split_once('-')?;
    let [first, last] = [first, last].map(|number| u64::from_str_radix(number, 16).ok());
    Some((first?, last? - first? + 1))
}

/// The tree with one property more: a kernel uses this memory and no other.
fn confined(tree: &[u8], (base, bytes): (u64, u64)) -> Option<Vec<u8>> {
    const NAME: &[u8] = b"linux,usable-memory-range\0";
    const HEADER: usize = 40;
    let part = |at: usize, size: usize| tree.get(word(tree, at)?..)?.get(..word(tree, size)?);
    let (structure, strings) = (part(8, 36)?, part(12, 32)?);
    let reserved = tree.get(word(tree, 16)?..)?;
    let entries = reserved.chunks_exact(16).position(|entry| entry.iter().all(|byte| *byte == 0))? + 1;
    // Behind the node's name.
    let at = find(structure, b"\0\0\0\x01chosen\0\0")? + 12;
    let property = [3, 16, u32::try_from(strings.len()).ok()?].map(u32::to_be_bytes).concat();
    let range = [base, bytes].map(u64::to_be_bytes).concat();
    let structure = [&structure[..at], &property, &range, &structure[at..]].concat();
    let strings = [strings, NAME].concat();
    let mut new = tree.get(..HEADER)?.to_vec();
    new.resize(48, 0);
    new.extend(&reserved[..entries * 16]);
    let places = [(16, 48), (8, new.len()), (36, structure.len())];
    new.extend(&structure);
    let more = [(12, new.len()), (32, strings.len()), (4, new.len() + strings.len())];
    new.extend(&strings);
    for (at, value) in places.into_iter().chain(more) {
        new[at..at + 4].copy_from_slice(&u32::try_from(value).ok()?.to_be_bytes());
    }
    Some(new)
}

/// Loads `/next/kernel` and `/next/initrd` into one of `rooms`, with a device tree in which `from` in the command line
/// becomes `into`, of the same length.
fn load(mut tree: Vec<u8>, rooms: Vec<(u64, u64)>, how: u64, from: &str, into: &str) -> Result<(), String> {
    let read = |path: &str| fs::read(path).map_err(|e| format!("{path}: {e}"));
    let (kernel, initrd) = (read("/next/kernel")?, read("/next/initrd")?);
    let size = kernel.get(IMAGE_SIZE..IMAGE_SIZE + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let size = size.ok_or("/next/kernel is no Image")?;
    let room = [size, initrd.len() as u64, MIB, MIB].map(|bytes| bytes.next_multiple_of(2 * MIB));
    let all: u64 = room.iter().sum();
    let (first, _) = rooms.into_iter().find(|(_, bytes)| *bytes >= all + 2 * MIB).ok_or("no room for it")?;
    let mut at = first.next_multiple_of(2 * MIB);
    let [to_kernel, to_initrd, to_tree, to_code] = room.map(|bytes| {
        let place = at;
        at += bytes;
        place
    });
    let old = find(&tree, from.as_bytes()).ok_or_else(|| format!("no {from} in the device tree"))?;
    tree[old..old + from.len()].copy_from_slice(into.as_bytes());
    set(&mut tree, "linux,initrd-start", to_initrd)?;
    set(&mut tree, "linux,initrd-end", to_initrd + initrd.len() as u64)?;
    let code = handover(to_tree, to_kernel);
    let segments = [
        segment(&kernel, to_kernel, size),
        segment(&initrd, to_initrd, initrd.len() as u64),
        segment(&tree, to_tree, tree.len() as u64),
        segment(&code, to_code, code.len() as u64),
    ];
    // SAFETY: as many segments as are told, each of memory that is alive until the call has copied it.
    let done = unsafe { libc::syscall(LOAD, to_code, segments.len(), segments.as_ptr(), how) };
    if done == 0 { Ok(()) } else { Err(format!("kexec_load: {}", std::io::Error::last_os_error())) }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn word(tree: &[u8], at: usize) -> Option<usize> {
    let bytes = tree.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(bytes)).ok()
}

/// Writes a number over the property of that name, which is there, in one cell or two.
fn set(tree: &mut [u8], name: &str, value: u64) -> Result<(), String> {
    let (at, length) = property(tree, name).ok_or_else(|| format!("no {name} in the device tree"))?;
    let bytes = value.to_be_bytes();
    let cells = bytes.get(8usize.saturating_sub(length)..).ok_or("a long property")?;
    tree.get_mut(at..at + cells.len()).ok_or("a short tree")?.copy_from_slice(cells);
    Ok(())
}

/// Where the value of the first property of that name is, and how long.
fn property(tree: &[u8], name: &str) -> Option<(usize, usize)> {
    let (structure, strings) = (word(tree, 8)?, word(tree, 12)?);
    let mut at = structure;
    loop {
        let token = word(tree, at)?;
        at += 4;
        match token {
            1 => at += (tree.get(at..)?.iter().position(|byte| *byte == 0)? + 1).next_multiple_of(4),
            3 => {
                let (length, offset) = (word(tree, at)?, word(tree, at + 4)?);
                let text = tree.get(strings + offset..)?;
                if text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
                    return Some((at + 8, length));
                }
                at += 8 + length.next_multiple_of(4);
            }
            2 | 4 => {}
            _ => return None,
        }
    }
}

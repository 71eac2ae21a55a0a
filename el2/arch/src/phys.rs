// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical memory through EL2's identity map: `mem`'s ports, and plain bytes for the boot.
//!
//! Keeps I3 and I4 at the level of instructions. Which frame is a table, and whose a frame is, was
//! decided by `mem` before it asked; that every frame of RAM is mapped is the boot's work.

use crate::{barrier, cache, fatal, host, switch, tlb};
use core::sync::atomic::{AtomicU64, Ordering};
use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::{Entry, PAGE_SIZE, Pfn, Vmid};
use freehold_virt::sha256::Sha256;

const FRAME: usize = PAGE_SIZE as usize;
const WORDS: usize = FRAME / 8;

/// The machine itself, as `mem` sees it. What is more than an access is not in line: the check of the linked image judges
/// each of these functions by its instructions, and a profile tells its work from that of the verbs.
#[derive(Clone, Copy, Debug)]
pub struct Hardware;

fn address(frame: Pfn) -> usize {
    frame.pa().raw() as usize
}

fn descriptor(at: Entry) -> &'static AtomicU64 {
    let place = (address(at.table()) | (8 * usize::from(at.index()))) as *const AtomicU64;
    // SAFETY: an `Entry` is made by `mem` only, of a frame that its ledger holds as a table of EL2;
    // all RAM is mapped read-write, and table words are accessed atomically by everyone.
    unsafe { &*place }
}

impl TableMemory for Hardware {
    fn load(&self, at: Entry) -> u64 {
        descriptor(at).load(Ordering::Relaxed)
    }

    fn store(&mut self, at: Entry, value: u64) {
        descriptor(at).store(value, Ordering::Relaxed);
    }

    fn clear(&mut self, frame: Pfn) {
        self.scrub(frame);
    }

    #[inline(never)]
    fn publish_tables(&mut self) {
        barrier::stores_visible();
        barrier::registers_in_effect();
    }
}

impl Tlb for Hardware {
    #[inline(never)]
    fn invalidate_host(&mut self) {
        tlb::invalidate_current_vmid_everywhere();
    }

    #[inline(never)]
    fn invalidate_vm(&mut self, vmid: Vmid) {
        // The empty root is not the one that other CPUs use under this number, so it is not marked common.
        let root = host::private_vttbr(EMPTY_ROOT.0.as_ptr() as u64, vmid.raw().into());
        switch::with_other_stage2(root, tlb::invalidate_current_vmid_everywhere);
    }
}

/// A root that maps nothing, as large and as aligned as the largest in use (40-bit IPA).
#[repr(C, align(8192))]
struct EmptyRoot([u64; 2 * WORDS]);

static EMPTY_ROOT: EmptyRoot = EmptyRoot([0; 2 * WORDS]);

impl Frames for Hardware {
    #[inline(never)]
    fn scrub(&mut self, frame: Pfn) {
        let at = address(frame);
        // SAFETY: `mem` names only frames of RAM that belong to EL2 or are on their way between owners, all mapped;
        // no reference into them exists.
        if unsafe { cache::zero_to_poc(at, FRAME) } {
            return;
        }
        // SAFETY: as above.
        unsafe { (at as *mut u8).write_bytes(0, FRAME) };
        cache::clean_invalidate_to_poc(at, FRAME);
    }

    #[inline(never)]
    fn settle_for_guest(&mut self, frame: Pfn) {
        cache::clean_invalidate_to_poc(address(frame), FRAME);
    }

    #[inline(never)]
    fn settle_instructions(&mut self) {
        if !cache::instructions_are_coherent() {
            cache::invalidate_instructions_everywhere();
        }
    }

    fn copy_words(&self, frame: Pfn, into: &mut [u64]) {
        let words = address(frame) as *const AtomicU64;
        // The host chose the frame: it is not read before the check that it is the host's is decided.
        barrier::no_guessing();
        for (index, word) in into.iter_mut().enumerate().take(WORDS) {
            // SAFETY: the index is below the words of a frame, and `mem` names only frames of RAM,
            // all of which are mapped.
            let place = unsafe { words.add(index) };
            // SAFETY: as above; the host may write the word meanwhile, so it is read atomically.
            *word = unsafe { &*place }.load(Ordering::Relaxed);
        }
    }
}

/// Takes the contents of a frame into a hash. Nobody writes to the frame meanwhile: it is on its way to a guest.
pub fn hash(hash: &mut Sha256, frame: Pfn) {
    let mut block = [0; 8];
    let words = address(frame) as *const AtomicU64;
    for first in (0..WORDS).step_by(block.len()) {
        for (index, word) in block.iter_mut().enumerate() {
            // SAFETY: the sum is below the words of a frame, and `mem` names only frames of RAM, all of which are mapped.
            let place = unsafe { words.add(first + index) };
            // SAFETY: as above.
            *word = unsafe { &*place }.load(Ordering::Relaxed);
        }
        hash.block(&block);
    }
}

impl Fatal for Hardware {
    #[cold]
    #[inline(never)]
    fn fatal(&self, what: Broken) -> ! {
        fatal::panic(format_args!("broken invariant {what:?}"))
    }
}

/// Lends `len` bytes of memory to read.
///
/// # Safety
/// `[start, start + len)` is mapped, and nobody writes it as long as the slice is used.
pub unsafe fn bytes(start: usize, len: usize) -> &'static [u8] {
    // SAFETY: the caller's promise is that of the callee.
    unsafe { core::slice::from_raw_parts(start as *const u8, len) }
}

/// Memory that the boot has taken for EL2 and that nothing refers to yet.
#[derive(Debug)]
pub struct Fresh {
    start: usize,
    len: usize,
}

impl Fresh {
    /// Names fresh memory.
    ///
    /// # Safety
    /// `[start, start + len)` is mapped read-write, 8-byte aligned, EL2's alone, and named fresh once.
    pub unsafe fn new(start: usize, len: usize) -> Self {
        Self { start, len }
    }

    /// Turns it into zeroed words.
    pub fn into_words(self) -> &'static mut [u64] {
        let bytes = self.start as *mut u8;
        // SAFETY: the promise of `new`.
        unsafe { bytes.write_bytes(0, self.len) };
        let words = self.start as *mut u64;
        // SAFETY: the promise of `new`; `self` is consumed, so this is the only reference.
        unsafe { core::slice::from_raw_parts_mut(words, self.len / 8) }
    }

    /// Turns it into bytes, zeroed.
    pub fn into_bytes(self) -> &'static mut [u8] {
        let bytes = self.start as *mut u8;
        // SAFETY: the promise of `new`.
        unsafe { bytes.write_bytes(0, self.len) };
        // SAFETY: as above; `self` is consumed, so this is the only reference.
        unsafe { core::slice::from_raw_parts_mut(bytes, self.len) }
    }
}

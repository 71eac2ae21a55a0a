// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine behind the ports: its RAM, its TLB, and the vCPUs in its pool frames.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use freehold_mem::{BLOCK_FRAMES, PAGE_SIZE};
use freehold_virt::handle::Handle;
use freehold_virt::vm::{Phase, VmCell, Vms};

use crate::label::{Label, PLACES};
use crate::tlb::{ELSEWHERE, MOST_FRAMES, Rights, Tlb};
use crate::vcpus::Block;

const WORDS: usize = (PAGE_SIZE / 8) as usize;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;
/// Frames of the carve-out, at the start of RAM.
const CARVE_OUT: u64 = BLOCK_FRAMES;

/// What machine to build, and which of its frames are watched.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Frames of RAM behind the carve-out. Less than a block of them stands as a table for good.
    pub frames: u64,
    /// How many of the last of them are `no-map`.
    pub no_map: u64,
    /// VM slots.
    pub vms: usize,
    /// Frames that are watched, counted from the first behind the carve-out; at most 63.
    pub watched: Vec<u64>,
    /// Guest frame numbers that are watched.
    pub gfns: Vec<u64>,
}

/// A part of the machine that does not do what it must, to see that it is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// None.
    #[default]
    None,
    /// The host's translations are not forgotten.
    KeepsHostTlb,
    /// Translations of VMs are not forgotten.
    KeepsVmTlb,
    /// What must be zeroed is not.
    NoScrub,
    /// Zeroing stops half way.
    HalfScrub,
    /// A VM's invalidation forgets the translations of its neighbour.
    WrongVmTlb,
}

/// Where things are, and what happened. All of it can be used from several CPUs.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) layout: Layout,
    words: Vec<AtomicU64>,
    /// Per frame behind the carve-out: its number among the watched ones, or none.
    numbers: Vec<Option<u8>>,
    tlb: Mutex<Tlb>,
    pub(crate) host_root: AtomicU64,
    /// Per slot: the handle of its VM and its root table, or zero.
    roots: Vec<[AtomicU64; 2]>,
    pub(crate) cells: Vec<VmCell<AtomicU64>>,
    blocks: Mutex<Vec<(u64, Block)>>,
    /// Operations that change the machine.
    pub(crate) changes: AtomicU64,
    /// Watched frames that a guest had lent to the host at the last picture.
    pub(crate) lent: AtomicU64,
    /// Slots whose VM is an ordinary one, a bit each.
    pub(crate) ordinary: AtomicU64,
    complaints: Mutex<Vec<String>>,
    /// Frames whose contents were measured since somebody looked.
    measured: Mutex<Vec<u64>>,
    pub(crate) fault: Fault,
}

impl Board {
    /// First frame of RAM.
    pub(crate) const RAM: u64 = 0x4_0000;
    /// First frame behind the carve-out.
    pub(crate) const HOST: u64 = Self::RAM + CARVE_OUT;

    pub(crate) fn new(layout: Layout, fault: Fault) -> Self {
        assert!(layout.watched.len() <= MOST_FRAMES, "too many watched frames");
        let frames = usize::try_from(CARVE_OUT + layout.frames).expect("a machine that fits");
        let mut numbers = vec![None; usize::try_from(layout.frames).expect("a machine that fits")];
        for (number, frame) in (0..).zip(&layout.watched) {
            numbers[usize::try_from(*frame).expect("a frame of the machine")] = Some(number);
        }
        Self {
            words: (0..frames * WORDS).map(|_| AtomicU64::new(0)).collect(),
            numbers,
            tlb: Mutex::new(Tlb::new(layout.vms, layout.gfns.len())),
            host_root: AtomicU64::new(0),
            roots: (0..layout.vms).map(|_| [const { AtomicU64::new(0) }; 2]).collect(),
            cells: (0..layout.vms).map(|_| VmCell::new(|| AtomicU64::new(0))).collect(),
            blocks: Mutex::default(),
            changes: AtomicU64::new(0),
            lent: AtomicU64::new(0),
            ordinary: AtomicU64::new(0),
            complaints: Mutex::default(),
            measured: Mutex::default(),
            fault,
            layout,
        }
    }

    fn word(&self, frame: u64, index: usize) -> &AtomicU64 {
        let at = frame.checked_sub(Self::RAM).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.words.get(at * WORDS + index)).unwrap_or_else(|| panic!("no RAM at frame {frame:#x}"))
    }

    pub(crate) fn read(&self, frame: u64, index: usize) -> u64 {
        self.word(frame, index).load(Ordering::Relaxed)
    }

    pub(crate) fn write(&self, frame: u64, index: usize, value: u64) {
        self.word(frame, index).store(value, Ordering::Relaxed);
    }

    /// Zeroes the first `words` of a frame.
    pub(crate) fn zero(&self, frame: u64, words: usize) {
        let _ = self.word(frame, 0);
        let at = usize::try_from(frame - Self::RAM).expect("checked above") * WORDS;
        self.words[at..at + words].iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    pub(crate) fn label(&self, frame: u64) -> Label {
        Label::of_words(PLACES.map(|place| self.read(frame, place)))
    }

    pub(crate) fn set_label(&self, frame: u64, label: Label) {
        PLACES.iter().for_each(|place| self.write(frame, *place, label.word()));
    }

    /// The frame of a watched number.
    pub(crate) fn frame(&self, number: usize) -> u64 {
        Self::HOST + self.layout.watched[number]
    }

    /// The bit of a frame.
    pub(crate) fn bit(&self, frame: u64) -> u64 {
        let offset = frame.checked_sub(Self::HOST).and_then(|at| usize::try_from(at).ok());
        match offset.and_then(|at| self.numbers.get(at).copied().flatten()) {
            Some(number) => 1 << number,
            None => ELSEWHERE,
        }
    }

    pub(crate) fn vms(&self) -> Vms<'_, AtomicU64> {
        Vms::new(&self.cells)
    }

    /// Says under which root a VM's vCPUs run; none while none can.
    pub(crate) fn set_root(&self, slot: usize, handle: u64, root: Option<u64>) {
        let known = root.map_or([0, 0], |root| [handle, root]);
        for (place, value) in self.roots[slot].iter().zip(known) {
            place.store(value, Ordering::Relaxed);
        }
    }

    /// The root of a VM whose vCPUs may be on a CPU right now.
    fn live_root(&self, slot: usize) -> Option<u64> {
        let [handle, root] = self.roots[slot].each_ref().map(|place| place.load(Ordering::Relaxed));
        let handle = Handle::decode(handle).ok()?;
        (self.vms().phase(handle) == Ok(Phase::Live)).then_some(root)
    }

    pub(crate) fn tlb(&self) -> MutexGuard<'_, Tlb> {
        self.tlb.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TLB, as an access of now finds it.
    pub(crate) fn filled(&self) -> MutexGuard<'_, Tlb> {
        let mut tlb = self.tlb();
        if tlb.is_behind {
            self.fill(&mut tlb);
        }
        tlb
    }

    /// Caches whatever the tables say now.
    pub(crate) fn fill(&self, tlb: &mut Tlb) {
        tlb.host |= self.host_maps();
        for slot in 0..self.layout.vms {
            let Some(root) = self.live_root(slot) else { continue };
            for (place, gfn) in self.layout.gfns.iter().enumerate() {
                if let Some((frame, rights)) = self.walk_guest(root, *gfn) {
                    tlb.add_guest(slot, place, self.bit(frame), rights);
                }
            }
        }
        tlb.is_behind = false;
    }

    /// Watched frames that the host's tables map; none while they are being built.
    pub(crate) fn host_maps(&self) -> u64 {
        let root = self.host_root.load(Ordering::Relaxed);
        if root == 0 {
            return 0;
        }
        let numbers = 0..self.layout.watched.len();
        numbers.filter(|number| self.walk_host(root, self.frame(*number))).fold(0, |set, number| set | 1 << number)
    }

    fn walk_host(&self, root: u64, frame: u64) -> bool {
        let level1 = self.read(root + (frame >> 27), index(frame >> 18));
        if level1 & 3 != 3 {
            return level1 & 1 != 0;
        }
        let level2 = self.read((level1 & OUTPUT) >> 12, index(frame >> 9));
        if level2 & 3 != 3 {
            return level2 & 1 != 0;
        }
        let level3 = self.read((level2 & OUTPUT) >> 12, index(frame));
        assert!(level3 & 1 == 0 || (level3 & OUTPUT) >> 12 == frame, "the host's map is not an identity at {frame:#x}");
        level3 & 1 != 0
    }

    /// The frame that a VM's tables map a guest frame to, and for what.
    pub(crate) fn walk_guest(&self, root: u64, gfn: u64) -> Option<(u64, Rights)> {
        let (mut table, mut rights) = (root + (gfn >> 27), Rights { write: false, execute: false });
        for shift in [18, 9, 0] {
            let descriptor = self.read(table, index(gfn >> shift));
            if descriptor & 1 == 0 {
                return None;
            }
            table = (descriptor & OUTPUT) >> 12;
            // S2AP[1] and XN[1] of the page: tables limit nothing here.
            rights = Rights { write: descriptor >> 7 & 1 != 0, execute: descriptor >> 54 & 1 == 0 };
        }
        Some((table, rights))
    }

    pub(crate) fn blocks(&self) -> MutexGuard<'_, Vec<(u64, Block)>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn measured(&self) -> MutexGuard<'_, Vec<u64>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what no machine may ever see.
    pub(crate) fn complain(&self, what: String) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Takes what was noted.
    pub(crate) fn complaints(&self) -> Vec<String> {
        core::mem::take(&mut *self.complaints.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number & 511).expect("nine bits")
}

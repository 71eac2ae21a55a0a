// SPDX-License-Identifier: MIT OR Apache-2.0
//! User side of the hostile kernel module: what a host that has turned against its guests can do.
//!
//! Mirrors `tests/hostile/fh_hostile.h`; the ioctl numbers carry the sizes, so that a mismatch is ENOTTY.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use freehold_uapi::hvc;

use crate::sys::{self, Mapping};

const MAGIC: u32 = 0xF6;
const READ_WRITE: u32 = 3;
const WRITE: u32 = 1;

const fn number<T>(dir: u32, nr: u32) -> u32 {
    freehold_uapi::ioctl::ioc(dir, MAGIC, nr, size_of::<T>() as u32)
}

#[repr(C)]
struct Block {
    order: u64,
    pfn: u64,
}

#[repr(C)]
struct PfnOf {
    addr: u64,
    pfn: u64,
}

#[repr(C)]
struct AccessTo {
    pfn: u64,
    offset: u64,
    value: u64,
    write: u32,
    how: u32,
    result: i32,
    pad: u32,
}

#[repr(C)]
struct Fill {
    pfn: u64,
    addr: u64,
    bytes: u64,
}

#[repr(C)]
struct Hold {
    pfn: u64,
    what: u32,
    answer: u32,
}

#[repr(C)]
struct Sweep {
    first: u64,
    count: u64,
    out: u64,
    room: u64,
    found: u64,
}

/// A call with vectors: in streaming mode; with a watchpoint on every access to the guest's RAM; with the cycle counter
/// armed.
pub(crate) const STREAMING: u32 = 1;
pub(crate) const WATCHING: u32 = 2;
pub(crate) const COUNTING: u32 = 4;

#[derive(Default)]
#[repr(C)]
struct Vectors {
    x: [u64; 18],
    manner: u32,
    compared: u32,
    differ: u64,
    debug_set: u32,
    debug_differ: u32,
    control_differ: u32,
    timer_shown: u32,
    counted: Counted,
    el1: El1,
}

/// Registers of EL1, a bit each: those that had values of their own before a call, and those that were not the same after it;
/// from bit 48 on, x18 to x30.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct El1 {
    pub(crate) set: u64,
    pub(crate) differ: u64,
}

impl El1 {
    /// FAR, ESR, ELR, SPSR, PAR, CONTEXTIDR, TPIDRRO, TPIDR_EL0 and DISR, which no kernel needs during a call.
    pub(crate) const OWN: u64 = 0x4ff;
}

/// What the host's cycle counter counted in a call, and, for comparison, in the host itself in about the same time.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Counted {
    pub(crate) ticks: u64,
    pub(crate) cycles: u64,
    pub(crate) own_ticks: u64,
    pub(crate) own_cycles: u64,
}

/// What a call with vectors did to the host.
pub(crate) struct Compared {
    /// Kinds of vector registers, a bit each.
    pub(crate) kinds: u32,
    /// Bytes of them that it changed.
    pub(crate) differ: u64,
    /// The host's debug registers that were set, and those that it changed.
    pub(crate) debug: (u32, u32),
    /// How many of FPCR and FPSR it changed.
    pub(crate) control: u32,
    /// Registers of the virtual timer that show what is not the host's.
    pub(crate) timer: u32,
    /// By [`COUNTING`].
    pub(crate) counted: Counted,
    /// Its registers of EL1.
    pub(crate) el1: El1,
}

#[repr(C)]
struct Watched {
    addr: u64,
    stopped: u64,
}

/// By which mapping, and with which safety net, the kernel touches a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    /// Linear map, with fixup.
    Linear = 0,
    /// Fresh mapping, with fixup.
    Fresh = 1,
    /// Linear map, plainly, in a thread of its own.
    Thread = 2,
    /// Fresh mapping, plainly, in a thread of its own.
    FreshThread = 3,
}

/// An instruction that reaches memory and is neither a load nor a store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Odd {
    /// `DC ZVA`: zeroes a block.
    Zero = 2,
    /// `LDXR` and `STXR`.
    Exclusive = 3,
    /// `CASAL`: 0 becomes 99.
    Atomic = 4,
    /// `PRFM`.
    Prefetch = 5,
    /// `LDTR` of address 0, by translation tables that begin in the frame.
    Walk = 6,
    /// `AT S1E0R` of address 0, by such tables.
    Translate = 7,
    /// `STG` of tag 5, on a machine with tag memory.
    StoreTag = 8,
    /// `LDG`.
    LoadTag = 9,
    /// `STZG` of tag 3.
    ZeroTag = 10,
    /// `DC GZVA`.
    BlockTag = 11,
    /// `LDR` of an address of the kernel's half, by a level-3 table that is the frame.
    KernelWalk = 12,
    /// A call of the frame's first instruction, in a thread of its own.
    Fetch = 13,
}

/// The module's device.
pub(crate) struct Hostile(File);

impl AsRawFd for Hostile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Hostile {
    /// Opens the device; the job has loaded the module.
    pub(crate) fn open() -> Result<Self, String> {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/fh_hostile")
            .map(Self)
            .map_err(|e| format!("/dev/fh_hostile: {e}"))
    }

    /// A raw call: function and arguments in, x0–x17 out.
    pub(crate) fn raw(&self, function: u64, arguments: &[u64]) -> [u64; 18] {
        let mut x = [0u64; 18];
        x[0] = function;
        x[1..=arguments.len()].copy_from_slice(arguments);
        match sys::ioctl(self, number::<[u64; 18]>(READ_WRITE, 1), &mut x) {
            Ok(_) => x,
            Err(error) => panic!("raw call refused by the module: {}", sys::errno_name(error)),
        }
    }

    /// A raw call's status.
    pub(crate) fn call(&self, function: u32, arguments: &[u64]) -> i64 {
        self.raw(function.into(), arguments)[0].cast_signed()
    }

    /// One counter of `el2`.
    pub(crate) fn counter(&self, counter: u64, index: u64) -> u64 {
        self.raw(hvc::COUNTER.into(), &[counter, index])[1]
    }

    /// Allocates 2^order frames; the first one's number.
    pub(crate) fn alloc(&self, order: u64) -> Result<u64, i32> {
        let mut block = Block { order, pfn: 0 };
        sys::ioctl(self, number::<Block>(READ_WRITE, 2), &mut block)?;
        Ok(block.pfn)
    }

    /// Frees a block; EBUSY if the host can not read all of it.
    pub(crate) fn free(&self, pfn: u64) -> Result<i64, i32> {
        sys::ioctl(self, number::<Block>(READ_WRITE, 3), &mut Block { order: 0, pfn })
    }

    /// The frame behind an address of this process.
    pub(crate) fn pfn_of(&self, at: *const u8) -> Result<u64, i32> {
        let mut ask = PfnOf { addr: at as u64, pfn: 0 };
        sys::ioctl(self, number::<PfnOf>(READ_WRITE, 4), &mut ask)?;
        Ok(ask.pfn)
    }

    /// One access by the kernel: what became of it, and the word loaded.
    pub(crate) fn access(&self, pfn: u64, how: How, store: Option<u64>) -> (String, u64) {
        self.act(pfn, how as u32, u32::from(store.is_some()), store.unwrap_or(0))
    }

    /// What else the kernel can do to the first word of a frame, by its linear map: what became of it.
    pub(crate) fn odd(&self, pfn: u64, what: Odd) -> String {
        self.act(pfn, How::Linear as u32, what as u32, 99).0
    }

    /// Has the kernel translate address 0 by tables that begin in a frame: what became of it, and what it loaded, or
    /// PAR_EL1.
    pub(crate) fn walk(&self, pfn: u64, what: Odd) -> (String, u64) {
        self.act(pfn, How::Linear as u32, what as u32, 0)
    }

    /// The tag of a frame's first bytes: what became of reading it, and the tag.
    pub(crate) fn tag(&self, pfn: u64) -> (String, u64) {
        self.act(pfn, How::Linear as u32, Odd::LoadTag as u32, 0)
    }

    fn act(&self, pfn: u64, how: u32, write: u32, value: u64) -> (String, u64) {
        let mut ask = AccessTo { pfn, offset: 0, value, write, how, result: 0, pad: 0 };
        let seen = match sys::ioctl(self, number::<AccessTo>(READ_WRITE, 5), &mut ask) {
            Err(error) => format!("ioctl {}", sys::errno_name(error)),
            Ok(_) => match ask.result {
                0 => "done".to_string(),
                1 => "died".to_string(),
                error => sys::errno_name(-error),
            },
        };
        (seen, ask.value)
    }

    /// Writes words to the start of a frame that the host owns.
    pub(crate) fn fill(&self, pfn: u64, words: &[u64]) -> Result<i64, i32> {
        let mut ask = Fill { pfn, addr: words.as_ptr() as u64, bytes: size_of_val(words) as u64 };
        sys::ioctl(self, number::<Fill>(WRITE, 6), &mut ask)
    }

    /// Maps a run of frames, RAM or not, into this process.
    pub(crate) fn map(&self, pfn: u64, frames: usize) -> Result<Mapping, i32> {
        Mapping::new(self, pfn << 12, frames << 12, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)
    }

    /// A raw call with every vector register of the host filled: x0–x17, what was filled (bit 0 V, 1 SVE, 2 ZA), and
    /// how many bytes came back otherwise.
    pub(crate) fn raw_with_vectors(&self, call: [u64; 18], manner: u32) -> Result<([u64; 18], Compared), i32> {
        let mut ask = Vectors { x: call, manner, ..Vectors::default() };
        sys::ioctl(self, number::<Vectors>(READ_WRITE, 8), &mut ask)?;
        let debug = (ask.debug_set, ask.debug_differ);
        let (control, timer) = (ask.control_differ, ask.timer_shown);
        let (kinds, differ, counted, el1) = (ask.compared, ask.differ, ask.counted, ask.el1);
        Ok((ask.x, Compared { kinds, differ, debug, control, timer, counted, el1 }))
    }

    /// Whether the watchpoint of [`WATCHING`] stops the host's own load from an address of this process.
    pub(crate) fn is_stopped_at(&self, at: *const u8) -> Result<bool, i32> {
        let mut ask = Watched { addr: at as u64, stopped: 0 };
        sys::ioctl(self, number::<Watched>(READ_WRITE, 10), &mut ask)?;
        Ok(ask.stopped == 1)
    }

    /// Takes a reference to a frame as whoever walks frames by their numbers does; whether there was one to add to.
    pub(crate) fn take(&self, pfn: u64) -> bool {
        self.hold(pfn, 0) == Ok(1)
    }

    /// Drops what [`Hostile::take`] took.
    pub(crate) fn drop_taken(&self, pfn: u64) {
        let dropped = self.hold(pfn, 1);
        assert_eq!(dropped, Ok(1), "a reference that was taken");
    }

    /// References of a frame.
    pub(crate) fn references(&self, pfn: u64) -> Result<u32, i32> {
        self.hold(pfn, 2)
    }

    fn hold(&self, pfn: u64, what: u32) -> Result<u32, i32> {
        let mut ask = Hold { pfn, what, answer: 0 };
        sys::ioctl(self, number::<Hold>(READ_WRITE, 11), &mut ask)?;
        Ok(ask.answer)
    }

    /// Has the kernel use memory that it was told nothing of.
    pub(crate) fn add_memory(&self, start: u64, bytes: u64) -> Result<i64, i32> {
        sys::ioctl(self, number::<[u64; 2]>(WRITE, 9), &mut [start, bytes])
    }

    /// Every frame of RAM that the host's linear map can not reach, in order.
    pub(crate) fn unreachable(&self) -> Vec<u64> {
        ram().into_iter().flat_map(|(first, count)| self.unreachable_of(first, count)).collect()
    }

    /// Those of one range.
    pub(crate) fn unreachable_of(&self, first: u64, count: u64) -> Vec<u64> {
        let mut out = vec![0u64; 0x8000];
        let mut ask = Sweep { first, count, out: out.as_mut_ptr() as u64, room: out.len() as u64, found: 0 };
        sys::ioctl(self, number::<Sweep>(READ_WRITE, 7), &mut ask).expect("sweep");
        let found = usize::try_from(ask.found).expect("a count");
        assert!(found <= out.len(), "{found} unreachable frames");
        out.truncate(found);
        out
    }
}

/// Ranges of RAM as the kernel knows them, in frames.
pub(crate) fn ram() -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/iomem").unwrap_or_default();
    text.lines()
        .filter(|line| !line.starts_with(' ') && line.ends_with(": System RAM"))
        .filter_map(|line| {
            let (first, rest) = line.split_once('-')?;
            let (last, _) = rest.split_once(' ')?;
            let first = u64::from_str_radix(first, 16).ok()? >> 12;
            let last = u64::from_str_radix(last, 16).ok()? >> 12;
            Some((first, last - first + 1))
        })
        .collect()
}

/// Runs of consecutive frames, as hexadecimal text.
pub(crate) fn runs(frames: &[u64]) -> String {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for &frame in frames {
        match out.last_mut() {
            Some((_, last)) if *last + 1 == frame => *last = frame,
            _ => out.push((frame, frame)),
        }
    }
    out.iter()
        .map(|(a, b)| if a == b { format!("{a:x}") } else { format!("{a:x}-{b:x}") })
        .collect::<Vec<_>>()
        .join(",")
}

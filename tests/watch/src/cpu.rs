// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of the call that one CPU is in.

use freehold_mem::{GfnRun, Guest, Kind, Life, Machine, PAGE_SIZE, Pfn};
use freehold_oracle::{Outcome, Pending, Power};
use freehold_uapi::hvc;

use crate::given::Found;
use crate::judge::Came;
use crate::turn::Stopped;

/// Frames that one call can be about: a run, and the frame of a list.
const NAMED: usize = 520;
/// Words of a frame.
const WORDS: usize = PAGE_SIZE as usize / 8;
/// RAM ranges of a VM.
pub const RANGES: usize = 8;

/// What brought the CPU to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// Nothing that is followed.
    Other,
    /// A call with x1–x5.
    Call {
        /// Function.
        id: u32,
        /// Arguments.
        x: [u64; 5],
    },
    /// The host touched a page that is not mapped for it.
    Abort {
        /// Its address.
        page: u64,
        /// Whether the kernel did so, by an address of its own.
        kernel: bool,
    },
}

/// A VM's books, as far as they can be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Books {
    /// Where the VM is in its life.
    pub life: Life,
    /// What it is.
    pub kind: Option<Kind>,
    /// Root table and address bits.
    pub root: Option<(u64, u32)>,
    /// Frames that its pool can give.
    pub pool_free: u32,
    /// Frames that it owns, and that it borrows.
    pub frames: (u64, u64),
    /// Its RAM.
    pub ram: [Option<GfnRun>; RANGES],
}

impl Books {
    /// Of no VM.
    pub const NONE: Self =
        Self { life: Life::Free, kind: None, root: None, pool_free: 0, frames: (0, 0), ram: [None; RANGES] };

    /// Of a VM.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        let mut ram = guest.ram();
        Self {
            life: guest.life(),
            kind: guest.kind(),
            root: guest.root().map(|(root, bits)| (root.raw(), bits)),
            pool_free: guest.pool_free(),
            frames: guest.frames(),
            ram: core::array::from_fn(|_| ram.next()),
        }
    }
}

/// What was said of a call when its locks were let go.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// What may come of it.
    pub outcome: Outcome,
    /// Whether it was done.
    pub did: bool,
}

const NO_RECORD: hvc::Record = hvc::Record { pfn: 0, gfn_count: 0 };

/// One CPU.
#[derive(Debug)]
pub struct Cpu {
    /// What brought it here.
    pub trap: Trap,
    /// Number of the step that it is.
    pub step: u64,
    /// Whether it holds the host's lock.
    pub holds_host: bool,
    named: [u64; NAMED],
    count: usize,
    list: [hvc::Record; hvc::MAX_RECORDS as usize],
    listed: usize,
    /// How often it looked for interrupts, and whether it found one at the last look.
    pub looks: (u64, bool),
    /// Whether it was told that the machine closes.
    pub closing: bool,
    /// What it knew when it came.
    pub came: Came,
    /// What was said of its call under the locks.
    pub verdict: Option<Verdict>,
    /// The power of the vCPU that it runs, when that arrived.
    pub arrived: Option<Power>,
    /// How its guest stopped last, unless it went on.
    pub stopped: Option<Stopped>,
    /// What the vCPU waited for when it was claimed, and when it was let go of.
    pub waits: Option<(Pending, Pending)>,
    /// What its guest finds when it goes on some time, as it was when its vCPU was let go of: x0 to x3, and the rest.
    pub found: ([u64; 4], Found),
    /// Whether the host was in streaming mode.
    pub busy: bool,
    /// How many calls that name the VM of its call had ended when it came, and how many of those that claim a vCPU.
    pub ended: [u64; 2],
    /// How many calls that make a VM had ended when it came.
    pub created: u64,
    /// A frame that was zeroed and is not zero.
    pub left: Option<u64>,
    /// What was read of a frame last.
    read: [u64; WORDS],
}

impl Cpu {
    /// Outside of EL2.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only a static holds one")]
    pub const fn new() -> Self {
        Self {
            trap: Trap::Other,
            step: 0,
            holds_host: false,
            named: [0; NAMED],
            count: 0,
            list: [NO_RECORD; hvc::MAX_RECORDS as usize],
            listed: 0,
            looks: (0, false),
            closing: false,
            came: Came { slot: None, counts: None, version: 0, outcome: None },
            verdict: None,
            arrived: None,
            stopped: None,
            waits: None,
            found: ([0; 4], Found::NONE),
            busy: false,
            ended: [0; 2],
            created: 0,
            left: None,
            read: [0; WORDS],
        }
    }

    /// Reads a frame that was zeroed, all of it.
    pub fn look_for_zeros(&mut self, frame: Pfn, ports: &impl Machine) {
        ports.copy_words(frame, &mut self.read);
        if self.read.iter().any(|word| *word != 0) {
            self.left = Some(frame.raw());
        }
    }

    /// Comes to EL2.
    pub fn begin(&mut self, trap: Trap, step: u64) {
        (self.trap, self.step, self.count, self.listed) = (trap, step, 0, 0);
        (self.looks, self.closing) = ((0, false), false);
        (self.came, self.verdict, self.ended, self.created) = (Came::default(), None, [0; 2], 0);
        (self.arrived, self.stopped, self.waits, self.busy) = (None, None, None, false);
        match trap {
            Trap::Other => {}
            Trap::Abort { page, .. } => self.name(page >> 12),
            Trap::Call { id, x } => match id {
                hvc::VM_CREATE => self.name_run(x[2], x[3]),
                hvc::VM_RECLAIM | hvc::POOL_TOPUP => self.name_run(x[1], x[2]),
                hvc::MEM_DONATE | hvc::MEM_SHARE => self.name_run(x[1], x[3]),
                hvc::MEM_DONATE_LIST => self.name(x[1]),
                _ => {}
            },
        }
    }

    /// The call is about this frame.
    pub fn name(&mut self, pfn: u64) {
        if let Some(place) = self.named.get_mut(self.count) {
            *place = pfn;
            self.count += 1;
        }
    }

    fn name_run(&mut self, pfn: u64, count: u64) {
        if count <= hvc::MAX_RUN
            && let Some(end) = pfn.checked_add(count)
        {
            (pfn..end).for_each(|pfn| self.name(pfn));
        }
    }

    /// el2 has copied words of a frame: of its call's list, or of a frame that it measures.
    pub fn copied(&mut self, frame: Pfn, words: &[u64]) {
        if !matches!(self.trap, Trap::Call { id: hvc::MEM_DONATE_LIST, x } if x[1] == frame.raw()) {
            return;
        }
        let (pairs, _) = words.as_chunks::<2>();
        self.listed = pairs.len().min(self.list.len());
        for (place, [pfn, gfn_count]) in self.list.iter_mut().zip(pairs) {
            *place = hvc::Record { pfn: *pfn, gfn_count: *gfn_count };
        }
        for at in 0..self.listed {
            let record = self.list[at];
            // One frame is the list's own.
            let room = (NAMED - 1 - self.count.min(NAMED - 1)) as u64;
            self.name_run(record.pfn, record.count().min(room));
        }
    }

    /// The frames that the call is about.
    #[must_use]
    pub fn frames(&self) -> &[u64] {
        &self.named[..self.count]
    }

    /// The list that el2 has copied.
    #[must_use]
    pub fn records(&self) -> &[hvc::Record] {
        &self.list[..self.listed]
    }
}

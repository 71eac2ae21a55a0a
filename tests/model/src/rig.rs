// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine: made once, called often, and brought back to its beginning by calls alone.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use freehold_el2::calls::{self, GuestSlot};
use freehold_mem::lock::{Permit, World};
use freehold_mem::{Attributes, Host, Kind, Life, MemoryMap, Pfn, PfnRun, State, VmSlot, Vmid};
use freehold_uapi::hvc;
use freehold_virt::handle::{Handle, MAX_VMS, VcpuIndex};
use freehold_virt::vm::Purpose;

use crate::act::Act;
use crate::board::{Board, Fault, Layout};
use crate::label::Label;
use crate::lock::{Leaf, Lock};
use crate::platform::Cpu;
use crate::ports::{LENDS, Ports};
use crate::tlb::Right;

/// Guest frames of one range at which something may be lent, beside those that are watched.
const MOST_RAM: usize = 4096;

/// What came of a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// No translation is at hand.
    No,
    /// There is one, but not for this.
    Denied,
    /// It goes through.
    Yes,
}

/// CPUs that the rig has.
pub(crate) const CPUS: usize = 2;

/// The machine.
#[derive(Debug)]
pub struct Rig {
    pub(crate) board: Board,
    pub(crate) world: World<Lock<Host<'static>>, Lock<GuestSlot>, MAX_VMS>,
    pub(crate) boards: [Leaf<freehold_virt::board::Board>; MAX_VMS],
    scripts: [Mutex<VecDeque<Act>>; CPUS],
    /// Per CPU: entries into guests, and how many of them forgot what was cached.
    entries: [[AtomicU64; 2]; CPUS],
    pub(crate) no_vms: AtomicBool,
    pub(crate) closing: AtomicU32,
    pub(crate) wanted: AtomicBool,
    pub(crate) busy: AtomicBool,
    /// What CPU 0 calls as soon as a guest runs on another, and what it was answered.
    meanwhile: Mutex<Meanwhile>,
}

/// A call that is lined up, and what one came to.
type Meanwhile = (Option<(u32, [u64; 5])>, Option<Answer>);

/// What a call answered: the status of x0, and x1–x4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Answer {
    /// x0.
    pub status: i64,
    /// x1–x4.
    pub x: [u64; 4],
}

impl Answer {
    /// The status by its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        hvc::STATUSES.iter().find(|item| item.value == self.status).map_or("?", |item| item.name)
    }

    /// Whether the call did what it says.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        self.status == hvc::SUCCESS
    }
}

fn run(first: u64, count: u64) -> PfnRun {
    PfnRun::decode(first, count).expect("a run of the machine")
}

impl Rig {
    /// Builds the machine. The ledger's storage is leaked, as it is on the real one: make few, and [`Self::reset`].
    ///
    /// # Panics
    /// If the layout is none.
    #[must_use]
    pub fn new(layout: Layout, fault: Fault) -> Self {
        let board = Board::new(layout, fault);
        let mut map = MemoryMap::new(40).expect("an address space");
        map.add_bank(run(Board::RAM, Board::HOST - Board::RAM + board.layout.frames)).expect("a bank");
        map.add_carve_out(run(Board::RAM, Board::HOST - Board::RAM)).expect("a carve-out");
        let words = usize::try_from(map.needs().words).expect("a machine that fits");
        let storage = vec![0; words].leak();
        let tables = Pfn::new(Board::RAM).expect("a frame");
        let mut ports = Ports(&board);
        let mut host = Host::build(map, tables, storage, Attributes::Combined, &mut ports).expect("a host");
        if board.layout.no_map != 0 {
            let first = Board::HOST + board.layout.frames - board.layout.no_map;
            host.mark_no_map(run(first, board.layout.no_map), &ports);
        }
        board.host_root.store(host.root().raw(), Ordering::Relaxed);
        for frame in 0..board.layout.frames {
            board.set_label(Board::HOST + frame, Label::Host);
        }
        let guests = core::array::from_fn(|slot| {
            let slot = u8::try_from(slot).ok().and_then(VmSlot::new).expect("a slot");
            Lock::new(GuestSlot::new(slot))
        });
        let rig = Self {
            board,
            world: World::new(Lock::new(host), guests),
            boards: [const { Leaf::new(freehold_virt::board::Board::new()) }; MAX_VMS],
            scripts: core::array::from_fn(|_| Mutex::default()),
            entries: [const { [const { AtomicU64::new(0) }; 2] }; CPUS],
            no_vms: AtomicBool::new(false),
            closing: AtomicU32::new(0),
            wanted: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            meanwhile: Mutex::default(),
        };
        rig.settle();
        rig
    }

    /// One of its CPUs.
    pub(crate) const fn cpu(&self, number: usize) -> Cpu<'_> {
        assert!(number < CPUS, "no such CPU");
        Cpu { rig: self, number }
    }

    /// First frame behind the carve-out.
    #[must_use]
    pub const fn first_frame(&self) -> u64 {
        Board::HOST
    }

    /// First frame of the carve-out, which is `el2`'s.
    #[must_use]
    pub const fn carve_out(&self) -> u64 {
        Board::RAM
    }

    /// The machine that was asked for.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.board.layout
    }

    /// Lines up what the next guest on this CPU does. Without more it is interrupted.
    pub fn script(&self, cpu: usize, acts: &[Act]) {
        self.scripts[cpu].lock().expect("one thread at a time").extend(acts);
    }

    /// Forgets what was lined up and not done.
    pub fn forget_script(&self, cpu: usize) {
        self.scripts[cpu].lock().expect("one thread at a time").clear();
    }

    pub(crate) fn next_act(&self, cpu: usize) -> Act {
        self.scripts[cpu].lock().expect("one thread at a time").pop_front().unwrap_or(Act::Interrupt)
    }

    pub(crate) fn entered(&self, cpu: usize, flushed: bool) {
        self.entries[cpu][0].fetch_add(1, Ordering::Relaxed);
        self.entries[cpu][1].fetch_add(u64::from(flushed), Ordering::Relaxed);
    }

    /// Entries into guests on a CPU, and how many of them forgot what the CPU had cached of the VM.
    #[must_use]
    pub fn entries(&self, cpu: usize) -> [u64; 2] {
        self.entries[cpu].each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Makes a call of the host's, with x1–x5, and looks at what it left.
    pub fn call(&self, cpu: usize, id: u32, x: [u64; 5]) -> Answer {
        let answer = self.call_only(cpu, id, x);
        self.settle();
        answer
    }

    /// Makes a call, while another CPU may be in one.
    pub(crate) fn call_only(&self, cpu: usize, id: u32, x: [u64; 5]) -> Answer {
        LENDS.set(id == hvc::MEM_SHARE);
        let mut caller = [0; 19];
        caller[0] = id.into();
        caller[1..6].copy_from_slice(&x);
        calls::serve(&self.cpu(cpu), &mut caller);
        let [x0, x1, x2, x3, x4, ..] = caller;
        Answer { status: x0.cast_signed(), x: [x1, x2, x3, x4] }
    }

    /// Makes a call on CPU 1, and another on CPU 0 while the guest that the first one enters is running: both answers.
    pub(crate) fn call_during(&self, id: u32, x: [u64; 5], (inner, its): (u32, [u64; 5])) -> (Answer, Option<Answer>) {
        *self.meanwhile.lock().expect("one thread at a time") = (Some((inner, its)), None);
        let answer = self.call(1, id, x);
        (answer, core::mem::take(&mut *self.meanwhile.lock().expect("one thread at a time")).1)
    }

    /// A guest runs on a CPU: another makes its call.
    pub(crate) fn guest_runs(&self, cpu: usize) {
        let lined_up = self.meanwhile.lock().expect("one thread at a time").0.take().filter(|_| cpu != 0);
        if let Some((id, x)) = lined_up {
            let answer = self.call_only(0, id, x);
            self.meanwhile.lock().expect("one thread at a time").1 = Some(answer);
        }
    }

    /// An access of the host's faulted at a frame: whether it should be made again (D7, D8). `kernel`: from EL1, through
    /// a kernel address.
    pub fn host_abort(&self, frame: u64, kernel: bool) -> bool {
        let again = calls::host_may_retry(&self.cpu(0), frame << 12, kernel);
        self.settle();
        again
    }

    /// The same of a kernel address, while another CPU may be in a call.
    pub(crate) fn may_retry(&self, cpu: usize, frame: u64) -> bool {
        calls::host_may_retry(&self.cpu(cpu), frame << 12, true)
    }

    /// The machine goes off: VMs end and their frames are zeroed. `false` if a vCPU is still in use.
    pub fn quiesce(&self) -> bool {
        let done = calls::quiesce(&self.cpu(0));
        self.settle();
        done
    }

    /// The machine stays on after all.
    pub fn reopen(&self) {
        calls::reopen(&self.cpu(0));
    }

    /// Whether an interrupt waits for the host.
    pub fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Whether the host is in a state in which no guest may be entered.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// Whether the machine can run VMs at all.
    pub fn set_serves_vms(&self, serves: bool) {
        self.no_vms.store(!serves, Ordering::Relaxed);
    }

    /// The host writes to a watched frame, if anything still takes it there.
    pub fn host_write(&self, frame: u64) -> bool {
        let reaches = self.host_reaches(frame);
        if reaches {
            self.board.set_label(frame, Label::Host);
        }
        reaches
    }

    /// What the host reads in a watched frame, if anything still takes it there.
    #[must_use]
    pub fn host_read(&self, frame: u64) -> Option<Label> {
        self.host_reaches(frame).then(|| self.board.label(frame))
    }

    fn host_reaches(&self, frame: u64) -> bool {
        self.board.filled().host & self.board.bit(frame) != 0
    }

    /// Writes words into a frame of the host's, such as the records of a list.
    ///
    /// # Panics
    /// If the host can not reach the frame.
    pub fn host_write_words(&self, frame: u64, words: &[u64]) {
        assert!(self.host_reaches(frame), "the host does not reach {frame:#x}");
        for (index, word) in words.iter().enumerate() {
            self.board.write(frame, index, *word);
        }
    }

    /// The first words of a frame, if it is RAM behind the carve-out.
    pub(crate) fn words(&self, frame: u64, count: usize) -> Vec<u64> {
        let is_there = frame.checked_sub(Board::HOST).is_some_and(|at| at < self.board.layout.frames);
        (0..if is_there { count.min(512) } else { 0 }).map(|index| self.board.read(frame, index)).collect()
    }

    /// A guest touches an address.
    pub(crate) fn guest_touches(&self, vmid: Vmid, ipa: u64, right: Right) -> Reached {
        let slot = usize::from(vmid.raw()).wrapping_sub(1);
        let frames = self.guest_reaches(slot, ipa >> 12, right);
        let handle = self.board.vms().handles().find(|handle| handle.slot().index() == slot);
        if let Some(handle) = handle.filter(|_| right == Right::Write) {
            // What an ordinary guest writes is the host's to read.
            let ordinary = self.board.ordinary.load(Ordering::Relaxed) >> slot & 1 != 0;
            let label = if ordinary { Label::Host } else { Label::of_vm(handle.encode()) };
            for number in (0..self.board.layout.watched.len()).filter(|number| frames >> number & 1 != 0) {
                self.board.set_label(self.board.frame(number), label);
            }
        }
        match frames {
            0 if self.guest_reaches(slot, ipa >> 12, Right::Read) == 0 => Reached::No,
            0 => Reached::Denied,
            _ => Reached::Yes,
        }
    }

    /// What the guest of a VM may read at a watched guest frame.
    #[must_use]
    pub fn guest_read(&self, vm: u64, gfn: u64) -> Vec<Label> {
        let frames = self.guest_reaches(usize::try_from(vm & 0xffff).expect("sixteen bits"), gfn, Right::Read);
        let numbers = (0..self.board.layout.watched.len()).filter(|number| frames >> number & 1 != 0);
        numbers.map(|number| self.board.label(self.board.frame(number))).collect()
    }

    fn guest_reaches(&self, slot: usize, gfn: u64, right: Right) -> u64 {
        let place = self.board.layout.gfns.iter().position(|watched| *watched == gfn);
        place
            .filter(|_| slot < self.board.layout.vms)
            .map_or(0, |place| self.board.filled().guest_for(slot, place, right))
    }

    /// x0–x3 of a VM's vCPU 0, as its guest will find them.
    #[must_use]
    pub fn guest_registers(&self, vm: u64, vcpu: u64) -> Option<[u64; 4]> {
        let handle = Handle::decode(vm).ok()?;
        let vms = self.board.vms();
        let claim = vms.claim(handle, VcpuIndex::decode(vcpu).ok()?, Purpose::Answer).ok()?;
        let frame = claim.block();
        let blocks = self.board.blocks();
        let block = blocks.iter().find(|(at, _)| *at == frame).map(|(_, block)| &block.registers.x)?;
        Some([block[0], block[1], block[2], block[3]])
    }

    /// How many exceptions a vCPU that nobody runs was given since this was asked last.
    pub fn take_injected(&self, vm: u64, vcpu: u64) -> u64 {
        let vms = self.board.vms();
        let index = || Some((Handle::decode(vm).ok()?, VcpuIndex::decode(vcpu).ok()?));
        let Some(claim) = index().and_then(|(vm, vcpu)| vms.claim(vm, vcpu, Purpose::Answer).ok()) else { return 0 };
        let frame = claim.block();
        let mut blocks = self.board.blocks();
        let block = blocks.iter_mut().find(|(at, _)| *at == frame);
        block.map_or(0, |(_, block)| core::mem::take(&mut block.registers.injected))
    }

    /// The VMs that live or die: slot and handle.
    pub fn handles(&self) -> impl Iterator<Item = (usize, u64)> {
        self.board.vms().handles().map(|handle| (handle.slot().index(), handle.encode()))
    }

    /// Operations that changed the machine so far; a refused call adds none.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.board.changes.load(Ordering::Relaxed)
    }

    /// What no machine may ever see, if any of it was seen since the last time.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.board.complaints()
    }

    /// Notes what the call left: roots, loans, and what the TLB may hold from now on.
    pub(crate) fn settle(&self) {
        let permit = &mut Permit::for_this_entry();
        let mut handles = [0; MAX_VMS];
        for handle in self.board.vms().handles() {
            handles[handle.slot().index()] = handle.encode();
        }
        let mut ordinary = 0;
        for (slot, handle) in handles.into_iter().enumerate().take(self.board.layout.vms) {
            let guest = self.world.guest(permit, slot);
            let (root, kind) = guest.map_or((None, None), |mut guest| {
                let memory = &guest.get().memory;
                (memory.root(), memory.kind())
            });
            ordinary |= u64::from(kind == Some(Kind::Ordinary)) << slot;
            self.board.set_root(slot, handle, root.map(|(root, _)| root.raw()));
        }
        self.board.ordinary.store(ordinary, Ordering::Relaxed);
        let mut lent = 0;
        {
            let mut host = self.world.host(permit);
            for number in 0..self.board.layout.watched.len() {
                let state = Pfn::new(self.board.frame(number)).and_then(|pfn| host.get().ledger().state(pfn));
                lent |= u64::from(matches!(state, Some(State::Shared { .. }))) << number;
            }
        }
        self.board.lent.store(lent, Ordering::Relaxed);
        self.board.fill(&mut self.board.tlb());
    }

    /// Ends all VMs by calls, gives everything back, and lets the host write its own into every watched frame.
    ///
    /// # Errors
    /// If a call that must succeed does not, or something is left (I8).
    pub fn reset(&self) -> Result<(), String> {
        self.board.measured().clear();
        self.set_wanted(false);
        self.set_busy(false);
        self.set_serves_vms(true);
        self.closing.store(0, Ordering::Relaxed);
        (0..CPUS).for_each(|cpu| self.forget_script(cpu));
        for vm in self.board.vms().handles() {
            self.end(vm.encode())?;
        }
        for number in 0..self.board.layout.watched.len() {
            let frame = self.board.frame(number);
            if !self.host_write(frame) {
                return Err(format!("after the last VM the host does not reach {frame:#x}"));
            }
        }
        let foreign = self.world.host(&mut Permit::for_this_entry()).get().counters().foreign;
        if foreign != 0 { Err(format!("after the last VM {foreign} frames are gone (I8)")) } else { Ok(()) }
    }

    fn end(&self, vm: u64) -> Result<(), String> {
        let slot = usize::try_from(vm & 0xffff).expect("sixteen bits");
        let life = self.world.guest(&mut Permit::for_this_entry(), slot).map(|mut guest| guest.get().memory.life());
        if life != Some(Life::Dying) {
            self.must(hvc::VM_DESTROY, [vm, 0, 0, 0, 0])?;
        }
        let (mut lent, ram) = self.borrowed(slot);
        for gfn in ram {
            if lent == 0 {
                break;
            }
            // A dying VM does not say where.
            lent -= u64::from(self.call_only(0, hvc::MEM_UNSHARE, [vm, gfn, 1, 0, 0]).is_success());
        }
        for of_pool in [false, true] {
            for first in self.frames_of(slot, of_pool) {
                self.must(hvc::VM_RECLAIM, [vm, first, 1, 0, 0])?;
            }
        }
        self.settle();
        Ok(())
    }

    /// How many frames of the host's a VM borrows, and the guest frames where that may be.
    fn borrowed(&self, slot: usize) -> (u64, Vec<u64>) {
        let permit = &mut Permit::for_this_entry();
        let mut guest = self.world.guest(permit, slot).expect("a slot");
        let memory = &guest.get().memory;
        let ram = memory.ram().flat_map(|run| (run.start().raw()..).take(MOST_RAM.min(run.count() as usize)));
        let gfns = self.board.layout.gfns.iter().copied();
        (memory.frames().1, gfns.chain(ram).collect())
    }

    fn must(&self, id: u32, x: [u64; 5]) -> Result<(), String> {
        let answer = self.call_only(0, id, x);
        if answer.is_success() { Ok(()) } else { Err(format!("{id:#x} {x:x?} was refused: {}", answer.name())) }
    }

    /// Frames of a VM: of its pool, or its guest's.
    fn frames_of(&self, slot: usize, of_pool: bool) -> Vec<u64> {
        let permit = &mut Permit::for_this_entry();
        let mut host = self.world.host(permit);
        let ledger = host.get().ledger();
        let frames = Board::HOST..Board::HOST + self.board.layout.frames;
        let is_its = |frame: &u64| match Pfn::new(*frame).and_then(|pfn| ledger.state(pfn)) {
            Some(State::Pool { vm, .. }) => of_pool && usize::from(vm.raw()) == slot,
            Some(State::Private { vm, .. } | State::Shared { vm, .. }) => !of_pool && usize::from(vm.raw()) == slot,
            Some(State::NoMap | State::Host | State::Lent(_) | State::El2) | None => false,
        };
        frames.filter(is_its).collect()
    }
}

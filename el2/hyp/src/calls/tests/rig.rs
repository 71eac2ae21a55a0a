// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine of two banks, whose memory is a map of words, and whose vCPUs stop for reasons that a test lines up.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Std, MutexGuard};
use std::vec::Vec;

use freehold_mem::lock::{Mutex, Permit, World};
use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::{Attributes, Entry, Host, MemoryMap, PAGE_SIZE, Pfn, PfnRun, VmSlot, Vmid};
use freehold_uapi::hvc;
use freehold_virt::board::Board;
use freehold_virt::handle::{MAX_VMS, Slot};
use freehold_virt::registers::Registers;
use freehold_virt::setting::Setting;
use freehold_virt::sha256::Sha256;
use freehold_virt::sysreg::RawIds;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::{Answer, Trap, Vcpu};
use freehold_virt::vgic::Lists;
use freehold_virt::vm::{Claimed, VmCell, Vms};

use crate::calls::{self, GuestSlot, Loaded, Platform, Stop};

/// RAM: eight blocks, of which the last is el2's.
pub(super) const RAM: u64 = 0x4_0000;
pub(super) const RAM_FRAMES: u64 = 8 * 512;
pub(super) const CARVE_OUT: u64 = RAM + 7 * 512;
pub(super) const NO_MAP: u64 = RAM + 6 * 512;
pub(super) const DEVICE: u64 = 0x9000;
/// Where guests have their RAM.
pub(super) const GUEST_RAM: u64 = 0x8_0000;
pub(super) const GUEST_FRAMES: u64 = 1024;
/// Where [`Rig::elsewhere`] is.
const OTHER_CPU: u64 = 5;

/// All words of memory that are not zero, by address.
pub(super) type Words = BTreeMap<u64, u64>;

/// The machine's memory. Clones are the same memory.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Std<Words>>);

impl Memory {
    fn words(&self) -> MutexGuard<'_, Words> {
        self.0.lock().unwrap()
    }

    pub(super) fn write(&self, frame: u64, index: u64, value: u64) {
        self.words().insert(frame * PAGE_SIZE + index * 8, value);
    }

    pub(super) fn read(&self, frame: u64, index: u64) -> u64 {
        self.words().get(&(frame * PAGE_SIZE + index * 8)).copied().unwrap_or(0)
    }

    pub(super) fn picture(&self) -> Words {
        self.words().clone()
    }

    fn wipe(&self, frame: Pfn) {
        let start = frame.pa().raw();
        let mut words = self.words();
        let old: Vec<u64> = words.range(start..start + PAGE_SIZE).map(|(at, _)| *at).collect();
        for at in old {
            words.remove(&at);
        }
    }
}

fn address(at: Entry) -> u64 {
    at.table().pa().raw() + 8 * u64::from(at.index())
}

impl TableMemory for Memory {
    fn load(&self, at: Entry) -> u64 {
        self.words().get(&address(at)).copied().unwrap_or(0)
    }
    fn store(&mut self, at: Entry, descriptor: u64) {
        if descriptor == 0 {
            self.words().remove(&address(at));
        } else {
            self.words().insert(address(at), descriptor);
        }
    }
    fn clear(&mut self, frame: Pfn) {
        self.wipe(frame);
    }
    fn publish_tables(&mut self) {}
}

impl Tlb for Memory {
    fn invalidate_host(&mut self) {}
    fn invalidate_vm(&mut self, _: Vmid) {}
}

impl Frames for Memory {
    fn scrub(&mut self, frame: Pfn) {
        self.wipe(frame);
    }
    fn settle_for_guest(&mut self, _: Pfn) {}
    fn settle_instructions(&mut self) {}
    fn copy_words(&self, frame: Pfn, into: &mut [u64]) {
        for (index, word) in (0..).zip(into) {
            *word = self.read(frame.raw(), index);
        }
    }
}

impl Fatal for Memory {
    fn fatal(&self, what: Broken) -> ! {
        panic!("{what:?}")
    }
}

/// What another CPU does while this one waits for a lock, or behind it, once.
type Meanwhile = Arc<Std<Option<Box<dyn FnOnce() + Send>>>>;

/// A lock of the development machine.
pub(super) struct Lock<T> {
    value: Std<T>,
    meanwhile: Meanwhile,
    behind: Meanwhile,
    is_hosts: bool,
}

/// A value under its lock.
pub(super) struct Held<'a, T> {
    value: Option<MutexGuard<'a, T>>,
    behind: &'a Meanwhile,
}

impl<T> Deref for Held<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("until it is dropped")
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("until it is dropped")
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        if !std::thread::panicking() {
            let other = self.behind.lock().unwrap().take();
            other.into_iter().for_each(|what| what());
        }
    }
}

std::thread_local! {
    /// A guest is in place of the host on this CPU, which a thread is: nobody may take the host's lock then, for its
    /// tables might change with another VM's in force.
    static GUEST_IS_HERE: Cell<bool> = const { Cell::new(false) };
}

impl<T> Lock<T> {
    fn new(value: T) -> Self {
        Self { value: Std::new(value), meanwhile: Meanwhile::default(), behind: Meanwhile::default(), is_hosts: false }
    }
}

impl<T> Mutex for Lock<T> {
    type Value = T;
    type Guard<'a>
        = Held<'a, T>
    where
        T: 'a;
    fn acquire(&self) -> Held<'_, T> {
        assert!(!self.is_hosts || !GUEST_IS_HERE.get(), "the guest was not left first");
        let other = self.meanwhile.lock().unwrap().take();
        other.into_iter().for_each(|what| what());
        Held { value: Some(self.value.lock().unwrap()), behind: &self.behind }
    }
}

/// The registers of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fake {
    pub(super) x: [u64; 31],
    pub(super) pc: u64,
    pub(super) pstate: u64,
    pub(super) kept: Vec<u64>,
    pub(super) injected: u32,
    /// What was injected last.
    pub(super) told: Option<(u64, Option<u64>)>,
}

impl Fake {
    /// As after a reset.
    pub(super) fn new() -> Self {
        Self { x: [0; 31], pc: 0, pstate: 0x3c5, kept: vec![0; 90], injected: 0, told: None }
    }
}

impl Registers for Fake {
    fn x(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }
    fn set_x(&mut self, n: u8, value: u64) {
        if let Some(x) = self.x.get_mut(usize::from(n)) {
            *x = value;
        }
    }
    fn pc(&self) -> u64 {
        self.pc
    }
    fn set_pc(&mut self, pc: u64) {
        self.pc = pc;
    }
    fn pstate(&self) -> u64 {
        self.pstate
    }
    fn set_pstate(&mut self, pstate: u64) {
        self.pstate = pstate;
    }
    fn kept(&mut self, n: usize) -> Option<&mut u64> {
        self.kept.get_mut(n)
    }
    fn inject(&mut self, esr: u64, far: Option<u64>) {
        self.injected += 1;
        self.told = Some((esr, far));
    }
}

/// What a pool frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) registers: Fake,
    pub(super) vcpu: Vcpu,
    pub(super) lists: Lists,
    setting: Option<Setting>,
}

impl Block {
    fn new() -> Self {
        Self { registers: Fake::new(), vcpu: Vcpu::new(), lists: Lists::EMPTY, setting: None }
    }
}

/// What a vCPU does before it stops.
type Act = Box<dyn FnOnce(&mut Fake) -> Stop + Send>;

/// When another CPU does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// The vCPU's place is known, and its board is free for the first time; the guest is not entered yet.
    In,
    InTheGuest,
    /// The board is free for the first time since the guest was left.
    Out,
}

/// The machine.
pub(super) struct Rig {
    pub(super) memory: Memory,
    world: World<Lock<Host<'static>>, Lock<GuestSlot>, MAX_VMS>,
    meanwhile: Meanwhile,
    cells: Vec<VmCell<AtomicU64>>,
    pub(super) blocks: Std<BTreeMap<u64, Block>>,
    script: Std<VecDeque<Act>>,
    pub(super) regimes: Std<Vec<bool>>,
    pub(super) serves_vms: AtomicBool,
    pub(super) wanted: AtomicBool,
    pub(super) busy: AtomicBool,
    closing: AtomicU64,
    pub(super) cpu: AtomicU64,
    boards: Vec<Lock<Board>>,
    /// The time, and what a vCPU's virtual timer says at its exits.
    pub(super) now: AtomicU64,
    pub(super) timer: Std<Timer>,
    /// List registers of each entry of a VM with an interrupt controller, and the masks of its interface.
    pub(super) lists: Std<Vec<Vec<u64>>>,
    pub(super) masks: AtomicU64,
    /// Guests leave their list registers as they are; else they end whatever they are given.
    pub(super) keeps: AtomicBool,
    /// CPUs that were interrupted.
    pub(super) interrupted: AtomicU64,
    /// How often an interrupt of that kind was taken back, and the CPUs where one is pending.
    pub(super) forgotten: AtomicU64,
    pub(super) pending: AtomicU64,
    /// What another CPU does while a guest runs here, or behind that; and behind the next hold of a board.
    in_the_guest: Meanwhile,
    out: Meanwhile,
    behind: Meanwhile,
    pub(super) has_random: AtomicBool,
}

fn run_of(first: u64, count: u64) -> PfnRun {
    PfnRun::decode(first, count).unwrap()
}

impl Rig {
    pub(super) fn new() -> Self {
        let mut memory = Memory::default();
        let mut map = MemoryMap::new(40).unwrap();
        map.add_bank(run_of(RAM, RAM_FRAMES)).unwrap();
        map.add_carve_out(run_of(CARVE_OUT, 512)).unwrap();
        let needs = map.needs();
        let storage = std::vec![0; usize::try_from(needs.words).unwrap()].leak();
        let tables = Pfn::new(CARVE_OUT).unwrap();
        let mut host = Host::build(map, tables, storage, Attributes::Combined, &mut memory).unwrap();
        host.mark_no_map(run_of(NO_MAP, 4), &memory);
        let guests =
            core::array::from_fn(|slot| Lock::new(GuestSlot::new(VmSlot::new(u8::try_from(slot).unwrap()).unwrap())));
        for frame in RAM..RAM + 6 * 512 {
            memory.write(frame, 0, 0x1057_da7a);
        }
        let host = Lock { is_hosts: true, ..Lock::new(host) };
        let meanwhile = Arc::clone(&host.meanwhile);
        let behind = Meanwhile::default();
        let board = || Lock { behind: Arc::clone(&behind), ..Lock::new(Board::new()) };
        let boards = (0..MAX_VMS).map(|_| board()).collect();
        let rig = Self {
            memory,
            world: World::new(host, guests),
            meanwhile,
            cells: (0..MAX_VMS).map(|_| VmCell::new(|| AtomicU64::new(0))).collect(),
            blocks: Std::default(),
            script: Std::default(),
            regimes: Std::default(),
            serves_vms: AtomicBool::new(true),
            wanted: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            closing: AtomicU64::new(0),
            cpu: AtomicU64::new(0),
            boards,
            now: AtomicU64::new(1000),
            timer: Std::default(),
            lists: Std::default(),
            masks: AtomicU64::new(0),
            keeps: AtomicBool::new(false),
            interrupted: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            in_the_guest: Meanwhile::default(),
            out: Meanwhile::default(),
            behind,
            has_random: AtomicBool::new(false),
        };
        // A slot's word is zero until somebody looked at it: let that be over, so that words can be compared.
        let all: Vec<_> = (0..MAX_VMS).map(|_| rig.vms().reserve()).collect();
        drop(all);
        rig
    }

    /// Lines up what a vCPU does and why it stops then.
    pub(super) fn next(&self, act: impl FnOnce(&mut Fake) -> Stop + Send + 'static) {
        self.script.lock().unwrap().push_back(Box::new(act));
    }

    /// Lets something happen while the next who wants the host's lock waits for it.
    pub(super) fn before_host_lock(&self, what: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Box::new(what));
    }

    /// Lets another CPU make a call, which succeeds, in the next run of a vCPU here.
    pub(super) fn elsewhere(self: &Arc<Self>, when: When, id: u32, arguments: &[u64]) {
        let (rig, arguments) = (Arc::clone(self), arguments.to_vec());
        let what = move || {
            let here = (rig.cpu.swap(OTHER_CPU, Ordering::Relaxed), GUEST_IS_HERE.replace(false));
            rig.yes(id, &arguments);
            rig.cpu.store(here.0, Ordering::Relaxed);
            GUEST_IS_HERE.set(here.1);
        };
        let hook = match when {
            When::In => &self.behind,
            When::InTheGuest => &self.in_the_guest,
            When::Out => &self.out,
        };
        *hook.lock().unwrap() = Some(Box::new(what));
    }

    /// A host's registers at a call: what it is not asked for is something.
    pub(super) fn caller(&self, id: u32, arguments: &[u64]) -> calls::Caller {
        let mut x = core::array::from_fn(|n| 0x5eed << 16 | n as u64);
        x[0] = id.into();
        x[1..6].fill(0);
        x[1..=arguments.len()].copy_from_slice(arguments);
        x
    }

    /// Makes a call: x0 and x1–x5. The others are what the ABI says.
    pub(super) fn call(&self, id: u32, arguments: &[u64]) -> (i64, [u64; 5]) {
        let before = self.caller(id, arguments);
        let mut x = before;
        calls::serve(self, &mut x);
        // SMCCC lets a callee use x8–x17; x18 is the platform's.
        let [x0, x1, x2, x3, x4, x5, rest @ ..] = x;
        let kept = if id == hvc::VCPU_RUN { [0; 10] } else { before[8..18].try_into().unwrap() };
        assert!(rest[..2] == [0; 2] && rest[2..12] == kept && rest[12] == before[18], "{id:#x}: {x:x?}");
        (x0.cast_signed(), [x1, x2, x3, x4, x5])
    }

    /// Makes a call that succeeds, and returns x1.
    pub(super) fn yes(&self, id: u32, arguments: &[u64]) -> u64 {
        let (status, x) = self.call(id, arguments);
        assert_eq!(status, hvc::SUCCESS, "{id:#x} {arguments:x?}");
        x[0]
    }

    /// Makes a call that is refused, checks that nothing changed, and returns the status.
    pub(super) fn no(&self, id: u32, arguments: &[u64]) -> i64 {
        let before = self.everything();
        let (status, x) = self.call(id, arguments);
        assert_ne!(status, hvc::SUCCESS, "{id:#x} {arguments:x?}");
        assert!(self.everything() == before, "a refused call changed something: {id:#x} {arguments:x?}");
        assert_eq!(x[1..], [0; 4]);
        assert!(x[0] == 0 || status == hvc::NEED_PAGES);
        status
    }

    /// All state there is, as text where it is not words.
    pub(super) fn everything(&self) -> (Words, Vec<String>, BTreeMap<u64, Block>) {
        let mut permit = Permit::for_this_entry();
        let mut text = Vec::new();
        {
            let mut host = self.world.host(&mut permit);
            let host = host.get();
            text.push(std::format!("{:?}", host.counters()));
            let state = |frame| host.ledger().state(Pfn::new(frame).unwrap());
            text.push(std::format!("{:?}", (RAM..RAM + RAM_FRAMES).map(state).collect::<Vec<_>>()));
        }
        for slot in 0..MAX_VMS {
            let mut guest = self.world.guest(&mut permit, slot).unwrap();
            text.push(std::format!("{:?}", guest.get()));
        }
        text.push(std::format!("{:?}", self.cells));
        // The others are as their VM's creation leaves them.
        let boards = self.boards.iter().map(|board| board.acquire().clone());
        text.extend(boards.enumerate().filter(|(_, b)| *b != Board::new()).map(|b| std::format!("{b:?}")));
        (self.memory.picture(), text, self.blocks.lock().unwrap().clone())
    }

    /// A VM with RAM and one vCPU, out of 16 frames at `pool`.
    pub(super) fn vm(&self, pool: u64) -> u64 {
        let vm = self.yes(hvc::VM_CREATE, &[hvc::VM_PROTECTED, 40, pool, 16]);
        self.yes(hvc::VM_RANGE, &[vm, GUEST_RAM, GUEST_FRAMES]);
        self.yes(hvc::VCPU_CREATE, &[vm, 0]);
        vm
    }

    /// Ends a VM; every frame of `frames` goes back.
    pub(super) fn end(&self, vm: u64, guest: &[u64], pool: u64, pool_frames: u64) {
        self.yes(hvc::VM_DESTROY, &[vm]);
        for frame in guest {
            assert_eq!(self.yes(hvc::VM_RECLAIM, &[vm, *frame, 1]), 1);
        }
        assert_eq!(self.yes(hvc::VM_RECLAIM, &[vm, pool, pool_frames]), pool_frames);
    }

    /// A reply of a run of vCPU 0.
    pub(super) fn run(&self, vm: u64, answer: u64) -> [u64; 5] {
        self.run_of(vm, 0, answer)
    }

    /// A reply of a run.
    pub(super) fn run_of(&self, vm: u64, vcpu: u64, answer: u64) -> [u64; 5] {
        let (status, x) = self.call(hvc::VCPU_RUN, &[vm, vcpu, answer]);
        assert_eq!(status, hvc::SUCCESS);
        for hook in [&self.behind, &self.in_the_guest, &self.out] {
            assert!(hook.lock().unwrap().is_none(), "the other CPU's call never came");
        }
        x
    }
}

/// A claimed block, put back when it is let go.
pub(super) struct Open<'a> {
    rig: &'a Rig,
    claim: Claimed<'a, AtomicU64>,
    key: u64,
    block: Block,
}

impl<'a> Loaded<'a> for Open<'a> {
    type Registers = Fake;
    fn claim(&mut self) -> &mut Claimed<'a, AtomicU64> {
        &mut self.claim
    }
    fn parts(&mut self) -> (&mut Fake, &mut Vcpu) {
        (&mut self.block.registers, &mut self.block.vcpu)
    }
    fn reset(&mut self) {
        self.block = Block { setting: self.block.setting, ..Block::new() };
    }
    fn timer(&self) -> Timer {
        *self.rig.timer.lock().unwrap()
    }
    fn lists(&mut self) -> &mut Lists {
        &mut self.block.lists
    }
    fn setting(&self) -> Option<&Setting> {
        self.block.setting.as_ref()
    }
    fn settle(&mut self, setting: Setting) {
        self.block.setting = Some(setting);
    }
    fn run(&mut self, flushes: bool, mut answer: impl Answer<Fake>) -> Stop {
        let has_gic = self.block.setting.expect("it was said").controller.is_some();
        GUEST_IS_HERE.set(false);
        let other = self.rig.in_the_guest.lock().unwrap().take();
        other.into_iter().for_each(|what| what());
        if has_gic {
            let (lists, keeps) = (&mut self.block.lists, self.rig.keeps.load(Ordering::Relaxed));
            self.rig.lists.lock().unwrap().push(lists.entries().to_vec());
            if !keeps {
                // The guest ends whatever it is given at once.
                lists.entries().iter_mut().for_each(|entry| *entry &= !(3 << 62));
            }
            lists.note(self.rig.masks.load(Ordering::Relaxed), 0, keeps);
        }
        self.rig.regimes.lock().unwrap().push(flushes);
        let stop = loop {
            let act = self.rig.script.lock().unwrap().pop_front();
            let stop = act.map_or(Stop::Interrupt, |act| act(&mut self.block.registers));
            GUEST_IS_HERE.set(true);
            let Stop::Trap(trap) = stop else { break stop };
            match answer(trap, &mut self.block.registers) {
                Some(true) => GUEST_IS_HERE.set(false),
                Some(false) => break Stop::Own,
                None => break stop,
            }
        };
        if let Some(what) = self.rig.out.lock().unwrap().take() {
            *self.rig.behind.lock().unwrap() = Some(what);
        }
        stop
    }
    fn leave(&mut self) {
        GUEST_IS_HERE.set(false);
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.leave();
        self.rig.blocks.lock().unwrap().insert(self.key, self.block.clone());
    }
}

impl Platform for Rig {
    type Machine = Memory;
    type HostLock = Lock<Host<'static>>;
    type GuestLock = Lock<GuestSlot>;
    type BoardLock = Lock<Board>;
    type Loaded<'a> = Open<'a>;

    fn machine(&self) -> Memory {
        self.memory.clone()
    }
    fn world(&self) -> &World<Self::HostLock, Self::GuestLock, MAX_VMS> {
        &self.world
    }
    fn board(&self, slot: Slot) -> &Lock<Board> {
        &self.boards[slot.index()]
    }
    fn vms(&self) -> Vms<'_, AtomicU64> {
        Vms::new(&self.cells)
    }
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
    fn list_registers(&self) -> usize {
        4
    }
    fn interrupt(&self, cpus: u32) {
        // Else it might come when its guest is out, and be the host's.
        assert!(self.boards.iter().any(|board| board.value.try_lock().is_err()), "a kick without its board's lock");
        self.interrupted.fetch_or(cpus.into(), Ordering::Relaxed);
        self.pending.fetch_or(cpus.into(), Ordering::Relaxed);
    }
    fn forget_interrupt(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        self.pending.fetch_and(!(1 << self.cpu.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
    fn serves_vms(&self) -> bool {
        self.serves_vms.load(Ordering::Relaxed)
    }
    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed) != 0
    }
    fn set_closing(&self, closing: bool) {
        self.closing.fetch_add(if closing { 1 } else { u64::MAX }, Ordering::Relaxed);
    }
    fn cpu(&self) -> usize {
        usize::try_from(self.cpu.load(Ordering::Relaxed)).unwrap()
    }
    fn host_is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
    fn host_is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
    fn hash_frame(&self, hash: &mut Sha256, frame: Pfn) {
        let mut words = [0; 512];
        self.machine().copy_words(frame, &mut words);
        words.as_chunks().0.iter().for_each(|block| hash.block(block));
    }
    fn create_vcpu(&self, frame: Pfn) -> u64 {
        self.blocks.lock().unwrap().insert(frame.raw(), Block::new());
        frame.raw()
    }
    fn open<'a>(&'a self, claim: Claimed<'a, AtomicU64>) -> Open<'a> {
        let key = claim.block();
        let block = self.blocks.lock().unwrap().get(&key).cloned().expect("a created vCPU");
        Open { rig: self, claim, key, block }
    }
    fn raw_ids(&self) -> RawIds {
        RawIds { isar0: 0x10, mmfr0: 5, ..RawIds::default() }
    }
    fn has_random(&self) -> bool {
        self.has_random.load(Ordering::Relaxed)
    }
    fn random(&self) -> Option<u64> {
        Some(0x0123_4567_89ab_cdef)
    }
    fn counter(&self, _: &mut Permit, counter: u64, index: u64) -> Option<u64> {
        (counter == 0 && index == 0).then_some(7)
    }
}

/// Name of a status.
pub(super) fn name(status: i64) -> &'static str {
    hvc::STATUSES.iter().find(|item| item.value == status).map_or("?", |item| item.name)
}

/// A guest's call.
pub(super) fn hvc(id: u32, x: [u64; 3]) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |registers| {
        registers.x[0] = id.into();
        registers.x[1..4].copy_from_slice(&x);
        registers.pc += 4;
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    }
}

/// A guest's store of a word of x5.
pub(super) fn store(address: u64, value: u64) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |registers| {
        registers.x[5] = value;
        let iss = 1 << 24 | 2 << 22 | 5 << 16 | 1 << 6 | 7;
        Stop::Trap(Trap { esr: 0x24 << 26 | iss, far: address & 0xfff, hpfar: address >> 12 << 4 })
    }
}

/// A guest's wait.
pub(super) fn wfi(_: &mut Fake) -> Stop {
    Stop::Trap(Trap { esr: 1 << 26, far: 0, hpfar: 0 })
}

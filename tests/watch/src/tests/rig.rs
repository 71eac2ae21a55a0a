// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine on the development machine, put together as the debug binary puts its own together.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Std, MutexGuard};
use std::vec::Vec;

use freehold_el2::calls::{self, GuestSlot, Loaded, Platform, Stop};
use freehold_mem::lock::{Mutex, Permit, World};
use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::{Attributes, Entry, Host, Machine, MemoryMap, PAGE_SIZE, Pfn, PfnRun, VmSlot, Vmid};
use freehold_trace::traced::Traced;
use freehold_uapi::hvc::{EXIT_CRASH, VCPU_RUN};
use freehold_virt::board::Board;
use freehold_virt::handle::{MAX_VMS, Slot};
use freehold_virt::registers::Registers;
use freehold_virt::setting::Setting;
use freehold_virt::sha256::Sha256;
use freehold_virt::sysreg::RawIds;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::{Answer, Vcpu};
use freehold_virt::vgic::Lists;
use freehold_virt::vm::{Claimed, VmCell, Vms};

use crate::board::Last;
use crate::cpu::Trap;
use crate::fault::Fault;
use crate::lock::Lock;
use crate::platform::Watched;
use crate::ports::Ports;
use crate::watcher::{Ground, Watcher};

pub(super) const RAM: u64 = 0x4_0000;
const RAM_FRAMES: u64 = 8 * 512;
pub(super) const CARVE_OUT: u64 = RAM + 7 * 512;
pub(super) const NO_MAP: u64 = RAM + 6 * 512;
pub(super) const GUEST_RAM: u64 = 0x8_0000;

std::thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static ABORTS: Cell<u64> = const { Cell::new(0) };
}

/// Says which CPU this thread is.
pub(super) fn be(cpu: usize) {
    CPU.set(cpu);
}

/// How many external aborts guests were given by this thread.
pub(super) fn aborts() -> u64 {
    ABORTS.get()
}

/// All words that are not zero. Clones are the same memory.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Std<BTreeMap<u64, u64>>>);

impl Memory {
    fn words(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn write(&self, frame: u64, index: u64, value: u64) {
        self.words().insert(frame * PAGE_SIZE + index * 8, value);
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
        self.words().insert(address(at), descriptor);
    }
    fn clear(&mut self, frame: Pfn) {
        let start = frame.pa().raw();
        let mut words = self.words();
        let old: Vec<u64> = words.range(start..start + PAGE_SIZE).map(|(at, _)| *at).collect();
        for at in old {
            words.remove(&at);
        }
    }
    fn publish_tables(&mut self) {}
}

impl Tlb for Memory {
    fn invalidate_host(&mut self) {}
    fn invalidate_vm(&mut self, _: Vmid) {}
}

impl Frames for Memory {
    fn scrub(&mut self, frame: Pfn) {
        self.clear(frame);
    }
    fn settle_for_guest(&mut self, _: Pfn) {}
    fn settle_instructions(&mut self) {}
    fn copy_words(&self, frame: Pfn, into: &mut [u64]) {
        let start = frame.pa().raw();
        let end = start + 8 * into.len() as u64;
        into.fill(0);
        for (at, word) in self.words().range(start..end) {
            into[usize::try_from((at - start) / 8).unwrap()] = *word;
        }
    }
}

impl Fatal for Memory {
    fn fatal(&self, what: Broken) -> ! {
        panic!("{what:?}")
    }
}

/// What the watcher stands on.
#[derive(Clone, Copy)]
pub(super) struct Floor {
    memory: &'static Memory,
    fault: Fault,
}

impl Ground for Floor {
    fn cpu(self) -> usize {
        CPU.get()
    }
    fn cpus(self) -> u8 {
        1
    }
    fn ports(self) -> impl Machine {
        self.memory.clone()
    }
    fn say(self, line: fmt::Arguments<'_>) {
        std::println!("{line}");
    }
    fn stop(self, line: fmt::Arguments<'_>) -> ! {
        panic!("{line}")
    }
    fn fault(self) -> Fault {
        self.fault
    }
}

type Eye = Watcher<Floor, 65536>;
type Machinery = Ports<Traced<Memory, &'static Eye>, &'static Eye>;

/// A lock of the development machine.
pub(super) struct Plain<T>(Std<T>);

impl<T> Mutex for Plain<T> {
    type Value = T;
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;
    fn acquire(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

type HostLock = Lock<Plain<Host<'static>>, &'static Eye>;
type GuestLock = Lock<Plain<GuestSlot>, &'static Eye>;
pub(super) type BoardLock = Lock<Plain<Board>, Last<&'static Eye>>;

/// Registers of a vCPU.
#[derive(Clone)]
pub(super) struct Fake {
    pub(super) x: [u64; 31],
    pub(super) pc: u64,
    pub(super) pstate: u64,
    pub(super) kept: [u64; 90],
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
        // Of an abort, and external by its status.
        ABORTS.set(ABORTS.get() + u64::from(esr >> 29 & 7 == 4 && esr & 0x3f == 0x10));
        // As the CPU would: VBAR is word 7.
        let vector = match self.pstate & 0x1f {
            5 => 0x200,
            4 => 0,
            _ => 0x400,
        };
        self.kept[8] = esr;
        self.kept[9] = far.unwrap_or(self.kept[9]);
        (self.kept[20], self.kept[21]) = (self.pc, self.pstate);
        (self.pc, self.pstate) = (self.kept[7] + vector, 0x3c5);
    }
}

#[derive(Clone)]
pub(super) struct Block {
    registers: Fake,
    vcpu: Vcpu,
    setting: Option<Setting>,
}

impl Block {
    fn new() -> Self {
        Self {
            registers: Fake { x: [0; 31], pc: 0, pstate: 0x3c5, kept: core::array::from_fn(|n| 0x1000 * n as u64) },
            vcpu: Vcpu::new(),
            setting: None,
        }
    }
}

type Act = std::boxed::Box<dyn FnOnce(&mut Fake) -> Stop + Send>;
type Meanwhile = std::boxed::Box<dyn FnOnce() + Send>;

/// The machine below the watcher.
pub(super) struct Bench {
    pub(super) memory: &'static Memory,
    ports: Machinery,
    world: World<HostLock, GuestLock, MAX_VMS>,
    cells: Vec<VmCell<AtomicU64>>,
    boards: Vec<Plain<Board>>,
    blocks: Std<BTreeMap<u64, Block>>,
    script: [Std<VecDeque<Act>>; 4],
    meanwhile: [Std<Option<Meanwhile>>; 4],
    wanted: AtomicBool,
}

/// A claimed vCPU.
pub(super) struct Open<'a> {
    board: &'a Bench,
    claim: Claimed<'a, AtomicU64>,
    key: u64,
    block: Block,
    lists: Lists,
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
        Timer::new()
    }
    fn leave(&mut self) {
        let meanwhile = self.board.meanwhile[CPU.get()].lock().unwrap().take();
        if let Some(what) = meanwhile {
            what();
        }
    }

    fn lists(&mut self) -> &mut Lists {
        &mut self.lists
    }

    fn setting(&self) -> Option<&Setting> {
        self.block.setting.as_ref()
    }

    fn settle(&mut self, setting: Setting) {
        self.block.setting = Some(setting);
    }

    fn run(&mut self, _: bool, _: impl Answer<Fake>) -> Stop {
        let act = self.board.script[CPU.get()].lock().unwrap().pop_front();
        act.map_or(Stop::Interrupt, |act| act(&mut self.block.registers))
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.board.blocks.lock().unwrap().insert(self.key, self.block.clone());
    }
}

impl Platform for &'static Bench {
    type Machine = Machinery;
    type HostLock = HostLock;
    type GuestLock = GuestLock;
    type BoardLock = Plain<Board>;
    type Loaded<'a>
        = Open<'a>
    where
        Self: 'a;
    fn machine(&self) -> Machinery {
        self.ports.clone()
    }
    fn world(&self) -> &World<HostLock, GuestLock, MAX_VMS> {
        &self.world
    }
    fn vms(&self) -> Vms<'_, AtomicU64> {
        Vms::new(&self.cells)
    }
    fn board(&self, slot: Slot) -> &Plain<Board> {
        &self.boards[slot.index()]
    }
    fn now(&self) -> u64 {
        0
    }
    fn list_registers(&self) -> usize {
        4
    }
    fn interrupt(&self, _: u32) {}
    fn forget_interrupt(&self) {}
    fn serves_vms(&self) -> bool {
        true
    }
    fn is_closing(&self) -> bool {
        false
    }
    fn set_closing(&self, _: bool) {}
    fn cpu(&self) -> usize {
        CPU.get()
    }
    fn host_is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
    // Memory here is words that are compared, never a guest's: the first block stands for a frame.
    fn hash_frame(&self, hash: &mut Sha256, frame: Pfn) {
        let mut block = [0; 8];
        self.machine().copy_words(frame, &mut block);
        hash.block(&block);
    }
    fn create_vcpu(&self, frame: Pfn) -> u64 {
        self.blocks.lock().unwrap().insert(frame.raw(), Block::new());
        frame.raw()
    }
    fn open<'a>(&'a self, claim: Claimed<'a, AtomicU64>) -> Open<'a> {
        let key = claim.block();
        let block = self.blocks.lock().unwrap().get(&key).cloned().expect("a created vCPU");
        Open { board: self, claim, key, block, lists: Lists::EMPTY }
    }
    fn host_is_busy(&self) -> bool {
        false
    }
    fn raw_ids(&self) -> RawIds {
        RawIds::default()
    }
    fn has_random(&self) -> bool {
        false
    }
    fn random(&self) -> Option<u64> {
        None
    }
    fn counter(&self, _: &mut Permit, counter: u64, index: u64) -> Option<u64> {
        (counter == 0 && index == 0).then_some(7)
    }
}

/// The machine, and who watches it.
pub(super) struct Rig {
    pub(super) board: &'static Bench,
    pub(super) platform: Watched<&'static Bench, Eye, BoardLock>,
    pub(super) eye: &'static Eye,
    pub(super) boards: &'static [BoardLock; MAX_VMS],
    /// How often a run ended so, and from 16 on how often for want of a vCPU that can go on.
    pub(super) exits: [AtomicU64; 24],
}

fn run_of(first: u64, count: u64) -> PfnRun {
    PfnRun::decode(first, count).unwrap()
}

impl Rig {
    pub(super) fn new(fault: Fault) -> Self {
        let memory: &'static Memory = std::boxed::Box::leak(std::boxed::Box::default());
        let eye = leak(move || Watcher::new(Floor { memory, fault }));
        let ports = Ports { machine: Traced { machine: memory.clone(), sink: eye }, ears: eye };
        let mut map = MemoryMap::new(40).unwrap();
        map.add_bank(run_of(RAM, RAM_FRAMES)).unwrap();
        map.add_carve_out(run_of(CARVE_OUT, 512)).unwrap();
        let storage = std::vec![0; usize::try_from(map.needs().words).unwrap()].leak();
        let tables = Pfn::new(CARVE_OUT).unwrap();
        let mut host = Host::build(map, tables, storage, Attributes::Combined, &mut ports.clone()).unwrap();
        host.mark_no_map(run_of(NO_MAP, 4), &ports);
        eye.built(&host);
        let guest = |slot: usize| GuestSlot::new(VmSlot::new(u8::try_from(slot).unwrap()).unwrap());
        let board: &'static Bench = std::boxed::Box::leak(std::boxed::Box::new(Bench {
            memory,
            ports,
            world: World::new(
                Lock::new(Plain(Std::new(host)), eye),
                core::array::from_fn(|slot| Lock::new(Plain(Std::new(guest(slot))), eye)),
            ),
            cells: (0..MAX_VMS).map(|_| VmCell::new(|| AtomicU64::new(0))).collect(),
            boards: (0..MAX_VMS).map(|_| Plain(Std::new(Board::new()))).collect(),
            blocks: Std::default(),
            script: Default::default(),
            meanwhile: Default::default(),
            wanted: AtomicBool::new(false),
        }));
        let watched = move || core::array::from_fn(|_| Lock::new(Plain(Std::new(Board::new())), Last::new(eye)));
        let boards: &'static [BoardLock; MAX_VMS] = leak(watched);
        Self { board, platform: Watched::new(board, eye, boards), eye, boards, exits: Default::default() }
    }

    /// What the guest that this CPU runs does next, and nothing else.
    pub(super) fn next(&self, act: impl FnOnce(&mut Fake) -> Stop + Send + 'static) {
        self.board.script[CPU.get()].lock().unwrap().clear();
        self.then(act);
    }

    /// What it does after that.
    pub(super) fn then(&self, act: impl FnOnce(&mut Fake) -> Stop + Send + 'static) {
        self.board.script[CPU.get()].lock().unwrap().push_back(std::boxed::Box::new(act));
    }

    /// What another CPU does between the trap of this CPU's next call of a guest and el2's decision.
    pub(super) fn meanwhile(&self, what: impl FnOnce() + Send + 'static) {
        *self.board.meanwhile[CPU.get()].lock().unwrap() = Some(std::boxed::Box::new(what));
    }

    /// Whether an interrupt waits from now on.
    pub(super) fn want(&self, wanted: bool) {
        self.board.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Makes a call: x0–x4.
    pub(super) fn call(&self, id: u32, arguments: &[u64]) -> [u64; 5] {
        self.call_and(id, arguments, |_| {})
    }

    /// The same, and something is done before the watcher hears of the answer.
    pub(super) fn call_and(&self, id: u32, arguments: &[u64], then: impl FnOnce([u64; 5])) -> [u64; 5] {
        let mut x = [0; 5];
        x[..arguments.len()].copy_from_slice(arguments);
        self.eye.begin(Trap::Call { id, x });
        let mut caller = [0; 19];
        caller[0] = id.into();
        caller[1..6].copy_from_slice(&x);
        calls::serve(&self.platform, &mut caller);
        let [x0, x1, x2, x3, x4, ..] = caller;
        let x = [x0, x1, x2, x3, x4];
        then(x);
        self.eye.end(x, false);
        if id == VCPU_RUN && x[0] == 0 {
            let crashed = if x[1] == EXIT_CRASH { x[2] } else { 0 };
            self.exits[usize::try_from(x[1]).unwrap()].fetch_add(1, Ordering::Relaxed);
            self.exits[usize::try_from(16 + crashed).unwrap()].fetch_add(1, Ordering::Relaxed);
        }
        x
    }

    /// The host touches a page that is not mapped for it; whether it is let in.
    pub(super) fn touch(&self, pfn: u64, kernel: bool) -> bool {
        self.eye.begin(Trap::Abort { page: pfn << 12, kernel });
        let again = calls::host_may_retry(&self.platform, pfn << 12, kernel);
        self.eye.end([0; 5], !again);
        again
    }

    /// What is decided of a touch, for whoever begins and ends it himself.
    pub(super) fn platform_retries(&self, pfn: u64) -> bool {
        calls::host_may_retry(&self.platform, pfn << 12, false)
    }

    /// The table of level 3, in the first pool frames of RAM, that maps a frame at a guest frame.
    pub(super) fn level3_of(&self, gfn: u64, pfn: u64) -> Option<u64> {
        let words = self.board.memory.words();
        let maps = |table: &u64| {
            let leaf = words.get(&(table * PAGE_SIZE + 8 * (gfn & 511)));
            leaf.is_some_and(|leaf| leaf & 0xffff_ffff_f401 == pfn << 12 | 0x401)
        };
        (RAM..RAM + 16).find(maps)
    }

    pub(super) fn handles(&self) -> Vec<u64> {
        Platform::vms(&self.board).handles().map(|handle| handle.encode()).collect()
    }
}

/// A value too large for a test thread's stack.
fn leak<T: Send + Sync + 'static>(make: impl FnOnce() -> T + Send + 'static) -> &'static T {
    let big = std::thread::Builder::new().stack_size(256 << 20);
    big.spawn(|| &*std::boxed::Box::leak(std::boxed::Box::new(make())))
        .map(|t| t.join().unwrap())
        .unwrap_or_else(|error: std::io::Error| panic!("{error}"))
}

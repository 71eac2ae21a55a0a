// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of the host to el2: decode, take the locks, ask the memory model or the VM table, answer.
//!
//! Guarantees that an unknown call answers `NOT_SUPPORTED` and changes nothing, and that results which a call does not
//! have are zero. What a call may do is decided in `freehold_mem` and `freehold_virt`; the handlers here only bring them
//! together, host lock before guest lock. Keeps I6 and I7. It knows the machine as a [`Platform`] only, so that the same
//! source is tested on the development machine.

mod abort;
mod interrupts;
mod memory;
mod power;
mod vcpu;
mod vm;

pub use abort::{Fault, host_may_retry};
pub use freehold_virt::board::MAX_CPUS;
pub use freehold_virt::vcpu::Stop;
pub use power::{quiesce, reopen};

use core::sync::atomic::AtomicU64;
use freehold_mem::lock::{Mutex, Permit, World};
use freehold_mem::{Guest, Host, Machine, Pfn, VmSlot};
use freehold_uapi::hvc;
use freehold_virt::Refused;
use freehold_virt::board::Board;
use freehold_virt::call::{Call, Reply, vcpu_run};
use freehold_virt::handle::{Handle, MAX_VCPUS, MAX_VMS, Slot};
use freehold_virt::measure::Measurement;
use freehold_virt::registers::Registers;
use freehold_virt::setting::Setting;
use freehold_virt::sha256::Sha256;
use freehold_virt::sysreg::RawIds;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::{Answer, Vcpu};
use freehold_virt::vgic::{Kicks, Lists};
use freehold_virt::vm::{Claimed, Vms};

/// The release that `VERSION` names: major, minor, patch.
const RELEASE: u64 = 1 << 8;

/// What a VM slot's lock protects.
#[derive(Debug)]
pub struct GuestSlot {
    /// The VM's memory.
    pub memory: Guest,
    /// What it starts from.
    pub(crate) measurement: Measurement,
}

impl GuestSlot {
    /// The slot, without a VM.
    pub const fn new(slot: VmSlot) -> Self {
        Self { memory: Guest::new(slot), measurement: Measurement::new() }
    }

    /// Forgets what the slot's former VM had.
    fn forget(&mut self) {
        self.measurement = Measurement::new();
    }
}

/// A vCPU that this CPU has claimed, with its registers at hand.
pub trait Loaded<'a> {
    /// Its registers.
    type Registers: Registers;
    /// The claim.
    fn claim(&mut self) -> &mut Claimed<'a, AtomicU64>;
    /// The registers, and what the vCPU waits for.
    fn parts(&mut self) -> (&mut Self::Registers, &mut Vcpu);
    /// What it runs in, since it has run.
    fn setting(&self) -> Option<&Setting>;
    /// Says what it runs in, from here on.
    fn settle(&mut self, setting: Setting);
    /// Makes it as if it had just been created, but for what it runs in.
    fn reset(&mut self);
    /// Its virtual timer, as it was when it stopped.
    fn timer(&self) -> Timer;
    /// What its list registers are loaded with while it runs, or keeps while it is out.
    fn lists(&mut self) -> &mut Lists;
    /// Runs it until it stops, in what it was said to run in, with its list registers if its VM has an interrupt controller.
    /// `flushes` says that this CPU may have cached what another vCPU of the VM translated. A trap that `answer` answers is
    /// none: it says whether the guest goes on at once.
    fn run(&mut self, flushes: bool, answer: impl Answer<Self::Registers>) -> Stop;
    /// Puts the host back where a run has left the guest in place: before tables change, or the host goes on.
    fn leave(&mut self);
}

/// The machine as the handlers see it.
pub trait Platform {
    /// `mem`'s ports.
    type Machine: Machine;
    /// The lock around the host's memory.
    type HostLock: Mutex<Value = Host<'static>>;
    /// The lock around a VM's.
    type GuestLock: Mutex<Value = GuestSlot>;
    /// The lock around a VM's board. It is the last one that is taken.
    type BoardLock: Mutex<Value = Board>;
    /// A loaded vCPU.
    type Loaded<'a>: Loaded<'a>
    where
        Self: 'a;

    /// `mem`'s ports.
    fn machine(&self) -> Self::Machine;
    /// The locks.
    fn world(&self) -> &World<Self::HostLock, Self::GuestLock, MAX_VMS>;
    /// The board of the VM in this slot.
    fn board(&self, slot: Slot) -> &Self::BoardLock;
    /// Who lives in which slot.
    fn vms(&self) -> Vms<'_, AtomicU64>;
    /// Whether VMs can run here.
    fn serves_vms(&self) -> bool;
    /// Whether the machine is about to go off, so that no VM may begin.
    fn is_closing(&self) -> bool;
    /// Counts the callers that are about to switch the machine off: one more, or one less.
    fn set_closing(&self, closing: bool);
    /// Number of this CPU, below [`MAX_CPUS`].
    fn cpu(&self) -> usize;
    /// The counter.
    fn now(&self) -> u64;
    /// How many list registers this CPU has.
    fn list_registers(&self) -> usize;
    /// Makes the guests of other CPUs, by number, come out. Only under the lock of their board, where they are seen to
    /// be in: each CPU forgets it when it has been under that lock since.
    fn interrupt(&self, cpus: u32);
    /// Takes back what [`Self::interrupt`] has left here: the host never sees it.
    fn forget_interrupt(&self);
    /// Whether an interrupt waits for the host on this CPU.
    fn host_is_wanted(&self) -> bool;
    /// Takes the contents of a frame into a hash: its 64 blocks, in order. Nobody writes to the frame.
    fn hash_frame(&self, hash: &mut Sha256, frame: Pfn);
    /// Makes a vCPU that was just reset in a frame of its VM's pool; returns what its claim will know it by.
    fn create_vcpu(&self, frame: Pfn) -> u64;
    /// Opens a claimed vCPU.
    fn open<'a>(&'a self, claim: Claimed<'a, AtomicU64>) -> Self::Loaded<'a>;
    /// Whether the host is in a state (streaming mode) in which no guest may be entered. Asked before a vCPU moves, so
    /// that a refusal changes nothing (I6).
    fn host_is_busy(&self) -> bool;
    /// ID registers of this CPU.
    fn raw_ids(&self) -> RawIds;
    /// Whether this CPU has random numbers.
    fn has_random(&self) -> bool;
    /// 64 bits of them; `None` if there are none now.
    fn random(&self) -> Option<u64>;
    /// One counter; `None` if there is no such counter or index.
    fn counter(&self, permit: &mut Permit, counter: u64, index: u64) -> Option<u64>;
}

/// A host's x0–x18, at a call. What is not written here stays.
pub type Caller = [u64; 19];

/// SMCCC's hint that no SVE state is live; not part of an identifier.
const SVE_HINT: u64 = 1 << 16;

/// Serves one call: what is in the registers behind it is the answer.
#[inline(always)]
pub fn serve(platform: &impl Platform, caller: &mut Caller) {
    let id = u32::try_from(caller[0] & !SVE_HINT).unwrap_or(0);
    match id {
        // The one call of which nothing is decoded.
        hvc::VERSION => answer(caller, &version(platform)),
        hvc::VCPU_RUN => run(platform, caller),
        _ => decode(platform, caller, id),
    }
}

/// Runs a vCPU. It leaves nothing of what the host passed, so that nobody relies on it; other calls keep SMCCC's x8 and up.
#[inline(never)]
fn run(p: &impl Platform, caller: &mut Caller) {
    // The one permit of this entry to EL2.
    let permit = &mut Permit::for_this_entry();
    let [_, vm, vcpu, load, ..] = *caller;
    let reply = match vcpu_run([vm, vcpu]) {
        Ok((vm, vcpu)) => crate::run::run(p, permit, vm, vcpu, load),
        Err(why) => why.into(),
    };
    answer(caller, &reply);
    // Known to be zero, it would be a call of memset.
    let zero = core::hint::black_box(0);
    caller[8..=17].iter_mut().for_each(|register| *register = zero);
}

/// Not in line, so that `VERSION`, of which nothing is decoded, needs no stack.
#[inline(never)]
fn decode(p: &impl Platform, caller: &mut Caller, id: u32) {
    if id == hvc::CALL_UID {
        return caller.iter_mut().zip(hvc::UID).for_each(|(register, word)| *register = word.into());
    }
    let [_, x1, x2, x3, x4, x5, ..] = *caller;
    let reply = Call::decode(id, [x1, x2, x3, x4, x5]).and_then(|call| dispatch(p, call)).into();
    answer(caller, &reply);
}

#[inline(always)]
fn answer(caller: &mut Caller, reply: &Reply) {
    let [x0, x1, x2, x3, x4, x5] = reply.registers();
    if let Some(registers) = caller.first_chunk_mut() {
        *registers = [x0, x1, x2, x3, x4, x5, 0, 0];
    }
}

/// Not in line: who answers without a call of these needs none of the stack that they do.
#[inline(never)]
fn dispatch(p: &impl Platform, call: Call) -> Result<Reply, Refused> {
    // The one permit of this entry to EL2.
    let permit = &mut Permit::for_this_entry();
    match call {
        Call::Counter { counter, index } => {
            p.counter(permit, counter, index).map(Reply::value).ok_or(Refused::BadArgument)
        }
        Call::VmCreate { protected, ipa_bits, pool } => vm::create(p, permit, protected, ipa_bits, pool),
        Call::VmRange { vm, run } => vm::range(p, permit, vm, run),
        Call::VmGic { vm, distributor, redistributors } => {
            interrupts::declare(p, permit, vm, distributor, redistributors)
        }
        Call::VmIrq { vm, spi, high, resample } => interrupts::set(p, vm, spi, high, resample),
        Call::VmDestroy { vm } => vm::destroy(p, permit, vm),
        Call::VmReclaim { vm, run } => vm::reclaim(p, permit, vm, run),
        Call::PoolTopup { vm, run } => vm::top_up(p, permit, vm, run),
        Call::VcpuCreate { vm, vcpu } => vcpu::create(p, permit, vm, vcpu),
        Call::VcpuReg { vm, vcpu, register, value } => vcpu::register(p, permit, vm, vcpu, register, value),
        Call::VcpuKick { vm, vcpu } => vcpu::kick(p, vm, vcpu),
        Call::MemDonate { vm, lot, revocable } => memory::donate(p, permit, vm, lot, revocable),
        Call::MemDonateList { vm, list, records, revocable } => {
            memory::donate_list(p, permit, vm, list, records, revocable)
        }
        Call::MemShare { vm, lot, access } => memory::share(p, permit, vm, lot, access),
        Call::MemUnshare { vm, run } => memory::unshare(p, permit, vm, run),
        Call::GuestAccept { vm, vcpu, count } => memory::accept(p, permit, vm, vcpu, count),
    }
}

fn version(p: &impl Platform) -> Reply {
    let slots = if p.serves_vms() { MAX_VMS as u64 } else { 0 };
    Reply::success([u64::from(freehold_uapi::ABI_VERSION), RELEASE, slots, MAX_VCPUS as u64])
}

/// Gives kicks, under the lock of the board that they are from. The answer to the host says whom it has to wake.
pub(crate) fn give(p: &impl Platform, kicks: Kicks) -> u64 {
    if kicks.cpus != 0 {
        p.interrupt(kicks.cpus);
    }
    kicks.sleepers.into()
}

/// Does something under the host's lock and the VM's. The handle is checked under them, so that the slot can not get
/// another VM meanwhile.
fn with_both<P: Platform, R>(
    p: &P,
    permit: &mut Permit,
    vm: Handle,
    what: impl FnOnce(&mut Host<'static>, &mut GuestSlot) -> Result<R, Refused>,
) -> Result<R, Refused> {
    let world = p.world();
    let mut both = world.host(permit).with_guest(world, vm.slot().index()).ok_or(Refused::WrongHandle)?;
    p.vms().phase(vm)?;
    let (host, guest) = both.get();
    what(host, guest)
}

/// Does something under the VM's lock alone.
#[inline(always)]
pub(crate) fn with_guest<P: Platform, R>(
    p: &P,
    permit: &mut Permit,
    vm: Handle,
    what: impl FnOnce(&mut GuestSlot) -> Result<R, Refused>,
) -> Result<R, Refused> {
    let mut guest = p.world().guest(permit, vm.slot().index()).ok_or(Refused::WrongHandle)?;
    p.vms().phase(vm)?;
    what(guest.get())
}

#[cfg(test)]
mod tests;

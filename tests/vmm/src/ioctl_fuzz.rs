// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random ioctls on every kind of descriptor, from two threads at once and with signals in between: the host lives, and
//! everything comes back.
//!
//! Fields are what a VMM might say, what lies just beside it, and addresses that are nobody's or the kernel's. The memory
//! that slots are of has nothing behind it for a long way, so that no guest finds this program; two VMs have the tests'
//! program in it and are about to run. What each thread does depends on its seed and on what it was answered, and on
//! nothing else.

mod count;
mod good;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use freehold_uapi::hvc;
use freehold_uapi::ioctl::*;

use count::Count;

use crate::fuzz::Random;
use crate::hostile::Hostile;
use crate::machine::{NODE, entropy, open, read_program, set_plain};
use crate::proto::{BOOT_NO_SHARE, GICD_GFN, GICR_GFN, RAM_BASE, RAM_MIN};
use crate::raw::{resting, settle};
use crate::report::Step;
use crate::sys::{self, Mapping, errno_name, ioctl_value};
use crate::vgic::{interrupt, let_signals_interrupt, myself};

const STEP: Step = Step("ioctl-fuzz");
const CALLS: u64 = 10_000;
/// Calls of one thread on the same objects.
const ROUND: u64 = 500;
const THREADS: u64 = 2;
const PAGE: u64 = 4096;
/// Of each file that all threads have.
const PAGES: u64 = 64;
/// Memory for slots, and what is kept free behind it.
const ARENA: usize = 16 << 20;
const RESERVE: usize = 1 << 30;
/// Descriptors of its own that a thread keeps at most.
const KEPT: usize = 12;
/// Room for what is said, and for the longest answer: the names of all registers, which come if any room is claimed.
const WORDS: usize = 128;
const KERNEL: u64 = 0xffff_8000_0000_1000;

const PROTECTED: u64 = KVM_VM_TYPE_ARM_PROTECTED | 40;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    System,
    Vm,
    Vcpu,
    Gic,
    Gmem,
    Event,
}

const KINDS: [Kind; 6] = [Kind::System, Kind::Vm, Kind::Vcpu, Kind::Gic, Kind::Gmem, Kind::Event];

/// Which kind of descriptor an ioctl is of.
fn of(request: u32) -> Kind {
    match request {
        KVM_GET_API_VERSION | KVM_CREATE_VM | KVM_GET_VCPU_MMAP_SIZE | FREEHOLD_COUNTER => Kind::System,
        KVM_RUN | KVM_GET_MP_STATE | KVM_SET_MP_STATE | KVM_GET_ONE_REG | KVM_SET_ONE_REG | KVM_ARM_VCPU_INIT
        | KVM_GET_REG_LIST => Kind::Vcpu,
        KVM_SET_DEVICE_ATTR | KVM_GET_DEVICE_ATTR | KVM_HAS_DEVICE_ATTR => Kind::Gic,
        KVM_SET_MEMORY_ATTRIBUTES2
        | FREEHOLD_CONVERT
        | FREEHOLD_PENDING
        | FREEHOLD_OUTCOME
        | FREEHOLD_CANCEL
        | FREEHOLD_POPULATE => Kind::Gmem,
        _ => Kind::Vm,
    }
}

/// Runs the cases: a seed, and how many calls.
pub(crate) fn all(seed: Option<u64>, calls: Option<u64>) -> Result<(), String> {
    let seed = seed.unwrap_or_else(entropy) | 1;
    let calls = calls.unwrap_or(CALLS);
    println!("ioctl-fuzz: seed {seed:#x}, {calls} calls");
    let_signals_interrupt();
    let hostile = Hostile::open()?;
    let (before, files) = (resting(&hostile), descriptors());
    let count = Count::new();
    let mut random = Random(seed);
    while count.calls.load(Ordering::Relaxed) < calls {
        round(&mut random, &count)?;
    }
    let counted = [&count.calls, &count.done, &count.interrupted, &count.ran].map(|n| n.load(Ordering::Relaxed));
    let [calls, done, interrupted, ran] = counted;
    let seen = format!("{done} of {calls}, {interrupted} interrupted, {ran} runs (seed {seed:#x})");
    let held = done * 10 >= calls && interrupted > 0 && ran * 50 >= calls;
    STEP.judged("calls that do something", "a tenth or more, and runs", seen, held);
    let each: Vec<String> = count.carried_out().map(|(name, times)| format!("{name} {times}")).collect();
    println!("ioctl-fuzz: carried out: {}", each.join(", "));
    // Nobody holds a page here, so that every conversion is over at once and leaves no outcome to ask for.
    let may_be = |name: &str| name == "FREEHOLD_OUTCOME";
    let never = count.carried_out().filter(|(name, times)| *times == 0 && !may_be(name));
    let never: Vec<&str> = never.map(|(name, _)| name).collect();
    // Of fewer calls than this some are never made.
    if calls >= CALLS {
        STEP.same("ioctls of which none was carried out", "[]", format!("{never:?}"));
    }
    settle(STEP, "all is as before", &hostile, &before);
    STEP.same("no descriptor is left", files, descriptors());
    STEP.same("nothing stays charged", 0, crate::pinned::locked());
    // What is left of it would be a VM that does not run.
    let vms = crate::machine::counter(&open()?, hvc::COUNTER_VMS, 0);
    STEP.same("el2 has no VM", "Ok(0)", format!("{vms:?}"));
    let mut machine = crate::machine::Machine::booted(crate::machine::Plan::default())?.0;
    STEP.same("a guest runs", 0, machine.command(crate::proto::CMD_NOP, [0; 3])?[0]);
    Ok(())
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Some objects, and two threads that do what they like with them.
fn round(random: &mut Random, count: &Count) -> Result<(), String> {
    let arena = Mapping::anonymous(RESERVE, random.one_in(2)).map_err(errno_name)?;
    arena.protect(ARENA, RESERVE - ARENA, libc::PROT_NONE).map_err(errno_name)?;
    let _ = arena.advise(0, ARENA, libc::MADV_NOHUGEPAGE);
    let shared = objects(&arena)?;
    let seeds: Vec<u64> = (0..THREADS).map(|_| random.next() | 1).collect();
    let over = AtomicBool::new(false);
    let threads: Vec<AtomicU64> = seeds.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = seeds
            .iter()
            .zip(&threads)
            .map(|(&seed, thread)| {
                let (arena, shared) = (&arena, &shared);
                scope.spawn(move || {
                    thread.store(u64::from(myself().cast_unsigned()), Ordering::SeqCst);
                    Thread { random: Random(seed), arena, shared, own: Vec::new(), count }.works();
                })
            })
            .collect();
        // Whatever waits is told to go on, sooner or later.
        let prodder = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(3));
                for thread in &threads {
                    match libc::pid_t::try_from(thread.load(Ordering::SeqCst)) {
                        Ok(thread) if thread != 0 => interrupt(thread),
                        _ => {}
                    }
                }
            }
        });
        let ended = workers.into_iter().all(|worker| worker.join().is_ok());
        over.store(true, Ordering::SeqCst);
        let _ = prodder.join();
        if ended { Ok(()) } else { Err("a thread ended early".into()) }
    })
}

/// Three VMs with what belongs to them: two that could run, with a controller that is complete, and one with a controller
/// that nobody has placed yet.
fn objects(arena: &Mapping) -> Result<Vec<(Kind, OwnedFd)>, String> {
    let mut made = vec![(Kind::System, node()?)];
    for (at, of) in [(None, PROTECTED), (Some(0), 40), (Some(4 << 20), PROTECTED)] {
        let vm = made_by(&made[0].1, KVM_CREATE_VM, of)?;
        let vcpus = [made_by(&vm, KVM_CREATE_VCPU, 0)?, made_by(&vm, KVM_CREATE_VCPU, 1)?];
        let kind = u32::try_from(KVM_DEV_TYPE_ARM_VGIC_V3).unwrap_or(0);
        let mut ask = CreateDevice { kind, fd: 0, flags: 0 };
        sys::ioctl(&vm, KVM_CREATE_DEVICE, &mut ask).map_err(errno_name)?;
        let gic = sys::owned(ask.fd.into());
        if let Some(at) = at {
            arena.copy_in(at, &read_program()?);
            set_plain(&vm, 0, RAM_BASE, RAM_MIN, arena.at(at)).map_err(errno_name)?;
            starts(&vcpus[0])?;
            complete(&gic)?;
        }
        made.push((Kind::Gic, gic));
        made.extend(vcpus.map(|vcpu| (Kind::Vcpu, vcpu)));
        let shared = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
        made.push((Kind::Gmem, file(&vm, shared)?));
        if of == PROTECTED {
            // One that is the guest's from the beginning, and one that is bound.
            let (private, bound) = (file(&vm, GUEST_MEMFD_FLAG_MMAP)?, file(&vm, shared)?);
            good::bind(&vm, &bound)?;
            made.extend([private, bound].map(|file| (Kind::Gmem, file)));
        }
        made.push((Kind::Vm, vm));
    }
    made.push((Kind::Event, event()));
    Ok(made)
}

/// A `guest_memfd`.
fn file(vm: &OwnedFd, flags: u64) -> Result<OwnedFd, String> {
    let mut ask = CreateGuestMemfd { size: PAGES * PAGE, flags, reserved: [0; 6] };
    made_by(vm, KVM_CREATE_GUEST_MEMFD, (&raw mut ask) as u64)
}

/// Places a controller where the tests' program looks for it, and completes it: its wires may be raised from then on.
fn complete(gic: &OwnedFd) -> Result<(), String> {
    let place = u32::try_from(KVM_DEV_ARM_VGIC_GRP_ADDR).unwrap_or(0);
    let ctrl = u32::try_from(KVM_DEV_ARM_VGIC_GRP_CTRL).unwrap_or(0);
    for (group, attr, value) in [
        (place, KVM_VGIC_V3_ADDR_TYPE_REDIST, GICR_GFN << 12),
        (place, KVM_VGIC_V3_ADDR_TYPE_DIST, GICD_GFN << 12),
        (ctrl, KVM_DEV_ARM_VGIC_CTRL_INIT, 0),
    ] {
        let mut ask = DeviceAttr { flags: 0, group, attr, addr: (&raw const value) as u64 };
        sys::ioctl(gic, KVM_SET_DEVICE_ATTR, &mut ask).map_err(errno_name)?;
    }
    Ok(())
}

/// A vCPU that is about to run the tests' program.
fn starts(vcpu: &OwnedFd) -> Result<(), String> {
    let mut init = VcpuInit { target: u32::try_from(KVM_ARM_TARGET_GENERIC_V8).unwrap_or(0), features: [0; 7] };
    init.features[0] = 1 << KVM_ARM_VCPU_PSCI_0_2;
    sys::ioctl(vcpu, KVM_ARM_VCPU_INIT, &mut init).map_err(errno_name)?;
    for (id, value) in [(KVM_REG_X0, BOOT_NO_SHARE), (KVM_REG_PC, RAM_BASE)] {
        sys::ioctl(vcpu, KVM_SET_ONE_REG, &mut OneReg { id, addr: (&raw const value) as u64 }).map_err(errno_name)?;
    }
    Ok(())
}

fn node() -> Result<OwnedFd, String> {
    // SAFETY: the name ends with a zero; the answer is a descriptor of ours or -1.
    let fd = unsafe { libc::open(NODE.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 { Err("the node".into()) } else { Ok(sys::owned(fd.into())) }
}

fn made_by(fd: &OwnedFd, request: u32, argument: u64) -> Result<OwnedFd, String> {
    ioctl_value(fd, request, argument).map(sys::owned).map_err(|e| format!("{request:#x}: {}", errno_name(e)))
}

fn event() -> OwnedFd {
    // SAFETY: plain numbers; the answer is a descriptor of ours or -1.
    sys::owned(i64::from(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) }))
}

struct Thread<'a> {
    random: Random,
    arena: &'a Mapping,
    shared: &'a [(Kind, OwnedFd)],
    own: Vec<(Kind, OwnedFd)>,
    count: &'a Count,
}

impl Thread<'_> {
    fn works(mut self) {
        for _ in 0..ROUND {
            self.call();
        }
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        let at = self.random.below(of.len() as u64);
        of[usize::try_from(at).unwrap_or(0)]
    }

    /// A descriptor of this kind, most of the time.
    fn descriptor(&mut self, kind: Kind) -> i32 {
        let kind = if self.random.one_in(12) { self.one(&KINDS) } else { kind };
        // The others' as often as all that it has made itself.
        let own = if self.random.one_in(2) { &self.own[..] } else { &[] };
        let fds: Vec<i32> =
            self.shared.iter().chain(own).filter(|(k, _)| *k == kind).map(|(_, fd)| fd.as_raw_fd()).collect();
        if fds.is_empty() || self.random.one_in(40) { self.one(&[-1, 9999]) } else { self.one(&fds) }
    }

    fn keep(&mut self, kind: Kind, fd: i64) {
        self.own.push((kind, sys::owned(fd)));
        if self.own.len() > KEPT {
            let at = usize::try_from(self.random.below(KEPT as u64)).unwrap_or(0);
            self.own.swap_remove(at);
        }
    }

    fn call(&mut self) {
        let table = IOCTLS.iter().filter_map(|item| u32::try_from(item.value).ok()).collect::<Vec<u32>>();
        let known = match self.random.below(15) {
            0..3 => KVM_RUN,
            3 | 4 => self.one(&good::RARE),
            _ => self.one(&table),
        };
        let request = match self.random.below(24) {
            // Another size, another direction, another number.
            0 => known ^ 1 << (16 + self.random.below(8)),
            1 => known ^ 1 << 30,
            2 => known ^ 1 << self.random.below(8),
            _ => known,
        };
        let fd = self.descriptor(of(known));
        let mut words = [0u64; WORDS];
        let here = words.as_ptr() as u64;
        let argument = match self.argument(known, &mut words) {
            // Where others write too its descriptor would not be found again.
            at if request == KVM_CREATE_DEVICE && at == self.arena.at(0).addr() as u64 => here,
            at => at,
        };
        let done = ioctl_value(&fd, request, argument);
        self.count.note(request, done);
        match (request, done) {
            (KVM_CREATE_VM, Ok(fd)) => self.keep(Kind::Vm, fd),
            (KVM_CREATE_VCPU, Ok(fd)) => self.keep(Kind::Vcpu, fd),
            (KVM_CREATE_GUEST_MEMFD, Ok(fd)) => self.keep(Kind::Gmem, fd),
            (KVM_CREATE_DEVICE, Ok(_)) => {
                let said: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let word = |at: u64| {
                    let at = usize::try_from(argument.wrapping_sub(here).wrapping_add(at)).unwrap_or(usize::MAX);
                    said.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
                };
                // A test makes none.
                if let (Some(fd), Some(0)) = (word(4), word(8).map(|flags| flags & 1)) {
                    self.keep(Kind::Gic, fd.into());
                }
            }
            _ => {}
        }
    }

    /// The ioctl's argument: a number, or the address of what is said.
    fn argument(&mut self, request: u32, words: &mut [u64; WORDS]) -> u64 {
        match request {
            KVM_CREATE_VM => {
                return self.one(&[0, 32, 36, 40, KVM_VM_TYPE_ARM_PROTECTED, 1 << 31 | 40, 31, 41, 1 << 30]);
            }
            KVM_CREATE_VCPU => return self.one(&[0, 1, 2, 7, 8, u64::MAX]),
            KVM_CHECK_EXTENSION if self.random.one_in(8) => return KVM_CAP_ARM_PROTECTED_VM.into(),
            KVM_CHECK_EXTENSION => return self.random.below(260),
            KVM_RUN | KVM_GET_API_VERSION | KVM_GET_VCPU_MMAP_SIZE | FREEHOLD_CANCEL => {
                return u64::from(self.random.one_in(20));
            }
            _ => self.says(request, words),
        }
        let here = words.as_mut_ptr() as u64;
        match self.random.below(40) {
            0 => 0,
            1 => 8,
            2 => KERNEL,
            3 => u64::MAX - 7,
            4 => self.arena.at(0).addr() as u64,
            // Where memory ends.
            5 => self.arena.at(ARENA - 8).addr() as u64,
            6 => here + 1,
            _ => here,
        }
    }

    /// A number that may stand in any field.
    fn word(&mut self) -> u64 {
        let at = self.memory();
        self.one(&[
            0,
            0,
            0,
            1,
            2,
            3,
            4,
            5,
            8,
            64,
            PAGE,
            PAGE + 1,
            1 << 16,
            1 << 31,
            1 << 32,
            1 << 63,
            u64::MAX,
            KERNEL,
            RAM_BASE,
            at,
        ])
    }

    /// Where a slot may lie: never where this program has anything.
    fn memory(&mut self) -> u64 {
        let base = self.arena.at(0).addr() as u64;
        let page = self.random.below(8) * 64 * PAGE;
        self.one(&[
            base,
            base + page,
            base + ARENA as u64 - PAGE,
            base + ARENA as u64,
            base + 8,
            0,
            PAGE,
            KERNEL & !0xfff,
        ])
    }

    fn small(&mut self) -> u64 {
        self.one(&[PAGE, 4 * PAGE, 64 * PAGE, 512 * PAGE, 0, PAGE - 1, 1 << 41, !0xfff])
    }

    fn gpa(&mut self) -> u64 {
        let page = self.random.below(4) * 32 * PAGE;
        self.one(&[
            RAM_BASE,
            RAM_BASE + page,
            RAM_BASE - PAGE,
            0,
            1 << 39,
            (1 << 40) - PAGE,
            1 << 40,
            RAM_BASE + 1,
            !0xfff,
        ])
    }

    fn fd(&mut self, kind: Kind) -> u64 {
        u64::from(self.descriptor(kind).cast_unsigned())
    }

    /// What is said: by the rules in most fields, or anything in all of them.
    fn says(&mut self, request: u32, words: &mut [u64; WORDS]) {
        if self.random.one_in(6) {
            for word in words.iter_mut() {
                *word = self.word();
            }
            // Not even then a slot of this program: the third and the fourth say where one lies.
            if matches!(request, KVM_SET_USER_MEMORY_REGION | KVM_SET_USER_MEMORY_REGION2) {
                (words[2], words[3]) = (self.small(), self.memory());
            }
            return;
        }
        let good = if self.random.one_in(2) { self.good(request, words) } else { None };
        if let Some(good) = good {
            words.iter_mut().zip(good).for_each(|(word, said)| *word = said);
            return;
        }
        let said: Vec<u64> = match request {
            KVM_SET_USER_MEMORY_REGION | KVM_SET_USER_MEMORY_REGION2 => {
                let flags = self.one(&[0, 0, 0, 0, 1, 2, 3, 4, 4, 8]);
                let slot = self.random.below(4) | flags << 32;
                vec![
                    slot,
                    self.gpa(),
                    self.small(),
                    self.memory(),
                    self.one(&[0, PAGE, 8 * PAGE, 1]),
                    self.fd(Kind::Gmem),
                ]
            }
            KVM_CREATE_GUEST_MEMFD => vec![self.small(), self.random.below(5)],
            KVM_IRQ_LINE => vec![((1 << 24) + 32 + self.random.below(40)) | (self.random.below(2) << 32)],
            KVM_IRQFD => {
                let (event, told, gsi) = (self.fd(Kind::Event), self.fd(Kind::Event), self.random.below(34));
                vec![event | gsi << 32, self.random.below(5) | told << 32]
            }
            KVM_IOEVENTFD => {
                let (event, length) = (self.fd(Kind::Event), self.one(&[0, 1, 2, 3, 4, 8]));
                vec![self.random.below(3), self.gpa(), length | event << 32, self.random.below(8)]
            }
            KVM_ENABLE_CAP => {
                let (cap, flags) = (KVM_CAP_ARM_PROTECTED_VM, self.one(&[0, 1, 1, 1, 2, 3]));
                let cap = if self.random.one_in(6) { 0x7fff } else { u64::from(cap) };
                // Behind what is said there is room for what is told.
                let told = (&raw const words[32]) as u64;
                let to = self.one(&[told, told, told + 1, 0, 8, KERNEL, u64::MAX - 7, 0x7fc0_0000]);
                vec![cap | flags << 32, to, u64::from(self.random.one_in(9)), 0, 0]
            }
            KVM_SET_MP_STATE | KVM_GET_MP_STATE => vec![self.one(&[0, 5, 1, u64::MAX])],
            KVM_GET_ONE_REG | KVM_SET_ONE_REG => {
                let id = self.random.below(0x60) + KVM_REG_X0;
                let id = self.one(&[
                    id,
                    KVM_REG_PC,
                    KVM_REG_PSTATE,
                    KVM_REG_MPIDR,
                    KVM_REG_PSCI_VERSION,
                    KVM_REG_TIMER_CNT,
                    0,
                ]);
                words[8] = self.one(&[0, 0x3c5, RAM_BASE, u64::MAX]);
                vec![id, self.one(&[(&raw const words[8]) as u64, 8, KERNEL, u64::MAX])]
            }
            KVM_ARM_VCPU_INIT => vec![5 | self.one(&[4, 4, 5, 5, 0, 1, 8, 1 << 31]) << 32],
            KVM_GET_REG_LIST => vec![self.one(&[0, 1, 8, 31])],
            KVM_SET_MEMORY_ATTRIBUTES => {
                vec![self.gpa(), self.small(), self.one(&[0, 8, 8, 1]), u64::from(self.random.one_in(9))]
            }
            KVM_SET_MEMORY_ATTRIBUTES2 => vec![self.small(), self.small(), self.one(&[0, 8, 8, 1]), 0],
            KVM_CREATE_DEVICE => vec![self.one(&[7, 7, 5, 8, 99]), self.random.below(3)],
            KVM_SET_DEVICE_ATTR | KVM_GET_DEVICE_ATTR | KVM_HAS_DEVICE_ATTR => {
                words[8] = self.one(&[64, 0, 1 << 30, 0x0800_0000, 0x080a_0000, 1 << 52 | 0x080a_0000, u64::MAX]);
                let group = self.one(&[0, 3, 4, 1, 7]) << 32;
                vec![group, self.random.below(6), self.one(&[(&raw const words[8]) as u64, 0, KERNEL])]
            }
            FREEHOLD_CONVERT => {
                let how = (1 + self.random.below(3)) | (self.random.below(4) << 32);
                vec![self.small(), self.small(), how, self.one(&[0, 1, 20])]
            }
            FREEHOLD_POPULATE => vec![self.small(), self.small(), self.memory()],
            FREEHOLD_COUNTER => vec![self.random.below(16) | self.random.below(5) << 32],
            _ => vec![self.word(), self.word(), self.word()],
        };
        for (word, said) in words.iter_mut().zip(said) {
            *word = said;
        }
        // Now and then one field is something else.
        if self.random.one_in(8) {
            let at = self.one(&[0, 1, 4, 5, 6]);
            words[at] = self.word();
        }
    }
}

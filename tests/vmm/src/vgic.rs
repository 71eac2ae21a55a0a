// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest with an interrupt controller, through the driver: KVM's device and its refusals, the host's interrupt, timers,
//! and waits in which the thread sleeps.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use freehold_uapi::ioctl::*;
use kvm_ioctls::VmFd;

use crate::machine::{Event, Machine, Plan, VM_TYPE, new_vcpu, open};
use crate::proto::*;
use crate::report::Step;
use crate::spinning;
use crate::sys::{self, errno_name, ioctl, ioctl_value, outcome};
use crate::{away, events};

/// The step that these cases are of.
pub(crate) const STEP: Step = Step("vgic");
const DIST: u64 = GICD_GFN << 12;
const REDIST: u64 = GICR_GFN << 12;
/// How long anything may take that should come at once.
const PATIENCE: Duration = Duration::from_secs(60);

fn number(value: u64) -> u32 {
    u32::try_from(value).expect("a 32-bit number")
}

/// The device.
pub(crate) struct Gic(OwnedFd);

impl Gic {
    fn create(vm: &VmFd, kind: u64, flags: u64) -> Result<CreateDevice, i32> {
        let mut ask = CreateDevice { kind: number(kind), fd: 0, flags: number(flags) };
        ioctl(vm, KVM_CREATE_DEVICE, &mut ask).map(|_| ask)
    }

    fn bare(vm: &VmFd) -> Result<Self, i32> {
        Self::create(vm, KVM_DEV_TYPE_ARM_VGIC_V3, 0).map(|made| Self(sys::owned(made.fd.into())))
    }

    /// A controller where the program looks for it.
    pub(crate) fn new(vm: &VmFd) -> Result<Self, String> {
        let fail = |what: &str, error: i32| format!("{what}: {}", errno_name(error));
        let gic = Self::bare(vm).map_err(|e| fail("CREATE_DEVICE", e))?;
        for (attr, address) in [(KVM_VGIC_V3_ADDR_TYPE_REDIST, REDIST), (KVM_VGIC_V3_ADDR_TYPE_DIST, DIST)] {
            gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, attr, address).map_err(|e| fail("address of the vGIC", e))?;
        }
        Ok(gic)
    }

    /// Says that every vCPU is there.
    pub(crate) fn complete(&self) -> Result<(), String> {
        self.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 64).map_err(|e| format!("NR_IRQS: {}", errno_name(e)))?;
        self.init().map(|_| ()).map_err(|e| format!("CTRL_INIT: {}", errno_name(e)))
    }

    fn attr(&self, request: u32, group: u64, attr: u64, addr: u64) -> Result<i64, i32> {
        ioctl(&self.0, request, &mut DeviceAttr { flags: 0, group: number(group), attr, addr })
    }

    fn set(&self, group: u64, attr: u64, value: u64) -> Result<i64, i32> {
        self.attr(KVM_SET_DEVICE_ATTR, group, attr, (&raw const value) as u64)
    }

    fn get(&self, group: u64, attr: u64, mut value: u64) -> Result<u64, i32> {
        self.attr(KVM_GET_DEVICE_ATTR, group, attr, (&raw mut value) as u64)?;
        Ok(value)
    }

    fn init(&self) -> Result<i64, i32> {
        self.attr(KVM_SET_DEVICE_ATTR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
    }
}

/// `KVM_IRQ_LINE`.
pub(crate) fn line(vm: &impl AsRawFd, kind: u64, number: u64, level: u32) -> String {
    let irq = u32::try_from(kind << 24 | number).expect("a 32-bit number");
    outcome(ioctl(vm, KVM_IRQ_LINE, &mut IrqLevel { irq, level }))
}

pub(crate) fn spi(vm: &impl AsRawFd, level: u32) -> String {
    line(vm, KVM_ARM_IRQ_TYPE_SPI, SPI, level)
}

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    refusals()?;
    completion()?;
    let plan = Plan { boot: BOOT_NO_SHARE, gic: true, ..Plan::default() };
    let (mut machine, _) = Machine::booted(plan)?;
    late(&machine);
    serves(&mut machine)?;
    waits(&mut machine, "")?;
    interrupted(&mut machine)?;
    away::from_a_guest_that_spins(machine)?;
    spinning::all()?;
    raised_early()?;
    ordinary()
}

/// An ordinary guest's waits, and its VMM's interrupts.
pub(crate) fn ordinary() -> Result<(), String> {
    let mut machine = events::made(events::Kind::Ordinary, 1, RAM_MIN)?;
    machine.boot()?;
    machine.command(CMD_GIC, [0; 3])?;
    for (name, kind, number) in [("an SGI", 2, SGI), ("a PPI", 2, 20), ("the timer's PPI", 2, 27), ("?", 3, SPI)] {
        STEP.same(&format!("ordinary: forged: {name}"), "EINVAL", line(&machine.vm, kind, number, 1));
        // Where it may be raised it does not stay so.
        line(&machine.vm, kind, number, 0);
    }
    STEP.same("ordinary: an SPI that it does not have", "EINVAL", line(&machine.vm, KVM_ARM_IRQ_TYPE_SPI, 64, 1));
    waits(&mut machine, "ordinary: ")
}

pub(crate) fn refusals() -> Result<(), String> {
    let kvm = open()?;
    for cap in [KVM_CAP_IRQCHIP, KVM_CAP_DEVICE_CTRL] {
        STEP.same(&format!("capability {cap}"), "1", outcome(ioctl_value(&kvm, KVM_CHECK_EXTENSION, cap.into())));
    }
    let vm = kvm.create_vm_with_type(VM_TYPE).map_err(|e| errno_name(e.errno()))?;
    let made = |kind: u64, flags: u64| outcome(Gic::create(&vm, kind, flags).map(|_| 0));
    STEP.same("no GICv2", "ENODEV", made(5, 0));
    STEP.same("no ITS", "ENODEV", made(8, 0));
    STEP.same("no device of a high number", "ENODEV", made(0xffff_ffff, 0));
    STEP.same("a test creates nothing", "0", made(KVM_DEV_TYPE_ARM_VGIC_V3, KVM_CREATE_DEVICE_TEST));
    STEP.same("no line without a controller", "ENXIO", spi(&vm, 1));
    STEP.same("bad address", "EFAULT", outcome(ioctl_value(&vm, KVM_CREATE_DEVICE, 8)));
    STEP.same("line: bad address", "EFAULT", outcome(ioctl_value(&vm, KVM_IRQ_LINE, 8)));
    let gic = Gic::new(&vm)?;
    STEP.same("a second one", "EEXIST", made(KVM_DEV_TYPE_ARM_VGIC_V3, 0));
    // Nobody can complete it any more.
    drop(gic);
    STEP.same("closed before it is complete: no line", "ENXIO", spi(&vm, 1));
    let gic = Gic::bare(&vm).map_err(errno_name)?;
    STEP.same("closed before it is complete: another one", "EEXIST", made(KVM_DEV_TYPE_ARM_VGIC_V3, 0));
    STEP.same("unknown ioctl", "ENOTTY", outcome(ioctl_value(&gic.0, ioc(0, KVM_MAGIC, 0x7f, 0), 0)));
    STEP.same("attribute: bad address", "EFAULT", outcome(ioctl_value(&gic.0, KVM_SET_DEVICE_ATTR, 8)));
    let seen = outcome(gic.attr(KVM_SET_DEVICE_ATTR, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, 8));
    STEP.same("value: bad address", "EFAULT", seen);
    hidden(&gic, "");
    let addr = KVM_DEV_ARM_VGIC_GRP_ADDR;
    let set = |case: &str, expected: &str, attr: u64, value: u64| {
        STEP.same(case, expected, outcome(gic.set(addr, attr, value)));
    };
    set("distributor unaligned", "EINVAL", KVM_VGIC_V3_ADDR_TYPE_DIST, DIST + 4096);
    set("distributor beyond", "E2BIG", KVM_VGIC_V3_ADDR_TYPE_DIST, 1 << 40);
    set("region without a count", "EINVAL", KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, REDIST);
    set("region that is not the first", "EINVAL", KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, 1 << 52 | REDIST | 1);
    set("distributor", "0", KVM_VGIC_V3_ADDR_TYPE_DIST, DIST);
    set("distributor again", "EEXIST", KVM_VGIC_V3_ADDR_TYPE_DIST, DIST);
    set("region", "0", KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, 1 << 52 | REDIST);
    set("redistributors besides", "EINVAL", KVM_VGIC_V3_ADDR_TYPE_REDIST, REDIST);
    let read = gic.get(addr, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, 0);
    STEP.same("region reads back", format!("{:x?}", Ok::<u64, i32>(1 << 52 | REDIST)), format!("{read:x?}"));
    let irqs = |value| outcome(gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, value));
    for (value, expected) in [(32, "EINVAL"), (100, "EINVAL"), (1024, "EINVAL"), (64, "0"), (64, "EBUSY")] {
        STEP.same(&format!("{value} interrupts"), expected, irqs(value));
    }
    STEP.same("line before it is complete", "EBUSY", spi(&vm, 1));
    Ok(())
}

/// What a VMM of an ordinary machine saves and restores: here it is the guest's. Every attribute of every group is
/// tried, by each of the three calls.
fn hidden(gic: &Gic, when: &str) {
    for (name, group, attrs) in [
        ("GICv2 distributor", 1, [0, 4, 0x80]),
        ("GICv2 CPU interface", 2, [0, 4, 0x10]),
        ("ITS tables", 4, [1, 2, 3]),
        ("distributor registers", 1, [0x200, 0x400, 0xffe8]),
        ("redistributor registers", 5, [8, 0x1_0200, 0x1_0400]),
        ("CPU interface registers", 6, [0xc230, 0xc664, 0xc667]),
        ("levels", 7, [32, 40, 1 << 32 | 32]),
        ("ITS registers", 8, [0, 0x80, 0x100]),
        ("no group", 77, [0, 1, 2]),
    ] {
        for attr in attrs {
            let seen = [KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR].map(|request| {
                let mut word = 0u64;
                outcome(gic.attr(request, group, attr, (&raw mut word) as u64))
            });
            let case = format!("{when}not served: {name}, {attr:#x}");
            STEP.same(&case, "ENXIO, ENXIO, ENXIO", seen.join(", "));
        }
    }
    for (name, group, attr) in [
        ("distributor", KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST),
        ("redistributors", KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST),
        ("region", KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION),
        ("interrupts", KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0),
        ("completion", KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT),
    ] {
        STEP.same(&format!("{when}served: {name}"), "0", outcome(gic.attr(KVM_HAS_DEVICE_ATTR, group, attr, 0)));
    }
}

/// No vCPU runs before the controller is complete, and none is created after it.
pub(crate) fn completion() -> Result<(), String> {
    let kvm = open()?;
    let vm = kvm.create_vm_with_type(VM_TYPE).map_err(|e| errno_name(e.errno()))?;
    let gic = Gic::bare(&vm).map_err(errno_name)?;
    let vcpu = new_vcpu(&vm, 0)?;
    let run = || outcome(ioctl_value(&vcpu, KVM_RUN, 0));
    STEP.same("run without addresses", "ENXIO", run());
    for (attr, address) in [(KVM_VGIC_V3_ADDR_TYPE_REDIST, REDIST), (KVM_VGIC_V3_ADDR_TYPE_DIST, DIST)] {
        STEP.same("address", "0", outcome(gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, attr, address)));
    }
    STEP.same("run before it is complete", "EBUSY", run());
    STEP.same("completion", "0", outcome(gic.init()));
    STEP.same("completion again", "0", outcome(gic.init()));
    STEP.same("a vCPU after it", "EBUSY", outcome(ioctl_value(&vm, KVM_CREATE_VCPU, 0)));
    drop(gic);
    let again = outcome(Gic::create(&vm, KVM_DEV_TYPE_ARM_VGIC_V3, 0).map(|_| 0));
    STEP.same("closed when it is complete: it stays", "EEXIST", again);
    Ok(())
}

/// What is refused of a VM that runs.
fn late(machine: &Machine) {
    let vm = &machine.vm;
    if let Some(gic) = &machine.gic {
        hidden(gic, "a VM that ran: ");
    }
    let made = outcome(Gic::create(vm, KVM_DEV_TYPE_ARM_VGIC_V3, 0).map(|_| 0));
    STEP.same("a VM that runs gets no other controller", "EEXIST", made);
    for (name, kind, expected) in [("SGI", 1, "EINVAL"), ("PPI", 2, "EINVAL"), ("CPU", 0, "ENXIO"), ("?", 3, "EINVAL")]
    {
        for forged in [SGI, 27, 30] {
            STEP.same(&format!("forged as {name}: {forged}"), expected, line(vm, kind, forged, 1));
        }
    }
    STEP.same("an SPI that it does not have", "EINVAL", line(vm, KVM_ARM_IRQ_TYPE_SPI, 64, 1));
    let bare = Machine::booted(Plan { boot: BOOT_NO_SHARE, ..Plan::default() });
    let seen = bare.map(|(machine, _)| outcome(Gic::create(&machine.vm, KVM_DEV_TYPE_ARM_VGIC_V3, 0).map(|_| 0)));
    STEP.same("none for a VM that ran without", "EBUSY", seen.unwrap_or_else(|error| error));
}

fn clean(machine: &mut Machine, case: &str, command: u64, arguments: [u64; 3]) -> Result<[u64; 3], String> {
    let results = machine.command(command, arguments)?;
    STEP.same(case, 0, results[0]);
    Ok(results)
}

/// The guest's own interrupts, which the host sees nothing of.
fn serves(machine: &mut Machine) -> Result<(), String> {
    clean(machine, "the controller is what it says", CMD_GIC, [0; 3])?;
    clean(machine, "100 SGIs come at once", CMD_IPI, [100, 0, 0])?;
    for (case, how) in [
        ("the virtual timer ends a wait", TICK_WAIT),
        ("the physical timer ends a wait", TICK_PHYSICAL),
        ("the virtual timer is taken as an exception", TICK_TAKEN),
        ("the physical timer is taken as an exception", TICK_PHYSICAL_TAKEN),
    ] {
        clean(machine, case, CMD_TICKS, [20, frequency() / 1000, how])?;
    }
    clean(machine, "timers at the ends of what their comparators hold", CMD_TIMERS, [0; 3])?;
    Ok(())
}

/// Ticks of a second.
pub(crate) fn frequency() -> u64 {
    let frequency: u64;
    // SAFETY: reads a register that every process may read.
    unsafe { std::arch::asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack)) };
    frequency
}

/// Processor time of this thread.
fn worked() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure has room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Waits until thread `thread` of this process sleeps; whether it came to that.
pub(crate) fn sleeps(thread: libc::pid_t) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
        // The state stands behind the name, which is in parentheses.
        if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')) {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

pub(crate) fn myself() -> libc::pid_t {
    // SAFETY: asks for a number.
    unsafe { libc::gettid() }
}

/// A thread whose guest waits sleeps, until the timer fires or the host's interrupt comes.
fn waits(machine: &mut Machine, who: &str) -> Result<(), String> {
    let (before, start) = (worked(), Instant::now());
    let [_, late, ticks] =
        clean(machine, &format!("{who}a timer a second away ends a wait"), CMD_TICKS, [1, frequency(), TICK_WAIT])?;
    let (work, time) = (worked() - before, start.elapsed());
    let seen = format!("{work:?} of {time:?}; {late} ticks late of {ticks}");
    STEP.judged(
        &format!("{who}its thread sleeps meanwhile"),
        "less than half of the time at work",
        seen,
        work * 2 < time,
    );
    let wire = machine.vm.as_fd_clone()?;
    for round in 0..3 {
        let thread = myself();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                let asleep = sleeps(thread);
                STEP.same(&format!("{who}round {round}: it sleeps until the host's interrupt"), true, asleep);
                STEP.same(&format!("{who}round {round}: the wire goes up"), "0", spi(&wire, 1));
            });
            spi_command(machine, &wire)
        })?;
        let [got, after, _] = result;
        let expected = format!("{SPI}, then {NO_INTERRUPT}");
        STEP.same(&format!("{who}round {round}: it takes it once"), expected, format!("{got}, then {after}"));
    }
    Ok(())
}

/// [`CMD_SPI`]: the wire goes down when the guest has the interrupt in hand.
fn spi_command(machine: &mut Machine, wire: &OwnedFd) -> Result<[u64; 3], String> {
    machine.command_with(CMD_SPI, [0; 3], |register| {
        if register == REG_SCRATCH {
            STEP.same("the wire goes down", "0", spi(wire, 0));
        }
    })
}

extern "C" fn nothing(_: i32) {}

/// `SIGUSR1` ends what a thread sleeps in, and does nothing else.
pub(crate) fn let_signals_interrupt() {
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: the handler does nothing, and the structure is alive during the call.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
}

/// Sends `SIGUSR1` to a thread of this process.
pub(crate) fn interrupt(thread: libc::pid_t) {
    // SAFETY: plain numbers; a thread that is gone gets nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id().cast_signed(), thread, libc::SIGUSR1) };
}

/// A signal ends the sleep, and the interrupt that comes between two runs is not lost.
fn interrupted(machine: &mut Machine) -> Result<(), String> {
    let_signals_interrupt();
    let thread = myself();
    machine.answer(CMD_SPI, [0; 3]);
    let event = std::thread::scope(|scope| {
        scope.spawn(|| {
            let asleep = sleeps(thread);
            STEP.same("it sleeps until the signal", true, asleep);
            interrupt(thread);
        });
        machine.step()
    });
    STEP.same("a signal ends the sleep", format!("{:?}", Event::Interrupted), format!("{event:?}"));
    machine.vcpu.set_kvm_immediate_exit(1);
    let (before, event) = (Instant::now(), machine.step());
    let seen = format!("{event:?}");
    STEP.same("immediate_exit keeps it from going back to sleep", format!("{:?}", Event::Interrupted), seen);
    STEP.judged("and at once", "within the patience", format!("{:?}", before.elapsed()), before.elapsed() < PATIENCE);
    machine.vcpu.set_kvm_immediate_exit(0);
    let wire = machine.vm.as_fd_clone()?;
    STEP.same("the wire goes up between two runs", "0", spi(&wire, 1));
    let results = machine.rest_of_command(|register| {
        if register == REG_SCRATCH {
            spi(&wire, 0);
        }
    })?;
    STEP.same("and the next run has it", SPI, results[0]);
    Ok(())
}

/// A wire that is high before the first run is pending in it: the program acknowledges it when it looks for nothing.
fn raised_early() -> Result<(), String> {
    const TAKEN: u64 = 1 << 9 | 1 << 10;
    for (case, levels, expected) in [("stays high", &[1][..], TAKEN), ("goes down again", &[1, 0], 0)] {
        let plan = Plan { boot: BOOT_NO_SHARE, gic: true, ..Plan::default() };
        let mut machine = Machine::new(plan)?;
        for level in levels {
            STEP.same("a wire before the first run", "0", spi(&machine.vm, *level));
        }
        let private = machine.gmem.to_private(0, plan.private, 0);
        private.map_err(|(e, at)| format!("convert: {} at {at:#x}", errno_name(e)))?;
        machine.boot()?;
        STEP.same(&format!("it {case}"), expected, machine.command(CMD_GIC, [0; 3])?[0]);
    }
    Ok(())
}

/// A descriptor of the VM for another thread.
pub(crate) trait Cloned {
    fn as_fd_clone(&self) -> Result<OwnedFd, String>;
}

impl Cloned for VmFd {
    fn as_fd_clone(&self) -> Result<OwnedFd, String> {
        // SAFETY: the descriptor is open for as long as the VM is borrowed.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.as_raw_fd()) };
        fd.as_fd().try_clone_to_owned().map_err(|e| e.to_string())
    }
}

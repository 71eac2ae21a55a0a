// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest of several vCPUs, through the driver: a thread each, which the guest alone gives something to do, and which
//! other threads move from CPU to CPU; what a VMM may set and see of a vCPU; and how the VM ends.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use freehold_uapi::ioctl::*;
use freehold_uapi::{guest, hvc};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::events::{self, Kind};
use crate::machine::{Event, Machine, Plan, VM_TYPE, counter, open};
use crate::probe::probe_here;
use crate::proto::*;
use crate::report::Step;
use crate::runs;
use crate::sheet;
use crate::sys::{self, errno_name, ioctl, ioctl_value, outcome};
use crate::vgic::{Cloned as _, interrupt, let_signals_interrupt, myself, sleeps, spi};

/// The step that these cases are of.
pub(crate) const STEP: Step = Step("cpus");
const VCPUS: u64 = 3;
/// How long anything may take that should come at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let_signals_interrupt();
    refusals()?;
    unsaid()?;
    for kind in [Kind::Protected, Kind::Ordinary] {
        ends(kind)?;
    }
    runs::all()?;
    works()
}

fn plan() -> Plan {
    Plan { bytes: 2 * RAM_MIN, boot: BOOT_NO_SHARE, gic: true, vcpus: VCPUS, ..Plan::default() }
}

fn flags(features: &[u64]) -> [u32; 7] {
    [features.iter().fold(0, |all, feature| all | 1 << feature), 0, 0, 0, 0, 0, 0]
}

/// What a VMM may say of a vCPU before anything runs.
fn refusals() -> Result<(), String> {
    let kvm = open()?;
    let ask = |cap: u32| outcome(ioctl_value(&kvm, KVM_CHECK_EXTENSION, cap.into()));
    STEP.same(
        "vCPUs at most",
        "8, 8, 8",
        [KVM_CAP_NR_VCPUS, KVM_CAP_MAX_VCPUS, KVM_CAP_MAX_VCPU_ID].map(ask).join(", "),
    );
    let vm = kvm.create_vm_with_type(VM_TYPE).map_err(|e| errno_name(e.errno()))?;
    STEP.same("a vCPU too many", "EINVAL", outcome(ioctl_value(&vm, KVM_CREATE_VCPU, 8)));
    let vcpus = [0, 7, 1].map(|index| vm.create_vcpu(index));
    let [Ok(first), Ok(last), Ok(second)] = vcpus else { return Err(format!("CREATE_VCPU: {vcpus:?}")) };
    let (psci, off) = (KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_POWER_OFF);
    STEP.same("number 0 starts off", "EINVAL", init(&first, &[psci, off]));
    STEP.same("number 1 starts on", "EINVAL", init(&second, &[psci]));
    STEP.same("number 7 starts on", "EINVAL", init(&last, &[psci]));
    STEP.same("number 0 starts on", "0", init(&first, &[psci]));
    STEP.same("number 1 starts off", "0", init(&second, &[psci, off]));
    for (vcpu, name, now, other) in [(&first, "number 0", 0, 5), (&second, "number 1", 5, 0)] {
        STEP.same(&format!("{name}: its state"), state(now), read_state(vcpu));
        for (wanted, expected) in [(now, "0"), (other, "EPERM"), (1, "EINVAL"), (99, "EINVAL")] {
            STEP.same(&format!("{name}: set to {wanted}"), expected, outcome(set_state(vcpu, wanted)));
        }
        STEP.same(&format!("{name}: its state is as it was"), state(now), read_state(vcpu));
    }
    STEP.same("state: bad address", "EFAULT", outcome(ioctl_value(&first, KVM_GET_MP_STATE, 8)));
    for (id, value, expected) in [(KVM_REG_PC, RAM_BASE, "0"), (KVM_REG_PC, 2, "EINVAL"), (KVM_REG_X0 + 8, 1, "EPERM")]
    {
        STEP.same(&format!("number 1: set {id:#x}"), expected, outcome(set_reg(&second, id, value)));
    }
    STEP.same(
        "number 1: its PC reads back",
        format!("{:x?}", Ok::<u64, i32>(RAM_BASE)),
        format!("{:x?}", get_reg(&second, KVM_REG_PC)),
    );
    let numbers = [&first, &second].map(|vcpu| get_reg(vcpu, KVM_REG_MPIDR).map(|mpidr| mpidr & 0xff_00ff_ffff));
    STEP.same("their MPIDRs", "[Ok(0), Ok(1)]", format!("{numbers:?}"));
    Ok(())
}

/// The VMM of an ordinary VM need not say of the others that they are off, and switches none on by saying that they are.
pub(crate) fn unsaid() -> Result<(), String> {
    let vm = open()?.create_vm_with_type(VM_TYPE & !KVM_VM_TYPE_ARM_PROTECTED).map_err(|e| errno_name(e.errno()))?;
    let vcpus = [0, 1].map(|index| vm.create_vcpu(index));
    let [Ok(first), Ok(second)] = vcpus else { return Err(format!("CREATE_VCPU: {vcpus:?}")) };
    let (psci, off) = (KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_POWER_OFF);
    STEP.same("ordinary, number 0 starts off", "EINVAL", init(&first, &[psci, off]));
    STEP.same("ordinary, number 0 starts on", "0", init(&first, &[psci]));
    STEP.same("ordinary, number 1: nothing said", "0", init(&second, &[psci]));
    STEP.same("ordinary, number 0: set to off", "EPERM", outcome(set_state(&first, 5)));
    for (wanted, expected) in [(0, "0"), (5, "0"), (1, "EINVAL")] {
        STEP.same(&format!("ordinary, number 1: set to {wanted}"), expected, outcome(set_state(&second, wanted)));
        STEP.same(&format!("ordinary, number 1: off after {wanted}"), state(5), read_state(&second));
    }
    Ok(())
}

fn init(vcpu: &VcpuFd, features: &[u64]) -> String {
    let target = u32::try_from(KVM_ARM_TARGET_GENERIC_V8).unwrap_or(0);
    outcome(ioctl(vcpu, KVM_ARM_VCPU_INIT, &mut VcpuInit { target, features: flags(features) }))
}

pub(crate) fn state(number: u32) -> String {
    format!("{:?}", Ok::<u32, i32>(number))
}

pub(crate) fn read_state(vcpu: &VcpuFd) -> String {
    let mut state = MpState { mp_state: 77 };
    format!("{:?}", ioctl(vcpu, KVM_GET_MP_STATE, &mut state).map(|_| state.mp_state))
}

pub(crate) fn set_state(vcpu: &VcpuFd, mp_state: u32) -> Result<i64, i32> {
    ioctl(vcpu, KVM_SET_MP_STATE, &mut MpState { mp_state })
}

fn set_reg(vcpu: &VcpuFd, id: u64, value: u64) -> Result<i64, i32> {
    ioctl(vcpu, KVM_SET_ONE_REG, &mut OneReg { id, addr: (&raw const value) as u64 })
}

/// The lower half of what a register of 16 bytes at most holds.
pub(crate) fn get_reg(vcpu: &VcpuFd, id: u64) -> Result<u64, i32> {
    let mut value = [0u64; 2];
    ioctl(vcpu, KVM_GET_ONE_REG, &mut OneReg { id, addr: value.as_mut_ptr() as u64 }).map(|_| value[0])
}

/// The thread of another vCPU.
#[derive(Default)]
pub(crate) struct Seat {
    thread: AtomicI32,
    over: AtomicBool,
    gone: AtomicBool,
    told: AtomicU64,
}

impl Seat {
    /// Runs the vCPU until it is over.
    fn serve(&self, vcpu: &mut VcpuFd, wire: &OwnedFd) -> Result<usize, String> {
        self.thread.store(myself(), Ordering::SeqCst);
        let served = self.runs(vcpu, wire);
        self.gone.store(true, Ordering::SeqCst);
        served
    }

    fn runs(&self, vcpu: &mut VcpuFd, wire: &OwnedFd) -> Result<usize, String> {
        for runs in 0.. {
            if self.over.load(Ordering::SeqCst) {
                return Ok(runs);
            }
            match vcpu.run() {
                Ok(VcpuExit::MmioWrite(address, data)) if address == DEVICE + REG_SCRATCH => {
                    self.told.store(data.try_into().map_or(u64::MAX, u64::from_le_bytes), Ordering::SeqCst);
                    spi(wire, 0);
                }
                Ok(VcpuExit::Intr) => {}
                Err(error) if error.errno() == libc::EINTR => {}
                Ok(other) => return Err(format!("{other:?}")),
                Err(error) => return Err(errno_name(error.errno())),
            }
        }
        Ok(0)
    }

    pub(crate) fn thread(&self) -> libc::pid_t {
        let start = Instant::now();
        loop {
            match self.thread.load(Ordering::SeqCst) {
                0 if start.elapsed() < PATIENCE => std::thread::yield_now(),
                thread => return thread,
            }
        }
    }

    /// What its guest stored to the scratch register last.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::SeqCst)
    }

    /// Has the thread come back for good. A signal that comes before its run is of no use, so it gets more.
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        let start = Instant::now();
        while !self.gone.load(Ordering::SeqCst) && start.elapsed() < PATIENCE {
            interrupt(self.thread());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Runs `act` beside the threads of the other vCPUs; what became of these.
pub(crate) fn beside<R>(
    others: &mut [VcpuFd],
    wire: &OwnedFd,
    act: impl FnOnce(&[Seat]) -> R,
) -> (R, Vec<Result<usize, String>>) {
    let seats: Vec<Seat> = others.iter().map(|_| Seat::default()).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            others.iter_mut().zip(&seats).map(|(vcpu, seat)| scope.spawn(|| seat.serve(vcpu, wire))).collect();
        let result = act(&seats);
        seats.iter().for_each(Seat::end);
        let served = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".into())));
        (result, served.collect())
    })
}

/// A machine of so many vCPUs that has not begun.
fn made(kind: Kind) -> Result<Machine, String> {
    match kind {
        Kind::Ordinary => events::made(kind, VCPUS, RAM_MIN),
        Kind::Protected => Machine::new(plan()),
    }
}

/// Threads that a vCPU which is off sleeps in, before and after the VM's life; and how the VM's end is told.
pub(crate) fn ends(kind: Kind) -> Result<(), String> {
    for (name, command, arguments, event, flag) in [
        ("off", CMD_OFF, [0; 3], KVM_SYSTEM_EVENT_SHUTDOWN, 0),
        ("reset", CMD_RESET, [0; 3], KVM_SYSTEM_EVENT_RESET, 0),
        ("reset 2", CMD_HVC, [u64::from(guest::PSCI_SYSTEM_RESET2_64), 0, 0], KVM_SYSTEM_EVENT_RESET, 1),
    ] {
        let name = if kind == Kind::Ordinary { format!("ordinary, {name}") } else { name.to_owned() };
        let mut machine = made(kind)?;
        let wire = machine.vm.as_fd_clone()?;
        let mut others = std::mem::take(&mut machine.others);
        let (ended, served) = beside(&mut others, &wire, |seats| {
            let early = seats.iter().all(|seat| sleeps(seat.thread()));
            STEP.same(&format!("{name}: threads of vCPUs that are off sleep"), true, early);
            // The VM has not begun: the first vCPU's registers are the VMM's still.
            STEP.same(
                &format!("{name}: they begin nothing"),
                "0",
                outcome(set_reg(&machine.vcpu, KVM_REG_PC, RAM_BASE)),
            );
            if kind == Kind::Protected {
                let private = machine.gmem.to_private(0, plan().private, 0);
                private.map_err(|(e, at)| format!("convert: {} at {at:#x}", errno_name(e)))?;
            }
            machine.boot()?;
            let controller = machine.command(CMD_GIC, [VCPUS, 0, 0])?[0];
            STEP.same(&format!("{name}: the controller is what it says"), 0, controller);
            STEP.same(&format!("{name}: a CPU starts"), 0, machine.command(CMD_CPU_ON, [1, 0, 0])?[0]);
            Ok::<Event, String>(machine.last_command(command, arguments))
        });
        STEP.same(
            &format!("{name}: the event"),
            format!("{:?}", Event::System(u32::try_from(event).unwrap_or(0))),
            format!("{:?}", ended?),
        );
        let told =
            [machine.run_page.load(32) & 0xffff_ffff, machine.run_page.load(32) >> 32, machine.run_page.load(40)];
        STEP.same(&format!("{name}: type, count, data"), format!("{:?}", [event, 1, flag]), format!("{told:?}"));
        let held = served.iter().all(|served| served.is_ok());
        STEP.judged(
            &format!("{name}: the others' threads came back for signals only"),
            "Ok",
            format!("{served:?}"),
            held,
        );
        let states: Vec<_> = [&machine.vcpu].into_iter().chain(&others).map(read_state).collect();
        STEP.same(&format!("{name}: every vCPU is off"), [state(5), state(5), state(5)].join(" "), states.join(" "));
        ran_no_more(&mut machine, &name);
    }
    Ok(())
}

/// A VM that has ended runs no more: a thread that tries sleeps until a signal.
fn ran_no_more(machine: &mut Machine, name: &str) {
    let thread = myself();
    let event = std::thread::scope(|scope| {
        scope.spawn(|| {
            STEP.same(&format!("{name}: a thread that runs it again sleeps"), true, sleeps(thread));
            interrupt(thread);
        });
        machine.step()
    });
    STEP.same(&format!("{name}: until a signal"), format!("{:?}", Event::Interrupted), format!("{event:?}"));
}

/// What the guest has its vCPUs do, while their threads are moved about.
fn works() -> Result<(), String> {
    let mut machine = Machine::new(plan())?;
    let private = machine.gmem.to_private(0, plan().private, 0);
    private.map_err(|(e, at)| format!("convert: {} at {at:#x}", errno_name(e)))?;
    machine.boot()?;
    let wire = machine.vm.as_fd_clone()?;
    let mut others = std::mem::take(&mut machine.others);
    let (done, served) = beside(&mut others, &wire, |seats| {
        let mut threads = vec![myself()];
        threads.extend(seats.iter().map(Seat::thread));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| moves(&threads, &over));
            let done = commands(&mut machine, seats, &wire);
            over.store(true, Ordering::SeqCst);
            let (moved, there) = mover.join().unwrap_or_default();
            STEP.judged("threads were moved meanwhile", "100 times or more", moved, moved >= 100);
            let seen = format!("{there:?}");
            let all = there.iter().all(|there| there.0.len() == sys::cpus() && there.1 >= sys::cpus());
            STEP.judged(
                "each was seen on every CPU of the host, and went from one to another",
                "CPUs, moves",
                seen,
                all,
            );
            done
        })
    });
    done?;
    let held = served.iter().all(|served| served.is_ok());
    STEP.judged("the other vCPUs needed their VMM for nothing else", "Ok", format!("{served:?}"), held);
    // Nothing of a vCPU that ran is shown.
    for (vcpu, name) in [(&machine.vcpu, "number 0"), (&others[0], "number 1")] {
        let registers = [KVM_REG_X0, KVM_REG_X0 + 6, KVM_REG_PC, KVM_REG_PSTATE].map(|id| get_reg(vcpu, id));
        STEP.same(
            &format!("{name}: its registers are closed"),
            format!("{:?}", [Ok::<u64, i32>(0); 4]),
            format!("{registers:?}"),
        );
        let named = [0x6030_0000_0013_c080, 0x6040_0000_0010_0054].map(|id| get_reg(vcpu, id).map_err(errno_name));
        STEP.same(&format!("{name}: EL1's and the vectors are closed"), "[Ok(0), Ok(0)]", format!("{named:?}"));
        STEP.same(&format!("{name}: to writing too"), "EPERM", outcome(set_reg(vcpu, KVM_REG_PC, RAM_BASE)));
    }
    shows_nothing(&machine, &others[0]);
    STEP.same("number 2 is on, as its guest left it", state(0), read_state(&others[1]));
    STEP.same("el2 has one VM", "Ok(1)", format!("{:?}", counter(&open()?, hvc::COUNTER_VMS, 0)));
    Ok(())
}

/// KVM's other ways to a vCPU's state: registers in bulk, events, debugging, translation, statistics; and the
/// page that is shared with the VMM.
fn shows_nothing(machine: &Machine, vcpu: &VcpuFd) {
    sheet::refused(STEP, "", &machine.vm, vcpu);
    // Names only: of what its VMM gave it, of the CPU's number and of the PSCI version.
    let mut room = [0u64; 128];
    let mut list = || outcome(ioctl(vcpu, KVM_GET_REG_LIST, &mut room));
    STEP.same("GET_REG_LIST of a vCPU without room", "E2BIG", list());
    STEP.same("GET_REG_LIST of a vCPU", "0", list());
    STEP.same("registers that it names", 8, room[0]);
    // Header and the exit's own fields take 64 bytes.
    let page = machine.run_page.copy_out(64, 4096 - 64);
    STEP.same("the run page holds an exit and nothing else", 0, page.iter().filter(|byte| **byte != 0).count());
}

/// Moves threads from CPU to CPU until it is over; how often, and for each thread: the CPUs on which it came to be, and
/// how often that was another one than before.
fn moves(threads: &[libc::pid_t], over: &AtomicBool) -> (usize, Vec<(BTreeSet<usize>, usize)>) {
    let cpus = sys::cpus();
    let mut there = vec![(BTreeSet::new(), 0); threads.len()];
    let mut last = vec![None; threads.len()];
    for round in 0.. {
        if over.load(Ordering::SeqCst) {
            let all: Vec<usize> = (0..cpus).collect();
            threads.iter().for_each(|&thread| sys::allow(thread, &all));
            return (round, there);
        }
        let turn = round % threads.len();
        // Where the last move led: a thread that sleeps comes there when it wakes.
        let at = place(threads[turn]);
        if let Some(at) = at.filter(|at| last[turn] != Some(*at)) {
            there[turn].0.insert(at);
            there[turn].1 += 1;
        }
        last[turn] = at;
        sys::allow(threads[turn], &[(round / threads.len() + turn) % cpus]);
        std::thread::sleep(Duration::from_millis(2));
    }
    (0, there)
}

/// The CPU that a thread of this process is on, or was on last.
fn place(thread: libc::pid_t) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    // The 39th field; the third stands behind the name.
    stat.rsplit(") ").next()?.split_whitespace().nth(36)?.parse().ok()
}

fn commands(machine: &mut Machine, seats: &[Seat], wire: &OwnedFd) -> Result<(), String> {
    STEP.same("the controller is what it says", 0, machine.command(CMD_GIC, [VCPUS, 0, 0])?[0]);
    for cpu in 1..VCPUS {
        for time in ["starts", "starts again"] {
            let [first, again, state] = machine.command(CMD_CPU_ON, [cpu, 0, 0])?;
            let twice = [guest::ON_PENDING, guest::ALREADY_ON].contains(&again.cast_signed());
            let seen = format!("{first:x}, {again:x}, {state:x}");
            let expected = "0, then pending or on, and it is on";
            STEP.judged(&format!("CPU {cpu} {time}"), expected, seen, first == 0 && twice && state == 0);
            let seat = seats.get(usize::try_from(cpu - 1).unwrap_or(0)).ok_or("no such seat")?;
            work(machine, cpu, seat, wire)?;
            STEP.same(&format!("CPU {cpu} goes off"), 0, machine.command(CMD_CPU, [cpu, JOB_OFF, 0])?[0]);
        }
        machine.command(CMD_CPU_ON, [cpu, 0, 0])?;
    }
    for cpu in 1..VCPUS {
        let case = format!("CPU {cpu} is woken beside the others");
        STEP.same(&case, 0, machine.command(CMD_CPU_PING, [cpu, 100, 0])?[0]);
    }
    quarrels(machine)?;
    together(machine)?;
    let [wrong, ..] = machine.command(CMD_CPU_ON, [VCPUS, 0, 0])?;
    STEP.same("a CPU that there is not does not start", guest::INVALID_PARAMETERS, wrong.cast_signed());
    Ok(())
}

/// Two vCPUs whose requests are for the same page at once: the one that was overtaken goes on all the same.
fn quarrels(machine: &mut Machine) -> Result<(), String> {
    const ROUNDS: u64 = 300;
    let page = SHARE_BASE + 8 * GRANULE;
    machine.command(CMD_FILL, [page, GRANULE, 77])?;
    let [wrong, lent, taken] = machine.command(CMD_QUARREL, [1, page, ROUNDS])?;
    STEP.same("two CPUs share and unshare one page: answers that are neither yes nor no", 0, wrong);
    STEP.same("it was taken back as often as it was lent", lent, taken);
    let seen = format!("{lent} of {}", 2 * ROUNDS);
    STEP.judged(
        "and some calls of each were overtaken, others not",
        "some, not all",
        seen,
        lent > 0 && lent < 2 * ROUNDS,
    );
    STEP.same("and is as it was", 0, machine.command(CMD_CHECK, [page, GRANULE, 77])?[0]);
    Ok(())
}

/// Two vCPUs touch pages that there are not yet, each at the same time: each gets the one page, once (D5).
fn together(machine: &mut Machine) -> Result<(), String> {
    for round in 0..4 {
        let [wrong, ..] = machine.command(CMD_TOGETHER, [1, RAM_BASE + RAM_MIN + round * 32 * GRANULE, 32])?;
        STEP.same(&format!("two CPUs touch 32 fresh pages at once, round {round}"), 0, wrong);
    }
    let frames = (0..4 * 32).filter(|page| {
        let at = usize::try_from(RAM_MIN + page * GRANULE).unwrap_or(usize::MAX);
        probe_here(machine.ram.at(at), false) == "SIGBUS"
    });
    STEP.same("which are the guest's alone", 4 * 32, frames.count());
    Ok(())
}

/// What one CPU does.
fn work(machine: &mut Machine, cpu: u64, seat: &Seat, wire: &OwnedFd) -> Result<(), String> {
    for (case, command, arguments) in [
        ("is woken 50 times", CMD_CPU_PING, [cpu, 50, 0]),
        ("waits for its virtual timer", CMD_CPU, [cpu, JOB_TICKS, 10]),
        ("waits for its physical timer", CMD_CPU, [cpu, JOB_PHYSICAL, 10]),
        ("keeps its vectors when it is preempted", CMD_CPU, [cpu, JOB_FP, 10_000_000]),
    ] {
        STEP.same(&format!("CPU {cpu} {case}"), 0, machine.command(command, arguments)?[0]);
    }
    let thread = seat.thread();
    let [got, after, _] = std::thread::scope(|scope| {
        scope.spawn(|| {
            STEP.same(&format!("CPU {cpu} sleeps"), true, sleeps(thread));
            STEP.same("the wire goes up", "0", spi(wire, 1));
        });
        machine.command(CMD_CPU, [cpu, JOB_SPI, 0])
    })?;
    let case = format!("CPU {cpu} is woken by the host's interrupt");
    STEP.same(&case, format!("{SPI}, then {NO_INTERRUPT}"), format!("{got}, then {after}"));
    Ok(())
}

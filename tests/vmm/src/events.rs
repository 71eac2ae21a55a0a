// SPDX-License-Identifier: MIT OR Apache-2.0
//! Eventfds that a guest's stores ring (`KVM_IOEVENTFD`), and that raise its interrupts (`KVM_IRQFD`).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use freehold_uapi::ioctl::*;

use crate::beside;
use crate::hostile::Hostile;
use crate::machine::{Machine, Plan, VM_TYPE, set_plain};
use crate::proto::*;
use crate::raw::{resting, settle};
use crate::report::Step;
use crate::sys::{self, Mapping, errno_name, ioctl, outcome};
use crate::vgic::{Cloned as _, myself, sleeps};

const STEP: Step = Step("events");
/// A register that the program itself never stores to.
const BELL: u64 = DEVICE + 0x800;
/// Number of the program's SPI as an eventfd's interrupt.
const GSI: u32 = (SPI - 32) as u32;
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    for kind in [Kind::Ordinary, Kind::Protected] {
        doorbells(kind)?;
        refusals(kind)?;
        edges(kind)?;
        levels(kind)?;
    }
    beside::all()?;
    settle(STEP, "all is as before", &hostile, &before);
    Ok(())
}

/// Whose guest it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An ordinary VM's.
    Ordinary,
    /// A protected one's.
    Protected,
}

impl Kind {
    /// The name of a case of this kind.
    pub(crate) fn says(self, case: &str) -> String {
        match self {
            Self::Ordinary => case.to_owned(),
            Self::Protected => format!("protected: {case}"),
        }
    }

    fn same(self, case: &str, expected: impl ToString, seen: impl ToString) {
        STEP.same(&self.says(case), expected, seen);
    }
}

/// A new eventfd that does not wait.
pub(crate) fn event() -> OwnedFd {
    // SAFETY: plain numbers; the answer is a descriptor of ours or -1.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    sys::owned(i64::from(fd))
}

/// What it counted since it was last asked.
fn count(event: &OwnedFd) -> u64 {
    let mut word = 0u64;
    match sys::read_to(event, (&raw mut word).cast(), 8) {
        Ok(8) => word,
        _ => 0,
    }
}

/// As [`count`], waiting until there is something.
fn counted(event: &OwnedFd) -> u64 {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match count(event) {
            0 => std::thread::yield_now(),
            some => return some,
        }
    }
    0
}

pub(crate) fn ring(event: &OwnedFd) -> Result<i64, i32> {
    let one = 1u64;
    sys::write_from(event, (&raw const one).cast(), 8)
}

/// A machine of one slot, on this process' own memory, that has not begun.
pub(crate) fn made(kind: Kind, vcpus: u64, bytes: u64) -> Result<Machine, String> {
    let ram = Mapping::anonymous(usize::try_from(bytes).unwrap_or(0), false).map_err(errno_name)?;
    let ordinary = kind == Kind::Ordinary;
    let plan = Plan { bytes: RAM_MIN, boot: BOOT_NO_SHARE, gic: true, vcpus, ordinary, ..Plan::default() };
    Machine::plain(plan, Arc::new(ram))
}

fn machine(kind: Kind) -> Result<Machine, String> {
    made(kind, 1, RAM_MIN)
}

/// A machine of two vCPUs, whose RAM is two slots, 0 and 1, of the same size.
pub(crate) fn with_a_second_slot(kind: Kind) -> Result<Machine, String> {
    let machine = made(kind, 2, 2 * RAM_MIN)?;
    let at = machine.ram.at(usize::try_from(RAM_MIN).unwrap_or(0));
    set_plain(&machine.vm, 1, RAM_BASE + RAM_MIN, RAM_MIN, at).map_err(errno_name)?;
    Ok(machine)
}

pub(crate) fn bell(event: &OwnedFd, len: u32, data: Option<u64>) -> Ioeventfd {
    Ioeventfd {
        datamatch: data.unwrap_or(0),
        addr: BELL,
        len,
        fd: event.as_raw_fd().cast_unsigned(),
        flags: u32::from(data.is_some()),
        pad: [0; 36],
    }
}

/// Whether a store of `value` to the bell's address came to the VMM.
fn exits(machine: &mut Machine, value: u64) -> Result<bool, String> {
    exits_of(machine, value, 8)
}

/// As [`exits`], of so many bytes.
fn exits_of(machine: &mut Machine, value: u64, bytes: u64) -> Result<bool, String> {
    let mut seen = false;
    machine.command_with(CMD_STORE, [BELL, value, bytes], |register| seen |= register == BELL - DEVICE)?;
    Ok(seen)
}

/// A queue's bell as virtio has it: of two or four bytes, for the queue's number. Only a store of that width and that
/// value rings it.
fn narrow(kind: Kind, machine: &mut Machine) -> Result<(), String> {
    let vm = machine.vm.as_fd_clone()?;
    let set = |mut ask: Ioeventfd| outcome(ioctl(&vm, KVM_IOEVENTFD, &mut ask));
    for len in [1, 2, 4] {
        let [a, b] = [event(), event()];
        for (bell, data) in [(&a, 3), (&b, 4)] {
            kind.same(&format!("bell of {len} bytes for {data}"), "0", set(self::bell(bell, len, Some(data))));
        }
        // A wider register has more in it than is stored.
        let rest = 0xabcd_ef01_2345_6700u64 << (8 * (len - 1));
        for (value, expected) in [(3, (false, 1, 0)), (4, (false, 0, 1)), (5, (true, 0, 0)), (rest | 3, (false, 1, 0))]
        {
            let seen = (exits_of(machine, value, len.into())?, count(&a), count(&b));
            let case = format!("a store of {len} bytes of {value:#x}: exit, bells");
            kind.same(&case, format!("{expected:?}"), format!("{seen:?}"));
        }
        let wider = [1, 2, 4, 8].into_iter().filter(|bytes| *bytes != u64::from(len));
        for bytes in wider {
            let seen = (exits_of(machine, 3, bytes)?, count(&a), count(&b));
            kind.same(
                &format!("a bell of {len} bytes, a store of {bytes}: exit, bells"),
                "(true, 0, 0)",
                format!("{seen:?}"),
            );
        }
        for (bell, data) in [(&a, 3), (&b, 4)] {
            let gone = Ioeventfd { flags: 5, ..self::bell(bell, len, Some(data)) };
            kind.same(&format!("bell of {len} bytes for {data} goes"), "0", set(gone));
        }
    }
    Ok(())
}

pub(crate) fn doorbells(kind: Kind) -> Result<(), String> {
    let mut machine = machine(kind)?;
    machine.boot()?;
    let vm = machine.vm.as_fd_clone()?;
    let set = |mut ask: Ioeventfd| outcome(ioctl(&vm, KVM_IOEVENTFD, &mut ask));
    let [a, b] = [event(), event()];
    let (pipe, _writer) = sys::pipe();
    let good = bell(&a, 8, Some(7));
    kind.same("bell: unknown flag", "EINVAL", set(Ioeventfd { flags: 1 << 9, ..good }));
    kind.same("bell: on the bus of ports", "EINVAL", set(Ioeventfd { flags: 3, ..good }));
    kind.same("bell: three bytes", "EINVAL", set(Ioeventfd { len: 3, ..good }));
    kind.same("bell: data of no size", "EINVAL", set(Ioeventfd { len: 0, ..good }));
    kind.same("bell: address wraps", "EINVAL", set(Ioeventfd { addr: u64::MAX, ..good }));
    kind.same("bell: no descriptor", "EBADF", set(Ioeventfd { fd: 9999, ..good }));
    kind.same("bell: no eventfd", "EINVAL", set(Ioeventfd { fd: pipe.as_raw_fd().cast_unsigned(), ..good }));
    kind.same("bell: takes back what is not there", "ENOENT", set(Ioeventfd { flags: 5, ..good }));
    kind.same("no bell: a store is an exit", true, exits(&mut machine, 7)?);
    kind.same("bell for 7", "0", set(good));
    kind.same("bell for 7 again", "EEXIST", set(good));
    kind.same("bell for all beside it", "EEXIST", set(bell(&b, 0, None)));
    kind.same("bell for 8", "0", set(bell(&b, 8, Some(8))));
    for (value, expected) in [(7, (false, 1, 0)), (8, (false, 0, 1)), (9, (true, 0, 0))] {
        let seen = (exits(&mut machine, value)?, count(&a), count(&b));
        kind.same(&format!("a store of {value}: exit, bells"), format!("{expected:?}"), format!("{seen:?}"));
    }
    kind.same("bell for 7 goes", "0", set(Ioeventfd { flags: 5, ..good }));
    let seen = (exits(&mut machine, 7)?, count(&a));
    kind.same("a store of 7: exit, bell", "(true, 0)", format!("{seen:?}"));
    kind.same("bell for 8 goes", "0", set(Ioeventfd { flags: 5, ..bell(&b, 8, Some(8)) }));
    kind.same("bell for all", "0", set(bell(&a, 0, None)));
    for value in [1, 2] {
        kind.same(&format!("a store of {value} rings it"), false, exits(&mut machine, value)?);
    }
    kind.same("twice", 2, count(&a));
    let [seen, ..] = machine.command(CMD_LOAD, [BELL, 0, 0])?;
    kind.same("a load is the VMM's", u64::MAX, seen);
    kind.same("bell for all goes", "0", set(Ioeventfd { flags: 4, ..bell(&a, 0, None) }));
    narrow(kind, &mut machine)
}

pub(crate) fn irqfd(event: &OwnedFd, flags: u64, resample: Option<&OwnedFd>) -> Irqfd {
    Irqfd {
        fd: event.as_raw_fd().cast_unsigned(),
        gsi: GSI,
        flags: u32::try_from(flags).unwrap_or(0) | if resample.is_some() { 2 } else { 0 },
        resamplefd: resample.map_or(0, |event| event.as_raw_fd().cast_unsigned()),
        pad: [0; 16],
    }
}

pub(crate) fn refusals(kind: Kind) -> Result<(), String> {
    let of = if kind == Kind::Ordinary { 40 } else { VM_TYPE };
    let bare = crate::machine::open()?.create_vm_with_type(of).map_err(|e| errno_name(e.errno()))?;
    let machine = machine(kind)?;
    let [a, b] = [event(), event()];
    let (pipe, _writer) = sys::pipe();
    let set = |mut ask: Irqfd| outcome(ioctl(&machine.vm, KVM_IRQFD, &mut ask));
    let good = irqfd(&a, 0, None);
    kind.same("irqfd: without a controller", "EAGAIN", outcome(ioctl(&bare, KVM_IRQFD, &mut { good })));
    kind.same("irqfd: unknown flag", "EINVAL", set(Irqfd { flags: 4, ..good }));
    kind.same("irqfd: no descriptor", "EBADF", set(Irqfd { fd: 9999, ..good }));
    kind.same("irqfd: no eventfd", "EINVAL", set(Irqfd { fd: pipe.as_raw_fd().cast_unsigned(), ..good }));
    kind.same("irqfd: resample by no descriptor", "EBADF", set(Irqfd { flags: 2, resamplefd: 9999, ..good }));
    kind.same("irqfd: an interrupt that it does not have", "EINVAL", set(Irqfd { gsi: 32, ..good }));
    kind.same("irqfd: takes back what is not there", "0", set(Irqfd { flags: 1, ..good }));
    kind.same("irqfd: good", "0", set(good));
    kind.same("irqfd: again", "EBUSY", set(Irqfd { gsi: 3, ..good }));
    kind.same("irqfd: goes", "0", set(Irqfd { flags: 1, ..good }));
    kind.same("irqfd: comes again", "0", set(Irqfd { gsi: 3, ..good }));
    kind.same("irqfd: another one", "0", set(irqfd(&b, 0, Some(&a))));
    // What is closed goes; what is left goes with the VM.
    drop(b);
    Ok(())
}

/// An eventfd is an edge, as often as it is rung.
pub(crate) fn edges(kind: Kind) -> Result<(), String> {
    let mut machine = machine(kind)?;
    machine.boot()?;
    kind.same("edge: the controller is what it says", 0, machine.command(CMD_GIC, [0; 3])?[0]);
    let a = event();
    kind.same("edge: an eventfd", "0", outcome(ioctl(&machine.vm, KVM_IRQFD, &mut irqfd(&a, 0, None))));
    let thread = myself();
    for round in 0..3 {
        // Rung while the guest waits, and before it does: then it must be an edge already, or the ring is one of a level
        // that fell.
        let taken = std::thread::scope(|scope| {
            scope.spawn(|| {
                if round == 0 {
                    sleeps(thread);
                }
                ring(&a)
            });
            machine.command(CMD_SPI, [1, 0, 0])
        })?;
        let expected = format!("{SPI}, then {NO_INTERRUPT}");
        kind.same(&format!("edge: round {round}"), expected, format!("{}, then {}", taken[0], taken[1]));
        kind.same(&format!("edge: round {round}: nothing is left in it"), 0, count(&a));
    }
    kind.same("edge: it goes", "0", outcome(ioctl(&machine.vm, KVM_IRQFD, &mut irqfd(&a, 1, None))));
    let _ = ring(&a);
    kind.same("edge: what it counts stays in it", 1, count(&a));
    Ok(())
}

/// With resampling the wire stays high until the guest ends the interrupt; the VMM is told, and may raise it again.
pub(crate) fn levels(kind: Kind) -> Result<(), String> {
    let mut machine = machine(kind)?;
    machine.boot()?;
    kind.same("level: the controller is what it says", 0, machine.command(CMD_GIC, [0; 3])?[0]);
    let [a, told] = [event(), event()];
    let set = outcome(ioctl(&machine.vm, KVM_IRQFD, &mut irqfd(&a, 0, Some(&told))));
    kind.same("level: an eventfd", "0", set);
    for round in 0..3 {
        let mut early = 0;
        let taken = std::thread::scope(|scope| {
            scope.spawn(|| ring(&a));
            machine.command_with(CMD_SPI, [0; 3], |register| {
                if register == REG_SCRATCH {
                    early = count(&told);
                }
            })
        })?;
        kind.same(&format!("level: round {round}: nobody is told while it is active"), 0, early);
        let expected = format!("{SPI}, then {NO_INTERRUPT}");
        kind.same(&format!("level: round {round}: it is taken"), expected, format!("{}, then {}", taken[0], taken[1]));
        kind.same(&format!("level: round {round}: its end is told"), 1, counted(&told));
    }
    // A device that has more raises it again when it is told: the guest takes it again. Were it never told, it would do so all
    // the same, and the count would say it.
    let (taken, ends) = std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            let _ = ring(&a);
            let ends = counted(&told);
            let _ = ring(&a);
            ends
        });
        // One command: a look behind the first end would take the second, and nobody would end that.
        let taken = machine.command(CMD_SPI, [0, 1, 0])?;
        Ok::<_, String>((taken, device.join().unwrap_or(u64::MAX)))
    })?;
    let expected = format!("{:?}", ([SPI, SPI, NO_INTERRUPT], 1));
    kind.same("level: raised when its end is told, it comes again", expected, format!("{:?}", (taken, ends)));
    kind.same("level: and its end is told again", 1, counted(&told));
    kind.same("level: it goes", "0", outcome(ioctl(&machine.vm, KVM_IRQFD, &mut irqfd(&a, 1, None))));
    crossed(kind, &mut machine)?;
    raised_early(kind)
}

/// The eventfd that is told of an end raises an interrupt itself, and its last descriptor is closed at that moment: each
/// of the two takes what the other has.
fn crossed(kind: Kind, machine: &mut Machine) -> Result<(), String> {
    let vm = machine.vm.as_fd_clone()?;
    let mut taken = 0;
    for _ in 0..40 {
        let [a, both] = [event(), event()];
        let other = Irqfd { gsi: GSI + 1, ..irqfd(&both, 0, None) };
        let set = [irqfd(&a, 0, Some(&both)), other].map(|mut ask| outcome(ioctl(&vm, KVM_IRQFD, &mut ask)));
        if set != ["0", "0"] {
            return Err(format!("IRQFD: {set:?}"));
        }
        let mut both = Some(both);
        let _ = ring(&a);
        let results = machine.command_with(CMD_SPI, [0; 3], |register| {
            // The interrupt is in the guest's hand, and ends next.
            if register == REG_SCRATCH {
                let both = both.take();
                std::thread::spawn(move || drop(both));
            }
        })?;
        taken += u64::from(results[0] == SPI && results[1] == NO_INTERRUPT);
        ioctl(&vm, KVM_IRQFD, &mut irqfd(&a, 1, None)).map_err(errno_name)?;
    }
    kind.same("level: told and closed at once", 40, taken);
    Ok(())
}

/// What is rung before the first run is pending in it, and its end is told.
fn raised_early(kind: Kind) -> Result<(), String> {
    /// What [`CMD_GIC`] finds wrong then: it acknowledged an interrupt when it looked for nothing.
    const TAKEN: u64 = 1 << 9 | 1 << 10;
    let mut machine = machine(kind)?;
    let [a, told] = [event(), event()];
    let set = outcome(ioctl(&machine.vm, KVM_IRQFD, &mut irqfd(&a, 0, Some(&told))));
    kind.same("level, early: an eventfd", "0", set);
    let _ = ring(&a);
    kind.same("level, early: it is taken over", 0, count(&a));
    machine.boot()?;
    kind.same("level, early: it is pending in the first run", TAKEN, machine.command(CMD_GIC, [0; 3])?[0]);
    Ok(())
}

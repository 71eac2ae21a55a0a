// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a VMM may do to the memory of its own protected guest, beside reading it: it forks, it changes its mappings, it
//! reads and cuts the file behind them, it writes by the kernel's hand, it has pages merged, and it is killed.
//!
//! The host lives; the guest keeps its pages, or it has lost one and ends when it touches it. It never goes on with what
//! somebody else put there.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use freehold_uapi::hvc;
use freehold_uapi::ioctl::{KVM_EXIT_INTR, KVM_RUN};

use super::{
    BYTES, DISK, FILLED, FREE, NODE, Other, PAGE, SEED, STEP, Way, at, become_nobody, check, limit, machine, nothing,
    plain_words, reaches,
};
use crate::hostile::Hostile;
use crate::machine::{Event, Machine};
use crate::probe::probe_here;
use crate::proto::*;
use crate::raw::{resting, settle};
use crate::report;
use crate::sys::{self, Mapping, errno_name, outcome};
use crate::vgic::{interrupt, let_signals_interrupt, myself};

const PATIENCE: Duration = Duration::from_secs(120);
const KSM: &str = "/sys/kernel/mm/ksm";

/// Runs the cases.
pub(super) fn all(hostile: &Hostile) -> Result<(), String> {
    let open_to = |mode| {
        let set = |node| std::fs::set_permissions(node, std::fs::Permissions::from_mode(mode));
        [NODE, DISK].into_iter().try_for_each(|node| set(node).map_err(|e| format!("{node}: {e}")))
    };
    open_to(0o666)?;
    in_a_child_of_nobodys("fork", forks);
    in_a_child_of_nobodys("its mappings", mappings);
    in_a_child_of_nobodys("its file", file);
    in_a_child_of_nobodys("writes", writes);
    open_to(0o600)?;
    interrupted()?;
    merged()?;
    killed(hostile)
}

/// Has a process without privileges do it, which has no memory of this one's that a guest has.
fn in_a_child_of_nobodys(what: &str, act: fn() -> Result<(), String>) {
    // SAFETY: this program has one thread here; the child goes on with its own copy of everything.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = become_nobody(STEP).and_then(|()| {
            // SAFETY: plain numbers. A kernel without Yama says that it does not know it.
            unsafe { libc::prctl(libc::PR_SET_PTRACER, -1_i64, 0, 0, 0) };
            limit(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY);
            act()
        });
        STEP.same(&format!("nobody, {what}: goes through"), "Ok(())", format!("{done:?}"));
        std::process::exit(report::status());
    }
    STEP.same(&format!("nobody, {what}: its process ends"), 0, wait(child));
}

fn wait(child: libc::pid_t) -> i32 {
    let mut status = -1;
    // SAFETY: the status is alive during the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    status
}

/// A guest that has filled some pages.
fn filled(ram: &Arc<Mapping>) -> Result<Machine, String> {
    let _ = ram.advise(0, at(BYTES), libc::MADV_NOHUGEPAGE);
    let mut machine = machine(ram)?;
    machine.boot()?;
    machine.command(CMD_FILL, [RAM_BASE + FREE, FILLED * PAGE, SEED])?;
    Ok(machine)
}

fn page(n: u64) -> usize {
    at(FREE + n * PAGE)
}

/// The guest misses a page: its run is its last, and the next one is not entered.
fn ends(case: &str, machine: &mut Machine, command: u64, arguments: [u64; 3]) {
    let event = machine.last_command(command, arguments);
    STEP.same(&format!("{case}: the guest ends"), format!("{:?}", Event::System(3)), format!("{event:?}"));
    let again = format!("{:?}", machine.step());
    let refused = format!("FailEntry({}, ", hvc::WRONG_STATE.cast_unsigned());
    STEP.judged(&format!("{case}: and is not entered again"), &refused, &again, again.contains(&refused));
}

/// A fork copies private memory that is pinned at once, by the kernel's own addresses. What is shared it does not copy.
fn forks() -> Result<(), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = filled(&ram)?;
    // SAFETY: one thread; the child looks at memory and leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let words = ram.copy_out(at(FREE), at(FILLED * PAGE));
        let kept = plain_words(&words, SEED) != 0;
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(if kept { 2 } else { i32::from(words.iter().any(|byte| *byte != 0)) }) };
    }
    STEP.same("nobody, fork: a child's copy is zeros", 0, wait(child));
    ends("nobody, fork, private memory", &mut machine, CMD_NOP, [0; 3]);
    drop(machine);
    STEP.same("nobody, fork: the pages come back, and are zero", 0, ram.load(page(0)));

    let ram = Arc::new(Mapping::anonymous(at(BYTES), true).map_err(errno_name)?);
    let mut machine = filled(&ram)?;
    // SAFETY: as above.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let seen = [0, 5].map(|n| probe_here(ram.at(page(n)), false));
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(i32::from(seen != ["SIGBUS", "SIGBUS"])) };
    }
    STEP.same("nobody, fork, shared memory: a child's loads are SIGBUS", 0, wait(child));
    let wrong = check(&mut machine, FREE, FILLED * PAGE, SEED)?;
    STEP.same("nobody, fork, shared memory: the guest has what it had", 0, wrong);
    Ok(())
}

/// Mappings come and go: the guest has its pages until it gives them away.
fn mappings() -> Result<(), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = filled(&ram)?;
    let bytes = at(PAGE);
    STEP.same("nobody, its mappings: discarded", "0", outcome(ram.advise(page(0), bytes, libc::MADV_DONTNEED)));
    STEP.same("nobody, discarded: it has a page of zeros", "done, 0", {
        format!("{}, {}", probe_here(ram.at(page(0)), false), ram.load(page(0)))
    });
    ram.store(page(0), 0x99);
    STEP.same("nobody, its mappings: unmapped", "0", outcome(ram.unmap(page(1), bytes)));
    let room = Mapping::anonymous(bytes, false).map_err(errno_name)?;
    STEP.same("nobody, its mappings: moved", "0", outcome(sys::remap(ram.at(page(2)), bytes, room.at(0))));
    STEP.same("nobody, moved: its load", "SIGBUS", probe_here(room.at(0), false));
    let wrong = check(&mut machine, FREE, FILLED * PAGE, SEED)?;
    STEP.same("nobody, its mappings: the guest has what it had", 0, wrong);
    for n in 0..3 {
        let [status, ..] = machine.command(CMD_RELINQUISH, [RAM_BASE + FREE + n * PAGE, 0, 0])?;
        STEP.same(&format!("nobody, its mappings: the guest gives page {n} away"), 0, status);
    }
    STEP.same("nobody, given away: what it has there now stays", 0x99, ram.load(page(0)));
    STEP.same("nobody, given away: what was moved is zero", "done, 0", {
        format!("{}, {}", probe_here(room.at(0), false), room.load(0))
    });
    let [left, ..] = machine.command(CMD_ZERO, [RAM_BASE + FREE, PAGE, 0])?;
    STEP.same("nobody, given away: touched anew, it is what is mapped there, and zero", 0, left);
    STEP.same("nobody, given away: and the guest's alone", "SIGBUS", probe_here(ram.at(page(0)), false));
    machine.answer(CMD_ZERO, [RAM_BASE + FREE + PAGE, PAGE, 0]);
    let event = loop {
        match machine.step() {
            Event::Interrupted | Event::Stored(..) => {}
            event @ (Event::Asks | Event::System(_) | Event::Broken(_)) => break event,
        }
    };
    let told = format!("MemoryFault {{ flags: 0, gpa: {}, size: {PAGE} }}", RAM_BASE + FREE + PAGE);
    STEP.same(
        "nobody, given away: nothing is mapped there",
        format!("{:?}", Event::Broken(told)),
        format!("{event:?}"),
    );
    STEP.same("nobody, given away: mapped anew", "Ok(())", format!("{:?}", ram.replace(page(1), bytes)));
    let [left, ..] = machine.rest_of_command(|_| ())?;
    STEP.same("nobody, given away: the guest goes on", 0, left);
    Ok(())
}

/// The file behind shared memory: it is read by every way, has holes punched, and is cut.
fn file() -> Result<(), String> {
    let kind = "nobody, memfd";
    let (ram, fd) = Mapping::memfd(at(BYTES), true).map_err(errno_name)?;
    let (ram, mut file) = (Arc::new(ram), std::fs::File::from(fd));
    let mut other = Other::new()?;
    let mut machine = filled(&ram)?;
    reaches(kind, &ram, &mut other)?;
    let offset = |n: u64| FREE + n * PAGE;
    let mut seen = vec![0; 4096];
    let done = file.seek(SeekFrom::Start(offset(10))).and_then(|_| file.read(&mut seen));
    nothing(kind, "read(2) of it", &format!("{done:?}"), &seen);
    let done = file.read_at(&mut seen, offset(11));
    nothing(kind, "pread(2) of it", &format!("{done:?}"), &seen);
    let (reader, writer) = sys::pipe();
    let mut from = offset(12).cast_signed();
    // SAFETY: the offset is alive during the call.
    let sent = unsafe { libc::sendfile(writer.as_raw_fd(), file.as_raw_fd(), &raw mut from, 4096) };
    drop(writer);
    let mut seen = Vec::new();
    let _ = std::fs::File::from(reader).read_to_end(&mut seen);
    nothing(kind, "sendfile(2) of it", &sent.to_string(), &seen);
    let wrong = check(&mut machine, FREE + 16 * PAGE, 16 * PAGE, SEED)?;
    STEP.same("nobody, memfd: what nobody reached for is whole", 0, wrong);

    let punch = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let hole = sys::fallocate(&file, punch, offset(16).cast_signed(), 2 * PAGE.cast_signed());
    STEP.same("nobody, memfd: a hole", "0", outcome(hole));
    STEP.same("nobody, memfd, a hole: it has a page of zeros", "done, 0", {
        format!("{}, {}", probe_here(ram.at(page(16)), false), ram.load(page(16)))
    });
    let cut = file.set_len(offset(24)).map_err(|e| e.to_string());
    STEP.same("nobody, memfd: it is cut", "Ok(())", format!("{cut:?}"));
    STEP.same("nobody, memfd, cut: its load", "SIGBUS", probe_here(ram.at(page(25)), false));
    let wrong = check(&mut machine, FREE + 16 * PAGE, 16 * PAGE, SEED)?;
    STEP.same("nobody, memfd: the guest has what it had", 0, wrong);
    let told = file.write_at(&[0x5a; 4096], offset(13));
    STEP.same("nobody, memfd: pwrite(2) of it", "Ok(4096)", format!("{told:?}"));
    ends("nobody, memfd, written", &mut machine, CMD_LOAD, [RAM_BASE + offset(13), 0, 0]);
    Ok(())
}

/// Another process writes by the kernel's hand: the page is lost, and the guest never has what was written.
fn writes() -> Result<(), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let control = Mapping::anonymous(4096, false).map_err(errno_name)?;
    for (way, expected) in [(Way::WriteV, 4096), (Way::WriteMem, 4096), (Way::Poke, 0)] {
        control.store(0, 0);
        // Before there is anything that it would get a copy of.
        let mut other = Other::new()?;
        let (done, _) = other.ask(way, control.at(0))?;
        // It writes to this process' memory, which is shared with nobody.
        STEP.judged(&format!("nobody: tools: {way:?}"), "it is written", done, control.load(0) == super::FOREIGN);
        let mut machine = filled(&ram)?;
        let (done, _) = other.ask(way, ram.at(page(3)))?;
        STEP.same(&format!("nobody: {way:?}: goes to a page that the guest has lost"), expected, done);
        let wrong = check(&mut machine, FREE + 4 * PAGE, 8 * PAGE, SEED)?;
        STEP.same(&format!("nobody: {way:?}: what is beside it is whole"), 0, wrong);
        ends(&format!("nobody: {way:?}"), &mut machine, CMD_LOAD, [RAM_BASE + FREE + 3 * PAGE, 0, 0]);
    }
    Ok(())
}

/// A first run waits for a page that nobody brings (`userfaultfd`); a signal ends it, and the run page says so, as of any
/// run.
fn interrupted() -> Result<(), String> {
    const API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
    const REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
    let_signals_interrupt();
    let (ram, _file) = Mapping::memfd(at(BYTES), false).map_err(errno_name)?;
    let ram = Arc::new(ram);
    let mut machine = machine(&ram)?;
    // SAFETY: plain numbers; the answer is a descriptor of ours or -1.
    let faults = sys::owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) });
    let mut api = [0xaau64, 0, 0];
    // SAFETY: the structure is alive during the call.
    let spoken = unsafe { libc::ioctl(faults.as_raw_fd(), API, api.as_mut_ptr()) };
    let mut part = [ram.at(page(40)).addr() as u64, PAGE, 1, 0];
    // SAFETY: as above.
    let watched = unsafe { libc::ioctl(faults.as_raw_fd(), REGISTER, part.as_mut_ptr()) };
    STEP.same("a first run: a page that nobody brings", "(0, 0)", format!("{:?}", (spoken, watched)));
    let (thread, over) = (myself(), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
                interrupt(thread);
            }
        });
        let done = outcome(sys::ioctl_value(&machine.vcpu, KVM_RUN, 0));
        over.store(true, Ordering::SeqCst);
        done
    });
    // The word behind eight bytes begins with the reason.
    let reason = machine.run_page.load(8) & 0xffff_ffff;
    STEP.same("a first run: a signal ends it", format!("EINTR, {KVM_EXIT_INTR}"), format!("{done}, {reason}"));
    drop(faults);
    let boot = machine.boot()?;
    STEP.same("a first run: it goes on", 1, boot.hash_ok);
    Ok(())
}

/// kvmtool says of its guest's memory that it may be merged: where the kernel does that, it reads the pages, and the guest
/// has lost them.
fn merged() -> Result<(), String> {
    let set =
        |name: &str, value: &str| std::fs::write(format!("{KSM}/{name}"), value).map_err(|e| format!("{name}: {e}"));
    let scans = || -> u64 {
        let text = std::fs::read_to_string(format!("{KSM}/full_scans")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = filled(&ram)?;
    STEP.same("merged: it may be", "0", outcome(ram.advise(0, at(BYTES), libc::MADV_MERGEABLE)));
    let wrong = check(&mut machine, FREE, FILLED * PAGE, SEED)?;
    STEP.same("merged: while the kernel merges nothing, the guest has what it had", 0, wrong);
    let (start, before) = (Instant::now(), scans());
    set("sleep_millisecs", "0")?;
    set("pages_to_scan", "20000")?;
    set("run", "1")?;
    while scans() < before + 3 && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    let seen = scans();
    set("run", "2")?;
    set("run", "0")?;
    STEP.judged("merged: the kernel looked at every page", "three times", seen - before, seen >= before + 3);
    ends("merged", &mut machine, CMD_LOAD, [RAM_BASE + FREE, 0, 0]);
    drop(machine);
    STEP.same("merged: its pages come back, and are zero", 0, ram.load(page(0)));
    Ok(())
}

/// The VMM is killed while its guest runs.
fn killed(hostile: &Hostile) -> Result<(), String> {
    let before = resting(hostile);
    let (ready, tell) = sys::pipe();
    // SAFETY: one thread; the child makes a VM of its own and is killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ram = Mapping::anonymous(at(BYTES), false).map(Arc::new);
        let made = ram.map_err(errno_name).and_then(|ram| filled(&ram));
        if let Ok(mut machine) = made {
            let _ = sys::write_from(&tell, b"x".as_ptr(), 1);
            while machine.command(CMD_SPIN, [1_000_000, 0, 0]).is_ok() {}
        }
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(1) };
    }
    drop(tell);
    let mut byte = [0u8; 1];
    STEP.same("killed: its guest ran", "1", outcome(sys::read_to(&ready, byte.as_mut_ptr(), 1)));
    STEP.judged("killed: el2 has its VM", "another count", format!("{before:?}"), resting(hostile) != before);
    // SAFETY: a child of ours.
    unsafe { libc::kill(child, libc::SIGKILL) };
    STEP.same("killed: it is gone", libc::SIGKILL, wait(child));
    settle(STEP, "killed: all is as before", hostile, &before);
    Ok(())
}

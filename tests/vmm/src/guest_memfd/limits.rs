// SPDX-License-Identifier: MIT OR Apache-2.0
//! At a memory cgroup's limit: what a guest touches, a first run, a populate and a new vCPU are ENOMEM for the caller. What
//! was there is as it was, so the same call goes through when there is memory again; and nobody is killed.

use std::io::Write;
use std::os::fd::OwnedFd;

use freehold_uapi::ioctl::*;
use kvm_ioctls::VmFd;

use super::STEP;
use super::calls::{forked, tell, told};
use super::lives::{Group, wait_for};
use super::rig::{PAGE, bytes, new_vm, open_attempts};
use crate::gmem::{Gmem, converted};
use crate::hostile::Hostile;
use crate::machine::{Machine, Plan, make_gmem, new_gmem, set_slot};
use crate::proto;
use crate::raw::{resting, settle};
use crate::sys::{self, errno_name, ioctl_value};

const MIB: u64 = 1 << 20;
/// What the group may grow by once everything is made.
const ROOM: u64 = 10 * MIB;
/// Pages of one populate that is given in three batches or more, each of which needs a table of its own.
const BATCHES: u64 = 1536;
/// Pages that a table describes.
const TABLE: u64 = 512;
/// Room beside those pages: for the list that they are given by, and for one table.
const BESIDE: i64 = 2;
/// Times that it is tried, each with one frame less in the VM's pool, which begins with 32 at most and grows by eight.
const TRIES: u64 = 24;
/// Frames of the pool that tables take before the first try.
const TAKEN: u64 = 12;
/// Pages that are still free when a call comes to the limit: what the process itself needs is not refused but kills it.
const LEFT: i64 = 16;
/// Pages that a call wants, more than that.
const WANTED: u64 = 64;
/// VMs that each want a page or more.
const VMS: usize = 24;
/// Where the child leaves what it saw.
const SAID: &str = "/tmp/limits.said";
const SEED: u64 = 0x11a1;
/// Behind the program and its stacks.
const AREA: u64 = proto::RAM_MIN;

/// Takes the group's memory, page by page.
struct Filler {
    file: Gmem,
    next: i64,
}

impl Filler {
    /// To the limit, and [`LEFT`] pages back. Whether it came to the limit.
    fn squeeze(&mut self) -> bool {
        self.squeeze_to(LEFT)
    }

    /// To the limit, and `left` pages back.
    fn squeeze_to(&mut self, left: i64) -> bool {
        let page = PAGE.cast_signed();
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let end = (64 * MIB / PAGE).cast_signed();
        while self.next < end && sys::fallocate(&self.file, keep, self.next * page, page) == Ok(0) {
            self.next += 1;
        }
        if self.next == end || self.next < left {
            return false;
        }
        self.next -= left;
        let hole = keep | libc::FALLOC_FL_PUNCH_HOLE;
        sys::fallocate(&self.file, hole, self.next * page, left * page) == Ok(0)
    }

    /// All of it.
    fn relax(&mut self) {
        let hole = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
        let _ = sys::fallocate(&self.file, hole, 0, (64 * MIB).cast_signed());
        self.next = 0;
    }
}

/// A guest whose memory beside its program has no page yet.
fn machine() -> Result<Machine, String> {
    let plan = Plan { bytes: AREA + WANTED * PAGE, boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    Machine::populated(plan, |gmem, _, program| {
        let mut padded = program.to_vec();
        padded.resize(padded.len().next_multiple_of(bytes(1)), 0);
        let ask = ask_for(&padded);
        gmem.populate(ask).map_err(|(error, at)| format!("populate: {} at {at:#x}", errno_name(error)))
    })
}

fn ask_for(text: &[u8]) -> Populate {
    Populate { offset: 0, size: text.len() as u64, source: text.as_ptr() as u64, error_offset: 0, reserved: [0; 4] }
}

fn booted(machine: &mut Machine) -> String {
    match machine.boot() {
        Ok(boot) => format!("hash {}", boot.hash_ok),
        Err(error) if error.contains("KVM_RUN ENOMEM") => "ENOMEM".to_owned(),
        Err(error) => error,
    }
}

fn new_vcpu(vm: &VmFd) -> String {
    match ioctl_value(vm, KVM_CREATE_VCPU, 0) {
        Ok(fd) => {
            // Kept until the process ends: what it has stays charged.
            std::mem::forget(sys::owned(fd));
            "0".to_owned()
        }
        Err(error) => errno_name(error),
    }
}

/// What a call said at the limit, if it said so of itself, and what the same call says with memory.
fn first_refused<S>(all: &mut [S], act: impl Fn(&mut S) -> String) -> (String, Option<&mut S>) {
    for subject in all {
        let said = act(subject);
        if said == "ENOMEM" {
            return (said, Some(subject));
        }
        if said != "0" && said != "hash 1" {
            return (said, None);
        }
    }
    ("no refusal".to_owned(), None)
}

/// Everything that the child needs, made while there is memory.
struct Made {
    filler: Filler,
    guest: Machine,
    fresh: Vec<Machine>,
    vms: Vec<VmFd>,
    file: Gmem,
    /// What a populate of many pages brings.
    much: Vec<u8>,
    text: Vec<u8>,
    /// Half of the kernel's objects for descriptors that were made here are free again.
    _spare: Vec<std::fs::File>,
}

fn made() -> Result<Made, String> {
    let vm = new_vm()?;
    let filler = Filler { file: new_gmem(&vm, 64 * MIB).map_err(errno_name)?, next: 0 };
    let file = make_gmem(&vm, WANTED * PAGE, GUEST_MEMFD_FLAG_MMAP).map_err(errno_name)?;
    let mut guest = machine()?;
    guest.boot()?;
    let fresh = (0..VMS).map(|_| machine()).collect::<Result<_, _>>()?;
    let mut vms = (0..VMS).map(|_| new_vm()).collect::<Result<Vec<_>, _>>()?;
    vms.push(vm);
    let spare = (0..256).map(|_| std::fs::File::open("/dev/null").map_err(|e| e.to_string()));
    let mut spare = spare.collect::<Result<Vec<_>, _>>()?;
    let mut odd = false;
    spare.retain(|_| {
        odd = !odd;
        odd
    });
    let (much, text) = (vec![0x5a; bytes(BATCHES)], vec![0x5a; bytes(WANTED)]);
    Ok(Made { filler, guest, fresh, vms, file, much, text, _spare: spare })
}

/// A VM, and a file of its that is private from the start and in a slot; so many tables of its are in use, behind the pages
/// that come later.
fn bound(tables: u64) -> Result<(VmFd, Gmem), String> {
    let vm = new_vm()?;
    let size = (BATCHES + (TAKEN + TRIES) * TABLE) * PAGE;
    let gmem = make_gmem(&vm, size, GUEST_MEMFD_FLAG_MMAP).map_err(errno_name)?;
    set_slot(&vm, 0, proto::RAM_BASE, size, &gmem, 0).map_err(errno_name)?;
    let text = vec![0x5a; bytes(1)];
    for table in 0..tables {
        let ask = Populate { offset: (BATCHES + table * TABLE) * PAGE, ..ask_for(&text) };
        gmem.populate(ask).map_err(|(error, at)| format!("populate: {} at {at:#x}", errno_name(error)))?;
    }
    Ok((vm, gmem))
}

/// What a populate that was refused has left: whether whole batches, which stay; else it may not have brought anything. It
/// goes on from the offset that was told.
fn left_batches(gmem: &Gmem, at: u64, much: &[u8]) -> Result<bool, String> {
    let from = |offset: u64, pages: u64| {
        let text = much.get(bytes(offset / PAGE)..bytes(offset / PAGE + pages)).unwrap_or_default();
        converted(gmem.populate(Populate { offset, ..ask_for(text) }))
    };
    let again = from(0, BATCHES);
    if again == "0" {
        return Ok(false);
    }
    let pages = at / PAGE;
    if again != "EEXIST at 0x0" || !at.is_multiple_of(PAGE) || pages == 0 || pages >= BATCHES {
        return Err(format!("ENOMEM at {at:#x}, then {again}"));
    }
    let last = from(at - PAGE, 1);
    let rest = from(at, BATCHES - pages);
    let held = last == format!("EEXIST at {:#x}", at - PAGE) && rest == "0" && open_attempts(gmem) == "0 of some";
    if held { Ok(true) } else { Err(format!("ENOMEM at {at:#x}: the page before it {last}, the rest {rest}")) }
}

/// Populates that come to the limit at one place after the other.
fn batches(filler: &mut Filler, much: &[u8]) -> String {
    let (mut parts, mut odd) = (Vec::new(), Vec::new());
    for tables in TAKEN..TAKEN + TRIES {
        // With memory: nothing of it is what is tried.
        let (vm, gmem) = match bound(tables) {
            Ok(bound) => bound,
            Err(why) => return why,
        };
        let limited = filler.squeeze_to(BATCHES.cast_signed() + BESIDE);
        let done = gmem.populate(ask_for(much));
        filler.relax();
        match done {
            Ok(()) if limited => parts.push(BATCHES),
            Err((libc::ENOMEM, at)) if limited => match left_batches(&gmem, at, much) {
                Ok(true) => parts.push(at / PAGE),
                Ok(false) => parts.push(0),
                Err(why) => odd.push(format!("{tables}: {why}")),
            },
            other => odd.push(format!("{tables}: limited {limited}, {}", converted(other))),
        }
        // What is the guest's comes back with its VM.
        drop((gmem, vm));
    }
    println!("limit: of {BATCHES} pages populates have brought {parts:?}");
    let some = if parts.iter().any(|&pages| 0 < pages && pages < BATCHES) { "some" } else { "none" };
    format!("batches {some} in part, odd {odd:?}")
}

/// Leaves a line of what was seen, at once: a process that is killed has left what came before.
fn say(said: &mut std::fs::File, line: &str) -> Result<(), String> {
    writeln!(said, "{line}").map_err(|e| e.to_string())
}

/// Each call at the limit and with memory again; a line for each.
fn tried(made: &mut Made, said: &mut std::fs::File) -> Result<(), String> {
    let Made { filler, guest, fresh, vms, file, much, text, .. } = made;
    let mut limited = filler.squeeze();
    let populated = file.populate(ask_for(text)).err().map_or(0, |(error, _)| error);
    let attempts = open_attempts(file);
    let filled = guest.command(proto::CMD_FILL, [proto::RAM_BASE + AREA, WANTED * PAGE, SEED]).err();
    limited &= filler.squeeze();
    let (ran, to_run) = first_refused(fresh, booted);
    limited &= filler.squeeze();
    let (vcpu, to_have_one) = first_refused(vms, |vm| new_vcpu(vm));
    filler.relax();
    say(said, &format!("limited {limited}"))?;
    let again = converted(file.populate(ask_for(text)));
    say(said, &format!("populate {}, {attempts}, then {again}", errno_name(populated)))?;
    let seen = filled.map_or_else(
        || "done".to_owned(),
        |error| if error.contains("KVM_RUN ENOMEM") { "ENOMEM".to_owned() } else { error },
    );
    let rest = guest.rest_of_command(|_| ()).map_or_else(|error| error, |_| "done".to_owned());
    let check = guest.command(proto::CMD_CHECK, [proto::RAM_BASE + AREA, WANTED * PAGE, SEED]);
    let words = check.map_or_else(|error| error, |[differ, ..]| format!("{differ} words differ"));
    say(said, &format!("touch {seen}, then {rest}, {words}"))?;
    say(said, &format!("run {ran}, then {}", to_run.map_or_else(String::new, booted)))?;
    say(said, &format!("vcpu {vcpu}, then {}", to_have_one.map_or_else(String::new, |vm| new_vcpu(vm))))?;
    say(said, &batches(filler, much))
}

/// The child's whole life; what went wrong otherwise.
fn lived(group: &Group, says: &OwnedFd, go: &OwnedFd) -> Result<(), String> {
    if !group.join(c"/sys/fs/cgroup/limits/cgroup.procs") {
        return Err("not in the group".to_owned());
    }
    // What the process itself needs at the limit would kill it: its pages, its pages' tables and one CPU's share of the
    // kernel's objects are its own before.
    // SAFETY: a plain number: nothing of a file's that a test makes is mapped yet.
    unsafe { libc::mlockall(libc::MCL_CURRENT) };
    sys::pin_to(0);
    let mut said = std::fs::File::create(SAID).map_err(|e| e.to_string())?;
    let mut made = made()?;
    // Room for descriptors in the process' table.
    // SAFETY: plain numbers; the number that is made is closed with the process.
    unsafe { libc::fcntl(0, libc::F_DUPFD, 1000) };
    tell(says);
    if !told(go) {
        return Err("alone".to_owned());
    }
    tried(&mut made, &mut said)
}

/// Runs every part.
pub(super) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    let group = Group::new("limits")?;
    let ((done, says_done), (waits, go)) = (sys::pipe(), sys::pipe());
    let _ = std::fs::remove_file(SAID);
    let child = forked(|| {
        // SAFETY: a plain number: a kernel that watches itself takes minutes to fill so many pages.
        unsafe { libc::alarm(900) };
        match lived(&group, &says_done, &waits) {
            Ok(()) => 0,
            Err(error) => {
                println!("limits: {error}");
                1
            }
        }
    });
    drop((says_done, waits));
    STEP.same("limit: everything is made", true, told(&done));
    let current = || group.get("memory.current").trim().parse::<u64>().unwrap_or(0);
    group.set("memory.max", &(current() + ROOM).to_string())?;
    tell(&go);
    STEP.same("limit: the VMM lives", "exit 0", child.end());
    let said = std::fs::read_to_string(SAID).unwrap_or_default();
    let line = |what: &str| said.lines().find(|line| line.starts_with(what)).unwrap_or_default().to_owned();
    STEP.same("limit: it was come to", "limited true", line("limited"));
    let cases = [
        ("limit: populate is refused whole", "populate ENOMEM, 0 of some, then 0"),
        ("limit: populate of many pages is refused, and whole batches stay", "batches some in part, odd []"),
        ("limit: a run whose guest touches pages is refused, and goes on", "touch ENOMEM, then done, 0 words differ"),
        ("limit: a first run is refused, and begins", "run ENOMEM, then hash 1"),
        ("limit: a vCPU is refused, and is made", "vcpu ENOMEM, then 0"),
    ];
    for (case, expected) in cases {
        STEP.same(case, expected, line(expected.split(' ').next().unwrap_or_default()));
    }
    STEP.same("limit: nobody was killed", 0, group.field("memory.events", "oom_kill"));
    STEP.same("limit: all of it is back", true, wait_for(|| current() < ROOM));
    settle(STEP, "limit: all is as before", &hostile, &rest);
    Ok(())
}

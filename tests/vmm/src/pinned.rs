// SPDX-License-Identifier: MIT OR Apache-2.0
//! A protected VM on its VMM's own memory (`KVM_SET_USER_MEMORY_REGION`): the guest has what was there before its first
//! run, and from then on nobody but the guest has it; whoever reaches for it finds a fault or zeros, and the host lives.

mod ways;

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::sync::Arc;

use freehold_uapi::ioctl::*;

use crate::hostile::Hostile;
use crate::machine::{Event, Machine, Plan, VM_TYPE, open, set_plain};
use crate::probe::probe_here;
use crate::proto::*;
use crate::raw::{resting, settle};
use crate::report::{self, Step};
use crate::sys::{self, Mapping, errno_name, ioctl, outcome};

const STEP: Step = Step("pinned");
const PAGE: u64 = GRANULE;
/// RAM behind the program's, for the cases.
const FREE: u64 = RAM_MIN;
const BYTES: u64 = 3 * RAM_MIN;
const NODE: &str = "/dev/freehold";
const CORE: &str = "/tmp/core.pinned";
/// A disk that reads and writes by the kernel's own addresses.
const DISK: &str = "/dev/fh_slow";
const SLOW: &str = "/sys/module/fh_slow/parameters";
/// Pages that the guest fills, and the host reaches for.
const FILLED: u64 = 32;
const SEED: u64 = 77;
/// What is in the guest that is dumped: the process never has a word of it itself, not even to compare with.
const DUMPED: u64 = 78;
/// The kind of memory of which nothing comes after the first run.
const WHOLE: &str = "memfd, private";
/// Nobody.
const UID: u32 = 65534;

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn machine(ram: &Arc<Mapping>) -> Result<Machine, String> {
    Machine::plain(Plan { bytes: BYTES, ..Plan::default() }, ram.clone())
}

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    slots()?;
    let fail = |e| format!("memory: {}", errno_name(e));
    for shared in [false, true] {
        let how = if shared { "shared" } else { "private" };
        lives(&format!("anonymous, {how}"), Mapping::anonymous(at(BYTES), shared).map_err(fail)?)?;
        lives(&format!("memfd, {how}"), Mapping::memfd(at(BYTES), shared).map_err(fail)?.0)?;
    }
    aliased()?;
    other_memory()?;
    other_process()?;
    by_nobody()?;
    ways::all(&hostile)?;
    settle(STEP, "all is as before", &hostile, &before);
    Ok(())
}

/// Slots come, move and go as with KVM, until the first run.
pub(crate) fn slots() -> Result<(), String> {
    let vm = open()?.create_vm_with_type(VM_TYPE).map_err(|e| errno_name(e.errno()))?;
    let ram = Mapping::anonymous(at(BYTES), false).map_err(errno_name)?;
    let here = ram.at(0).addr() as u64;
    let good =
        MemoryRegion { slot: 1, flags: 0, guest_phys_addr: RAM_BASE, memory_size: 16 * PAGE, userspace_addr: here };
    let ask = |case: &str, expected: &str, mut region: MemoryRegion| {
        let seen = outcome(ioctl(&vm, KVM_SET_USER_MEMORY_REGION, &mut region));
        STEP.same(&format!("slot: {case}"), expected, seen);
    };
    ask("read only", "EPERM", MemoryRegion { flags: 2, ..good });
    ask("dirty log", "EPERM", MemoryRegion { flags: 1, ..good });
    ask("of guest_memfd", "EINVAL", MemoryRegion { flags: 4, ..good });
    ask("unknown flag", "EINVAL", MemoryRegion { flags: 8, ..good });
    ask("unaligned in the process", "EINVAL", MemoryRegion { userspace_addr: here + 8, ..good });
    ask("of the kernel", "EINVAL", MemoryRegion { userspace_addr: 0xffff_0000_0000_0000, ..good });
    ask("with a tag", "EINVAL", MemoryRegion { userspace_addr: here | 1 << 56, ..good });
    ask("beyond the address size", "EFAULT", MemoryRegion { guest_phys_addr: 1 << 40, ..good });
    ask("delete what is not there", "EINVAL", MemoryRegion { memory_size: 0, ..good });
    ask("good", "0", good);
    ask("the same again", "0", good);
    ask("another size", "EINVAL", MemoryRegion { memory_size: 8 * PAGE, ..good });
    ask("other memory", "EINVAL", MemoryRegion { userspace_addr: here + PAGE, ..good });
    ask("overlap", "EEXIST", MemoryRegion { slot: 2, guest_phys_addr: RAM_BASE + 15 * PAGE, ..good });
    ask("moves", "0", MemoryRegion { guest_phys_addr: RAM_BASE - 8 * PAGE, ..good });
    ask("delete", "0", MemoryRegion { memory_size: 0, ..good });
    STEP.same("slot: said by the larger ioctl", "0", crate::plain::by_the_larger(&vm, &good));
    Ok(())
}

/// What the guest finds in `bytes` from `from` on that is not the pattern of `seed`.
fn check(machine: &mut Machine, from: u64, bytes: u64, seed: u64) -> Result<u64, String> {
    machine.command(CMD_CHECK, [RAM_BASE + from, bytes, seed]).map(|[wrong, ..]| wrong)
}

/// One life on one kind of memory.
fn lives(kind: &str, ram: Mapping) -> Result<(), String> {
    let ram = Arc::new(ram);
    let same = |case: &str, expected: &dyn ToString, seen: &dyn ToString| {
        STEP.same(&format!("{kind}: {case}"), expected.to_string(), seen.to_string());
    };
    // One page is one page: what a huge one brings with it counts as touched.
    let _ = ram.advise(0, at(BYTES), libc::MADV_NOHUGEPAGE);
    for offset in (0..2 * PAGE).step_by(8) {
        ram.store(at(FREE + offset), pattern(SEED, RAM_BASE + FREE + offset));
    }
    let mut machine = machine(&ram)?;
    let boot = machine.boot()?;
    same("it boots", &format!("{BOOT_LINE}\n"), &boot.console);
    same("it runs what was written", &1, &boot.hash_ok);
    same("and finds what was there before", &0, &check(&mut machine, FREE, 2 * PAGE, SEED)?);
    let greeting = ram.copy_out(at(SHARE_BASE - RAM_BASE), GREETING.len());
    same("the host reads what it shares", &GREETING, &String::from_utf8_lossy(&greeting));
    // A private mapping of a file is given whole.
    if kind != WHOLE {
        ram.store(at(FREE + 8 * PAGE), 0x1234_5678);
    }
    let [left, ..] = machine.command(CMD_ZERO, [RAM_BASE + FREE + 8 * PAGE, 4 * PAGE, 0])?;
    same("what comes after the first run is zero", &0, &left);
    machine.command(CMD_FILL, [RAM_BASE + FREE, FILLED * PAGE, SEED])?;
    let faults = [false, true].map(|store| probe_here(ram.at(at(FREE)), store));
    same("the process' own load and store", &"SIGBUS, SIGBUS", &faults.join(", "));
    shares(&mut machine, &ram, &same)?;
    same("what the guest has is whole", &0, &check(&mut machine, FREE, 8 * PAGE, SEED)?);
    same("a slot in use goes", &"Err(1)", &format!("{:?}", set_plain(&machine.vm, 0, RAM_BASE, 0, ram.at(0))));
    same("it moves", &"Err(1)", &format!("{:?}", set_plain(&machine.vm, 0, RAM_BASE + PAGE, BYTES, ram.at(0))));
    same("one comes", &"Err(1)", &format!("{:?}", set_plain(&machine.vm, 1, RAM_BASE + BYTES, PAGE, ram.at(0))));
    let off = machine.last_command(CMD_OFF, [0; 3]);
    same("it turns itself off", &format!("{:?}", Event::System(1)), &format!("{off:?}"));
    drop(machine);
    let left = (FREE..FREE + FILLED * PAGE).step_by(8).filter(|&offset| ram.load(at(offset)) != 0).count();
    same("its pages come back, and are zero", &0, &left);
    same("and the process' to write", &"done", &probe_here(ram.at(at(FREE)), true));
    Ok(())
}

/// Pages that the guest lends, takes back, and gives away.
fn shares(
    machine: &mut Machine,
    ram: &Mapping,
    same: &dyn Fn(&str, &dyn ToString, &dyn ToString),
) -> Result<(), String> {
    let (first, pages) = (FREE + 8 * PAGE, 4);
    let own = |machine: &mut Machine, command| machine.command(command, [RAM_BASE + first, pages, 0]);
    same("it shares", &"0, 4", &own(machine, CMD_SHARE).map(|[status, done, _]| format!("{status}, {done}"))?);
    let wrong = (first..first + pages * PAGE).step_by(8).filter(|&o| ram.load(at(o)) != pattern(SEED, RAM_BASE + o));
    same("shared: the host reads it", &0, &wrong.count());
    ram.store(at(first), 0x99);
    let [seen, ..] = machine.command(CMD_LOAD, [RAM_BASE + first, 0, 0])?;
    same("shared: the guest reads what the host wrote", &0x99, &seen);
    same(
        "it takes them back",
        &"0, 4",
        &own(machine, CMD_UNSHARE).map(|[status, done, _]| format!("{status}, {done}"))?,
    );
    same("taken back: the process' load", &"SIGBUS", &probe_here(ram.at(at(first)), false));
    // Pages that it never touched are brought for it.
    let untouched = [RAM_BASE + FREE + 64 * PAGE, 2, 0];
    let shared = machine.command(CMD_SHARE, untouched)?;
    same("it shares what it never touched", &"0, true", &format!("{}, {}", shared[0], shared[1] >= 1));
    let [status, ..] = machine.command(CMD_RELINQUISH, [RAM_BASE + first, 0, 0])?;
    same("it gives one away", &0, &status);
    same("given away: the process has it, and it is zero", &0, &ram.load(at(first)));
    let [left, ..] = machine.command(CMD_ZERO, [RAM_BASE + first, PAGE, 0])?;
    same("given away: the guest may touch it anew", &0, &left);
    Ok(())
}

/// One page of the process in two places of the guest.
fn aliased() -> Result<(), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = machine(&ram)?;
    let again = set_plain(&machine.vm, 1, RAM_BASE + BYTES, 16 * PAGE, ram.at(0));
    STEP.same("the same memory twice", "Ok(())", format!("{again:?}"));
    STEP.same(
        "the first run says so",
        format!("{:?}", Event::Broken("KVM_RUN EEXIST".into())),
        format!("{:?}", machine.step()),
    );
    let gone = set_plain(&machine.vm, 0, RAM_BASE, 0, ram.at(0));
    STEP.same("what has been given stays", "Err(16)", format!("{gone:?}"));
    Ok(())
}

/// Memory that is some file's, or a huge page's: neither is the guest's to have.
fn other_memory() -> Result<(), String> {
    std::fs::create_dir_all("/mnt").map_err(|e| e.to_string())?;
    // SAFETY: strings that end, and no data.
    let mounted = unsafe { libc::mount(c"none".as_ptr(), c"/mnt".as_ptr(), c"ramfs".as_ptr(), 0, std::ptr::null()) };
    STEP.same("a file system that is not tmpfs", 0, mounted);
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open("/mnt/ram");
    let file = file.and_then(|file| file.set_len(BYTES).map(|()| file)).map_err(|e| format!("/mnt/ram: {e}"))?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let nobodys = format!("MemoryFault {{ flags: 0, gpa: {RAM_BASE}, size: {PAGE} }}");
    refused("a file's memory", &nobodys, Mapping::new(&file, 0, at(BYTES), both).map_err(errno_name)?)?;
    drop(file);
    // SAFETY: a string that ends.
    unsafe { libc::umount(c"/mnt".as_ptr()) };
    let pages = |count: &str| std::fs::write("/proc/sys/vm/nr_hugepages", count).map_err(|e| e.to_string());
    pages("4")?;
    let huge = refused(
        "a huge page",
        "KVM_RUN EIO",
        Mapping::huge(8 << 20).map_err(|e| format!("huge pages: {}", errno_name(e)))?,
    );
    pages("0")?;
    huge
}

fn refused(kind: &str, why: &str, ram: Mapping) -> Result<(), String> {
    let mut machine = machine(&Arc::new(ram))?;
    STEP.same(
        &format!("{kind}: the first run says so"),
        format!("{:?}", Event::Broken(why.into())),
        format!("{:?}", machine.step()),
    );
    Ok(())
}

/// Another process has the descriptors too: the slots are of this one's memory.
fn other_process() -> Result<(), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), true).map_err(errno_name)?);
    let mut machine = machine(&ram)?;
    STEP.same("another process: its first run", "EIO", in_a_child(&mut machine)?);
    let boot = machine.boot()?;
    STEP.same("another process: the guest of this one boots", 1, boot.hash_ok);
    let fresh = RAM_BASE + FREE + 64 * PAGE;
    machine.answer(CMD_ZERO, [fresh, PAGE, 0]);
    STEP.same("another process: a run that needs a page", "EIO", in_a_child(&mut machine)?);
    let [left, ..] = machine.rest_of_command(|_| ())?;
    STEP.same("another process: the guest goes on in this one", 0, left);
    Ok(())
}

/// How the runs of a child end, which has every descriptor and a copy of everything else.
fn in_a_child(machine: &mut Machine) -> Result<String, String> {
    // SAFETY: this program has one thread here; the child runs the vCPU and leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let event = loop {
            match machine.step() {
                Event::Interrupted | Event::Stored(..) => {}
                event @ (Event::Asks | Event::System(_) | Event::Broken(_)) => break event,
            }
        };
        let refused = event == Event::Broken("KVM_RUN EIO".into());
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(i32::from(!refused)) };
    }
    if child < 0 {
        return Err("no other process".into());
    }
    let mut status = -1;
    // SAFETY: the status is alive during the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    Ok(if status == 0 { "EIO".into() } else { format!("another end, status {status:#x}") })
}

/// What a user without privileges does to its own VM, in a process of its own.
fn by_nobody() -> Result<(), String> {
    let old = std::fs::read_to_string("/proc/sys/kernel/core_pattern").map_err(|e| e.to_string())?;
    let open_to = |mode| {
        let set = |node| std::fs::set_permissions(node, std::fs::Permissions::from_mode(mode));
        [NODE, DISK].into_iter().try_for_each(|node| set(node).map_err(|e| format!("{node}: {e}")))
    };
    std::fs::create_dir_all("/tmp").map_err(|e| e.to_string())?;
    std::fs::set_permissions("/tmp", std::fs::Permissions::from_mode(0o1777)).map_err(|e| e.to_string())?;
    std::fs::write("/proc/sys/kernel/core_pattern", CORE).map_err(|e| e.to_string())?;
    std::fs::write(format!("{SLOW}/hold"), "0").map_err(|e| format!("{SLOW}: {e}"))?;
    open_to(0o666)?;
    // SAFETY: this program has one thread here; the child goes on with its own copy of everything.
    let child = unsafe { libc::fork() };
    if child == 0 {
        if let Err(error) = as_nobody() {
            STEP.same("nobody: goes through", "", error);
        }
        if report::status() == 0 {
            // SAFETY: ends the process, with a dump.
            unsafe { libc::abort() };
        }
        std::process::exit(1);
    }
    let mut status = 0;
    // SAFETY: the status is alive during the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    open_to(0o600)?;
    std::fs::write("/proc/sys/kernel/core_pattern", old.trim_end()).map_err(|e| e.to_string())?;
    STEP.same("nobody: all held, and it ends with a dump", libc::SIGABRT | 0x80, status & 0xff);
    let mut dump = Vec::new();
    let opened = std::fs::File::open(CORE).and_then(|mut file| file.read_to_end(&mut dump));
    STEP.judged("core dump: there is one", "more than a MiB", format!("{opened:?}"), dump.len() > 1 << 20);
    let has = |word: u64| dump.chunks_exact(8).any(|bytes| bytes == word.to_le_bytes());
    STEP.same("core dump: what the process has is in it", true, has(CONTROL));
    STEP.same("core dump: nothing of the guest is", 0, plain_words(&dump, DUMPED));
    let _ = std::fs::remove_file(CORE);
    Ok(())
}

/// A word of the process itself, for the dump.
const CONTROL: u64 = 0x0c0f_fee0_dead_beef;

/// Words of the guest's pattern, wherever they stand.
fn plain_words(bytes: &[u8], seed: u64) -> usize {
    let secrets: std::collections::BTreeSet<u64> =
        (FREE..FREE + FILLED * PAGE).step_by(8).map(|offset| pattern(seed, RAM_BASE + offset)).collect();
    bytes
        .chunks_exact(8)
        .filter(|word| secrets.contains(&u64::from_le_bytes((*word).try_into().unwrap_or([0; 8]))))
        .count()
}

fn as_nobody() -> Result<(), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let control = Mapping::anonymous(4096, false).map_err(errno_name)?;
    control.store(0, CONTROL);
    become_nobody(STEP)?;
    // SAFETY: plain numbers. A kernel without Yama says that it does not know it.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, -1_i64, 0, 0, 0) };
    limit(libc::RLIMIT_CORE, libc::RLIM_INFINITY);
    // While it has no pages that a child would get copies of.
    let mut other = Other::new()?;
    for way in WAYS {
        let (done, seen) = other.ask(way, control.at(0))?;
        STEP.judged(&format!("nobody: tools: {way:?}"), "what is there", done, seen[..8] == CONTROL.to_le_bytes());
    }
    limit(libc::RLIMIT_MEMLOCK, 4 * PAGE);
    let mut machine = machine(&ram)?;
    let event = machine.step();
    STEP.same(
        "nobody: locked memory is limited",
        format!("{:?}", Event::Broken("KVM_RUN ENOMEM".into())),
        format!("{event:?}"),
    );
    limit(libc::RLIMIT_MEMLOCK, BYTES);
    let boot = machine.boot()?;
    STEP.same("nobody: it goes on when the limit is raised", 1, boot.hash_ok);
    machine.command(CMD_FILL, [RAM_BASE + FREE, FILLED * PAGE, SEED])?;
    STEP.judged("nobody: its pages are charged", "some", locked(), locked() >= FILLED * 4);
    reaches("nobody", &ram, &mut other)?;
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE + 16 * PAGE, 16 * PAGE, SEED])?;
    STEP.same("nobody: what nobody reached for is whole", 0, wrong);
    machine.answer(CMD_LOAD, [RAM_BASE + FREE + 4 * PAGE, 0, 0]);
    let event = loop {
        match machine.step() {
            Event::Interrupted | Event::Stored(..) => {}
            event @ (Event::Asks | Event::System(_) | Event::Broken(_)) => break event,
        }
    };
    STEP.same(
        "nobody: a page that was taken ends the guest that misses it",
        format!("{:?}", Event::System(3)),
        format!("{event:?}"),
    );
    // What a VMM may put into a dump of its guest's: what that shares, and nothing else.
    // This process has stored over the first word of it.
    let greeting = ram.copy_out(at(SHARE_BASE - RAM_BASE), GREETING.len()).split_off(8);
    let expected = &GREETING[8..];
    STEP.same("nobody: what it shares is there after its crash", expected, String::from_utf8_lossy(&greeting));
    STEP.same("nobody: and what it does not share is not", "SIGBUS", probe_here(ram.at(at(FREE + 20 * PAGE)), false));
    drop(machine);
    STEP.same("nobody: nothing stays charged", 0, locked());
    // Another one, for the dump.
    let mut second = self::machine(&ram)?;
    second.boot()?;
    second.command(CMD_FILL, [RAM_BASE + FREE, FILLED * PAGE, DUMPED])?;
    std::mem::forget((second, control, ram));
    Ok(())
}

/// Gives up every privilege of this process, for good.
pub(crate) fn become_nobody(step: Step) -> Result<(), String> {
    // SAFETY: plain numbers.
    let groups = unsafe { libc::setgroups(0, std::ptr::null()) };
    // SAFETY: plain numbers.
    let group = unsafe { libc::setresgid(UID, UID, UID) };
    // SAFETY: plain numbers.
    let user = unsafe { libc::setresuid(UID, UID, UID) };
    let dropped = [groups, group, user];
    // SAFETY: plain numbers.
    let dumpable = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    step.same("nobody: privileges are dropped", "[0, 0, 0] 0", format!("{dropped:?} {dumpable}"));
    if dropped == [0; 3] { Ok(()) } else { Err("privileges that stay".into()) }
}

fn limit(what: libc::c_int, bytes: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is alive during the call.
    unsafe { libc::getrlimit(what, &raw mut limit) };
    limit.rlim_cur = bytes.min(limit.rlim_max);
    // SAFETY: the structure is alive during the call.
    unsafe { libc::setrlimit(what, &raw const limit) };
}

/// KiB of locked memory that this process is charged for.
pub(crate) fn locked() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(u64::MAX)
}

/// Ways to a page of the guest's, a page each: an error or zeros.
fn reaches(kind: &str, ram: &Mapping, other: &mut Other) -> Result<(), String> {
    let page = |n: u64| ram.at(at(FREE + n * PAGE));
    STEP.same(
        &format!("{kind}: load, store"),
        "SIGBUS, SIGBUS",
        [false, true].map(|store| probe_here(page(0), store)).join(", "),
    );
    let (reader, writer) = sys::pipe();
    STEP.same(&format!("{kind}: write(2) from it"), "EFAULT", outcome(sys::write_from(&writer, page(1), 4096)));
    let _ = sys::write_from(&writer, [7u8; 64].as_ptr(), 64);
    STEP.same(&format!("{kind}: read(2) into it"), "EFAULT", outcome(sys::read_to(&reader, page(1), 64)));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .read(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open("/tmp/direct");
    let file = file.map_err(|e| format!("/tmp/direct: {e}"))?;
    nothing(
        kind,
        "O_DIRECT write",
        &outcome(sys::write_from(&file, page(2), 4096)),
        &std::fs::read("/tmp/direct").unwrap_or_default(),
    );
    let _ = std::fs::remove_file("/tmp/direct");
    disk(kind, ram)?;
    let (reader, writer) = sys::pipe();
    let spliced = sys::vmsplice(&writer, page(4), 4096);
    drop(writer);
    let mut seen = Vec::new();
    let _ = std::fs::File::from(reader).read_to_end(&mut seen);
    nothing(kind, "vmsplice and read", &outcome(spliced), &seen);
    for (n, way) in (5..).zip(WAYS) {
        let (done, seen) = other.ask(way, page(n))?;
        nothing(kind, &format!("{way:?}"), &done, &seen);
    }
    // The process that reached for them got nothing of pages that the guest still has either.
    STEP.same(
        &format!("{kind}: it may still use its own"),
        "done",
        probe_here(ram.at(at(SHARE_BASE - RAM_BASE)), true),
    );
    Ok(())
}

/// A disk to which a page is written, and from which one is read, without a copy in between.
fn disk(kind: &str, ram: &Mapping) -> Result<(), String> {
    let file = std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(DISK);
    let file = file.map_err(|e| format!("{DISK}: {e}"))?;
    let written = || -> Vec<u8> {
        let word = std::fs::read_to_string(format!("{SLOW}/word")).unwrap_or_default();
        word.trim().parse::<u64>().unwrap_or(u64::MAX).to_le_bytes().to_vec()
    };
    let own = Mapping::anonymous(4096, false).map_err(errno_name)?;
    own.store(0, CONTROL);
    let done = outcome(sys::write_from(&file, own.at(0), 4096));
    STEP.same(&format!("{kind}: disk: it sees what is written"), format!("4096, {CONTROL}"), {
        let seen = written();
        format!("{done}, {}", u64::from_le_bytes(seen.try_into().unwrap_or([0xff; 8])))
    });
    let page = |n: u64| ram.at(at(FREE + n * PAGE));
    nothing(kind, "O_DIRECT write to a disk", &outcome(sys::write_from(&file, page(8), 4096)), &written());
    let done = outcome(sys::read_to(&file, page(9), 4096));
    let brought = match probe_here(page(9), false).as_str() {
        "done" => ram.copy_out(at(FREE + 9 * PAGE), 4096),
        _ => Vec::new(),
    };
    nothing(kind, "O_DIRECT read from a disk", &done, &brought);
    Ok(())
}

/// A way in came back, and brought nothing of the guest's.
fn nothing(kind: &str, way: &str, done: &str, seen: &[u8]) {
    let held = plain_words(seen, SEED) == 0;
    STEP.judged(
        &format!("{kind}: {way}"),
        "nothing of the guest's",
        format!("{done}, {} bytes, {} of the guest's", seen.len(), 8 * plain_words(seen, SEED)),
        held,
    );
}

#[derive(Clone, Copy, Debug)]
enum Way {
    ReadV,
    ProcMem,
    Ptrace,
    WriteV,
    WriteMem,
    Poke,
}

/// Those that read.
const WAYS: [Way; 3] = [Way::ReadV, Way::ProcMem, Way::Ptrace];
/// What the others write.
const FOREIGN: u64 = 0x5a5a_1234_5a5a_4321;

/// Another process of the same user, which reaches into this one.
struct Other {
    ask: std::fs::File,
    answers: std::fs::File,
    child: libc::pid_t,
}

impl Other {
    fn new() -> Result<Self, String> {
        let (asked, ask) = sys::pipe();
        let (answers, answer) = sys::pipe();
        // SAFETY: asks for a number.
        let target = unsafe { libc::getpid() };
        // SAFETY: the child only makes system calls and leaves.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop((ask, answers));
            serve(target, asked, answer);
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(0) };
        }
        if child < 0 {
            return Err("no other process".into());
        }
        Ok(Self { ask: ask.into(), answers: answers.into(), child })
    }

    /// What the call answered, and what it brought.
    fn ask(&mut self, way: Way, at: *mut u8) -> Result<(String, Vec<u8>), String> {
        let mut words = [0u8; 16];
        words[0] = way as u8;
        words[8..].copy_from_slice(&(at.addr() as u64).to_le_bytes());
        self.ask.write_all(&words).map_err(|e| e.to_string())?;
        let mut told = vec![0u8; 8 + 4096];
        self.answers.read_exact(&mut told).map_err(|e| format!("the other process: {e}"))?;
        let seen = told.split_off(8);
        let done = i64::from_le_bytes(told.try_into().map_err(|_| "short")?);
        Ok((done.to_string(), seen))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // SAFETY: a child of ours.
        unsafe { libc::kill(self.child, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

/// The other process' life.
fn serve(target: libc::pid_t, asked: OwnedFd, answer: OwnedFd) {
    let (mut asked, mut answer) = (std::fs::File::from(asked), std::fs::File::from(answer));
    let mut words = [0u8; 16];
    while asked.read_exact(&mut words).is_ok() {
        let at = u64::from_le_bytes(words[8..].try_into().unwrap_or([0; 8]));
        let mut page = vec![0u8; 4096];
        let done = match words[0] {
            0 => read_v(target, at, &mut page),
            1 => std::fs::File::open(format!("/proc/{target}/mem"))
                .and_then(|file| file.read_at(&mut page, at))
                .map_or(-1, |n| n as i64),
            2 => trace(libc::PTRACE_PEEKDATA, target, at, &mut page),
            write => {
                page.copy_from_slice(&FOREIGN.to_le_bytes().repeat(512));
                match write {
                    3 => write_v(target, at, &page),
                    4 => std::fs::File::options()
                        .write(true)
                        .open(format!("/proc/{target}/mem"))
                        .and_then(|file| file.write_at(&page, at))
                        .map_or(-1, |n| n as i64),
                    _ => trace(libc::PTRACE_POKEDATA, target, at, &mut page),
                }
            }
        };
        let mut told = done.to_le_bytes().to_vec();
        told.extend_from_slice(&page);
        if answer.write_all(&told).is_err() {
            return;
        }
    }
}

fn read_v(target: libc::pid_t, at: u64, page: &mut [u8]) -> i64 {
    let local = libc::iovec { iov_base: page.as_mut_ptr().cast(), iov_len: page.len() };
    let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: page.len() };
    // SAFETY: both vectors are alive during the call, and the local one has room.
    unsafe { libc::process_vm_readv(target, &raw const local, 1, &raw const remote, 1, 0) as i64 }
}

fn write_v(target: libc::pid_t, at: u64, page: &[u8]) -> i64 {
    let local = libc::iovec { iov_base: page.as_ptr().cast_mut().cast(), iov_len: page.len() };
    let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: page.len() };
    // SAFETY: both vectors are alive during the call, which only reads the local one.
    unsafe { libc::process_vm_writev(target, &raw const local, 1, &raw const remote, 1, 0) as i64 }
}

/// A word of the stopped process, read or written.
fn trace(request: libc::c_int, target: libc::pid_t, at: u64, page: &mut [u8]) -> i64 {
    let ask = |request: libc::c_int, at: u64, data: u64| {
        // SAFETY: the numbers name another process; where `data` is an address, what it names is alive during the call.
        unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                u64::from(request.cast_unsigned()),
                u64::from(target.cast_unsigned()),
                at,
                data,
            )
        }
    };
    if ask(libc::PTRACE_ATTACH, 0, 0) != 0 {
        return -1;
    }
    // SAFETY: a process that this one traces.
    unsafe { libc::waitpid(target, std::ptr::null_mut(), libc::__WALL) };
    let mut word = u64::from_le_bytes(page[..8].try_into().unwrap_or([0; 8]));
    // What is read comes by an address, what is written is the number itself.
    let data = if request == libc::PTRACE_PEEKDATA { (&raw mut word) as u64 } else { word };
    let done = ask(request, at, data);
    page[..8].copy_from_slice(&word.to_le_bytes());
    ask(libc::PTRACE_DETACH, 0, 0);
    done
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the file is: its flags, its size, who may read, map, punch and bind it, in each of the three states; and how its
//! descriptor travels. Expected answers are those of Linux' own `guest_memfd` where it has them.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use freehold_uapi::ioctl::*;
use kvm_ioctls::VmFd;

use super::STEP;
use super::calls::{self, call, fd, forked};
use super::rig::{PAGE, PAGE_BYTES, Rig, bytes, in_pipe, new_vm, open_attempts, until_pending, word};
use crate::gmem::{Gmem, converted};
use crate::hostile::Hostile;
use crate::machine::{new_gmem, set_slot};
use crate::probe::{Access, probe, probe_here};
use crate::proto;
use crate::raw::{resting, settle};
use crate::sys::{self, Mapping, errno_name, ioctl, outcome};

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = KEEP | libc::FALLOC_FL_PUNCH_HOLE;

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    flags()?;
    no_seals()?;
    size_and_kind()?;
    no_reading()?;
    fallocate()?;
    three_states(&hostile)?;
    mapping()?;
    binding()?;
    passing()?;
    fork_and_exec()?;
    settle(STEP, "every file's VM is gone", &hostile, &rest);
    lifetimes(&hostile, &rest)
}

fn create(vm: &VmFd, flags: u64, size: u64) -> Result<Gmem, i32> {
    let mut ask = CreateGuestMemfd { size, flags, reserved: [7; 6] };
    let fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &mut ask)?;
    Ok(Gmem::new(RawFd::try_from(fd).unwrap_or(-1)))
}

fn flags() -> Result<(), String> {
    let vm = new_vm()?;
    for (case, flags, maps, load) in [
        ("no flag", 0, "ENODEV", ""),
        ("MMAP", GUEST_MEMFD_FLAG_MMAP, "mapped", "SIGBUS"),
        ("INIT_SHARED", GUEST_MEMFD_FLAG_INIT_SHARED, "ENODEV", ""),
        ("both flags", GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED, "mapped", "done"),
    ] {
        let file = create(&vm, flags, PAGE).map_err(errno_name)?;
        let map = file.map(PAGE_BYTES);
        let seen = map.as_ref().map_or_else(|e| errno_name(*e), |_| "mapped".to_owned());
        STEP.same(&format!("{case}: mmap"), maps, seen);
        if let Ok(map) = map {
            STEP.same(&format!("{case}: a load"), load, probe(map.at(0), Access::Load));
        }
    }
    let huge = create(&vm, 0, 1 << 60).map_or_else(errno_name, |_| "a file".to_owned());
    STEP.same("more than the machine has", "ENOMEM", huge);
    Ok(())
}

/// What it is was fixed when it was made: no seal, no flag, no other file's descriptor can become one.
fn no_seals() -> Result<(), String> {
    let rig = Rig::new(1)?;
    for (case, command, value) in [
        ("F_ADD_SEALS", libc::F_ADD_SEALS, libc::F_SEAL_WRITE),
        ("F_ADD_SEALS, the seed's guest seal", libc::F_ADD_SEALS, 0x20),
        ("F_GET_SEALS", libc::F_GET_SEALS, 0),
    ] {
        // SAFETY: plain numbers.
        let done = unsafe { libc::fcntl(rig.gmem.as_raw_fd(), command, value) };
        STEP.same(case, "EINVAL", if done < 0 { errno_name(sys::last_errno()) } else { done.to_string() });
    }
    let memfd = call(libc::SYS_memfd_create, &[c"other".as_ptr() as u64, 0]).map(sys::owned).map_err(errno_name)?;
    let mut ask = crate::gmem::CONVERT;
    STEP.same("a memfd is not converted", "ENOTTY", outcome(ioctl(&memfd, FREEHOLD_CONVERT, &mut ask)));
    let mut region = MemoryRegion2 {
        slot: 0,
        flags: u32::try_from(KVM_MEM_GUEST_MEMFD).unwrap_or(0),
        guest_phys_addr: proto::RAM_BASE,
        memory_size: PAGE,
        userspace_addr: 0,
        guest_memfd_offset: 0,
        guest_memfd: memfd.as_raw_fd().cast_unsigned(),
        pad1: 0,
        pad2: [0; 14],
    };
    STEP.same("nor bound", "EINVAL", outcome(ioctl(&rig.vm, KVM_SET_USER_MEMORY_REGION2, &mut region)));
    let path = format!("/proc/self/fd/{}", rig.gmem.as_raw_fd());
    let again = std::fs::File::open(path).map_or_else(|e| errno_name(e.raw_os_error().unwrap_or(0)), |_| "0".into());
    STEP.same("opened once more by its name in /proc", "ENXIO", again);
    region.guest_memfd = 9999;
    STEP.same("nor is no descriptor", "EBADF", outcome(ioctl(&rig.vm, KVM_SET_USER_MEMORY_REGION2, &mut region)));
    Ok(())
}

pub(super) fn stat(file: &impl AsRawFd) -> (i64, i64, u32) {
    // SAFETY: all zeroes is a valid stat.
    let mut seen: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is alive during the call.
    unsafe { libc::fstat(file.as_raw_fd(), &raw mut seen) };
    (seen.st_size, i64::from(seen.st_blksize), seen.st_mode & libc::S_IFMT)
}

fn size_and_kind() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let expected = format!("{:?}", (4 * 4096, 4096, libc::S_IFREG));
    STEP.same("fstat", &expected, format!("{:?}", stat(&rig.gmem)));
    for (case, length) in [("shorter", 4096), ("longer", 5 * 4096), ("as long", 4 * 4096), ("unaligned", 1)] {
        // SAFETY: plain numbers.
        let cut = unsafe { libc::ftruncate(rig.gmem.as_raw_fd(), length) };
        let seen = if cut == 0 { "0".to_owned() } else { errno_name(sys::last_errno()) };
        STEP.same(&format!("ftruncate: {case}"), "EINVAL", seen);
    }
    let _ = rig.gmem.to_private_now(0, 2 * PAGE);
    STEP.same("fstat, half of it private", &expected, format!("{:?}", stat(&rig.gmem)));
    Ok(())
}

/// Neither a file of the host's nor a private one is read or written but through a mapping.
fn no_reading() -> Result<(), String> {
    let rig = Rig::new(2)?;
    rig.gmem.to_private_now(PAGE, PAGE).map_err(|(e, _)| errno_name(e))?;
    let mut buffer = [0u8; 64];
    let at = buffer.as_mut_ptr() as u64;
    let (reader, writer) = sys::pipe();
    let _ = sys::write_from(&writer, buffer.as_ptr(), 64);
    let file = fd(&rig.gmem);
    let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 64 };
    let vectors = (&raw const vector) as u64;
    for (case, number, argument, count) in [
        ("read(2) of the file", libc::SYS_read, at, 64),
        ("write(2) to the file", libc::SYS_write, at, 64),
        ("readv(2) of the file", libc::SYS_readv, vectors, 1),
        ("writev(2) to the file", libc::SYS_writev, vectors, 1),
    ] {
        STEP.same(case, "EINVAL", outcome(call(number, &[file, argument, count])));
    }
    for (state, offset) in [("host's", 0), ("private", PAGE)] {
        let mut here = offset;
        let place = (&raw mut here) as u64;
        // Where the kernel itself knows that the file has no position it says so.
        for (case, expected, result) in [
            ("pread", "ESPIPE", call(libc::SYS_pread64, &[file, at, 64, offset])),
            ("pwrite", "ESPIPE", call(libc::SYS_pwrite64, &[file, at, 64, offset])),
            ("preadv", "ESPIPE", call(libc::SYS_preadv, &[file, vectors, 1, offset])),
            ("pwritev", "ESPIPE", call(libc::SYS_pwritev, &[file, vectors, 1, offset])),
            ("splice out of it", "EINVAL", call(libc::SYS_splice, &[file, place, fd(&writer), 0, 64, 0])),
            ("splice into it", "EINVAL", call(libc::SYS_splice, &[fd(&reader), 0, file, place, 64, 0])),
            ("sendfile", "ESPIPE", call(libc::SYS_sendfile, &[fd(&writer), file, place, 64])),
        ] {
            STEP.same(&format!("{case}, {state} offset"), expected, outcome(result));
        }
    }
    STEP.same("no byte was copied", true, buffer.iter().all(|byte| *byte == 0));
    Ok(())
}

fn falloc(file: &Gmem, mode: i32, offset: i64, bytes: i64) -> String {
    outcome(sys::fallocate(file, mode, offset, bytes))
}

fn fallocate() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let file = &rig.gmem;
    for (case, mode) in [
        ("without KEEP_SIZE", 0),
        ("PUNCH_HOLE without KEEP_SIZE", libc::FALLOC_FL_PUNCH_HOLE),
        ("COLLAPSE_RANGE", libc::FALLOC_FL_COLLAPSE_RANGE),
        ("ZERO_RANGE", libc::FALLOC_FL_ZERO_RANGE | KEEP),
        ("INSERT_RANGE", libc::FALLOC_FL_INSERT_RANGE),
        ("UNSHARE_RANGE", libc::FALLOC_FL_UNSHARE_RANGE | KEEP),
    ] {
        STEP.same(&format!("fallocate: {case}"), "EOPNOTSUPP", falloc(file, mode, 0, 4096));
    }
    for (mode, name) in [(KEEP, "fallocate"), (PUNCH, "punch")] {
        for (offset, bytes) in
            [(1, 4096), (4095, 4096), (0, 1), (0, 4097), (2048, 2048), (512, 512), (0, 0), (-4096, 4096)]
        {
            STEP.same(&format!("{name}: {offset}+{bytes}"), "EINVAL", falloc(file, mode, offset, bytes));
        }
    }
    STEP.same("fallocate: beyond the end", "EINVAL", falloc(file, KEEP, 4 * 4096, 4096));
    STEP.same("fallocate: over the end", "EINVAL", falloc(file, KEEP, 3 * 4096, 8192));
    STEP.same("punch: beyond the end", "0", falloc(file, PUNCH, 8 * 4096, 4096));
    STEP.same("nothing of it changed anything", "[]", format!("{:?}", rig.damaged()));
    STEP.same("fallocate", "0", falloc(file, KEEP, 0, 4 * 4096));
    STEP.same("fallocate of what is there changes nothing", "[]", format!("{:?}", rig.damaged()));
    STEP.same("punch: over the end", "0", falloc(file, PUNCH, 3 * 4096, 2 * 4096));
    STEP.same("punch: one page is gone", "[3]", format!("{:?}", rig.damaged()));
    STEP.same("punch: and reads as zero", 0, rig.map.load(bytes(3)));
    rig.map.store(bytes(3), word(3));
    STEP.same("MADV_REMOVE punches", "0", outcome(calls::madvise(rig.map.at(bytes(2)), PAGE_BYTES, libc::MADV_REMOVE)));
    STEP.same("MADV_REMOVE: zeros", 0, rig.map.load(bytes(2)));
    Ok(())
}

/// The same calls on a page in each state: 0 is the host's, 1 is draining, 2 is private.
fn three_states(hostile: &Hostile) -> Result<(), String> {
    let rig = Rig::new(3)?;
    let frame = |page| hostile.pfn_of(rig.map.at(bytes(page))).map_err(errno_name);
    let before = [frame(0)?, frame(2)?];
    STEP.same("states: one is private", "0", converted(rig.gmem.to_private_now(2 * PAGE, PAGE)));
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let begun = converted(rig.gmem.to_private_notify(PAGE, PAGE, 0));
    STEP.same("states: one is draining", "EINPROGRESS at 0x1000", begun);
    STEP.same("states: and waits", "pending at 0x1000", until_pending(&rig.gmem));
    let (reader, writer) = sys::pipe();
    for (page, state, load, copy) in
        [(0, "host", "done", "8"), (1, "none", "SIGBUS", "EFAULT"), (2, "guest", "SIGBUS", "EFAULT")]
    {
        let at = rig.map.at(bytes(page));
        STEP.same(&format!("{state}: load"), load, probe(at, Access::Load));
        STEP.same(&format!("{state}: store"), load, probe_here(at, true));
        STEP.same(&format!("{state}: write(2) from it"), copy, outcome(sys::write_from(&writer, at, 8)));
        let offset = i64::try_from(page * PAGE).expect("small");
        STEP.same(&format!("{state}: fallocate"), "0", falloc(&rig.gmem, KEEP, offset, 4096));
    }
    drop((reader, writer));
    // A host that shuffles and frees memory moves none of it.
    for (path, value) in [("/proc/sys/vm/compact_memory", "1"), ("/proc/sys/vm/drop_caches", "3")] {
        std::fs::write(path, value).map_err(|e| format!("{path}: {e}"))?;
    }
    STEP.same("none: punch", "EBUSY", falloc(&rig.gmem, PUNCH, 4096, 4096));
    drop(pipe);
    STEP.same("none: let go", true, rig.gmem.polls_in(60_000));
    STEP.same("none: is private then", "SIGBUS", probe(rig.map.at(bytes(1)), Access::Load));
    STEP.same("guest: punch", "0", falloc(&rig.gmem, PUNCH, 4096, 4096));
    STEP.same("guest: punched, it is private still", "SIGBUS", probe(rig.map.at(bytes(1)), Access::Load));
    STEP.same("states: all to shared", "0", converted(rig.gmem.to_shared(0, rig.size())));
    let after = [frame(0)?, frame(2)?];
    STEP.same("frames after compaction", format!("{before:x?}"), format!("{after:x?}"));
    STEP.same("guest: punched and shared, zeros", 0, rig.map.load(bytes(1)));
    STEP.same("guest: contents are kept", word(2), rig.map.load(bytes(2)));
    STEP.same("states: as many attempts have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}

fn mapping() -> Result<(), String> {
    let rig = Rig::new(2)?;
    let map = |protection, flags, offset: i64| {
        let file = rig.gmem.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, flags, file, offset) };
        if at == libc::MAP_FAILED {
            return errno_name(sys::last_errno());
        }
        let seen = probe(at.cast(), Access::Load);
        // SAFETY: the mapping just made, of which nobody holds a borrow.
        unsafe { libc::munmap(at, PAGE_BYTES) };
        seen
    };
    STEP.same("mmap: private", "EINVAL", map(libc::PROT_READ, libc::MAP_PRIVATE, 0));
    STEP.same("mmap: private and writable", "EINVAL", map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE, 0));
    STEP.same("mmap: read-only", "done", map(libc::PROT_READ, libc::MAP_SHARED, 0));
    STEP.same("mmap: unaligned offset", "EINVAL", map(libc::PROT_READ, libc::MAP_SHARED, 1));
    STEP.same("mmap: the last page", "done", map(libc::PROT_READ, libc::MAP_SHARED, 4096));
    STEP.same("mmap: beyond the end, then a load", "SIGBUS", map(libc::PROT_READ, libc::MAP_SHARED, 8192));
    Ok(())
}

fn binding() -> Result<(), String> {
    let (one, two) = (Rig::new(8)?, new_vm()?);
    let base = proto::RAM_BASE;
    let bind = |vm: &VmFd, slot, gpa, pages: u64, offset: u64| {
        set_slot(vm, slot, gpa, pages * PAGE, &one.gmem, offset * PAGE).map_or_else(errno_name, |()| "0".to_owned())
    };
    STEP.same("bind: another VM's file", "EINVAL", bind(&two, 0, base, 4, 0));
    STEP.same("bind: over the end", "EINVAL", bind(&one.vm, 0, base, 8, 1));
    STEP.same("bind: beyond the end", "EINVAL", bind(&one.vm, 0, base, 1, 8));
    STEP.same("bind: an offset that wraps", "EINVAL", bind(&one.vm, 0, base, 1, u64::MAX >> 12));
    STEP.same("bind", "0", bind(&one.vm, 0, base, 4, 0));
    STEP.same("bind: the same slot", "EINVAL", bind(&one.vm, 0, base + 64 * PAGE, 1, 6));
    STEP.same("bind: the same pages", "EEXIST", bind(&one.vm, 1, base + 64 * PAGE, 2, 3));
    STEP.same("bind: the same addresses", "EEXIST", bind(&one.vm, 1, base + 3 * PAGE, 1, 6));
    STEP.same("bind: other pages elsewhere", "0", bind(&one.vm, 1, base + 64 * PAGE, 4, 4));
    STEP.same("bind: still not to another VM", "EINVAL", bind(&two, 0, base, 1, 0));
    STEP.same("unbind", "0", bind(&one.vm, 0, 0, 0, 0));
    STEP.same("bind elsewhere", "0", bind(&one.vm, 0, base + 128 * PAGE, 4, 0));
    STEP.same("binding changes no contents", "[]", format!("{:?}", one.damaged()));
    let Rig { vm: dead, gmem: orphan, .. } = Rig::new(4)?;
    drop(dead);
    let adopt = |vm: &VmFd, offset: u64| {
        set_slot(vm, 9, base + 256 * PAGE, 4 * PAGE, &orphan, offset).map_or_else(errno_name, |()| "0".to_owned())
    };
    STEP.same("bind: a dead VM's file, over the end", "EINVAL", adopt(&two, PAGE));
    STEP.same("bind: the refused VM did not get it", "0", adopt(&one.vm, 0));
    STEP.same("bind: a dead VM's file has one heir", "EINVAL", adopt(&two, 0));
    Ok(())
}

/// The descriptor goes to another process over a socket, and is the same file there.
fn passing() -> Result<(), String> {
    let rig = Rig::new(2)?;
    let (here, there) = std::os::unix::net::UnixDatagram::pair().map_err(|e| e.to_string())?;
    let child = forked(|| {
        let Some(fd) = receive(&there) else { return 1 };
        let gmem = Gmem::new(fd);
        let Ok(map) = Mapping::new(&gmem, 0, bytes(2), libc::PROT_READ | libc::PROT_WRITE) else { return 2 };
        let right = map.load(bytes(1)) == word(1);
        let private = gmem.to_private_now(0, PAGE).is_ok();
        let shut = probe_here(map.at(0), false) == "SIGBUS";
        std::mem::forget(map);
        u8::from(right) << 2 | u8::from(private) << 3 | u8::from(shut) << 4
    });
    STEP.same("passed over a socket", true, pass(&here, &rig.gmem));
    STEP.same("passed: read, converted, refused there", "exit 28", child.end());
    STEP.same("passed: and refused here", "SIGBUS", probe(rig.map.at(0), Access::Load));
    STEP.same("passed: the other page is as before", word(1), rig.map.load(bytes(1)));
    Ok(())
}

/// A control message of one descriptor: length, level, type, the descriptor, padding.
#[repr(C)]
struct Rights {
    bytes: usize,
    level: i32,
    kind: i32,
    fd: RawFd,
    pad: i32,
}

fn message(rights: &mut Rights, vector: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeroes is a valid message header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vector;
    header.msg_iovlen = 1;
    header.msg_control = std::ptr::from_mut(rights).cast();
    header.msg_controllen = u32::try_from(size_of::<Rights>()).unwrap_or(0);
    header
}

pub(crate) fn pass(socket: &impl AsRawFd, file: &impl AsRawFd) -> bool {
    let mut byte = 1u8;
    let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut rights =
        Rights { bytes: 20, level: libc::SOL_SOCKET, kind: libc::SCM_RIGHTS, fd: file.as_raw_fd(), pad: 0 };
    let header = message(&mut rights, &mut vector);
    // SAFETY: the header and all that it points to are alive during the call.
    unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, 0) == 1 }
}

pub(crate) fn receive(socket: &impl AsRawFd) -> Option<RawFd> {
    let mut byte = 0u8;
    let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut rights = Rights { bytes: 0, level: 0, kind: 0, fd: -1, pad: 0 };
    let mut header = message(&mut rights, &mut vector);
    // SAFETY: the header and all that it points to are alive during the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    (got == 1 && rights.kind == libc::SCM_RIGHTS).then_some(rights.fd)
}

/// A child has the descriptor and the mapping; another program has the descriptor only, as from Linux' own.
fn fork_and_exec() -> Result<(), String> {
    let rig = Rig::new(2)?;
    let at = rig.map.at(0) as usize;
    let file = &rig.gmem;
    let child = forked(|| {
        let there = probe_here(at as *mut u8, false) == "done";
        let private = file.to_private_now(PAGE, PAGE).is_ok();
        u8::from(there) | u8::from(private) << 1
    });
    STEP.same("fork: mapping and descriptor", "exit 3", child.end());
    STEP.same("fork: what the child converted", "SIGBUS", probe(rig.map.at(bytes(1)), Access::Load));
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let text = rig.gmem.as_raw_fd().to_string();
    let told = std::process::Command::new(me).args(["gmem-fd", &text]).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&told.stdout).trim().to_owned();
    STEP.same("exec: the descriptor is there", format!("{:#x}, then SIGBUS", word(0)), said);
    Ok(())
}

/// The program that `exec` starts: says what the descriptor's first two pages are.
pub(crate) fn executed(fd: RawFd) -> Result<(), String> {
    // SAFETY: the descriptor was left open for this program by the one that started it.
    let fd: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    let map = Mapping::new(&fd, 0, bytes(2), libc::PROT_READ).map_err(errno_name)?;
    println!("{:#x}, then {}", map.load(0), probe_here(map.at(bytes(1)), false));
    Ok(())
}

/// File and VM go in either order, before a guest ever ran; the mapping outlives both.
fn lifetimes(hostile: &Hostile, rest: &[(&'static str, u64)]) -> Result<(), String> {
    for order in ["the VM first", "the file first"] {
        let Rig { vm, gmem, map, pages } = Rig::new(4)?;
        set_slot(&vm, 0, proto::RAM_BASE, pages * PAGE, &gmem, 0).map_err(errno_name)?;
        STEP.same(&format!("{order}: one page is donated"), "0", converted(gmem.to_private_now(0, PAGE)));
        if order == "the VM first" {
            drop(vm);
            settle(STEP, "the VM went first: frames are back", hostile, rest);
            STEP.same("the VM went first: what was not donated is kept", word(1), map.load(bytes(1)));
            let mut seen = probe(map.at(0), Access::Load);
            let start = std::time::Instant::now();
            while seen != "done" && start.elapsed() < super::rig::PATIENCE {
                seen = probe(map.at(0), Access::Load);
            }
            STEP.same("the VM went first: the host maps what was donated", "done", seen);
            STEP.same("the VM went first: zeros there", 0, map.load(0));
            let other = new_vm()?;
            let bound = set_slot(&other, 0, proto::RAM_BASE, pages * PAGE, &gmem, 0);
            STEP.same("the VM went first: another takes the file", "0", bound.map_or_else(errno_name, |()| "0".into()));
            drop((other, gmem));
        } else {
            drop(gmem);
            STEP.same("the file went first: its slot keeps it", word(1), map.load(bytes(1)));
            STEP.same("the file went first: its pages stay private", "SIGBUS", probe(map.at(0), Access::Load));
            drop(vm);
        }
        drop(map);
        settle(STEP, &format!("{order}: all is back"), hostile, rest);
    }
    let vm = new_vm()?;
    drop(new_gmem(&vm, PAGE).map_err(errno_name)?);
    Ok(())
}

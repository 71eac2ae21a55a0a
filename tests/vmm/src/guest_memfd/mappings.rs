// SPDX-License-Identifier: MIT OR Apache-2.0
//! What only maps a page never blocks its conversion, and never survives it; who asks the kernel for it is refused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::STEP;
use super::calls::{self, call, fd, forked, tell, told};
use super::rig::{PAGE, PAGE_BYTES, PATIENCE, Rig, bytes, open_attempts};
use crate::gmem::converted;
use crate::probe::probe_here;
use crate::sys::{self, Mapping, errno_name, last_errno, outcome};

const POPULATE_WRITE: i32 = 23;

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    kinds()?;
    child()?;
    moved()?;
    locked()?;
    advice()?;
    no_userfaultfd()?;
    no_log_of_stores()?;
    other_ways()?;
    of_another_process()?;
    holes_beside_holes()?;
    loops()
}

/// Converts at once, looks through `at`, and converts back.
fn passes(case: &str, rig: &Rig, at: *mut u8) {
    STEP.same(&format!("{case}: at once"), "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same(&format!("{case}: through it a load"), "SIGBUS", probe_here(at, false));
    STEP.same(&format!("{case}: a store"), "SIGBUS", probe_here(at, true));
    STEP.same(&format!("{case}: back"), "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same(&format!("{case}: then a load"), "done", probe_here(at, false));
    STEP.same(&format!("{case}: contents are kept"), "[]", format!("{:?}", rig.damaged()));
}

fn raw_map(rig: &Rig, protection: i32, flags: i32) -> Result<*mut u8, i32> {
    let size = bytes(rig.pages);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), size, protection, flags, std::os::fd::AsRawFd::as_raw_fd(&rig.gmem), 0)
    };
    if at == libc::MAP_FAILED { Err(last_errno()) } else { Ok(at.cast()) }
}

fn kinds() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let second = Mapping::new(&rig.gmem, 0, bytes(4), both).map_err(errno_name)?;
    STEP.same("a second mapping: sees the same", rig.map.load(0), second.load(0));
    passes("a second mapping", &rig, second.at(0));
    for (case, flags) in [
        ("MAP_POPULATE", libc::MAP_SHARED | libc::MAP_POPULATE),
        ("MAP_LOCKED", libc::MAP_SHARED | libc::MAP_LOCKED),
        ("MAP_SHARED_VALIDATE", libc::MAP_SHARED_VALIDATE),
        ("MAP_NORESERVE", libc::MAP_SHARED | libc::MAP_NORESERVE),
    ] {
        let at = raw_map(&rig, both, flags).map_err(errno_name)?;
        probe_here(at, false);
        passes(case, &rig, at);
        // SAFETY: the mapping just made, of which nobody holds a borrow.
        unsafe { libc::munmap(at.cast(), bytes(4)) };
    }
    Ok(())
}

/// A forked child has touched the page: its entry goes as the parent's does.
fn child() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let (ready, say_ready) = sys::pipe();
    let (go, say_go) = sys::pipe();
    let at = rig.map.at(0) as usize;
    let child = forked(|| {
        let first = probe_here(at as *mut u8, true) == "done";
        tell(&say_ready);
        let _ = told(&go);
        u8::from(first) | u8::from(probe_here(at as *mut u8, false) == "SIGBUS") << 1
    });
    STEP.same("a child has touched it", true, told(&ready));
    rig.map.store(0, super::rig::word(0));
    STEP.same("a child: at once", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    tell(&say_go);
    STEP.same("a child: could before, meets SIGBUS after", "exit 3", child.end());
    STEP.same("a child: the file is as before", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("a child: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

fn moved() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let at = raw_map(&rig, both, libc::MAP_SHARED).map_err(errno_name)?;
    probe_here(at, false);
    let grown = call(libc::SYS_mremap, &[at as u64, 4 * PAGE, 8 * PAGE, 1]);
    STEP.same("mremap: to grow it", "EFAULT", outcome(grown));
    let target = raw_map(&rig, both, libc::MAP_SHARED).map_err(errno_name)?;
    // MREMAP_MAYMOVE | MREMAP_FIXED
    let there = call(libc::SYS_mremap, &[at as u64, 4 * PAGE, 4 * PAGE, 3, target as u64]);
    STEP.same("mremap: moved", true, there == Ok(target as i64));
    passes("mremap", &rig, target);
    // MREMAP_MAYMOVE | MREMAP_DONTUNMAP
    let doubled = call(libc::SYS_mremap, &[target as u64, 4 * PAGE, 4 * PAGE, 5]);
    STEP.same("mremap: doubled (MREMAP_DONTUNMAP), of a mapping that must not grow", "EINVAL", outcome(doubled));
    passes("mremap, not doubled", &rig, target);
    // SAFETY: the mapping just moved, of which nobody holds a borrow.
    unsafe { libc::munmap(target.cast(), bytes(4)) };
    replaced(&rig, both)
}

/// Other memory is mapped over the file's, and the file over other memory: what is there now is what counts.
fn replaced(rig: &Rig, both: i32) -> Result<(), String> {
    let at = raw_map(rig, both, libc::MAP_SHARED).map_err(errno_name)?;
    probe_here(at, true);
    rig.map.store(0, super::rig::word(0));
    let over = |flags: i32, fd: u64| {
        let flags = u64::from((flags | libc::MAP_FIXED).cast_unsigned());
        call(libc::SYS_mmap, &[at as u64, PAGE, u64::from(both.cast_unsigned()), flags, fd, 0])
    };
    let other = over(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, u64::MAX);
    STEP.same("MAP_FIXED: other memory over the first page", true, other == Ok(at as i64));
    STEP.same("MAP_FIXED: at once", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same("MAP_FIXED: a load of the other memory", "done", probe_here(at, false));
    STEP.same("MAP_FIXED: of the page behind it", "SIGBUS", probe_here(at.wrapping_add(PAGE_BYTES), false));
    let back = over(libc::MAP_SHARED, fd(&rig.gmem));
    STEP.same("MAP_FIXED: the file over it, while it is private", true, back == Ok(at as i64));
    STEP.same("MAP_FIXED: a load there", "SIGBUS", probe_here(at, false));
    STEP.same("MAP_FIXED: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    passes("MAP_FIXED", rig, at);
    // SAFETY: the mapping made here, of which nobody holds a borrow.
    unsafe { libc::munmap(at.cast(), bytes(4)) };
    Ok(())
}

/// Another process' file and memory, reached for from outside of it: the descriptor by `pidfd_getfd`, the memory by what the
/// kernel offers.
fn of_another_process() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let (ready, say_ready) = sys::pipe();
    let (go, say_go) = sys::pipe();
    let at = rig.map.at(0) as usize;
    let child = forked(|| {
        let first = probe_here(at as *mut u8, false) == "done";
        tell(&say_ready);
        u8::from(first) | u8::from(told(&go)) << 1
    });
    STEP.same("another process: has touched it", true, told(&ready));
    let pid = u64::from(child.id());
    let pidfd = call(libc::SYS_pidfd_open, &[pid, 0]).map(sys::owned).map_err(errno_name)?;
    let theirs = call(libc::SYS_pidfd_getfd, &[fd(&pidfd), fd(&rig.gmem), 0]).map(sys::owned).map_err(errno_name)?;
    let map = Mapping::new(&theirs, 0, bytes(4), libc::PROT_READ | libc::PROT_WRITE).map_err(errno_name)?;
    STEP.same("pidfd_getfd: the same file", rig.map.load(bytes(1)), map.load(bytes(1)));
    passes("pidfd_getfd", &rig, map.at(0));
    let memory = std::fs::File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
    let memory = memory.map_err(|e| e.to_string())?;
    let mut word = 0u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: 8 };
    let vectors = [pid, (&raw const local) as u64, 1, (&raw const remote) as u64, 1, 0];
    let here = (&raw mut word) as u64;
    for (state, expected, of_memory) in [("the host's", "8", "8"), ("private", "EFAULT", "EIO")] {
        if state == "private" {
            STEP.same("another process: to private", "0", converted(rig.gmem.to_private_now(0, rig.size())));
        }
        // What is written is what was read before: the word that the page has.
        for (case, expected, result) in [
            ("process_vm_readv", expected, call(libc::SYS_process_vm_readv, &vectors)),
            ("process_vm_writev", expected, call(libc::SYS_process_vm_writev, &vectors)),
            ("its mem, read", of_memory, call(libc::SYS_pread64, &[fd(&memory), here, 8, at as u64])),
            ("its mem, written", of_memory, call(libc::SYS_pwrite64, &[fd(&memory), here, 8, at as u64])),
        ] {
            STEP.same(&format!("another process: {case}, a page that is {state}"), expected, outcome(result));
        }
    }
    STEP.same("another process: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("another process: contents are kept", "[]", format!("{:?}", rig.damaged()));
    tell(&say_go);
    STEP.same("another process: lives", "exit 3", child.end());
    Ok(())
}

/// Locked, and touched on another CPU, whose batch of pages to lock is never drained by anybody.
fn locked() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let cpus = sys::cpus();
    let at = rig.map.at(0) as usize;
    for (case, lock) in [
        ("mlock", 0),
        ("mlockall, current", libc::MCL_CURRENT),
        ("mlockall, future", libc::MCL_FUTURE),
        ("mlockall, on fault", libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT),
    ] {
        let done = if lock == 0 {
            call(libc::SYS_mlock, &[at as u64, 4 * PAGE])
        } else {
            call(libc::SYS_mlockall, &[u64::from(lock.cast_unsigned())])
        };
        STEP.same(&format!("{case}: done"), "0", outcome(done));
        let late = Mapping::new(&rig.gmem, 0, bytes(4), libc::PROT_READ).map_err(errno_name)?;
        let there = late.at(0) as usize;
        std::thread::scope(|scope| {
            let toucher = scope.spawn(move || {
                sys::pin_to(cpus - 1);
                probe_here(at as *mut u8, false);
                probe_here(there as *mut u8, false);
            });
            let _ = toucher.join();
        });
        passes(&format!("{case}, touched on another CPU"), &rig, at as *mut u8);
        drop(late);
        let _ = call(libc::SYS_munlockall, &[]);
    }
    Ok(())
}

fn advice() -> Result<(), String> {
    const POPULATE_READ: i32 = 22;
    const COLLAPSE: i32 = 25;
    const WIPE_ON_FORK: i32 = 18;
    const KEEP_ON_FORK: i32 = 19;
    const DONTNEED_LOCKED: i32 = 24;
    let rig = Rig::new(4)?;
    let at = rig.map.at(0);
    for (case, advice, expected) in [
        ("MADV_NORMAL", libc::MADV_NORMAL, "0"),
        ("MADV_RANDOM", libc::MADV_RANDOM, "0"),
        ("MADV_SEQUENTIAL", libc::MADV_SEQUENTIAL, "0"),
        ("MADV_WILLNEED", libc::MADV_WILLNEED, "0"),
        ("MADV_DONTNEED", libc::MADV_DONTNEED, "0"),
        ("MADV_POPULATE_READ", POPULATE_READ, "0"),
        ("MADV_POPULATE_WRITE", POPULATE_WRITE, "0"),
        ("MADV_COLD", libc::MADV_COLD, "0"),
        ("MADV_PAGEOUT", libc::MADV_PAGEOUT, "0"),
        ("MADV_MERGEABLE", libc::MADV_MERGEABLE, "0"),
        ("MADV_UNMERGEABLE", libc::MADV_UNMERGEABLE, "0"),
        ("MADV_HUGEPAGE", libc::MADV_HUGEPAGE, "0"),
        ("MADV_NOHUGEPAGE", libc::MADV_NOHUGEPAGE, "0"),
        ("MADV_DONTFORK", libc::MADV_DONTFORK, "0"),
        ("MADV_DOFORK", libc::MADV_DOFORK, "0"),
        ("MADV_WIPEONFORK", WIPE_ON_FORK, "EINVAL"),
        ("MADV_KEEPONFORK", KEEP_ON_FORK, "0"),
        ("MADV_DONTNEED_LOCKED", DONTNEED_LOCKED, "0"),
        ("MADV_DONTDUMP", libc::MADV_DONTDUMP, "0"),
        ("MADV_DODUMP", libc::MADV_DODUMP, "EINVAL"),
        ("MADV_FREE", libc::MADV_FREE, "EINVAL"),
        ("MADV_COLLAPSE", COLLAPSE, "EINVAL"),
    ] {
        STEP.same(case, expected, outcome(calls::madvise(at, bytes(4), advice)));
        passes(case, &rig, at);
    }
    STEP.same("to private for advice", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    for (case, advice) in [("MADV_POPULATE_READ", POPULATE_READ), ("MADV_POPULATE_WRITE", POPULATE_WRITE)] {
        STEP.same(&format!("{case} of a private page"), "EFAULT", outcome(calls::madvise(at, PAGE_BYTES, advice)));
    }
    let locked = call(libc::SYS_mlock, &[at as u64, PAGE]);
    STEP.same("mlock of a private page", "ENOMEM", outcome(locked));
    STEP.same("and the load after it", "SIGBUS", probe_here(at, false));
    Ok(())
}

/// Nobody can make a fault of the file's wait for a process of theirs.
fn no_userfaultfd() -> Result<(), String> {
    const UFFDIO_API: u32 = 0xc018_aa3f;
    const UFFDIO_REGISTER: u32 = 0xc020_aa00;
    let rig = Rig::new(1)?;
    let uffd = call(libc::SYS_userfaultfd, &[0]).map(sys::owned).map_err(errno_name)?;
    let mut api = [0xaa_u64, 0, 0];
    STEP.same("userfaultfd: its handshake", "0", outcome(sys::ioctl(&uffd, UFFDIO_API, &mut api)));
    for (case, mode) in [("missing", 1), ("write-protect", 2), ("minor", 4)] {
        let mut ask = [rig.map.at(0) as u64, PAGE, mode, 0];
        let done = outcome(sys::ioctl(&uffd, UFFDIO_REGISTER, &mut ask));
        STEP.same(&format!("userfaultfd: {case}"), "EINVAL", done);
    }
    Ok(())
}

/// A log of stores (`UFFD_FEATURE_WP_ASYNC`) is the one kind that the kernel registers without a file's word; not for a mapping
/// that is special, which `VM_DONTEXPAND` makes this one.
fn no_log_of_stores() -> Result<(), String> {
    const UFFDIO_API: u32 = 0xc018_aa3f;
    const UFFDIO_REGISTER: u32 = 0xc020_aa00;
    const WP_ASYNC: u64 = 1 << 15;
    const WP: u64 = 2;
    let rig = Rig::new(4)?;
    let uffd = call(libc::SYS_userfaultfd, &[0]).map(sys::owned).map_err(errno_name)?;
    let mut api = [0xaa_u64, WP_ASYNC, 0];
    STEP.same("userfaultfd, a log of stores: its handshake", "0", outcome(sys::ioctl(&uffd, UFFDIO_API, &mut api)));
    let register = |at: *mut u8| outcome(sys::ioctl(&uffd, UFFDIO_REGISTER, &mut [at as u64, rig.size(), WP, 0]));
    // Control: of a file of another kind, which no driver of a process' faults could serve.
    std::fs::write("/tmp/logged", vec![0; bytes(4)]).map_err(|e| e.to_string())?;
    let file = std::fs::File::options().read(true).write(true).open("/tmp/logged").map_err(|e| e.to_string())?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let other = Mapping::new(&file, 0, bytes(4), both).map_err(errno_name)?;
    STEP.same("userfaultfd, a log of stores: of another file", "0", register(other.at(0)));
    STEP.same("userfaultfd, a log of stores", "EINVAL", register(rig.map.at(0)));
    passes("userfaultfd, a log of stores", &rig, rig.map.at(0));
    Ok(())
}

/// While pages are private every other way in is refused, and the host lives.
fn other_ways() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let at = rig.map.at(0);
    let buffer = [0u8; 64];
    let (reader, writer) = sys::pipe();
    let memory = std::fs::File::options().read(true).write(true).open("/proc/self/mem").map_err(|e| e.to_string())?;
    let local = libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: 64 };
    let remote = libc::iovec { iov_base: at.cast(), iov_len: 64 };
    let me = u64::from(std::process::id());
    let vectors = [me, (&raw const local) as u64, 1, (&raw const remote) as u64, 1, 0];
    let here = buffer.as_ptr() as u64;
    let ways = || -> Vec<(&'static str, Result<i64, i32>)> {
        let _ = sys::write_from(&writer, buffer.as_ptr(), 64);
        vec![
            ("write(2) from it", sys::write_from(&writer, at, 64)),
            ("read(2) into it", sys::read_to(&reader, at, 64)),
            ("process_vm_readv", call(libc::SYS_process_vm_readv, &vectors)),
            ("process_vm_writev", call(libc::SYS_process_vm_writev, &vectors)),
            ("/proc/self/mem, read", call(libc::SYS_pread64, &[fd(&memory), here, 64, at as u64])),
            ("/proc/self/mem, write", call(libc::SYS_pwrite64, &[fd(&memory), here, 64, at as u64])),
            ("vmsplice of it", sys::vmsplice(&writer, at, 64)),
            ("futex on it", call(libc::SYS_futex, &[at as u64, 1, 1])),
        ]
    };
    // Control: while it is the host's each of them goes through.
    for (case, result) in ways() {
        STEP.judged(
            &format!("{case}: the host's page"),
            "0 or 64",
            outcome(result),
            result == Ok(64) || result == Ok(0),
        );
    }
    drop((reader, writer));
    let (reader, writer) = sys::pipe();
    STEP.same("other ways: to private", "0", converted(rig.gmem.to_private(0, rig.size(), 60_000)));
    let _ = sys::write_from(&writer, buffer.as_ptr(), 64);
    for (case, result, expected) in [
        ("write(2) from it", sys::write_from(&writer, at, 64), "EFAULT"),
        ("read(2) into it", sys::read_to(&reader, at, 64), "EFAULT"),
        ("process_vm_readv", call(libc::SYS_process_vm_readv, &vectors), "EFAULT"),
        ("process_vm_writev", call(libc::SYS_process_vm_writev, &vectors), "EFAULT"),
        ("/proc/self/mem, read", call(libc::SYS_pread64, &[fd(&memory), here, 64, at as u64]), "EIO"),
        ("/proc/self/mem, write", call(libc::SYS_pwrite64, &[fd(&memory), here, 64, at as u64]), "EIO"),
        ("vmsplice of it", sys::vmsplice(&writer, at, 64), "EFAULT"),
        ("futex on it", call(libc::SYS_futex, &[at as u64, 1, 1]), "EFAULT"),
    ] {
        STEP.same(&format!("{case}: a private page"), expected, outcome(result));
    }
    traced(&rig)
}

/// A debugger peeks and pokes at a child that has the file mapped.
fn traced(rig: &Rig) -> Result<(), String> {
    let (never, write_end) = sys::pipe();
    let at = rig.map.at(0) as u64;
    let child = forked(|| u8::from(told(&never)));
    let pid = u64::from(child.id());
    let ask = |request: i32, address: u64, data: u64| {
        call(libc::SYS_ptrace, &[u64::from(request.cast_unsigned()), pid, address, data])
    };
    STEP.same("ptrace: attach", "0", outcome(ask(libc::PTRACE_ATTACH, 0, 0)));
    let mut status = 0;
    // SAFETY: waits for our own child to stop.
    unsafe { libc::waitpid(i32::try_from(pid).unwrap_or(0), &raw mut status, 0) };
    let mut word = 0u64;
    STEP.same("ptrace: peek at a private page", "EIO", outcome(ask(libc::PTRACE_PEEKDATA, at, (&raw mut word) as u64)));
    STEP.same("ptrace: poke at a private page", "EIO", outcome(ask(libc::PTRACE_POKEDATA, at, 1)));
    STEP.same("ptrace: to shared", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("ptrace: then peek", "0", outcome(ask(libc::PTRACE_PEEKDATA, at, (&raw mut word) as u64)));
    let _ = ask(libc::PTRACE_DETACH, 0, 0);
    drop(write_end);
    child.signal(libc::SIGKILL);
    child.end();
    Ok(())
}

/// Threads that look at the pages by every way without end: a conversion goes through between their looks.
fn loops() -> Result<(), String> {
    const ROUNDS: u64 = 60;
    /// Looks that each thread must have had of what was the host's at that moment.
    const LOOKS: u64 = 10;
    const WAYS: [&str; 5] = ["process_vm_readv", "/proc/self/mem", "madvise", "smaps and pagemap", "mlock"];
    let rig = Rig::new(8)?;
    let stop = AtomicBool::new(false);
    let looks = [const { AtomicU64::new(0) }; WAYS.len()];
    let size = bytes(8);
    let at = rig.map.at(0) as usize;
    let failed = std::thread::scope(|scope| {
        let spin = |who: usize, look: Box<dyn Fn() -> bool + Send>| {
            let (stop, looks) = (&stop, &looks[who]);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    looks.fetch_add(u64::from(look()), Ordering::Relaxed);
                }
            });
        };
        spin(0, Box::new(move || sys::read_own(at as *mut u8, size).is_ok()));
        spin(
            1,
            Box::new(move || {
                let memory = std::fs::File::open("/proc/self/mem");
                let mut buffer = [0u8; PAGE_BYTES];
                memory.is_ok_and(|file| std::os::unix::fs::FileExt::read_at(&file, &mut buffer, at as u64).is_ok())
            }),
        );
        spin(
            2,
            Box::new(move || {
                let all = [libc::MADV_DONTNEED, POPULATE_WRITE, libc::MADV_COLD, libc::MADV_PAGEOUT];
                all.iter().filter(|advice| calls::madvise(at as *mut u8, size, **advice).is_ok()).count() == all.len()
            }),
        );
        spin(
            3,
            Box::new(move || {
                let read = |file: &&str| {
                    let file = std::fs::File::open(file);
                    file.is_ok_and(|mut file| std::io::Read::read(&mut file, &mut [0u8; 8192]).is_ok_and(|got| got > 0))
                };
                ["/proc/self/smaps", "/proc/self/pagemap"].iter().filter(|file| read(file)).count() == 2
            }),
        );
        spin(
            4,
            Box::new(move || {
                let is_locked = call(libc::SYS_mlock, &[at as u64, size as u64]).is_ok();
                let _ = call(libc::SYS_munlock, &[at as u64, size as u64]);
                is_locked
            }),
        );
        let mut failed = Vec::new();
        let mut rounds = 0;
        let start = Instant::now();
        let all_looked = || looks.iter().all(|looks| looks.load(Ordering::Relaxed) >= LOOKS);
        while rounds < ROUNDS || (!all_looked() && start.elapsed() < PATIENCE) {
            rounds += 1;
            let there = converted(rig.gmem.to_private(0, rig.size(), 60_000));
            let back = converted(rig.gmem.to_shared(0, rig.size()));
            if there != "0" || back != "0" {
                failed.push((there, back));
            }
            // There is something to see for a moment; the next conversion begins amid the looks.
            std::thread::sleep(Duration::from_millis(2));
        }
        stop.store(true, Ordering::Relaxed);
        failed
    });
    STEP.same("lookers: conversions that failed", "[]", format!("{failed:?}"));
    for (way, looks) in WAYS.into_iter().zip(&looks) {
        let looks = looks.load(Ordering::Relaxed);
        STEP.judged(&format!("lookers: {way} looked meanwhile"), "10 times or more", looks, looks >= LOOKS);
    }
    STEP.same("lookers: contents are kept", "[]", format!("{:?}", rig.damaged()));
    STEP.same("lookers: as many attempts have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}

/// Two threads punch the whole file again and again, while a third stores to it: each frame goes once, and none stays.
fn holes_beside_holes() -> Result<(), String> {
    const ROUNDS: u32 = 100;
    let rig = Rig::new(8)?;
    let punch = || {
        let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
        sys::fallocate(&rig.gmem, how, 0, rig.size().cast_signed())
    };
    let (failed, stored) = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| (0..ROUNDS).filter(|_| punch().is_err()).count()));
        let mut stored = 0_u64;
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            (0..8).for_each(|page| rig.map.store(bytes(page), page + 1));
            stored += 1;
        }
        (threads.map(|thread| thread.join().unwrap_or(usize::MAX)), stored)
    });
    STEP.same("holes beside holes: that failed", "[0, 0]", format!("{failed:?}"));
    STEP.judged("holes beside holes: rounds of stores meanwhile", "some", stored, stored > 0);
    STEP.same("holes beside holes: one more", "0", outcome(punch()));
    let seen: Vec<_> = (0..8).map(|page| rig.map.load(bytes(page))).collect();
    STEP.same("holes beside holes: then every page is new", "[0, 0, 0, 0, 0, 0, 0, 0]", format!("{seen:?}"));
    STEP.same("holes beside holes: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}

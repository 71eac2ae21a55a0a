// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel itself does with addresses that a process once gave it, when the page behind them has become private
//! (B8, B9); who holds pages from inside the kernel for somebody else's sake (FUSE), and who only looks (DAMON, vhost).

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use freehold_uapi::ioctl::{GUEST_MEMFD_FLAG_MMAP, Populate};

use super::STEP;
use super::calls::{self, call, fd, forked, tell, told};
use super::fuse::Fuse;
use super::holders::blocks;
use super::lives::wait_for;
use super::rig::{PAGE, PAGE_BYTES, PATIENCE, Rig, STILL, bytes, new_vm, open_attempts, word};
use crate::attack::kcore;
use crate::gmem::converted;
use crate::hostile::Hostile;
use crate::machine::make_gmem;
use crate::sys::{self, errno_name, outcome};

/// Page that is held, of a file of 4.
const HELD: u64 = 2;

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    left_with_the_kernel()?;
    physical()?;
    passed_over()?;
    fuse()?;
    populate_from_fuse()?;
    damon()?;
    vhost()
}

extern "C" fn nothing(_signal: i32) {}

fn raise_on_its_stack(at: *mut u8) {
    let stack = libc::stack_t { ss_sp: at.cast(), ss_flags: 0, ss_size: bytes(4) };
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the stack is a test mapping that nothing else uses.
    unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    // SAFETY: a handler that does nothing.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
}

fn robust_list(at: *mut u8) {
    let _ = call(libc::SYS_set_robust_list, &[at as u64, 24]);
}

fn restartable(at: *mut u8) {
    // 32 bytes, no flags, any signature.
    let _ = call(libc::SYS_rseq, &[at as u64, 32, 0, 0x5305_3053]);
}

fn raise() {
    // SAFETY: sends this thread a signal that it has a handler for.
    unsafe { libc::raise(libc::SIGUSR1) };
}

/// Has the kernel write which CPU the thread is on.
fn migrate() {
    for cpu in 0..sys::cpus() {
        sys::pin_to(cpu);
    }
}

fn nothing_more() {}

/// A process tells the kernel where its signal stack, its list of locks, or its restartable sequences are; then the page
/// becomes private. The process bears it, or dies; the kernel looks on.
fn left_with_the_kernel() -> Result<(), String> {
    type Way = (&'static str, fn(*mut u8), fn(), &'static str);
    let ways: [Way; 3] = [
        ("a signal stack", raise_on_its_stack, raise, "signal 11"),
        ("a list of robust locks", robust_list, nothing_more, "exit 7"),
        ("restartable sequences", restartable, migrate, "signal 11"),
    ];
    for (case, give, act, expected) in ways {
        for private in [false, true] {
            let rig = Rig::new(4)?;
            // An empty list names itself, and no lock is being taken.
            rig.map.store(0, rig.map.at(0) as u64);
            for word in [8, 16, 24] {
                rig.map.store(word, 0);
            }
            let (ready, say_ready) = sys::pipe();
            let (go, say_go) = sys::pipe();
            let at = rig.map.at(0) as usize;
            let child = forked(|| {
                give(at as *mut u8);
                tell(&say_ready);
                let _ = told(&go);
                act();
                7
            });
            STEP.same(&format!("{case}: given"), true, told(&ready));
            if private {
                STEP.same(&format!("{case}: converted"), "0", converted(rig.gmem.to_private(0, rig.size(), 60_000)));
            }
            tell(&say_go);
            // Control: on the host's page it does what it is for.
            let (which, expected) = if private { ("a private page", expected) } else { ("the host's page", "exit 7") };
            STEP.same(&format!("{case} on {which}"), expected, child.end());
        }
    }
    Ok(())
}

/// A frame is asked for by its number.
fn physical() -> Result<(), String> {
    let rig = Rig::new(1)?;
    let pfn = Hostile::open()?.pfn_of(rig.map.at(0)).map_err(errno_name)?;
    let memory = calls::open(c"/dev/mem", libc::O_RDWR).map_err(|e| format!("/dev/mem: {}", errno_name(e)))?;
    let mut came = 0u64;
    for state in ["the host's", "private"] {
        if state == "private" {
            STEP.same("/dev/mem: to private", "0", converted(rig.gmem.to_private(0, PAGE, 60_000)));
        }
        let read = call(libc::SYS_pread64, &[fd(&memory), (&raw mut came) as u64, 8, pfn << 12]);
        STEP.same(&format!("/dev/mem, a page that is {state}: read"), "EPERM", outcome(read));
        let wrote = call(libc::SYS_pwrite64, &[fd(&memory), (&raw const came) as u64, 8, pfn << 12]);
        STEP.same(&format!("/dev/mem, a page that is {state}: write"), "EPERM", outcome(wrote));
        let mapped = sys::Mapping::new(&memory, pfn << 12, PAGE_BYTES, libc::PROT_READ).map(|_| 0);
        STEP.same(&format!("/dev/mem, a page that is {state}: mmap"), "EPERM", outcome(mapped));
    }
    STEP.same("/dev/mem: back", "0", converted(rig.gmem.to_shared(0, PAGE)));
    STEP.same("/dev/mem: nothing came", 0, came);
    STEP.same("/dev/mem: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// `KPF_OFFLINE` of `/proc/kpageflags`.
const OFFLINE: u64 = 1 << 23;

/// What the kernel's table says of a frame: whether scanners and dumps are to pass it over.
fn is_offline(pfn: u64) -> Result<bool, String> {
    let mut flags = [0u8; 8];
    let file = std::fs::File::open("/proc/kpageflags").map_err(|e| e.to_string())?;
    file.read_exact_at(&mut flags, 8 * pfn).map_err(|e| format!("/proc/kpageflags: {e}"))?;
    Ok(u64::from_le_bytes(flags) & OFFLINE != 0)
}

/// A page that is frozen and still the host's frame: `el2` would let the kernel read it, and the kernel's own readers of memory
/// pass it over.
fn passed_over() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let pfn = Hostile::open()?.pfn_of(rig.map.at(bytes(HELD))).map_err(errno_name)?;
    let shows = || {
        kcore(pfn << 12).map(|page| match u64::from_le_bytes(page[..8].try_into().expect("8 bytes")) {
            seen if seen == word(HELD) => "its contents".to_owned(),
            _ if page.iter().all(|&byte| byte == 0) => "zeros".to_owned(),
            seen => format!("{seen:#x}"),
        })
    };
    // Control: of the host's page either way shows what is there.
    for state in ["the host's", "held", "the host's again"] {
        let is_held = state == "held";
        if is_held {
            STEP.same("a frozen page: to private", "0", converted(rig.gmem.to_private(0, rig.size(), 60_000)));
        }
        let expected = if is_held { "zeros" } else { "its contents" };
        STEP.same(&format!("/proc/kcore, a page that is {state}"), expected, shows()?);
        STEP.same(&format!("OFFLINE, a page that is {state}"), is_held, is_offline(pfn)?);
        if is_held {
            STEP.same("a frozen page: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
        }
    }
    STEP.same("a frozen page: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// A file system that a process serves takes its time: it holds the page that it reads from, or into.
fn fuse() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let fuse = Fuse::new(word(HELD).to_le_bytes().to_vec())?;
    let file = fuse.open()?;
    let at = rig.map.at(bytes(HELD)) as u64;
    for (case, number) in [("FUSE write", libc::SYS_pwrite64), ("FUSE read", libc::SYS_pread64)] {
        fuse.hold(true);
        let moved = std::thread::scope(|scope| {
            let mover = scope.spawn(|| call(number, &[fd(&file), at, PAGE, 0]));
            STEP.same(&format!("{case}: in flight"), 1, fuse.in_flight());
            blocks(case, &rig, || fuse.hold(false));
            mover.join().unwrap_or(Err(0))
        });
        STEP.same(&format!("{case}: its result"), "4096", outcome(moved));
        STEP.same(&format!("{case}: private"), "0", converted(rig.gmem.to_private(0, rig.size(), 60_000)));
        STEP.same(&format!("{case}: of a private page"), "EFAULT", outcome(call(number, &[fd(&file), at, PAGE, 0])));
        STEP.same(&format!("{case}: to shared"), "0", converted(rig.gmem.to_shared(0, rig.size())));
    }
    Ok(())
}

/// A populate whose source a process serves takes its time: its pages are nobody's meanwhile. Who is killed then ends when the
/// kernel lets it, which is with the answer once a request is with the server, and has brought nothing.
fn populate_from_fuse() -> Result<(), String> {
    let vm = new_vm()?;
    let size = 4 * PAGE;
    let gmem = make_gmem(&vm, size, GUEST_MEMFD_FLAG_MMAP).map_err(errno_name)?;
    let fuse = Fuse::new(word(HELD).to_le_bytes().to_vec())?;
    let file = fuse.open()?;
    // The kernel asks for the size when it is asked.
    let seen = file.try_clone().map(std::fs::File::from).and_then(|file| file.metadata()).map_or(0, |seen| seen.len());
    STEP.judged("populate from FUSE: the file's size", "four pages or more", seen, seen >= size);
    let source = sys::Mapping::mapped(bytes(4), libc::MAP_PRIVATE, file.as_raw_fd()).map_err(errno_name)?;
    let ask = Populate { offset: 0, size, source: source.at(0) as u64, error_offset: 0, reserved: [0; 4] };
    fuse.hold(true);
    let child = forked(|| u8::from(gmem.populate(ask).is_ok()));
    let in_flight = fuse.in_flight();
    STEP.judged("populate from FUSE: in flight", "1 or more", in_flight, in_flight >= 1);
    STEP.same("populate from FUSE: it has begun", "1 of some", open_attempts(&gmem));
    STEP.same("populate from FUSE: sharing meanwhile", "EAGAIN at 0x0", converted(gmem.to_shared(0, PAGE)));
    STEP.same("populate from FUSE: another one meanwhile", "EAGAIN at 0x0", converted(gmem.populate(ask)));
    child.signal(libc::SIGKILL);
    fuse.hold(false);
    STEP.same("populate from FUSE: kill -9", "signal 9", child.end());
    STEP.same("populate from FUSE: its attempt is over", true, wait_for(|| open_attempts(&gmem) == "0 of some"));
    STEP.same("populate from FUSE: served", "0", converted(gmem.populate(ask)));
    STEP.same("populate from FUSE: back", "0", converted(gmem.to_shared(0, size)));
    let map = gmem.map(bytes(4)).map_err(errno_name)?;
    STEP.same("populate from FUSE: what came", word(HELD), map.load(bytes(3)));
    Ok(())
}

const DAMON: &str = "/sys/kernel/mm/damon/admin/kdamonds";

fn damon_set(what: &str, value: &str) -> Result<(), String> {
    std::fs::write(format!("{DAMON}/{what}"), value).map_err(|e| format!("{DAMON}/{what}: {e}"))
}

/// The kernel's monitor of accesses looks at every frame and pages out what nobody touches: conversions go through.
fn damon() -> Result<(), String> {
    const ROUNDS: u32 = 40;
    let rig = Rig::new(32)?;
    damon_set("nr_kdamonds", "1")?;
    damon_set("0/contexts/nr_contexts", "1")?;
    damon_set("0/contexts/0/operations", "paddr")?;
    for (what, value) in [("sample_us", "1000"), ("aggr_us", "10000"), ("update_us", "1000000")] {
        damon_set(&format!("0/contexts/0/monitoring_attrs/intervals/{what}"), value)?;
    }
    damon_set("0/contexts/0/targets/nr_targets", "1")?;
    let ram = crate::hostile::ram();
    damon_set("0/contexts/0/targets/0/regions/nr_regions", &ram.len().to_string())?;
    for (n, (first, count)) in ram.iter().enumerate() {
        let region = format!("0/contexts/0/targets/0/regions/{n}");
        damon_set(&format!("{region}/start"), &(first << 12).to_string())?;
        damon_set(&format!("{region}/end"), &((first + count) << 12).to_string())?;
    }
    damon_set("0/contexts/0/schemes/nr_schemes", "1")?;
    damon_set("0/contexts/0/schemes/0/action", "pageout")?;
    for what in ["sz/max", "nr_accesses/max", "age/max"] {
        damon_set(&format!("0/contexts/0/schemes/0/access_pattern/{what}"), "4294967295")?;
    }
    damon_set("0/state", "on")?;
    let tried = || -> u64 {
        let _ = damon_set("0/state", "update_schemes_stats");
        let text = std::fs::read_to_string(format!("{DAMON}/0/contexts/0/schemes/0/stats/nr_tried"));
        text.unwrap_or_default().trim().parse().unwrap_or(0)
    };
    let (mut failed, mut rounds, mut looks) = (Vec::new(), 0, 0);
    let start = Instant::now();
    while rounds < ROUNDS || (looks < 3 && start.elapsed() < PATIENCE) {
        let there = converted(rig.gmem.to_private(0, rig.size(), 120_000));
        std::thread::sleep(Duration::from_millis(5));
        let back = converted(rig.gmem.to_shared(0, rig.size()));
        if there != "0" || back != "0" {
            failed.push((there, back));
        }
        rounds += 1;
        if rounds >= ROUNDS {
            looks = tried();
        }
    }
    damon_set("0/state", "off")?;
    damon_set("nr_kdamonds", "0")?;
    STEP.same("DAMON: conversions that failed", "[]", format!("{failed:?}"));
    STEP.judged("DAMON: regions that it tried meanwhile", "3 or more", looks, looks >= 3);
    STEP.same("DAMON: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// A device of the kernel's that serves a queue in this process's memory.
fn vhost() -> Result<(), String> {
    let device =
        calls::open(c"/dev/vhost-vsock", libc::O_RDWR).map_err(|e| format!("/dev/vhost-vsock: {}", errno_name(e)))?;
    const TX: u32 = 1;
    /// Packets from guest to host: descriptors, then what is available, then what was used.
    const AVAILABLE: usize = 0x400;
    const USED: usize = 0x800;
    let rig = Rig::new(4)?;
    let map = &rig.map;
    let queue = bytes(HELD);
    let ask = |case: &str, number: u32, argument: u64| {
        STEP.same(&format!("vhost: {case}"), "0", outcome(sys::ioctl_value(&device, number, argument)));
    };
    let write = |nr: u32, size: u32| freehold_uapi::ioctl::ioc(1, 0xaf, nr, size);
    ask("its owner", freehold_uapi::ioctl::ioc(0, 0xaf, 1, 0), 0);
    // One region: guest address 0 is the file.
    let table = [1u64, 0, rig.size(), map.at(0) as u64, 0];
    ask("its memory", write(3, 8), table.as_ptr() as u64);
    let kick = call(libc::SYS_eventfd2, &[0, 0]).map(sys::owned).map_err(errno_name)?;
    for index in [0, TX] {
        let number = [index, 8];
        ask("a queue's size", write(0x10, 8), number.as_ptr() as u64);
        let base = map.at(queue) as u64;
        let at = [u64::from(index), base, base + USED as u64, base + AVAILABLE as u64, 0];
        ask("a queue's place", write(0x11, 40), at.as_ptr() as u64);
    }
    let event = [u64::from(TX) | fd(&kick) << 32];
    ask("its bell", write(0x20, 8), event.as_ptr() as u64);
    let cid = 77u64;
    ask("its name", write(0x60, 8), (&raw const cid) as u64);
    let running = 1u32;
    ask("it runs", write(0x61, 4), (&raw const running) as u64);
    // A packet that is none: a descriptor of 64 bytes in another page, which it reads and throws away.
    map.store(queue, 0);
    map.store(queue + 8, 64);
    for at in (AVAILABLE..PAGE_BYTES).step_by(8) {
        map.store(queue + at, 0);
    }
    let ring = |count: u64| {
        map.store(queue + AVAILABLE, count << 16);
        let one = 1u64;
        let _ = sys::write_from(&kick, (&raw const one).cast(), 8);
    };
    let used = || map.load(queue + USED) >> 16 & 0xffff;
    let served = |count: u64| {
        let start = Instant::now();
        while used() != count && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        used()
    };
    ring(1);
    STEP.same("vhost: it serves the host's page", 1, served(1));
    STEP.same("vhost: it holds nothing", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    let one = 1u64;
    let _ = sys::write_from(&kick, (&raw const one).cast(), 8);
    std::thread::sleep(STILL);
    STEP.same("vhost: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("vhost: it served nothing of a private page", 1, used());
    let wild = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !wild.load(Ordering::Relaxed) {
                let _ = sys::write_from(&kick, (&raw const one).cast(), 8);
            }
        });
        let rounds = 0..40;
        let failed = rounds.filter(|_| {
            rig.gmem.to_private(0, rig.size(), 60_000).is_err() || rig.gmem.to_shared(0, rig.size()).is_err()
        });
        let failed = failed.count();
        wild.store(true, Ordering::Relaxed);
        failed
    });
    STEP.same("vhost: conversions that failed while it rang", 0, failed);
    Ok(())
}

/// What root may ask of a page, by its frame and by a mapping; neither can have it moved.
fn soft_offline(frame: u64, at: *mut u8) -> String {
    let by_frame = std::fs::write("/sys/devices/system/memory/soft_offline_page", format!("{:#x}", frame << 12));
    let by_frame = by_frame.map_or_else(|error| errno_name(error.raw_os_error().unwrap_or(0)), |()| "0".to_owned());
    format!("{by_frame}, {}", outcome(calls::madvise(at, PAGE_BYTES, libc::MADV_SOFT_OFFLINE)))
}

/// A file that was never bound, and whose VM has ended: nobody but its descriptor knows its pages, and the same holds.
fn a_file_alone(rig: Rig, set: &impl Fn(&str) -> String) -> Result<(), String> {
    let (pages, hostile) = (rig.pages, Hostile::open()?);
    let (gmem, map) = rig.orphaned("offline, a file alone");
    let frame = hostile.pfn_of(map.at(bytes(HELD))).map_err(errno_name)?;
    let size = pages * PAGE;
    for (state, by_mapping) in [("the host's", "EIO"), ("private", "EFAULT")] {
        if state == "private" {
            STEP.same("offline, a file alone: to private", "0", converted(gmem.to_private(0, size, 60_000)));
        }
        let seen = soft_offline(frame, map.at(bytes(HELD)));
        STEP.same(
            &format!("offline, a file alone: soft offline of a page, {state}"),
            format!("EIO, {by_mapping}"),
            seen,
        );
        STEP.same(&format!("offline, a file alone: while pages are {state}"), "EBUSY", set("offline"));
    }
    STEP.same("offline, a file alone: back", "0", converted(gmem.to_shared(0, size)));
    let same = hostile.pfn_of(map.at(bytes(HELD))) == Ok(frame);
    STEP.same("offline, a file alone: the page is where it was", true, same);
    let damaged: Vec<u64> = (0..pages).filter(|&page| map.load(bytes(page)) != word(page)).collect();
    STEP.same("offline, a file alone: contents are kept", "[]", format!("{damaged:?}"));
    STEP.same("offline, a file alone: as many have ended as begun", "0 of some", open_attempts(&gmem));
    Ok(())
}

/// Memory that the kernel was not given at boot, of one block; `mem=` keeps it from it.
const ADDED: u64 = 0x9000_0000;
const BLOCK: u64 = 128 << 20;

/// Memory that was plugged in later may be taken offline, but not while a file may have frames of it: frozen ones look
/// free (C12).
pub(crate) fn offline() -> Result<(), String> {
    let block = format!("/sys/devices/system/memory/memory{}/state", ADDED / BLOCK);
    let set = |state: &str| match std::fs::write(&block, state) {
        Ok(()) => "0".to_owned(),
        Err(error) => errno_name(error.raw_os_error().unwrap_or(0)),
    };
    // Put to use by hand, and for what can move, so that nothing else keeps it.
    std::fs::write("/sys/devices/system/memory/auto_online_blocks", "offline").map_err(|e| e.to_string())?;
    let added = Hostile::open()?.add_memory(ADDED, BLOCK);
    STEP.same("offline: a block is added", "0", outcome(added));
    STEP.same("offline: it is put to use", "0", set("online_movable"));
    // Control: without a file it goes, and comes again.
    STEP.same("offline: without a file it goes", "0", set("offline"));
    STEP.same("offline: and comes", "0", set("online_movable"));
    let rig = Rig::new(4096)?;
    for (state, private) in [("the host's", false), ("private", true)] {
        if private {
            STEP.same("offline: to private", "0", converted(rig.gmem.to_private(0, rig.size(), 60_000)));
        }
        STEP.same(&format!("offline: while pages are {state}"), "EBUSY", set("offline"));
    }
    STEP.same("offline: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("offline: contents are kept", "[]", format!("{:?}", rig.damaged()));
    a_file_alone(rig, &set)?;
    // A file ends when the last call that knew it does.
    let start = Instant::now();
    let mut gone = set("offline");
    while gone != "0" && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_secs(1));
        gone = set("offline");
    }
    STEP.same("offline: without the file it goes", "0", gone);
    Ok(())
}

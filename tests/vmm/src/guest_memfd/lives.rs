// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens to whoever waits, and to the host around it: kill, stop, freeze, exit, the OOM killer, limits, core dumps,
//! and the kernel's own scanners.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::STEP;
use super::calls::{Child, call, fd, forked, tell, told};
use super::rig::{PATIENCE, Rig, bytes, in_pipe, open_attempts, until_pending};
use crate::gmem::converted;
use crate::machine::new_gmem;
use crate::sys::{self, Mapping, errno_name};

const GROUPS: &str = "/sys/fs/cgroup";

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    ends_of_a_waiter()?;
    stopped()?;
    frozen()?;
    out_of_memory()?;
    charged()?;
    super::charges::all()?;
    super::limits::all()?;
    super::waits::all()?;
    super::busy::all()?;
    super::sleeps::all()?;
    core_dump()?;
    scanners()
}

/// A child that waits for a page which this process, and not the child, holds by a pipe.
pub(super) fn waiting(rig: &Rig, pipe: &(OwnedFd, OwnedFd), timeout_ms: u64) -> Child {
    let child = forked(|| {
        for end in [fd(&pipe.0), fd(&pipe.1)] {
            let _ = call(libc::SYS_close, &[end]);
        }
        waits(rig, timeout_ms)
    });
    STEP.same("a child waits", "pending at 0x1000", until_pending(&rig.gmem));
    child
}

fn waits(rig: &Rig, timeout_ms: u64) -> u8 {
    match rig.gmem.to_private(0, rig.size(), timeout_ms) {
        Ok(()) => 10,
        Err((libc::EINTR, _)) => 11,
        Err(_) => 12,
    }
}

/// The waiter is gone: its attempt is over, and the file is as it was.
pub(super) fn undone(case: &str, rig: &Rig) {
    let start = Instant::now();
    while open_attempts(&rig.gmem) != "0 of some" && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(2));
    }
    STEP.same(&format!("{case}: its attempt is over"), "0 of some", open_attempts(&rig.gmem));
    STEP.same(&format!("{case}: every page is as before"), "[]", format!("{:?}", rig.damaged()));
}

fn ends_of_a_waiter() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let child = waiting(&rig, &pipe, 0);
    child.signal(libc::SIGKILL);
    STEP.same("kill -9", "signal 9", child.end());
    undone("kill -9", &rig);
    let child = waiting(&rig, &pipe, 0);
    child.signal(libc::SIGTERM);
    STEP.same("a deadly signal", "signal 15", child.end());
    undone("a deadly signal", &rig);
    let (begun, begins) = sys::pipe();
    let child = forked(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                tell(&begins);
                rig.gmem.to_private(0, rig.size(), 0)
            });
            while rig.gmem.pending().is_ok_and(|p| p.pending == 0) {
                std::thread::yield_now();
            }
            // SAFETY: ends every thread of the child.
            unsafe { libc::_exit(5) }
        })
    });
    STEP.same("exit with a thread that waits: begun", true, told(&begun));
    STEP.same("exit with a thread that waits", "exit 5", child.end());
    undone("exit with a thread that waits", &rig);
    drop(pipe);
    STEP.same("afterwards it converts", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    Ok(())
}

fn state_of(child: &Child) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    text.rsplit(") ").next().unwrap_or_default().chars().next().map(String::from).unwrap_or_default()
}

pub(super) fn wait_for(mut is: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if is() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// A waiter that is stopped does not hold the pages meanwhile, and waits on when it is continued.
fn stopped() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let child = waiting(&rig, &pipe, 0);
    child.signal(libc::SIGSTOP);
    STEP.same("stopped", true, wait_for(|| state_of(&child) == "T"));
    undone("stopped", &rig);
    child.signal(libc::SIGCONT);
    STEP.same("continued: it waits again", "pending at 0x1000", until_pending(&rig.gmem));
    drop(pipe);
    STEP.same("continued: and is through", "exit 10", child.end());
    STEP.same("continued: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let child = waiting(&rig, &pipe, 100_000);
    child.signal(libc::SIGSTOP);
    STEP.same("stopped, with a deadline", true, wait_for(|| state_of(&child) == "T"));
    child.signal(libc::SIGCONT);
    STEP.same("stopped, with a deadline: EINTR", "exit 11", child.end());
    undone("stopped, with a deadline", &rig);
    Ok(())
}

/// A control group.
pub(super) struct Group(String);

impl Group {
    pub(super) fn new(name: &str) -> Result<Self, String> {
        let path = format!("{GROUPS}/{name}");
        std::fs::create_dir_all(&path).map_err(|e| format!("{path}: {e}"))?;
        Ok(Self(path))
    }

    pub(super) fn set(&self, what: &str, value: &str) -> Result<(), String> {
        let path = format!("{}/{what}", self.0);
        std::fs::write(&path, value).map_err(|e| format!("{path}: {e}"))
    }

    pub(super) fn get(&self, what: &str) -> String {
        std::fs::read_to_string(format!("{}/{what}", self.0)).unwrap_or_default()
    }

    /// A number of a file of `key value` lines.
    pub(super) fn field(&self, what: &str, key: &str) -> u64 {
        let text = self.get(what);
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0)
    }

    /// Moves the calling process into the group; for a child, which allocates nothing of its own.
    pub(super) fn join(&self, path: &std::ffi::CStr) -> bool {
        // SAFETY: a valid path.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY) };
        fd >= 0 && sys::write_from(&Raw(fd), c"0".as_ptr().cast(), 1) == Ok(1)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

struct Raw(i32);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> i32 {
        self.0
    }
}

fn frozen() -> Result<(), String> {
    let group = Group::new("frozen")?;
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let child = waiting(&rig, &pipe, 0);
    group.set("cgroup.procs", &child.id().to_string())?;
    group.set("cgroup.freeze", "1")?;
    STEP.same("frozen", true, wait_for(|| group.field("cgroup.events", "frozen") == 1));
    undone("frozen", &rig);
    group.set("cgroup.freeze", "0")?;
    STEP.same("thawed: it waits again", "pending at 0x1000", until_pending(&rig.gmem));
    drop(pipe);
    STEP.same("thawed: and is through", "exit 10", child.end());
    Ok(())
}

/// The memory cgroup kills a process that waits.
fn out_of_memory() -> Result<(), String> {
    let group = Group::new("oom")?;
    group.set("memory.max", "33554432")?;
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let child = forked(|| {
        if !group.join(c"/sys/fs/cgroup/oom/cgroup.procs") {
            return 1;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| rig.gmem.to_private(0, rig.size(), 0));
            while rig.gmem.pending().is_ok_and(|p| p.pending == 0) {
                std::thread::yield_now();
            }
            let mut kept = Vec::new();
            for _ in 0..128 {
                kept.push(vec![1u8; 1 << 20]);
            }
            std::hint::black_box(&kept);
            // SAFETY: ends every thread of the child.
            unsafe { libc::_exit(2) }
        })
    });
    STEP.same("the OOM killer", "signal 9", child.end());
    let kills = group.field("memory.events", "oom_kill");
    STEP.judged("the OOM killer: it was it", "1 or more", kills, kills >= 1);
    undone("the OOM killer", &rig);
    drop(pipe);
    Ok(())
}

/// Pages are charged to whoever brings them; a limit is ENOMEM for the caller, and nobody is killed for it.
fn charged() -> Result<(), String> {
    const MIB: u64 = 1 << 20;
    let group = Group::new("charged")?;
    group.set("memory.max", "67108864")?;
    let rig = Rig::new(1)?;
    let small = new_gmem(&rig.vm, 16 * MIB).map_err(errno_name)?;
    let large = new_gmem(&rig.vm, 128 * MIB).map_err(errno_name)?;
    let (done, says_done) = sys::pipe();
    let (go, say_go) = sys::pipe();
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    let child = forked(|| {
        if !group.join(c"/sys/fs/cgroup/charged/cgroup.procs") {
            return 1;
        }
        let some = sys::fallocate(&small, keep, 0, 16 << 20);
        tell(&says_done);
        let _ = told(&go);
        let frozen = small.to_private_now(0, 16 * MIB);
        tell(&says_done);
        let _ = told(&go);
        let much = sys::fallocate(&large, keep, 0, 128 << 20);
        u8::from(some == Ok(0)) | u8::from(frozen.is_ok()) << 1 | u8::from(much == Err(libc::ENOMEM)) << 2
    });
    let current = || group.get("memory.current").trim().parse::<u64>().unwrap_or(0);
    STEP.same("charge: allocated", true, told(&done));
    let held = current();
    STEP.judged("charge: 16 MiB are its group's", "16 MiB or more", held, held >= 16 * MIB);
    tell(&say_go);
    STEP.same("charge: frozen", true, told(&done));
    let frozen = current();
    STEP.judged("charge: frozen, they still are", "16 MiB or more", frozen, frozen >= 16 * MIB);
    tell(&say_go);
    STEP.same("charge: served, frozen, refused at the limit", "exit 7", child.end());
    STEP.same("charge: nobody was killed", 0, group.field("memory.events", "oom_kill"));
    drop((small, large));
    let back = wait_for(|| current() < 8 * MIB);
    STEP.same("charge: closed, it is back", true, back);
    Ok(())
}

/// The dump of a process that has the file mapped shows none of it, though it is told to show everything; nor does it hold
/// a page while it stands still halfway.
fn core_dump() -> Result<(), String> {
    dumped("core dump of what is shared", false)?;
    dumped("core dump", true)
}

fn dumped(name: &str, converts: bool) -> Result<(), String> {
    const PATTERN: &str = "/proc/sys/kernel/core_pattern";
    let old = std::fs::read_to_string(PATTERN).unwrap_or_default();
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    for file in ["/tmp/core.started", "/tmp/core.go", "/tmp/core.said"] {
        let _ = std::fs::remove_file(file);
    }
    std::fs::write(PATTERN, format!("|{} core-sink", me.display())).map_err(|e| format!("{PATTERN}: {e}"))?;
    let rig = Rig::new(64)?;
    for page in 0..64 {
        rig.map.store(bytes(page) + 8, SECRET);
    }
    // Control: memory of the same kind, of another file.
    let other = sys::memfd(4096).map_err(errno_name)?;
    let other = Mapping::new(&other, 0, 4096, libc::PROT_READ | libc::PROT_WRITE).map_err(errno_name)?;
    other.store(8, SHARED);
    let child = forked(|| {
        // Everything that is mapped.
        let _ = std::fs::write("/proc/self/coredump_filter", "0x7f");
        std::hint::black_box(other.load(8));
        let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the structure is alive during the call.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) };
        std::hint::black_box(rig.map.load(8));
        // Control: this word of the stack must be in the dump.
        let control = std::hint::black_box([CONTROL; 16]);
        std::hint::black_box(&control);
        // SAFETY: ends the child with a dump.
        unsafe { libc::abort() }
    });
    let begun = wait_for(|| std::path::Path::new("/tmp/core.started").exists());
    STEP.same(&format!("{name}: it has begun"), true, begun);
    if converts {
        STEP.same("core dump: convert at once", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    }
    std::fs::write("/tmp/core.go", "").map_err(|e| e.to_string())?;
    STEP.same(&format!("{name}: its end"), "signal 6", child.end());
    let said = || std::fs::read_to_string("/tmp/core.said").unwrap_or_default();
    let _ = wait_for(|| !said().is_empty());
    let expected = "stack true, other file true, secret false";
    STEP.same(&format!("{name}: shows the stack and not the file"), expected, said());
    std::fs::write(PATTERN, old.trim()).map_err(|e| format!("{PATTERN}: {e}"))?;
    Ok(())
}

const SECRET: u64 = 0x7e1f_5ec2_e7c0_ded0;
const CONTROL: u64 = 0x00c0_4712_01b1_7e55;
const SHARED: u64 = 0x0ddf_11e5_5a7e_d00d;

/// The program that a dump is piped into: says that it is there, waits, and looks through the dump.
pub(crate) fn core_sink() -> Result<(), String> {
    std::fs::write("/tmp/core.started", "").map_err(|e| e.to_string())?;
    wait_for(|| std::path::Path::new("/tmp/core.go").exists());
    let mut dump = Vec::new();
    std::io::stdin().read_to_end(&mut dump).map_err(|e| e.to_string())?;
    let has = |word: u64| dump.chunks_exact(8).any(|bytes| bytes == word.to_le_bytes());
    let said = format!("stack {}, other file {}, secret {}", has(CONTROL), has(SHARED), has(SECRET));
    std::fs::write("/tmp/core.new", said).map_err(|e| e.to_string())?;
    std::fs::rename("/tmp/core.new", "/tmp/core.said").map_err(|e| e.to_string())
}

/// Reads a file to its end; the bytes that it had.
fn drain(mut file: std::fs::File) -> usize {
    let mut buffer = vec![0u8; 1 << 20];
    std::iter::from_fn(|| file.read(&mut buffer).ok().filter(|got| *got > 0)).sum()
}

/// The kernel's own scanners take references for a moment: a conversion takes a little longer, and never fails for good.
fn scanners() -> Result<(), String> {
    const ROUNDS: u64 = 40;
    let rig = Rig::new(32)?;
    let frames: Vec<u64> = {
        let hostile = crate::hostile::Hostile::open()?;
        (0..4).filter_map(|page| hostile.pfn_of(rig.map.at(bytes(page))).ok()).collect()
    };
    STEP.same("scanners: frames of the host's pages", 4, frames.len());
    let (stop, looks) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 3]);
    let failed = std::thread::scope(|scope| {
        // How often each did what it is for.
        let spin = |who: usize, look: Box<dyn Fn() -> u64 + Send>| {
            let (stop, looks) = (&stop, &looks);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    looks[who].fetch_add(look(), Ordering::Relaxed);
                }
            });
        };
        let write = |file: &str, text: &str| u64::from(std::fs::write(file, text).is_ok());
        spin(0, Box::new(move || write("/proc/sys/vm/compact_memory", "1") & write("/proc/sys/vm/drop_caches", "1")));
        spin(
            1,
            Box::new(|| {
                let all = ["/proc/kpageflags", "/proc/kpagecount", "/proc/kpagecgroup"];
                let read = |file: &str| std::fs::File::open(file).map(|f| drain(f) > 0).unwrap_or(false);
                u64::from(all.iter().filter(|file| read(file)).count() > 0)
            }),
        );
        spin(
            2,
            Box::new(move || {
                std::thread::sleep(Duration::from_millis(5));
                // It is refused for what can not be moved, after it has looked at the page.
                let offline = |pfn: &u64| {
                    let address = format!("{:#x}", pfn << 12);
                    let done = std::fs::write("/sys/devices/system/memory/soft_offline_page", address);
                    done.map_or_else(|error| error.raw_os_error().unwrap_or(0), |()| 0)
                };
                let looked = |errno: &i32| ![libc::ENOENT, libc::EPERM, libc::EACCES].contains(errno);
                frames.iter().map(offline).filter(looked).count() as u64
            }),
        );
        let mut failed = Vec::new();
        for _ in 0..ROUNDS {
            let there = converted(rig.gmem.to_private(0, rig.size(), 120_000));
            std::thread::sleep(Duration::from_millis(5));
            let back = converted(rig.gmem.to_shared(0, rig.size()));
            if there != "0" || back != "0" {
                failed.push((there, back));
            }
        }
        stop.store(true, Ordering::Relaxed);
        failed
    });
    STEP.same("scanners: conversions that failed", "[]", format!("{failed:?}"));
    for (who, looks) in ["compaction", "page flags", "soft offline"].into_iter().zip(&looks) {
        let looks = looks.load(Ordering::Relaxed);
        STEP.judged(&format!("scanners: {who} looked meanwhile"), "once or more", looks, looks >= 1);
    }
    STEP.same("scanners: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A disk that reaches memory by itself, where no SMMU stands between, and pages that a protected guest has alone of its
//! VMM's own memory: what a process without privileges gets by `O_DIRECT`, which hands the device the page's address.
//!
//! The host lives, nothing waits for ever, and what the disk gets and brings is said: the guest's words both ways.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::time::Duration;

use crate::hostile::Hostile;
use crate::machine::{Machine, Plan};
use crate::pinned::become_nobody;
use crate::probe::probe_here;
use crate::proto::*;
use crate::raw::{resting, settle};
use crate::report::{self, Step};
use crate::sys::{self, Mapping, errno_name, outcome};

const STEP: Step = Step("direct");
const DISK: &str = "/dev/vda";
const NODE: &str = "/dev/freehold";
const PAGE: u64 = GRANULE;
const FREE: u64 = RAM_MIN;
const BYTES: u64 = 2 * RAM_MIN;
/// Pages that the guest fills.
const FILLED: u64 = 16;
const SEED: u64 = 79;
const CONTROL: u64 = 0x0d15_cd15_cd15_c0de;
/// Requests beside which the VM ends: the machine's disk ends a few a second.
const ON_THE_WAY: u64 = 4;

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Runs the cases, in a process without privileges.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    let open_to = |mode| {
        let set = |node| std::fs::set_permissions(node, std::fs::Permissions::from_mode(mode));
        [NODE, DISK].into_iter().try_for_each(|node| set(node).map_err(|e| format!("{node}: {e}")))
    };
    open_to(0o666)?;
    // SAFETY: this program has one thread here; the child goes on with its own copy of everything.
    let child = unsafe { libc::fork() };
    if child == 0 {
        if let Err(error) = become_nobody(STEP).and_then(|()| as_nobody()) {
            STEP.same("goes through", "", error);
        }
        std::process::exit(report::status());
    }
    let mut status = -1;
    // SAFETY: the status is alive during the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    open_to(0o600)?;
    STEP.same("its process ends by itself", 0, status);
    settle(STEP, "all is as before", &hostile, &before);
    Ok(())
}

/// The disk, by addresses of pages, and never through the kernel's own copies.
struct Disk(File);

impl Disk {
    fn new() -> Result<Self, String> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(DISK);
        Ok(Self(file.map_err(|e| format!("{DISK}: {e}"))?))
    }

    fn to(&self, page: u64) -> Result<(), String> {
        (&self.0).seek(SeekFrom::Start(page * PAGE)).map(drop).map_err(|e| format!("{DISK}: {e}"))
    }

    fn writes(&self, page: u64, from: *const u8) -> Result<String, String> {
        self.to(page)?;
        Ok(outcome(sys::write_from(&self.0, from, at(PAGE))))
    }

    fn reads(&self, page: u64, to: *mut u8) -> Result<String, String> {
        self.to(page)?;
        Ok(outcome(sys::read_to(&self.0, to, at(PAGE))))
    }

    /// What is on it there, by way of memory of the process' own.
    fn holds(&self, page: u64) -> Result<Vec<u64>, String> {
        let own = Mapping::anonymous(at(PAGE), false).map_err(errno_name)?;
        let done = self.reads(page, own.at(0))?;
        if done == "4096" { Ok(words(&own, 0)) } else { Err(format!("{DISK}: {done}")) }
    }
}

/// Requests that the disk has and has not ended, as the kernel counts them.
fn on_the_way() -> u64 {
    let counts = std::fs::read_to_string("/sys/block/vda/inflight").unwrap_or_default();
    counts.split_whitespace().filter_map(|count| count.parse::<u64>().ok()).sum()
}

fn words(memory: &Mapping, from: u64) -> Vec<u64> {
    (from..from + PAGE).step_by(8).map(|offset| memory.load(at(offset))).collect()
}

/// Words of the guest's in there, of its page `n`.
fn of_the_guest(seen: &[u64], n: u64) -> usize {
    let first = RAM_BASE + FREE + n * PAGE;
    seen.iter().zip((first..).step_by(8)).filter(|(word, address)| **word == pattern(SEED, *address)).count()
}

fn as_nobody() -> Result<(), String> {
    let disk = Disk::new()?;
    let own = Mapping::anonymous(at(PAGE), false).map_err(errno_name)?;
    (0..PAGE).step_by(8).for_each(|offset| own.store(at(offset), CONTROL));
    let done = disk.writes(0, own.at(0))?;
    let back = disk.holds(0)?.iter().filter(|word| **word == CONTROL).count();
    STEP.same(
        "the disk takes a page of the process' and gives it back",
        "4096, 512 words",
        format!("{done}, {back} words"),
    );

    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = Machine::plain(Plan { bytes: BYTES, ..Plan::default() }, ram.clone())?;
    machine.boot()?;
    machine.command(CMD_FILL, [RAM_BASE + FREE, FILLED * PAGE, SEED])?;
    let page = |n: u64| ram.at(at(FREE + n * PAGE));
    STEP.same("the process' own load of what the guest has", "SIGBUS", probe_here(page(1), false));
    let done = disk.writes(1, page(1))?;
    let seen = of_the_guest(&disk.holds(1)?, 1);
    STEP.same(
        "a page of the guest's, written: what the disk has",
        "4096, 512 words of it",
        format!("{done}, {seen} words of it"),
    );
    let done = disk.reads(0, page(2))?;
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE + 2 * PAGE, PAGE, SEED])?;
    STEP.same("read into one: the guest has what the disk had", "4096, 512 words", format!("{done}, {wrong} words"));
    STEP.same("and the process can not look", "SIGBUS", probe_here(page(2), false));
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE + 3 * PAGE, PAGE, SEED])?;
    STEP.same("what no disk was told of is whole", 0, wrong);

    // The VM ends with requests on their way, to the disk and from it.
    let ended: Result<Vec<String>, String> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..ON_THE_WAY)
            .map(|n| {
                let (disk, page) = (Disk::new(), page(4 + n).addr());
                scope.spawn(move || {
                    let (disk, page) = (disk?, std::ptr::without_provenance_mut(page));
                    if n % 2 == 0 { disk.writes(4 + n, page) } else { disk.reads(0, page) }
                })
            })
            .collect();
        while on_the_way() == 0 && asked.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = on_the_way();
        drop(machine);
        STEP.judged("a VM ends with requests on their way", "1 or more", left, left > 0);
        asked.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("died".into()))).collect()
    });
    let ended = ended?;
    STEP.same(
        "a VM that ends meanwhile: each request comes back",
        format!("{:?}", ["4096"; ON_THE_WAY as usize]),
        format!("{ended:?}"),
    );
    let secret: usize = (1..FILLED).map(|n| of_the_guest(&words(&ram, FREE + n * PAGE), n)).sum();
    STEP.same("and nothing of the guest's is in the process' memory", 0, secret);
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose memory it is that a file keeps its books in and that a VM's pool has: the memory cgroup's of whoever makes them,
//! until they go. At the group's limit the call gets ENOMEM, and nobody is killed.

use std::os::fd::OwnedFd;

use freehold_uapi::hvc;

use super::STEP;
use super::calls::{Child, forked, tell, told};
use super::lives::{Group, wait_for};
use super::rig::{PAGE, new_vm};
use crate::hostile::Hostile;
use crate::machine::{VM_TYPE, new_gmem, open};
use crate::sys;

/// A file of many offsets and never a page; its books are 8 bytes for the frame and 16 for the state of each.
const LARGE: u64 = 1 << 30;
const BOOKS: u64 = LARGE / PAGE * 24;
const VMS: usize = 32;
const MIB: u64 = 1 << 20;

/// A child in a group that does one thing, tells, and keeps what came of it until it is told to end.
struct Keeper {
    child: Child,
    done: OwnedFd,
    go: OwnedFd,
}

impl Keeper {
    fn new(group: &Group, act: impl FnOnce(&dyn Fn()) -> bool) -> Self {
        let (done, says_done) = sys::pipe();
        let (waits, go) = sys::pipe();
        let child = forked(|| {
            if !group.join(c"/sys/fs/cgroup/charges/cgroup.procs") {
                return 1;
            }
            let kept = || {
                tell(&says_done);
                let _ = told(&waits);
            };
            kept();
            u8::from(!act(&kept)) << 1
        });
        drop((says_done, waits));
        let _ = told(&done);
        Self { child, done, go }
    }

    /// Has it do the thing, or end.
    fn goes_on(&self) {
        tell(&self.go);
    }

    fn end(self) -> String {
        self.goes_on();
        self.child.end()
    }
}

/// The group's pages of the kernel's that are nothing else: no slab, no stack, no table.
fn bare(group: &Group) -> u64 {
    let of = |what| group.field("memory.stat", what);
    let others = ["slab", "kernel_stack", "pagetables", "sec_pagetables", "percpu", "vmalloc"].map(of);
    of("kernel").saturating_sub(others.iter().sum())
}

/// Runs every part.
pub(super) fn all() -> Result<(), String> {
    let group = Group::new("charges")?;
    books(&group)?;
    pools(&group)?;
    limits(&group)
}

/// Has `act` happen in the group; `size` of the group before, and whether it grows by as much as `wanted` says meanwhile,
/// and is small again behind it.
fn grows(
    case: &str,
    group: &Group,
    size: impl Fn() -> u64,
    wanted: impl Fn() -> u64,
    act: impl FnOnce(&dyn Fn()) -> bool,
) {
    let keeper = Keeper::new(group, act);
    let before = size();
    keeper.goes_on();
    STEP.same(&format!("{case}: made"), true, told(&keeper.done));
    let wanted = wanted();
    let least = wanted / 10 * 9;
    // The kernel adds statistics up every two seconds.
    let grown = wait_for(|| size().saturating_sub(before) >= least);
    let seen = size().saturating_sub(before);
    let held = grown && wanted > 0;
    STEP.judged(&format!("{case}: its group has more"), &format!("{least} bytes, of {wanted}, or more"), seen, held);
    STEP.same(&format!("{case}: its maker"), "exit 0", keeper.end());
    let back = wait_for(|| size().saturating_sub(before) < least / 2);
    STEP.same(&format!("{case}: closed, it is back"), true, back);
}

fn books(group: &Group) -> Result<(), String> {
    let vm = new_vm()?;
    let size = || group.field("memory.stat", "kernel");
    grows(
        "charge, books",
        group,
        size,
        || BOOKS,
        |kept| {
            let file = new_gmem(&vm, LARGE);
            kept();
            file.is_ok()
        },
    );
    Ok(())
}

fn pools(group: &Group) -> Result<(), String> {
    let (kvm, hostile) = (open()?, Hostile::open()?);
    let foreign = || hostile.counter(hvc::COUNTER_FOREIGN_FRAMES, 0);
    let before = foreign();
    let frames = || (foreign() - before) * PAGE;
    grows(
        "charge, pools",
        group,
        || bare(group),
        frames,
        |kept| {
            let vms = [(); VMS].map(|()| kvm.create_vm_with_type(VM_TYPE));
            kept();
            vms.iter().all(Result::is_ok)
        },
    );
    Ok(())
}

/// Pages that the child may still bring when it has come to its limit: fewer than the first chunk of a pool has.
const LEFT: i64 = 8;

fn limits(group: &Group) -> Result<(), String> {
    let (kvm, vm) = (open()?, new_vm()?);
    let filler = new_gmem(&vm, 64 * MIB).map_err(sys::errno_name)?;
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    let page = PAGE.cast_signed();
    let keeper = Keeper::new(group, |_| {
        let books = new_gmem(&vm, LARGE).err() == Some(libc::ENOMEM);
        // To the limit, page by page, and a few back: what the child itself needs is not refused but kills it.
        let filled = (0..64 << 8).find(|n| sys::fallocate(&filler, keep, n * page, page) == Err(libc::ENOMEM));
        let back = filled.map(|n| {
            let hole = keep | libc::FALLOC_FL_PUNCH_HOLE;
            sys::fallocate(&filler, hole, (n - LEFT) * page, LEFT * page)
        });
        let pool = kvm.create_vm_with_type(VM_TYPE).err().map(|error| error.errno()) == Some(libc::ENOMEM);
        let small = new_gmem(&vm, 16 * MIB).err() == Some(libc::ENOMEM);
        books && back == Some(Ok(0)) && pool && small
    });
    let limit = group.get("memory.current").trim().parse::<u64>().unwrap_or(0) + 4 * MIB;
    group.set("memory.max", &limit.to_string())?;
    STEP.same("charge, limit: books, a VM and more books are ENOMEM", "exit 0", keeper.end());
    STEP.same("charge, limit: nobody was killed", 0, group.field("memory.events", "oom_kill"));
    Ok(())
}

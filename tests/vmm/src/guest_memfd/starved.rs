// SPDX-License-Identifier: MIT OR Apache-2.0
//! The nth allocation of a call fails, for every n: the answer is ENOMEM or a success, what was there is as it was, and
//! the same call goes through afterwards. Needs a kernel that fails allocations on demand: `--kernel debug`.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use freehold_uapi::ioctl::*;
use kvm_ioctls::VmFd;

use super::STEP;
use super::rig::{PAGE, bytes, new_vm};
use crate::gmem::{Gmem, converted};
use crate::hostile::Hostile;
use crate::machine::{Machine, Plan, VM_TYPE, make_gmem, new_gmem, open, set_slot};
use crate::proto;
use crate::raw::{resting, settle};
use crate::sys::{self, errno_name, ioctl, ioctl_value, outcome};

/// Allocations of one call, at most.
const MOST: u32 = 2000;
const PAGES: u64 = 8;

/// Has one allocation of this thread fail.
struct Fault(File);

impl Fault {
    fn new() -> Result<Self, String> {
        // Also what may wait for memory, of any size, and without a line in the log for each.
        for (file, value) in [
            ("failslab/ignore-gfp-wait", "N"),
            ("failslab/verbose", "0"),
            ("fail_page_alloc/ignore-gfp-wait", "N"),
            ("fail_page_alloc/ignore-gfp-highmem", "N"),
            ("fail_page_alloc/min-order", "0"),
            ("fail_page_alloc/verbose", "0"),
        ] {
            std::fs::write(format!("/sys/kernel/debug/{file}"), value).map_err(|e| format!("{file}: {e}"))?;
        }
        let file = File::options().read(true).write(true).open("/proc/thread-self/fail-nth");
        file.map(Self).map_err(|e| format!("fail-nth: {e}"))
    }

    /// Runs `call` with its `nth` allocation failing; its answer, and whether it had so many.
    fn run(&self, nth: u32, call: impl FnOnce() -> String) -> Result<(String, bool), String> {
        let number = nth.to_string();
        self.0.write_at(number.as_bytes(), 0).map_err(|e| e.to_string())?;
        let answer = call();
        let mut left = [0u8; 16];
        let length = self.0.read_at(&mut left, 0).map_err(|e| e.to_string())?;
        self.0.write_at(b"0", 0).map_err(|e| e.to_string())?;
        Ok((answer, left.get(..length).unwrap_or_default().trim_ascii() == b"0"))
    }
}

/// Makes something anew for each n, calls, and has `again` look at what the call left; that says "0" too.
fn each<S>(
    case: &str,
    fault: &Fault,
    mut make: impl FnMut() -> Result<S, String>,
    mut call: impl FnMut(&mut S) -> String,
    mut again: impl FnMut(&mut S) -> String,
) -> Result<(), String> {
    let (mut failed, mut odd, mut count) = (0, Vec::new(), 0);
    for nth in 1..=MOST {
        let mut subject = make()?;
        let (answer, injected) = fault.run(nth, || call(&mut subject))?;
        if !injected {
            // Control: with nothing failing it is through.
            STEP.same(&format!("{case}: with memory"), "0", answer);
            break;
        }
        count = nth;
        if answer == "0" {
            continue;
        }
        failed += 1;
        let after = again(&mut subject);
        if !answer.contains("ENOMEM") || after != "0" {
            odd.push(format!("{nth}: {answer}, then {after}"));
        }
    }
    println!("{case}: {count} allocations, {failed} refusals");
    STEP.same(&format!("{case}: neither ENOMEM nor whole afterwards"), "[]", format!("{odd:?}"));
    STEP.judged(&format!("{case}: allocations that failed"), "1 or more", failed, failed >= 1 && count < MOST);
    Ok(())
}

/// A call that makes no allocation of its own, so that none of them can fail.
fn needs_none<S>(
    case: &str,
    fault: &Fault,
    mut make: impl FnMut() -> Result<S, String>,
    mut call: impl FnMut(&mut S) -> String,
) -> Result<(), String> {
    let mut subject = make()?;
    let (answer, injected) = fault.run(1, || call(&mut subject))?;
    let failed = if injected { "one" } else { "no" };
    STEP.same(
        &format!("{case}: needs no memory"),
        "0, no allocation failed",
        format!("{answer}, {failed} allocation failed"),
    );
    Ok(())
}

/// Has the file have all of its pages.
fn reserved(gmem: &Gmem, size: u64) -> String {
    outcome(sys::fallocate(gmem, libc::FALLOC_FL_KEEP_SIZE, 0, size.cast_signed()))
}

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let fault = Fault::new()?;
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    creations(&fault)?;
    contents(&fault)?;
    batches(&fault)?;
    conversions(&fault)?;
    slots(&fault)?;
    the_host(&fault)?;
    a_guest(&fault)?;
    a_running_guest(&fault)?;
    settle(STEP, "starved: all is as before", &hostile, &rest);
    Ok(())
}

fn creations(fault: &Fault) -> Result<(), String> {
    let vm = |kvm: &mut kvm_ioctls::Kvm| {
        kvm.create_vm_with_type(VM_TYPE).map_or_else(|error| errno_name(error.errno()), |_| "0".to_owned())
    };
    each("starved: a VM", fault, open, vm, vm)?;
    let file = |vm: &mut VmFd| new_gmem(vm, PAGES * PAGE).map_or_else(errno_name, |_| "0".to_owned());
    each("starved: a file", fault, new_vm, file, file)?;
    // The call alone: a mapping of its run page that fails later does not take it back, as KVM's does not.
    let vcpu = |vm: &mut VmFd| match ioctl_value(vm, KVM_CREATE_VCPU, 0) {
        Ok(fd) => {
            drop(sys::owned(fd));
            "0".to_owned()
        }
        Err(error) => errno_name(error),
    };
    each("starved: a vCPU", fault, new_vm, vcpu, vcpu)
}

fn contents(fault: &Fault) -> Result<(), String> {
    let vm = new_vm()?;
    let size = PAGES * PAGE;
    let reserve = |gmem: &mut Gmem| reserved(gmem, size);
    each("starved: fallocate", fault, || new_gmem(&vm, size).map_err(errno_name), reserve, reserve)?;
    let text = vec![0x5a_u8; bytes(PAGES)];
    let private = || make_gmem(&vm, size, GUEST_MEMFD_FLAG_MMAP).map_err(errno_name);
    let ask = Populate { offset: 0, size, source: text.as_ptr() as u64, error_offset: 0, reserved: [0; 4] };
    // One page that the call that failed had left there would be EEXIST.
    let populate = |gmem: &mut Gmem| converted(gmem.populate(ask));
    each("starved: populate", fault, private, populate, populate)
}

/// A populate of several batches into a bound file, of which an allocation behind those of its own pages fails: it has brought
/// nothing, or whole batches and says where it stopped, and goes on from there.
fn batches(fault: &Fault) -> Result<(), String> {
    const MANY: u64 = 1100;
    /// Tries behind the first pages' own, each of an allocation.
    const TRIES: u32 = 60;
    let text = vec![0x5a_u8; bytes(MANY)];
    let from = |gmem: &Gmem, page: u64| {
        let source = text.as_ptr() as u64 + page * PAGE;
        let size = (MANY - page) * PAGE;
        gmem.populate(Populate { offset: page * PAGE, size, source, error_offset: 0, reserved: [0; 4] })
    };
    let (mut odd, mut failed, mut parts) = (Vec::new(), 0, Vec::new());
    let first = u32::try_from(MANY).unwrap_or(0) - 2;
    for nth in first..first + TRIES {
        let vm = new_vm()?;
        let gmem = make_gmem(&vm, MANY * PAGE, GUEST_MEMFD_FLAG_MMAP).map_err(errno_name)?;
        set_slot(&vm, 0, proto::RAM_BASE, MANY * PAGE, &gmem, 0).map_err(errno_name)?;
        let mut seen = Ok(());
        let (_, injected) = fault.run(nth, || {
            seen = from(&gmem, 0);
            String::new()
        })?;
        if !injected {
            STEP.same("starved: populate of many pages: with memory", "0", converted(seen));
            break;
        }
        let Err((error, at)) = seen else { continue };
        failed += 1;
        let again = converted(from(&gmem, 0));
        let part = again == "EEXIST at 0x0" && at > 0 && converted(from(&gmem, at / PAGE)) == "0";
        if part {
            parts.push(at / PAGE);
        }
        if error != libc::ENOMEM || !(part || again == "0") {
            odd.push(format!("{nth}: {} at {at:#x}, then {again}", errno_name(error)));
        }
    }
    println!("starved: populate of many pages: {failed} refusals, in part at {parts:?}");
    STEP.same("starved: populate of many pages: neither refused whole nor in part", "[]", format!("{odd:?}"));
    STEP.judged("starved: populate of many pages: refusals", "1 or more", failed, failed > 0);
    Ok(())
}

fn conversions(fault: &Fault) -> Result<(), String> {
    let size = 2 * PAGES * PAGE;
    let bound = || {
        let vm = new_vm()?;
        let gmem = new_gmem(&vm, size).map_err(errno_name)?;
        set_slot(&vm, 0, proto::RAM_BASE, size, &gmem, 0).map_err(errno_name)?;
        // What has no frame needs nothing.
        match reserved(&gmem, size).as_str() {
            "0" => Ok((vm, gmem)),
            error => Err(format!("fallocate: {error}")),
        }
    };
    let now = |(_, gmem): &mut (VmFd, Gmem)| converted(gmem.to_private_now(0, size));
    each("starved: convert what a slot has", fault, bound, now, now)?;
    // Nobody holds a page, so it is given at once.
    let notify = |(_, gmem): &mut (VmFd, Gmem)| converted(gmem.to_private_notify(0, size, 0));
    each("starved: notify what a slot has", fault, bound, notify, notify)?;
    let attributes = |(vm, _): &mut (VmFd, Gmem)| {
        let attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
        let mut ask = MemoryAttributes { address: proto::RAM_BASE, size, attributes, flags: 0 };
        outcome(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &mut ask))
    };
    each("starved: attributes", fault, bound, attributes, attributes)
}

/// Slots of memory that the VMM has, and of a file's pages that are lent.
fn slots(fault: &Fault) -> Result<(), String> {
    let memory = sys::Mapping::anonymous(bytes(PAGES), false).map_err(errno_name)?;
    let plain = |vm: &mut VmFd| {
        let (guest_phys_addr, memory_size) = (proto::RAM_BASE, PAGES * PAGE);
        let userspace_addr = memory.at(0) as u64;
        let mut ask = MemoryRegion { slot: 0, flags: 0, guest_phys_addr, memory_size, userspace_addr };
        outcome(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mut ask))
    };
    let ordinary = || open()?.create_vm().map_err(|error| errno_name(error.errno()));
    each("starved: a slot of an ordinary VM", fault, ordinary, plain, plain)?;
    each("starved: a slot of a protected VM's plain memory", fault, new_vm, plain, plain)?;
    let file = || {
        let vm = ordinary()?;
        let gmem = new_gmem(&vm, PAGES * PAGE).map_err(errno_name)?;
        Ok((vm, gmem))
    };
    let bind = |(vm, gmem): &mut (VmFd, Gmem)| {
        set_slot(vm, 0, proto::RAM_BASE, PAGES * PAGE, gmem, 0).map_or_else(errno_name, |()| "0".to_owned())
    };
    needs_none("starved: a slot of a file that is lent", fault, file, bind)
}

/// A page of the host's is brought by its first touch: by a system call, which says so where there is no memory, and by a
/// load, which comes again until there is.
fn the_host(fault: &Fault) -> Result<(), String> {
    let vm = new_vm()?;
    let fresh = || {
        let gmem = new_gmem(&vm, PAGES * PAGE).map_err(errno_name)?;
        let map = gmem.map(bytes(PAGES)).map_err(errno_name)?;
        Ok((sys::pipe(), map))
    };
    type Subject = ((OwnedFd, OwnedFd), sys::Mapping);
    let splice = |((_, writer), map): &mut Subject| {
        let held = sys::vmsplice(writer, map.at(bytes(1)), bytes(1));
        if held == Ok(4096) { "0".to_owned() } else { outcome(held) }
    };
    each("starved: a system call that touches a page", fault, fresh, splice, splice)?;
    let load = |(_, map): &mut Subject| outcome(Ok(map.load(bytes(2)).cast_signed()));
    let (mut nth, mut injected) = (0, true);
    let mut seen = Vec::new();
    while injected && nth < MOST {
        nth += 1;
        let mut subject = fresh()?;
        let answer;
        (answer, injected) = fault.run(nth, || load(&mut subject))?;
        seen.push(answer);
    }
    seen.retain(|answer| answer != "0");
    STEP.same("starved: a load of a page: what is not zero", "[]", format!("{seen:?}"));
    STEP.judged("starved: a load of a page: allocations that failed", "1 or more", nth - 1, nth > 1 && nth < MOST);
    Ok(())
}

/// What a guest that runs asks for, of pages that it touches and of pages that it has.
fn a_running_guest(fault: &Fault) -> Result<(), String> {
    let plan = Plan { bytes: 2 * proto::RAM_MIN, boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    let machine = RefCell::new(Machine::booted(plan)?.0);
    let next = Cell::new(proto::RAM_BASE + proto::RAM_MIN);
    let fresh = || Ok(next.replace(next.get() + PAGE));
    let said = |expected: &[u64], seen: Result<[u64; 3], String>| match seen {
        Ok(seen) if seen.starts_with(expected) => "0".to_owned(),
        Ok(seen) => format!("{seen:x?}"),
        Err(why) => why,
    };
    let ask = |command: u64, page: u64, count: u64| machine.borrow_mut().command(command, [page, count, 0]);
    let again = || machine.borrow_mut().rest_of_command(|_| ());
    let lent = [0, 1];
    let share = |page: &mut u64| said(&lent, ask(proto::CMD_SHARE, *page, 1));
    each("starved: a share of a page that it touches", fault, fresh, share, |_| said(&lent, again()))?;
    let shared = || {
        let page = fresh()?;
        ask(proto::CMD_SHARE, page, 1).map(|_| page)
    };
    let unshare = |page: &mut u64| said(&lent, ask(proto::CMD_UNSHARE, *page, 1));
    // What it has comes and goes without any.
    needs_none("starved: an unshare", fault, shared, unshare)?;
    let touched = || {
        let page = fresh()?;
        ask(proto::CMD_LOAD, page, 0).map(|_| page)
    };
    let relinquish = |page: &mut u64| said(&[0], ask(proto::CMD_RELINQUISH, *page, 0));
    needs_none("starved: a relinquish", fault, touched, relinquish)
}

/// Its first run, and the pages that it touches until it asks for a command.
fn a_guest(fault: &Fault) -> Result<(), String> {
    let boot = |machine: &mut Machine| match machine.boot() {
        Ok(boot) if boot.hash_ok == 1 => "0".to_owned(),
        Ok(boot) => format!("hash {}", boot.hash_ok),
        Err(error) => error,
    };
    // Private from the start: what the program does not fill comes by touches.
    let populated = || {
        Machine::populated(Plan::default(), |gmem, _, program| {
            let mut padded = program.to_vec();
            padded.resize(padded.len().next_multiple_of(bytes(1)), 0);
            let (size, source) = (padded.len() as u64, padded.as_ptr() as u64);
            let ask = Populate { offset: 0, size, source, error_offset: 0, reserved: [0; 4] };
            gmem.populate(ask).map_err(|(error, at)| format!("populate: {} at {at:#x}", errno_name(error)))
        })
    };
    each("starved: a guest that boots", fault, populated, boot, boot)
}

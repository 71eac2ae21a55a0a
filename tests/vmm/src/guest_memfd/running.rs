// SPDX-License-Identifier: MIT OR Apache-2.0
//! Conversions under a guest that has run: what it gets then is zeros, and what it takes back it takes back whole.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use freehold_uapi::ioctl::Populate;

use super::STEP;
use super::convert::shown;
use super::draining::{beside, read_out};
use super::lives::wait_for;
use super::rig::{PAGE, PAGE_BYTES, bytes, in_pipe, open_attempts, until_pending, word};
use crate::cpus::{self, Seat};
use crate::gmem::{Gmem, converted};
use crate::machine::{Event, Machine, Plan};
use crate::probe::{Access, probe};
use crate::proto;
use crate::sys::{Mapping, fallocate, outcome};
use crate::vgic::{Cloned as _, interrupt, spi};

const BASE: u64 = proto::RAM_BASE;
const COUNT: u64 = 4;
const SEED: u64 = 3;

/// Runs every part.
pub(super) fn all() -> Result<(), String> {
    notified_late()?;
    a_range_comes_back_whole()?;
    interrupts_come_meanwhile()
}

/// A notified conversion freezes what the host had prepared; its guest, which runs, finds zeros there (I9).
fn notified_late() -> Result<(), String> {
    let (offset, page) = (proto::RAM_MIN, bytes(proto::RAM_MIN / PAGE));
    let plan = Plan { bytes: 2 * proto::RAM_MIN, boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    let (mut machine, _) = Machine::booted(plan)?;
    machine.ram.store(page, word(7));
    let pipe = in_pipe(machine.ram.at(page));
    let begun = converted(machine.gmem.to_private_notify(offset, PAGE, 0));
    STEP.same("notify, its guest ran: a held page", format!("EINPROGRESS at {offset:#x}"), begun);
    STEP.same("notify, its guest ran: what the pipe has", word(7), read_out(&pipe.0)?);
    drop(pipe);
    STEP.same("notify, its guest ran: poll", true, machine.gmem.polls_in(60_000));
    STEP.same("notify, its guest ran: the outcome", format!("{offset:#x}+0x1000: 0 at 0x0"), shown(&machine.gmem));
    STEP.same("notify, its guest ran: the host", "SIGBUS", probe(machine.ram.at(page), Access::Load));
    let load = machine.command(proto::CMD_LOAD, [BASE + offset, 0, 0])?;
    STEP.same("notify, its guest ran: what it reads", "[0, 0]", format!("{:?}", &load[..2]));
    Ok(())
}

/// A guest takes back four pages with one call, and the host holds the third: none is the guest's alone before all are, and
/// a signal puts all of them back.
fn a_range_comes_back_whole() -> Result<(), String> {
    let (mut machine, _) = Machine::booted(Plan { boot: proto::BOOT_NO_SHARE, ..Plan::default() })?;
    let pages = proto::SHARE_BASE + 8 * proto::GRANULE;
    let offset = pages - BASE;
    let at = |page: u64| bytes(offset / PAGE + page);
    machine.command(proto::CMD_FILL, [pages, COUNT * PAGE, SEED])?;
    let lent = machine.command(proto::CMD_SHARE, [pages, COUNT, 0])?;
    STEP.same("unshare of four: lent", "[0, 4]", format!("{:?}", &lent[..2]));
    let (gmem, ram) = (machine.gmem.clone(), machine.ram.clone());
    is_the_guests_to_take_back(&gmem, &ram, offset)?;
    let first = |page: u64| proto::pattern(SEED, pages + page * PAGE);
    let pipe = in_pipe(ram.at(at(2)));
    let pending = format!("pending at {:#x}", offset + 2 * PAGE);
    machine.answer(proto::CMD_UNSHARE, [pages, COUNT, 0]);
    let event = beside(
        || machine.step(),
        |thread, ended| {
            STEP.same("unshare of four: it waits for the third", &pending, until_pending(&gmem));
            let first = probe(ram.at(at(0)), Access::Load);
            STEP.same("unshare of four: between two stretches the host reads the first", "done", first);
            STEP.same("unshare of four: it has not returned", false, ended.load(Ordering::SeqCst));
            interrupt(thread);
        },
    );
    STEP.same("unshare of four: a signal", format!("{:?}", Event::Interrupted), format!("{event:?}"));
    let wrong: Vec<u64> = (0..COUNT).filter(|&page| ram.load(at(page)) != first(page)).collect();
    STEP.same("unshare of four: what the host does not read then", "[]", format!("{wrong:?}"));
    let back = beside(
        || machine.rest_of_command(|_| ()),
        |_, _| {
            STEP.same("unshare of four: it waits again", &pending, until_pending(&gmem));
            STEP.same("unshare of four: what the pipe has", first(2), read_out(&pipe.0).unwrap_or(0));
        },
    )?;
    STEP.same("unshare of four: let go, it returns", "[0, 4]", format!("{:?}", &back[..2]));
    let check = machine.command(proto::CMD_CHECK, [pages, COUNT * PAGE, SEED])?;
    STEP.same("unshare of four: the guest's contents", 0, check[0]);
    for page in [0, COUNT - 1] {
        STEP.same(&format!("unshare of four: the host reads {page}"), "SIGBUS", probe(ram.at(at(page)), Access::Load));
    }
    STEP.same("unshare of four: as many have ended as begun", "0 of some", open_attempts(&gmem));
    Ok(())
}

/// What the guest has lent is the host's to map, and nobody's in the host to move: each call is refused where it stands, and
/// changes nothing.
fn is_the_guests_to_take_back(gmem: &Gmem, ram: &Mapping, offset: u64) -> Result<(), String> {
    let page = bytes(offset / PAGE);
    let was = ram.load(page);
    let source = vec![0x5a_u8; PAGE_BYTES];
    let ask = Populate { offset, size: PAGE, source: source.as_ptr() as u64, error_offset: 0, reserved: [0; 4] };
    let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    for pages in [1, COUNT] {
        let (case, at) = (format!("a lent page, {pages} of four"), format!("{offset:#x}"));
        let size = pages * PAGE;
        STEP.same(
            &format!("{case}: to private"),
            format!("EPERM at {at}"),
            converted(gmem.to_private(offset, size, 0)),
        );
        STEP.same(&format!("{case}: at once"), format!("EPERM at {at}"), converted(gmem.to_private_now(offset, size)));
        let begun = converted(gmem.to_private_notify(offset, size, 0));
        STEP.same(&format!("{case}: by itself"), format!("EPERM at {at}"), begun);
        STEP.same(&format!("{case}: to shared, which it is"), "0", converted(gmem.to_shared(offset, size)));
        let punched = outcome(fallocate(gmem, how, offset.cast_signed(), size.cast_signed()));
        STEP.same(&format!("{case}: a hole"), "EBUSY", punched);
    }
    STEP.same("a lent page: populate", format!("EEXIST at {offset:#x}"), converted(gmem.populate(ask)));
    STEP.same("a lent page: nothing has changed", was, ram.load(page));
    STEP.same("a lent page: as many have ended as begun", "0 of some", open_attempts(gmem));
    Ok(())
}

/// While a vCPU waits for what the host holds its guest takes interrupts there, and its other vCPU works in the same page: the
/// host's interrupt comes when the wait is seen, the timer is armed by that one's handler, and the host lets go when the other
/// vCPU says that both were taken.
fn interrupts_come_meanwhile() -> Result<(), String> {
    let plan = Plan { bytes: 2 * proto::RAM_MIN, boot: proto::BOOT_NO_SHARE, gic: true, vcpus: 2, ..Plan::default() };
    let (mut machine, _) = Machine::booted(plan)?;
    let wire = machine.vm.as_fd_clone()?;
    let mut others = std::mem::take(&mut machine.others);
    let (done, served) = cpus::beside(&mut others, &wire, |seats| {
        for (command, argument) in [(proto::CMD_GIC, 2), (proto::CMD_CPU_ON, 1)] {
            let up = machine.command(command, [argument, 0, 0])?;
            STEP.same(&format!("a guest that waits: command {command}"), 0, up[0]);
        }
        let page = proto::SHARE_BASE + 8 * proto::GRANULE;
        machine.command(proto::CMD_FILL, [page, PAGE, 0])?;
        let lent = machine.command(proto::CMD_SHARE, [page, 1, 0])?;
        STEP.same("a guest that waits: lent", "[0, 1]", format!("{:?}", &lent[..2]));
        waits_awake(&mut machine, &seats[0], &wire, "unshare that waits", [page, 0])?;
        // In a page that is the guest's alone by now.
        machine.ram.store(bytes(proto::RAM_MIN / PAGE), word(7));
        waits_awake(&mut machine, &seats[0], &wire, "touch that waits", [page, BASE + proto::RAM_MIN])
    });
    done?;
    STEP.same("a guest that waits: its other vCPU's thread", true, served.iter().all(Result::is_ok));
    Ok(())
}

fn waits_awake(
    machine: &mut Machine,
    other: &Seat,
    wire: &OwnedFd,
    case: &str,
    [page, touched]: [u64; 2],
) -> Result<(), String> {
    let (gmem, ram) = (machine.gmem.clone(), machine.ram.clone());
    let offset = if touched == 0 { page } else { touched } - BASE;
    let pipe = in_pipe(ram.at(bytes(offset / PAGE)));
    let before = other.told();
    let results = beside(
        || machine.command(proto::CMD_WAITING, [1, page, touched]),
        |_, ended| {
            STEP.same(&format!("{case}: it does"), format!("pending at {offset:#x}"), until_pending(&gmem));
            STEP.same(&format!("{case}: the host's interrupt"), "0", spi(wire, 1));
            let both = wait_for(|| other.told() != before);
            STEP.same(&format!("{case}: that and the timer's are taken, and the other vCPU works on"), true, both);
            STEP.same(&format!("{case}: it waits on"), false, ended.load(Ordering::SeqCst));
            STEP.same(&format!("{case}: at the same page"), format!("pending at {offset:#x}"), until_pending(&gmem));
            let stood = read_out(&pipe.0).unwrap_or(0);
            let (what, as_it_is) =
                if touched == 0 { ("the other's work", stood > 0) } else { ("the host's word", stood == word(7)) };
            STEP.judged(&format!("{case}: what the host let go of"), what, format!("{stood:#x}"), as_it_is);
        },
    )?;
    STEP.same(&format!("{case}: let go, it returns, and has taken both"), "[0, 2]", format!("{:?}", &results[..2]));
    STEP.same(&format!("{case}: the host reads it"), "SIGBUS", probe(ram.at(bytes(offset / PAGE)), Access::Load));
    STEP.same(&format!("{case}: as many have ended as begun"), "0 of some", open_attempts(&gmem));
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Conversions under a guest that has run: what it gets then is zeros, and what it takes back it takes back whole.

use std::sync::atomic::Ordering;

use super::STEP;
use super::convert::shown;
use super::draining::{beside, read_out};
use super::rig::{PAGE, bytes, in_pipe, open_attempts, until_pending, word};
use crate::gmem::converted;
use crate::machine::{Event, Machine, Plan};
use crate::probe::{Access, probe};
use crate::proto;
use crate::vgic::interrupt;

const BASE: u64 = proto::RAM_BASE;
const COUNT: u64 = 4;
const SEED: u64 = 3;

/// Runs every part.
pub(super) fn all() -> Result<(), String> {
    notified_late()?;
    a_range_comes_back_whole()
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
    let first = |page: u64| proto::pattern(SEED, pages + page * PAGE);
    let pipe = in_pipe(ram.at(at(2)));
    let pending = format!("pending at {:#x}", offset + 2 * PAGE);
    machine.answer(proto::CMD_UNSHARE, [pages, COUNT, 0]);
    let event = beside(
        || machine.step(),
        |thread, ended| {
            STEP.same("unshare of four: it waits for the third", &pending, until_pending(&gmem));
            STEP.same("unshare of four: the host reads the first", "SIGBUS", probe(ram.at(at(0)), Access::Load));
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

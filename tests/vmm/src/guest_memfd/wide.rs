// SPDX-License-Identifier: MIT OR Apache-2.0
//! Windows held open (`tests/wide`): what is touched while mappings or frames are on their way is not served, and not
//! with what was there before. Begin and end stay a pair (requirements 8, 10, 11; D1 to D3).

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::STEP;
use super::calls::{forked, tell, told};
use super::rig::{PAGE, PATIENCE, Rig, bytes, open_attempts, word};
use crate::gmem::converted;
use crate::hostile::Hostile;
use crate::machine::{Event, Machine, Plan};
use crate::probe::{Access, probe};
use crate::proto;
use crate::raw::{resting, settle};
use crate::sys::{self, Mapping, errno_name, outcome};

const PARAMETERS: &str = "/sys/module/freehold/parameters";
/// Numbers of `tests/wide/wide.c`.
const SHUT: u32 = 1;
const RELEASE: u32 = 2;
const DRAIN: u32 = 4;
const DONATE: u32 = 8;
const RECALL: u32 = 16;
const FAULT: u32 = 32;
const FREEZE: u32 = 64;
const FROZEN: u32 = 128;
/// How long a window stays open: long enough for a guest on a loaded machine to run into it.
const LONG: u32 = 1500;
/// Well within the time that a fault of the host's waits for an outcome, a second.
const SHORT: u32 = 300;
/// What an old page shows.
const OLD: u64 = 0x01d_0a6e;
/// Behind the program's RAM.
const FREE: u64 = proto::RAM_MIN;

fn set(name: &str, value: impl std::fmt::Display) {
    let path = format!("{PARAMETERS}/{name}");
    if let Err(error) = std::fs::write(&path, value.to_string()) {
        STEP.same(&path, "written", error);
    }
}

fn get(name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("{PARAMETERS}/{name}")).unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

/// The next passage through one of `windows` is held open for so long.
fn arm(windows: u32, ms: u32) {
    set("ms", ms);
    set("windows", windows);
    set("left", 1);
}

/// Whether a window beyond those `before` opens while patience lasts. Counted, since a machine that is busy may look
/// again only when it has closed.
fn opens(before: u64) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if get("opened") > before {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// `act` is held in the first of `windows` that it comes to, and `touch` happens meanwhile: the result of each, and
/// whether the touch was answered before the window closed.
fn meanwhile<T>(windows: u32, act: impl FnOnce() -> String + Send, touch: impl FnOnce() -> T) -> (String, T, bool) {
    // What waits for a lock has no end to its patience.
    held(windows, if windows == DRAIN { SHORT } else { LONG }, act, touch)
}

fn held<T>(windows: u32, ms: u32, act: impl FnOnce() -> String + Send, touch: impl FnOnce() -> T) -> (String, T, bool) {
    let before = get("opened");
    arm(windows, ms);
    std::thread::scope(|scope| {
        let actor = scope.spawn(act);
        STEP.same(&format!("window {windows}: it opens"), true, opens(before));
        let touched = touch();
        let early = get("open") == 1;
        (actor.join().unwrap_or_else(|_| "panicked".to_owned()), touched, early)
    })
}

/// As [`held`], for as long as it takes to ask.
fn held_until_asked<T>(window: u32, act: impl FnOnce() -> String + Send, ask: impl FnOnce() -> T) -> (String, T) {
    let asked = || {
        let answer = ask();
        set("windows", 0);
        answer
    };
    let (done, answer, _) = held(window, u32::try_from(PATIENCE.as_millis()).unwrap_or(LONG), act, asked);
    (done, answer)
}

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    set("fault", "N");
    set("unlocked", "N");
    set("compares", "N");
    conversions()?;
    a_reference_comes(&hostile)?;
    a_fault_returns("0, after it", "zero")?;
    a_guest_touches()?;
    holes()?;
    a_slot_goes()?;
    a_slot_stays()?;
    a_vm_goes()?;
    settle(STEP, "wide: all is back", &hostile, &rest);
    Ok(())
}

/// The lock is let go while a window is open: the touch is answered at once, with the page that is about to be freed.
pub(crate) fn planted() -> Result<(), String> {
    set("fault", "Y");
    let (seen, early) = hole(RELEASE)?;
    STEP.same("planted: the guest finds the old page", format!("{OLD:#x}, window open"), shown(seen, early));
    set("fault", "N");
    let (seen, early) = hole(RELEASE)?;
    STEP.same("not planted: the guest finds a new one", "0x0, window closed", shown(seen, early));
    // Nor are the folios' locks looked at: a mapping comes after those that went.
    set("unlocked", "Y");
    let seen = a_fault_returns("EAGAIN at 0x0, in it", "what was punched out");
    set("unlocked", "N");
    seen?;
    // What somebody took between a look at a page's references and its freezing is not seen.
    set("compares", "Y");
    let seen = taken_in(&Hostile::open()?, FREEZE);
    set("compares", "N");
    STEP.same("planted, compared: taken, and private beside it", "taken in it: 0, 0 references", seen?.0);
    Ok(())
}

/// Somebody takes a reference to a page by its number while it is on its way (requirements 53, 55 and 57): before it is frozen,
/// and the page waits for them; after it, and there is none to take.
fn a_reference_comes(hostile: &Hostile) -> Result<(), String> {
    let (seen, rig, pfn) = taken_in(hostile, FREEZE)?;
    STEP.same("a reference, before a page is frozen", "taken in it: EAGAIN at 0x0, 2 references", seen);
    STEP.same("a reference, before a page is frozen: nothing has changed", "[]", format!("{:?}", rig.damaged()));
    hostile.drop_taken(pfn);
    STEP.same("a reference that went", "0", converted(rig.gmem.to_private_now(0, PAGE)));
    STEP.same("a reference that went: another one", false, hostile.take(pfn));
    let (seen, rig, pfn) = taken_in(hostile, FROZEN)?;
    STEP.same("a reference, after a page was frozen", "not taken in it: 0, 0 references", seen);
    STEP.same("a reference, after a page was frozen: later", false, hostile.take(pfn));
    STEP.same("a reference, after a page was frozen: back", "0", converted(rig.gmem.to_shared(0, PAGE)));
    // Control: what can be taken is.
    STEP.same("a reference to a page that is the host's", true, hostile.take(pfn));
    hostile.drop_taken(pfn);
    STEP.same("a reference, after a page was frozen: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// A page is converted, and somebody would have a reference to it while `window` is open: whether they got one, what the
/// conversion came to, and the page's references after it. The file, and the page's number.
fn taken_in(hostile: &Hostile, window: u32) -> Result<(String, Rig, u64), String> {
    let rig = Rig::new(1)?;
    let pfn = hostile.pfn_of(rig.map.at(0)).map_err(errno_name)?;
    let now = || converted(rig.gmem.to_private_now(0, PAGE));
    let (done, taken) = held_until_asked(window, now, || hostile.take(pfn));
    let references = hostile.references(pfn).map_or_else(errno_name, |count| count.to_string());
    let taken = if taken { "taken" } else { "not taken" };
    Ok((format!("{taken} in it: {done}, {references} references"), rig, pfn))
}

fn shown(seen: u64, early: bool) -> String {
    format!("{seen:#x}, window {}", if early { "open" } else { "closed" })
}

/// The host touches what is being converted, by a mapping that has no entry yet.
fn conversions() -> Result<(), String> {
    for (name, window) in [("before mappings go", SHUT), ("before a page is frozen", DRAIN)] {
        let rig = Rig::new(4)?;
        let fresh = Mapping::new(&rig.gmem, 0, bytes(4), libc::PROT_READ).map_err(errno_name)?;
        let convert = || converted(rig.gmem.to_private(0, rig.size(), 60_000));
        let (done, seen, early) = meanwhile(window, convert, || probe(fresh.at(bytes(1)), Access::Load));
        STEP.same(&format!("{name}: the conversion"), "0", done);
        STEP.same(&format!("{name}: a touch meanwhile"), "SIGBUS, after it", format!("{seen}, {}", when(early)));
        STEP.same(&format!("{name}: as many have ended as begun"), "0 of some", open_attempts(&rig.gmem));
        STEP.same(&format!("{name}: back"), "0", converted(rig.gmem.to_shared(0, rig.size())));
        STEP.same(&format!("{name}: contents are kept"), "[]", format!("{:?}", rig.damaged()));
    }
    // Where the lock is held the question would wait too.
    let rig = Rig::new(4)?;
    let convert = || converted(rig.gmem.to_private(0, rig.size(), 0));
    let (done, seen) = held_until_asked(DRAIN, convert, || open_attempts(&rig.gmem));
    STEP.same("before a page is frozen: one has begun and not ended", "1 of some", seen);
    STEP.same("before a page is frozen: the one that was seen", "0", done);
    // One that fails in the window ends all the same.
    let rig = Rig::new(4)?;
    let (reader, writer) = super::rig::in_pipe(rig.map.at(bytes(2)));
    let now = || converted(rig.gmem.to_private_now(0, rig.size()));
    let (done, seen, early) = meanwhile(DRAIN, now, || probe(rig.map.at(0), Access::Load));
    STEP.same("held: the conversion", "EAGAIN at 0x2000", done);
    STEP.same("held: a touch meanwhile", "done, after it", format!("{seen}, {}", when(early)));
    STEP.same("held: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    STEP.same("held: nothing has changed", "[]", format!("{:?}", rig.damaged()));
    drop((reader, writer));
    let private = || converted(rig.gmem.to_private(0, rig.size(), 0));
    let (done, seen) = held_until_asked(DRAIN, private, || rig.gmem.cancel());
    STEP.same("cancelled in the window", "ECANCELED at 0x0", done);
    STEP.same("cancelled in the window: the call", "Ok(())", format!("{seen:?}"));
    STEP.same("cancelled in the window: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    STEP.same("cancelled in the window: nothing has changed", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// A fault of the host's has its page and has not mapped it: whoever takes the page away waits until it has. How a conversion
/// comes out meanwhile, and what a process that faulted finds after a hole was punched there. The faults are other processes':
/// this one's memory stays locked meanwhile.
fn a_fault_returns(converts: &str, finds: &str) -> Result<(), String> {
    let rig = Rig::new(2)?;
    let fault = || probe(rig.map.at(0), Access::Load);
    let (seen, done, early) = meanwhile(FAULT, fault, || converted(rig.gmem.to_private_now(0, PAGE)));
    let either = ["done", "SIGBUS"].contains(&seen.as_str());
    STEP.judged("fault: it is served, or refused afterwards", "done or SIGBUS", seen, either);
    // It waits for the page, and may still find it in the hands of the fault that gives it up: not again.
    let done = if !early && done.starts_with("EAGAIN") { converted(rig.gmem.to_private_now(0, PAGE)) } else { done };
    STEP.same("fault: a conversion meanwhile", converts, format!("{done}, {}", when(early)));
    let (go_on, goes_on) = sys::pipe();
    let before = get("opened");
    arm(FAULT, LONG);
    let child = forked(|| {
        std::hint::black_box(rig.map.load(bytes(1)));
        let _ = told(&go_on);
        match rig.map.load(bytes(1)) {
            0 => 3,
            old if old == word(1) => 4,
            _ => 5,
        }
    });
    STEP.same("fault: before a hole, the window opens", true, opens(before));
    let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let done = outcome(sys::fallocate(&rig.gmem, how, PAGE.cast_signed(), PAGE.cast_signed()));
    STEP.same("fault: a hole meanwhile", "0, after it", format!("{done}, {}", when(get("open") == 1)));
    tell(&goes_on);
    let found = match child.end().as_str() {
        "exit 3" => "zero".to_owned(),
        "exit 4" => "what was punched out".to_owned(),
        other => other.to_owned(),
    };
    STEP.same("fault: what its process finds behind the hole", finds, found);
    STEP.same("fault: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}

fn when(early: bool) -> &'static str {
    if early { "in it" } else { "after it" }
}

/// A vCPU of a protected VM touches the page that the VMM converts: it gets it when it is the guest's, and not before.
fn a_guest_touches() -> Result<(), String> {
    for (name, window) in [("mappings", SHUT), ("freezing", DRAIN), ("donation", DONATE)] {
        let plan = Plan { bytes: FREE + 4 * PAGE, boot: proto::BOOT_NO_SHARE, ..Plan::default() };
        let (mut machine, _) = Machine::booted(plan)?;
        let (gmem, ram) = (machine.gmem.clone(), machine.ram.clone());
        ram.store(bytes(FREE / PAGE), OLD);
        let convert = || converted(gmem.to_private(FREE, PAGE, 60_000));
        let touch = || machine.command(proto::CMD_LOAD, [proto::RAM_BASE + FREE, 0, 0]);
        let (done, seen, early) = meanwhile(window, convert, touch);
        STEP.same(&format!("before {name}: the conversion"), "0", done);
        // It has run: what the host had there is not what it reads (I9).
        let seen = format!("{:x?}, {}", seen.map(|r| r[0]), when(early));
        STEP.same(&format!("before {name}: what its guest reads meanwhile"), "Ok(0), after it", seen);
        STEP.same(&format!("before {name}: the host"), "SIGBUS", probe(ram.at(bytes(FREE / PAGE)), Access::Load));
        STEP.same(&format!("before {name}: as many have ended as begun"), "0 of some", open_attempts(&gmem));
    }
    Ok(())
}

fn ordinary() -> Result<Machine, String> {
    let boot = proto::BOOT_NO_SHARE;
    let mut machine = Machine::new(Plan { bytes: FREE + 4 * PAGE, boot, ordinary: true, ..Plan::default() })?;
    machine.boot()?;
    machine.command(proto::CMD_STORE, [proto::RAM_BASE + FREE, OLD, 0])?;
    Ok(machine)
}

/// A hole is punched in what an ordinary guest has mapped, which reads there meanwhile: what it reads, and whether it did
/// before the window closed.
fn hole(window: u32) -> Result<(u64, bool), String> {
    let mut machine = ordinary()?;
    let gmem = machine.gmem.clone();
    let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let punch = || outcome(sys::fallocate(&*gmem, how, FREE.cast_signed(), PAGE.cast_signed()));
    let touch = || machine.command(proto::CMD_LOAD, [proto::RAM_BASE + FREE, 0, 0]);
    let (done, seen, early) = meanwhile(window, punch, touch);
    STEP.same(&format!("hole, window {window}: the call"), "0", done);
    STEP.same(&format!("hole, window {window}: as many have ended as begun"), "0 of some", open_attempts(&gmem));
    Ok((seen?[0], early))
}

fn holes() -> Result<(), String> {
    // While the loan stands the guest needs no fault: what it reads is what is there still.
    for (name, window, expected) in [
        ("before mappings go", SHUT, format!("{OLD:#x}, window open")),
        ("before the loan ends", RECALL, format!("{OLD:#x}, window open")),
        ("before the frame goes", RELEASE, "0x0, window closed".to_owned()),
    ] {
        let (seen, early) = hole(window)?;
        STEP.same(&format!("hole, {name}: what its guest reads"), expected, shown(seen, early));
    }
    // The host's own touch, while the frame is on its way.
    let rig = Rig::new(2)?;
    let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let punch = || outcome(sys::fallocate(&rig.gmem, how, 0, 4096));
    let (done, seen, early) = meanwhile(RELEASE, punch, || rig.map.load(0));
    STEP.same("hole, the host: the call", "0", done);
    STEP.same("hole, the host: what it reads", "0x0, window closed", shown(seen, early));
    STEP.same("hole, the host: beside it", word(1), rig.map.load(bytes(1)));
    Ok(())
}

/// Deletes the VM's slot.
fn delete(wire: &OwnedFd) -> String {
    let mut ask = crate::ordinary::NO_SLOT;
    outcome(sys::ioctl(wire, freehold_uapi::ioctl::KVM_SET_USER_MEMORY_REGION2, &mut ask))
}

/// A slot goes while its guest touches a page that it never had: it finds no slot, and no page. One that it has it reads
/// until the loan has ended, and not a moment longer.
fn a_slot_goes() -> Result<(), String> {
    let mut machine = ordinary()?;
    let wire = crate::vgic::Cloned::as_fd_clone(&machine.vm)?;
    let load = [proto::RAM_BASE + FREE, 0, 0];
    let touch = || machine.command(proto::CMD_LOAD, load).map(|r| r[0]);
    let (done, seen, early) = meanwhile(RECALL, || delete(&wire), touch);
    STEP.same("slot, of a page it has: the call", "0", done);
    let held = seen.as_ref().map_or_else(|why| why.contains("MemoryFault") && !early, |&word| word == OLD && early);
    let seen = format!("{seen:x?}, {}", when(early));
    STEP.judged("slot, of a page it has: its guest", "the page in it, or MemoryFault after it", &seen, held);
    if seen.starts_with("Ok") {
        let event = format!("{:?}", machine.last_command(proto::CMD_LOAD, load));
        let held = event.contains("MemoryFault");
        STEP.judged("slot, of a page it has: its guest afterwards", "MemoryFault", event, held);
    }
    drop(machine);
    let mut machine = ordinary()?;
    let gmem = machine.gmem.clone();
    let wire = crate::vgic::Cloned::as_fd_clone(&machine.vm)?;
    let gone = || delete(&wire);
    let touch = || machine.last_command(proto::CMD_LOAD, [proto::RAM_BASE + FREE + PAGE, 0, 0]);
    let (done, event, early) = meanwhile(RECALL, gone, touch);
    STEP.same("slot: the call", "0", done);
    let seen = format!("{event:?}, {}", when(early));
    let held = matches!(&event, Event::Broken(why) if why.contains("MemoryFault")) && !early;
    STEP.judged("slot: its guest meanwhile", "MemoryFault, after it", seen, held);
    STEP.same("slot: as many have ended as begun", "0 of some", open_attempts(&gmem));
    // What it lent is the host's, with its contents.
    STEP.same("slot: the page it had", format!("{OLD:#x}"), format!("{:#x}", machine.ram.load(bytes(FREE / PAGE))));
    Ok(())
}

/// The slot of a protected VM stays while a page of it is on its way to the guest, and once the guest has run.
fn a_slot_stays() -> Result<(), String> {
    let plan = Plan { bytes: FREE + 4 * PAGE, boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    let mut machine = Machine::new(plan)?;
    let (gmem, ram) = (machine.gmem.clone(), machine.ram.clone());
    let wire = crate::vgic::Cloned::as_fd_clone(&machine.vm)?;
    ram.store(bytes(FREE / PAGE), OLD);
    let (done, deleted, _) = meanwhile(DRAIN, || converted(gmem.to_private(FREE, PAGE, 60_000)), || delete(&wire));
    STEP.same("slot, protected: a conversion before the first run", "0", done);
    STEP.same("slot, protected: deleted meanwhile", "EBUSY", deleted);
    gmem.to_private(0, plan.private, 0).map_err(|(e, at)| format!("convert: {} at {at:#x}", errno_name(e)))?;
    machine.boot()?;
    let touch = || {
        let seen = machine.command(proto::CMD_LOAD, [proto::RAM_BASE + FREE + PAGE, 0, 0]);
        format!("{:x?}", seen.map(|r| r[0]))
    };
    let (seen, deleted, _) = meanwhile(DONATE, touch, || delete(&wire));
    STEP.same("slot, protected: deleted while its guest touches a page", "EPERM", deleted);
    STEP.same("slot, protected: its guest gets the page", "Ok(0)", seen);
    let kept = machine.command(proto::CMD_LOAD, [proto::RAM_BASE + FREE, 0, 0])?;
    STEP.same("slot, protected: what was there before the first run", OLD, kept[0]);
    STEP.same("slot, protected: as many have ended as begun", "0 of some", open_attempts(&gmem));
    Ok(())
}

/// Everything of a protected VM is closed but a mapping, through which the host touches a page that its guest had lent it:
/// before mappings go its frame is scrubbed already, and behind them comes a new one.
fn a_vm_goes() -> Result<(), String> {
    for (name, window, expected) in
        [("before mappings go", SHUT, "0x0, window open"), ("before the frame goes", RELEASE, "0x0, window closed")]
    {
        let (mut machine, _) = Machine::booted(Plan { boot: proto::BOOT_NO_SHARE, ..Plan::default() })?;
        // The first page: the others come back after it.
        let lent = machine.command(proto::CMD_SHARE, [proto::RAM_BASE, 1, 0])?;
        STEP.same(&format!("close, {name}: the guest lends a page"), "[0, 1]", format!("{:?}", &lent[..2]));
        let ram = machine.ram.clone();
        let before = ram.load(0);
        STEP.judged(&format!("close, {name}: what the host reads before"), "not 0x0", before, before != 0);
        let gone = move || {
            drop(machine);
            "closed".to_owned()
        };
        let (done, seen, early) = meanwhile(window, gone, || ram.load(0));
        STEP.same(&format!("close, {name}: the VM is"), "closed", done);
        STEP.same(&format!("close, {name}: what the host reads"), expected, shown(seen, early));
    }
    Ok(())
}

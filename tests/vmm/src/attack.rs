// SPDX-License-Identifier: MIT OR Apache-2.0
//! Step 6 of the main job: the host attacks a running guest's memory, and fails (I2, I4).
//!
//! Each way in is tried with a load, a store and, where it can, a fetch; `el2`'s fault counter must have moved and the
//! guest's hash of its memory must not. Which frames are the guest's is learnt while the VMM may still map them.

use std::os::unix::fs::FileExt;

use freehold_uapi::hvc;

use crate::hostile::{Hostile, How, Odd};
use crate::machine::{Machine, Plan};
use crate::probe::{Access, probe, probe_here};
use crate::proto;
use crate::raw::{Arena, end, resting, settle, status_name};
use crate::report::Step;
use crate::sys::{self, outcome};

const STEP: Step = Step("6");

/// A booted machine, and the frame behind each page of its private memory.
pub(crate) struct Target {
    pub(crate) machine: Machine,
    pub(crate) boot: crate::machine::Boot,
    pub(crate) frames: Vec<u64>,
}

impl Target {
    /// Builds the machine, touches every page, learns its frame, converts and boots.
    pub(crate) fn new(hostile: &Hostile, plan: Plan) -> Result<Self, String> {
        let mut machine = Machine::new(plan)?;
        let mut frames = Vec::new();
        let mut at = 0;
        while (at as u64) < plan.private {
            std::hint::black_box(machine.ram.load(at));
            frames.push(
                hostile.pfn_of(machine.ram.at(at)).map_err(|e| format!("frame of {at:#x}: {}", sys::errno_name(e)))?,
            );
            at += 4096;
        }
        machine
            .gmem
            .to_private(0, plan.private, 0)
            .map_err(|(e, at)| format!("convert: {} at {at:#x}", sys::errno_name(e)))?;
        let boot = machine.boot()?;
        Ok(Self { machine, boot, frames })
    }

    /// The frame at an offset into RAM.
    fn frame(&self, address: u64) -> u64 {
        self.frames[usize::try_from((address - proto::RAM_BASE) >> 12).expect("small")]
    }
}

/// Faults that `el2` took from the host and passed on to it.
fn faults(hostile: &Hostile) -> (u64, u64) {
    (hostile.counter(hvc::COUNTER_HOST_FAULTS, 0), hostile.counter(hvc::COUNTER_INJECTED, 0))
}

/// Reports what an attack met, and whether both fault counters moved by at least `least` meanwhile.
fn counted(hostile: &Hostile, case: &str, expected: &str, least: u64, attack: impl FnOnce() -> String) {
    let before = faults(hostile);
    let seen = attack();
    let after = faults(hostile);
    let (taken, injected) = (after.0 - before.0, after.1 - before.1);
    let held = seen == expected && taken >= least && injected >= least;
    STEP.judged(
        case,
        &format!("{expected}; {least} faults or more"),
        format!("{seen}; {taken} faults taken, {injected} injected"),
        held,
    );
}

const PROCESS: &str = "load SIGBUS, store SIGBUS, fetch SIGBUS, write(2) from it EFAULT, read(2) into it EFAULT";
const KERNEL: &str = "load EFAULT, store EFAULT";
const ODD_WAYS: &str = "DC ZVA EFAULT, LDXR EFAULT, CAS EFAULT, PRFM done";
const TAGS: &str = "DC GZVA EFAULT, STZG EFAULT, STG EFAULT, LDG EFAULT 0";
const TABLES: &str = "load EFAULT, AT EFAULT";
const THREAD: &str = "load died, store died";
/// `RET`.
const RET: u64 = 0xd65f_03c0;

/// A process touches the frame through a PTE that the kernel made for it.
fn through_process(hostile: &Hostile, frame: u64) -> String {
    let mapping = match hostile.map(frame, 1) {
        Ok(mapping) => mapping,
        Err(error) => return format!("no mapping: {}", sys::errno_name(error)),
    };
    let at = mapping.at(0);
    let [load, store, fetch] = [Access::Load, Access::Store, Access::Fetch].map(|access| probe(at, access));
    let (reader, writer) = sys::pipe();
    let write = outcome(sys::write_from(&writer, at, 8));
    let _ = sys::write_from(&writer, [1u8; 8].as_ptr(), 8);
    let read = outcome(sys::read_to(&reader, at, 8));
    format!("load {load}, store {store}, fetch {fetch}, write(2) from it {write}, read(2) into it {read}")
}

/// The kernel touches the frame itself, with its fixups or in a thread that may die.
fn through_kernel(hostile: &Hostile, frame: u64, how: How) -> String {
    format!("load {}, store {}", hostile.access(frame, how, None).0, hostile.access(frame, how, Some(0xbad)).0)
}

/// The kernel reaches for the frame by what is neither a load nor a store.
fn through_odd_ways(hostile: &Hostile, frame: u64) -> String {
    let [zero, exclusive, atomic, prefetch] =
        [Odd::Zero, Odd::Exclusive, Odd::Atomic, Odd::Prefetch].map(|what| hostile.odd(frame, what));
    format!("DC ZVA {zero}, LDXR {exclusive}, CAS {atomic}, PRFM {prefetch}")
}

/// The kernel reaches for the frame's tags, at last with tag 5 where it can.
fn through_tags(hostile: &Hostile, frame: u64) -> String {
    let [block, zero, store] = [Odd::BlockTag, Odd::ZeroTag, Odd::StoreTag].map(|what| hostile.odd(frame, what));
    let (load, tag) = hostile.tag(frame);
    format!("DC GZVA {block}, STZG {zero}, STG {store}, LDG {load} {tag}")
}

/// The host's own stage 1 begins in the frame for a moment, and a load and an address translation go by it.
fn through_tables(hostile: &Hostile, frame: u64) -> String {
    let [load, translated] = [Odd::Walk, Odd::Translate].map(|what| hostile.walk(frame, what).0);
    format!("load {load}, AT {translated}")
}

/// A table of the kernel's half lies in a frame that a load of the kernel's would take from its VM: a walk does not.
fn through_kernels_tables(hostile: &Hostile) -> Result<(), String> {
    const GFN: u64 = proto::RAM_BASE >> 12;
    let before = resting(hostile);
    let (pool, frames) = (Arena::new(hostile, 4)?, Arena::new(hostile, 1)?);
    let [walked, loaded] = [frames.first, frames.first + 1];
    // Not for processes: the kernel may not touch what is.
    let page = own_table(walked) & !(1 << 6);
    let _ = hostile.fill(walked, &[page; 512]);
    let (how, word) = hostile.walk(walked, Odd::KernelWalk);
    STEP.same("tools: kernel walk", format!("done {page:#x}"), format!("{how} {word:#x}"));
    let vm = hostile.raw(hvc::VM_CREATE.into(), &[hvc::VM_PROTECTED, 40, pool.first, pool.frames])[1];
    let donated = [
        hostile.call(hvc::VM_RANGE, &[vm, GFN, 2]),
        hostile.call(hvc::MEM_DONATE, &[vm, walked, GFN, 2, hvc::DONATE_REVOCABLE]),
    ];
    STEP.same("kernel-tables: revocable frames", "[0, 0]", format!("{donated:?}"));
    counted(hostile, "kernel-tables-in-it", "EFAULT", 1, || hostile.walk(walked, Odd::KernelWalk).0);
    STEP.same("kernel-tables: a load of the kernel's", "done", hostile.access(loaded, How::Linear, None).0);
    let _ = hostile.call(hvc::VM_DESTROY, &[vm]);
    for (case, frame, expected) in [("after a walk", walked, hvc::SUCCESS), ("after a load", loaded, hvc::HOST_OWNED)] {
        let status = hostile.call(hvc::VM_RECLAIM, &[vm, frame, 1]);
        STEP.same(
            &format!("kernel-tables: the VM gives its frame back {case}"),
            status_name(expected),
            status_name(status),
        );
    }
    STEP.same("kernel-tables: pool frames that stay", 0, end(hostile, vm, &pool.all().collect::<Vec<_>>()));
    settle(STEP, "kernel-tables: back as before", hostile, &before);
    let freed = [pool, frames].iter().filter(|arena| hostile.free(arena.first).is_ok()).count();
    STEP.same("kernel-tables: frames are the host's again", 2, freed);
    Ok(())
}

/// A descriptor that makes its own frame a table of each level, and at the last the page behind address 0: accessed,
/// for processes too, in no global translation.
const fn own_table(frame: u64) -> u64 {
    frame << 12 | 1 << 11 | 1 << 10 | 1 << 6 | 3
}

/// Proves that the tools bite: on a frame of the host's own each of them gets through.
fn tools_work(hostile: &Hostile) {
    let Ok(frame) = hostile.alloc(0) else {
        STEP.same("tools: frame", "a frame", "none");
        return;
    };
    STEP.same("tools: nofault store", "done", hostile.access(frame, How::Linear, Some(77)).0);
    STEP.same("tools: nofault load", "(\"done\", 77)", format!("{:?}", hostile.access(frame, How::Linear, None)));
    STEP.same("tools: odd ways", ODD_WAYS.replace("EFAULT", "done"), through_odd_ways(hostile, frame));
    STEP.same("tools: odd ways seen", "(\"done\", 99)", format!("{:?}", hostile.access(frame, How::Linear, None)));
    hostile.access(frame, How::Linear, Some(own_table(frame)));
    let (load, word) = hostile.walk(frame, Odd::Walk);
    STEP.same("tools: walk", format!("done {:#x}", own_table(frame)), format!("{load} {word:#x}"));
    let (done, par) = hostile.walk(frame, Odd::Translate);
    STEP.same(
        "tools: AT",
        format!("done {frame:#x}, 0"),
        format!("{done} {:#x}, {}", par >> 12 & 0xf_ffff_ffff, par & 1),
    );
    hostile.access(frame, How::Linear, Some(RET));
    STEP.same("tools: kernel fetch", "done", hostile.odd(frame, Odd::Fetch));
    hostile.access(frame, How::Linear, Some(77));
    STEP.same("tools: plain load", "(\"done\", 77)", format!("{:?}", hostile.access(frame, How::Thread, None)));
    match hostile.map(frame, 1) {
        Ok(mapping) => {
            STEP.same("tools: process load", "done", probe(mapping.at(0), Access::Load));
            STEP.same("tools: process store", "done", probe(mapping.at(0), Access::Store));
            STEP.same("tools: store seen", 0x5a5a, mapping.load(0));
            let (_reader, writer) = sys::pipe();
            STEP.same("tools: write(2)", "8", outcome(sys::write_from(&writer, mapping.at(0), 8)));
        }
        Err(error) => {
            STEP.same("tools: map", "0", sys::errno_name(error));
        }
    }
    let seen = kcore(frame << 12).map(|bytes| bytes[..2] == [0x5a, 0x5a]);
    STEP.same("tools: kcore", "Ok(true)", format!("{seen:?}"));
    STEP.same("tools: free", "0", outcome(hostile.free(frame)));
}

/// (a) The VMM's own old mapping, through which it once touched the page: the driver, not el2, says no.
fn old_mapping(hostile: &Hostile, machine: &Machine) {
    let at = machine.ram.at(usize::try_from(proto::SECRET_BASE - proto::RAM_BASE).expect("small"));
    let shared = machine.ram.at(usize::try_from(proto::SHARE_BASE - proto::RAM_BASE).expect("small"));
    STEP.same("tools: load of a page that is shared", "done", probe_here(shared, false));
    let before = faults(hostile);
    let [load, store] = [false, true].map(|store| probe_here(at, store));
    let (_reader, writer) = sys::pipe();
    let write = outcome(sys::write_from(&writer, at, 8));
    STEP.same(
        "old-mapping",
        "load SIGBUS, store SIGBUS, write(2) from it EFAULT",
        format!("load {load}, store {store}, write(2) from it {write}"),
    );
    // A page-table entry that the driver had left would have met el2.
    STEP.same("old-mapping-never-meets-el2", format!("{before:?}"), format!("{:?}", faults(hostile)));
}

/// What the stock kernel offers to read a process's or the machine's memory: no page, no secret, and no oops.
fn by_host_tools(target: &Target) {
    let at = target.machine.ram.at(usize::try_from(proto::SECRET_BASE - proto::RAM_BASE).expect("small"));
    STEP.same("process_vm_readv", "EFAULT", outcome(sys::read_own(at, 8)));
    let file = std::fs::File::open("/proc/self/mem");
    let seen = file.and_then(|file| file.read_at(&mut [0; 8], at as u64));
    STEP.judged("proc-self-mem", "an error", format!("{seen:?}"), seen.is_err());
    let frame = target.frame(proto::SECRET_BASE);
    let seen = kcore(frame << 12);
    let clean = seen.as_ref().is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    let text = seen.map_or_else(|e| e, |_| if clean { "zeros" } else { "bytes that are not zero" }.to_string());
    STEP.same("proc-kcore", "zeros", text);
}

/// One page of `/proc/kcore`, by its physical address: of all segments that have it the first that is not zero. What is
/// free of the kernel's image is there twice, and its image's own mapping of it is gone.
pub(crate) fn kcore(address: u64) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open("/proc/kcore").map_err(|e| e.to_string())?;
    let mut head = [0u8; 0x4000];
    let got = file.read_at(&mut head, 0).map_err(|e| e.to_string())?;
    let word = |at: usize| head[..got].get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
    // ELF64: e_phoff at 32, e_phnum at 56; a program header has 56 bytes, with offset, paddr and size at 8, 24 and 32.
    let (first, count) = (word(32).ok_or("no header")?, word(56).ok_or("no header")? & 0xffff);
    let mut seen = Err("no segment of kcore has this address".to_string());
    for index in 0..count {
        let at = usize::try_from(first + index * 56).map_err(|e| e.to_string())?;
        let (Some(offset), Some(base), Some(size)) = (word(at + 8), word(at + 24), word(at + 32)) else { break };
        if (base..base.saturating_add(size)).contains(&address) {
            let mut page = vec![0xa5; 4096];
            let got = file.read_at(&mut page, offset + (address - base)).map_err(|e| e.to_string())?;
            if got != 4096 {
                return Err(format!("{got} bytes"));
            }
            let zeros = page.iter().all(|byte| *byte == 0);
            seen = Ok(page);
            if !zeros {
                break;
            }
        }
    }
    seen
}

/// (d) The carve-outs, which the host has no struct page for.
fn carve_out(hostile: &Hostile, index: u64, suffix: &str) {
    let base = hostile.counter(hvc::COUNTER_CARVEOUT_BASE, index);
    let frames = hostile.counter(hvc::COUNTER_CARVEOUT_FRAMES, index);
    let there = format!("{frames} frames from {base:#x}");
    if !STEP.judged(&format!("carve-out-found{suffix}"), "some frames", there, frames > 0) {
        return;
    }
    for (place, frame) in [("", base), ("-last-frame", base + frames - 1)] {
        let name = format!("carve-out{suffix}{place}");
        counted(hostile, &name, PROCESS, 5, || through_process(hostile, frame));
        counted(hostile, &format!("{name}-fresh-mapping"), KERNEL, 2, || through_kernel(hostile, frame, How::Fresh));
    }
    let plain = || through_kernel(hostile, base, How::FreshThread);
    counted(hostile, &format!("carve-out{suffix}-plain"), THREAD, 2, plain);
}

fn carve_outs(hostile: &Hostile) {
    carve_out(hostile, 0, "");
    carve_out(hostile, 1, "-tables");
}

/// Devices whose own DMA would write guest memory for the host: out of its reach where no SMMU controls them.
fn dma_devices(hostile: &Hostile) {
    for (name, address) in [("dma-device-fw-cfg", 0x0902_0000u64), ("dma-device-virtio-mmio", 0x0a00_0000)] {
        let pte = || match hostile.map(address >> 12, 1) {
            Ok(mapping) => {
                let [load, store] = [Access::Load, Access::Store].map(|access| probe(mapping.at(0), access));
                format!("load {load}, store {store}")
            }
            Err(error) => sys::errno_name(error),
        };
        counted(hostile, name, "load SIGBUS, store SIGBUS", 2, pte);
    }
}

/// The part of the step that needs no VM.
pub(crate) fn without_vm() -> Result<(), String> {
    let hostile = Hostile::open()?;
    tools_work(&hostile);
    carve_outs(&hostile);
    dma_devices(&hostile);
    Ok(())
}

/// The same attack by tags, on a machine that has memory for them.
pub(crate) fn tags() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let own = hostile.alloc(0).map_err(|error| format!("a frame: {}", sys::errno_name(error)))?;
    let reached = "DC GZVA done, STZG done, STG done, LDG done 5";
    STEP.same("tools: tags", reached, through_tags(&hostile, own));
    let mut target = Target::new(&hostile, Plan::default())?;
    let before = target.machine.command(proto::CMD_HASH, [0; 3])?;
    let frame = target.frame(proto::SECRET_BASE);
    counted(&hostile, "tags", TAGS, 4, || through_tags(&hostile, frame));
    let pool: Vec<u64> = hostile.unreachable().into_iter().filter(|pfn| !target.frames.contains(pfn)).collect();
    if STEP.judged("pool-found", "some frames", pool.len(), !pool.is_empty()) {
        counted(&hostile, "pool-tags", TAGS, 4, || through_tags(&hostile, pool[0]));
    }
    let after = target.machine.command(proto::CMD_HASH, [0; 3])?;
    STEP.same("guest-hash", format!("{:#x}", before[0]), format!("{:#x}", after[0]));
    let [shown, first, tried] = target.machine.command(proto::CMD_HIDDEN, [0; 3])?;
    let held = shown == 0 && tried >= 36;
    STEP.judged(
        "hidden registers are UNDEFINED where the CPU has tags",
        "none of 36 is there",
        format!("{shown} of {tried}, {first} the first"),
        held,
    );
    let promised = target.machine.command(proto::CMD_ID, [0; 3])?[0];
    STEP.same("ID registers show nothing hidden where the CPU has tags", 0, promised);
    Ok(())
}

/// Runs the step.
pub(crate) fn attack() -> Result<(), String> {
    let hostile = Hostile::open()?;
    tools_work(&hostile);
    let mut target = Target::new(&hostile, Plan::default())?;
    let before = target.machine.command(proto::CMD_HASH, [0; 3])?;

    old_mapping(&hostile, &target.machine);
    by_host_tools(&target);
    // (b) A PTE that a hostile kernel made.
    let frame = target.frame(proto::SECRET_BASE);
    let image = target.frame(proto::RAM_BASE);
    counted(&hostile, "foreign-pte", PROCESS, 5, || through_process(&hostile, frame));
    counted(&hostile, "foreign-pte-image", PROCESS, 5, || through_process(&hostile, image));
    // (c) The kernel itself, by its linear map.
    counted(&hostile, "linear-map", KERNEL, 2, || through_kernel(&hostile, frame, How::Linear));
    counted(&hostile, "linear-map-plain", THREAD, 2, || through_kernel(&hostile, frame, How::Thread));
    // A fault that el2 injects is an oops of a data abort's kin; an instruction that ran would be one of another name.
    counted(&hostile, "kernel-fetch", "died", 1, || hostile.odd(frame, Odd::Fetch));
    counted(&hostile, "odd-ways", ODD_WAYS, 3, || through_odd_ways(&hostile, frame));
    counted(&hostile, "own-tables-in-it", TABLES, 2, || through_tables(&hostile, frame));
    through_kernels_tables(&hostile)?;
    // A frame of the VM's pool, which is neither the guest's nor the host's.
    let pool: Vec<u64> = hostile.unreachable().into_iter().filter(|pfn| !target.frames.contains(pfn)).collect();
    if STEP.judged("pool-found", "some frames", pool.len(), !pool.is_empty()) {
        counted(&hostile, "pool", PROCESS, 5, || through_process(&hostile, pool[0]));
        counted(&hostile, "pool-linear-map", KERNEL, 2, || through_kernel(&hostile, pool[0], How::Linear));
    }
    carve_outs(&hostile);
    dma_devices(&hostile);

    let after = target.machine.command(proto::CMD_HASH, [0; 3])?;
    STEP.same("guest-hash", format!("{:#x}", before[0]), format!("{:#x}", after[0]));
    let copies = target.machine.command(proto::CMD_SECRET, [0; 3])?;
    STEP.same("guest-secret-copies-damaged", 0, copies[2]);
    let second = Machine::booted(Plan::default()).and_then(|(mut second, _)| second.command(proto::CMD_HASH, [0; 3]));
    STEP.judged("second-vm", "boots and hashes its memory", format!("{second:x?}"), second.is_ok());
    Ok(())
}

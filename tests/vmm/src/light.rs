// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps 4 and 5 of the main job: a protected VM runs what was written, and proves it.

use freehold_uapi::ioctl as abi;

use crate::machine::{Event, Machine, Plan};
use crate::proto;
use crate::report::Step;

const RUN: Step = Step("4");
const PROOF: Step = Step("5");

/// Runs both steps; the machine goes on living for the caller.
pub(crate) fn first_light() -> Option<Machine> {
    let mut machine = match Machine::new(Plan::default()) {
        Ok(machine) => {
            RUN.same(
                "create-vm",
                "a protected VM with a guest_memfd and a vCPU",
                "a protected VM with a guest_memfd and a vCPU",
            );
            machine
        }
        Err(error) => {
            RUN.same("create-vm", "a protected VM with a guest_memfd and a vCPU", error);
            return None;
        }
    };
    let head = machine.ram.copy_out(0, machine.program.len());
    RUN.same("program-written-through-mmap", true, head == machine.program);
    RUN.same("convert", "0", crate::gmem::converted(machine.gmem.to_private(0, proto::RAM_MIN, 0)));
    let boot = match machine.boot() {
        Ok(boot) => {
            RUN.same("runs", "asks for its first command", "asks for its first command");
            boot
        }
        Err(error) => {
            RUN.same("runs", "asks for its first command", error);
            return None;
        }
    };
    RUN.same("stage1-and-fp", proto::BOOT_ALL, boot.facts);
    prove(&mut machine, &boot);
    Some(machine)
}

fn prove(machine: &mut Machine, boot: &crate::machine::Boot) {
    let hash = proto::hash_words(&machine.program[proto::HASH_FROM..]);
    PROOF.same("image-check", format!("{hash:#x}"), format!("{:#x}", boot.hash));
    PROOF.same("image-is-what-was-built", 1, boot.hash_ok);
    PROOF.same("console", format!("{}\n", proto::BOOT_LINE), &boot.console);
    let shared = boot.shared.wrapping_sub(proto::RAM_BASE);
    PROOF.same("shared-page", format!("{:#x}", proto::SHARE_BASE), format!("{:#x}", boot.shared));
    if boot.shared == proto::SHARE_BASE {
        let bytes = machine.ram.copy_out(usize::try_from(shared).unwrap_or(0), proto::GREETING.len());
        PROOF.same("greeting", proto::GREETING, String::from_utf8_lossy(&bytes));
    }
    PROOF.judged("secret-made", "not zero, masked", "made", boot.secret != [0; 2] && boot.secret != proto::SECRET_MASK);
    for (case, command, arguments) in [
        ("fp-survives-exits", proto::CMD_FP, [16, 0, 0]),
        ("el1-state-survives-exits", proto::CMD_STATE, [16, 0, 0]),
        ("mmio-loads-of-every-size", proto::CMD_MMIO, [0; 3]),
        ("hidden-registers-undef", proto::CMD_HIDDEN, [0; 3]),
        ("id-registers-hide-what-is-not-served", proto::CMD_ID, [0; 3]),
        ("wfi-comes-back", proto::CMD_WFI, [2, 0, 0]),
    ] {
        match machine.command(command, arguments) {
            Ok([0, ..]) => PROOF.same(case, 0, 0),
            Ok(results) => PROOF.same(case, 0, format!("{results:x?}")),
            Err(error) => PROOF.same(case, 0, error),
        };
    }
    guest_calls(machine);
}

/// The guest's own calls: wrong ones are refused as the pKVM ABI says, and change nothing.
fn guest_calls(machine: &mut Machine) {
    use freehold_uapi::guest;
    let invalid = guest::INVALID_PARAMETER.cast_unsigned();
    let unknown = guest::NOT_SUPPORTED.cast_unsigned();
    let page = proto::SHARE_BASE + 8 * proto::GRANULE;
    let share = u64::from(guest::MEM_SHARE);
    let unshare = u64::from(guest::MEM_UNSHARE);
    for (case, arguments, expected) in [
        ("hvc-unknown", [0xC600_003F, 0, 0], unknown),
        ("hvc-version", [u64::from(guest::SMCCC_VERSION), 0, 0], 0x1_0002),
        ("hvc-psci-version", [u64::from(guest::PSCI_VERSION), 0, 0], 0x1_0001),
        ("hvc-meminfo", [u64::from(guest::HYP_MEMINFO), 0, 0], guest::GRANULE),
        ("share-unaligned", [share, page + 8, 1], invalid),
        ("share-outside-ram", [share, proto::DEVICE, 1], invalid),
        ("share-beyond-address-size", [share, 1 << 50, 1], invalid),
        ("unshare-what-is-private", [unshare, page, 1], invalid),
        ("share-what-is-shared", [share, proto::SHARE_BASE, 1], invalid),
    ] {
        match machine.command(proto::CMD_HVC, arguments) {
            Ok([status, ..]) => PROOF.same(case, expected.cast_signed(), status.cast_signed()),
            Err(error) => PROOF.same(case, expected.cast_signed(), error),
        };
    }
}

/// A store to RAM that is not donated yet, and memory touched first by the guest: the VMM sees neither.
///
/// The driver backs such a page inside the kernel: this shows the run page. What an exit of `el2`'s holds shows past the
/// driver, in `switch`.
pub(crate) fn canary() {
    let step = RUN;
    let plan = Plan { bytes: 2 * proto::RAM_MIN, boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    let (mut machine, _) = match Machine::booted(plan) {
        Ok(booted) => booted,
        Err(error) => {
            step.same("canary-boots", "boots", error);
            return;
        }
    };
    machine.watch = Some(proto::CANARY.to_le_bytes());
    let beyond = proto::RAM_BASE + proto::RAM_MIN;
    let at = usize::try_from(proto::RAM_MIN).unwrap_or(0);
    let stored = machine.command(proto::CMD_CANARY, [beyond, 0, 0]);
    step.same("guest-reads-its-canary", "Ok(0)", format!("{:?}", stored.map(|r| r[0])));
    step.same("run-page-never-holds-the-canary", false, machine.leaked);
    // What the host writes before the running guest's first touch must not reach it either.
    let mut first_touch = Vec::new();
    for page in proto::CANARY_PAGES..proto::CANARY_PAGES + 8 {
        let offset = proto::RAM_MIN + page * proto::GRANULE;
        machine.ram.store(usize::try_from(offset).unwrap_or(0), 0x6f6c_6420_6f6c_6421);
        first_touch.push(machine.command(proto::CMD_ZERO, [proto::RAM_BASE + offset, proto::GRANULE, 0]));
    }
    let clean = first_touch.iter().all(|result| *result == Ok([0; 3]));
    step.judged("first-touch-is-zero", "8 pages of zeros", format!("{first_touch:x?}"), clean);
    let seen = crate::probe::probe(machine.ram.at(at), crate::probe::Access::Load);
    step.same("vmm-can-not-read-it", "SIGBUS", seen);
    step.same(
        "turns-itself-off",
        format!("{:?}", Event::System(1)),
        format!("{:?}", machine.last_command(proto::CMD_OFF, [0; 3])),
    );
    debug_assert_eq!(abi::KVM_SYSTEM_EVENT_SHUTDOWN, 1);
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver's cases, asked of the kernel's own KVM: what is expected is the driver's answer, what is seen is KVM's.
//!
//! A case that does not hold is a difference, which `docs/kvm-abi.md` lists with its reason. Knows nothing of what only
//! the driver has: its counters, its files, the tools that look past it.

use crate::events::Kind;
use crate::machine::{ask_the_peer, open};
use crate::vgic::let_signals_interrupt;
use crate::{beside, cpus, events, ioctls, or_report, pinned, plain, registers, replays, runs, sheet, vgic};

/// Runs the cases.
pub(crate) fn all() {
    let_signals_interrupt();
    ask_the_peer();
    or_report("ioctls", open().map(|kvm| ioctls::system(&kvm)));
    or_report("ioctls", open().and_then(|kvm| ioctls::vm(&kvm)));
    or_report("sheet", open().and_then(|kvm| sheet::all(&kvm)));
    or_report("ioctls", open().and_then(|kvm| ioctls::vcpu(&kvm)));
    or_report("registers", registers::all());
    or_report("plain", plain::slots());
    or_report("plain", plain::mappings());
    or_report("plain", plain::remapped());
    or_report("plain", plain::copies());
    or_report("plain", plain::moves());
    or_report("plain", plain::gone());
    or_report("plain", plain::read_only::all());
    or_report("plain", plain::places::all());
    or_report("events", events::doorbells(Kind::Ordinary));
    or_report("events", events::refusals(Kind::Ordinary));
    or_report("events", events::edges(Kind::Ordinary));
    or_report("events", events::levels(Kind::Ordinary));
    or_report("events", beside::ordinary());
    or_report("cpus", cpus::unsaid());
    or_report("cpus", cpus::ends(Kind::Ordinary));
    or_report("runs", runs::all());
    or_report("pinned", pinned::slots());
    or_report("vgic", vgic::refusals());
    or_report("vgic", vgic::completion());
    or_report("vgic", vgic::ordinary());
    or_report("replays", replays::kvmtool(false));
    for protected in [false, true] {
        or_report("replays", replays::crosvm(protected));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trap loop: what the host did to come here, and who answers.
//!
//! Keeps I7: every exception that EL1 or EL0 of the host can cause has an answer, and none of them is
//! a panic. Does not know what the answers mean.

use super::{Kind, fault, hypercalls, power, statics};
use freehold_arch::host::{self, Syndrome};
use freehold_arch::inject::{self, Abort};
use freehold_arch::percpu::{PerCpu, this_cpu};
use freehold_arch::vectors::HostFrame;
use freehold_arch::{barrier, fatal};

const CLASS_HVC64: u64 = 0x16;
const CLASS_SMC64: u64 = 0x17;
const CLASS_FETCH_ABORT: u64 = 0x20;
const CLASS_DATA_ABORT: u64 = 0x24;

/// Serves one synchronous exception of the host, which the vectors have taken.
#[inline]
pub fn host_sync<K: Kind>(frame: &mut HostFrame) {
    let cpu = this_cpu();
    cpu.counters.entries.bump();
    if fatal::is_stopped() {
        barrier::halt();
    }
    let syndrome = Syndrome::read();
    match syndrome.class() {
        CLASS_HVC64 if syndrome.immediate() == 0 => {
            cpu.counters.hypercalls.bump();
            hypercalls::handle::<K>(frame);
        }
        CLASS_SMC64 => {
            cpu.counters.smcs.bump();
            host::skip_instruction();
            // The host's calls come this way too, most often: before what only the relay needs.
            if freehold_virt::smc::is_own(syndrome.immediate(), frame.x(0)) {
                hypercalls::handle::<K>(frame);
            } else {
                power::smc::<K>(cpu, syndrome.immediate(), frame);
            }
        }
        CLASS_FETCH_ABORT => fault::serve::<K>(cpu, Abort::Fetch, syndrome),
        CLASS_DATA_ABORT => fault::serve::<K>(cpu, Abort::Data, syndrome),
        CLASS_HVC64 => {
            host::step_back();
            inject::undefined();
        }
        // Whatever else EL1 can make trap does not exist for it.
        _ => inject::undefined(),
    }
}

/// Goes on with a CPU that firmware has just started or resumed, and that the entry code has brought here.
pub fn secondary_main<K: Kind>() -> ! {
    let cpu: &PerCpu = this_cpu();
    // To start or to resume is an entry to EL2 like any other.
    cpu.counters.entries.bump();
    let machine = statics::machine::<K>();
    if fatal::is_stopped() {
        barrier::halt();
    }
    if host::Alike::here() != machine.alike {
        fatal::stop(
            "stop",
            format_args!("this CPU's address size or FWB differs from the boot CPU's at cpu {}", cpu.index()),
        );
    }
    match machine.relay().arrive(cpu.index()) {
        Some(entry) => {
            host::configure(machine.host_root);
            host::enter(entry.pc, entry.context)
        }
        None => {
            fatal::stop("stop", format_args!("firmware started a CPU that nobody asked for at cpu {}", cpu.index()))
        }
    }
}

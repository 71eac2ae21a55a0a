// SPDX-License-Identifier: MIT OR Apache-2.0
//! The watched kind of build, and the symbols that the entry and the vectors call.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::Ordering;
use freehold_arch::host::{self, Syndrome};
use freehold_arch::lock::Ticket;
use freehold_arch::percpu::{self, this_cpu};
use freehold_arch::phys::Hardware;
use freehold_arch::vectors::HostFrame;
use freehold_arch::{fatal, inject, uart};
use freehold_el2::calls::GuestSlot;
use freehold_el2::wiring::{El2, Home, Kind, boot, trap};
use freehold_el2_watch::board::Last;
use freehold_el2_watch::cpu::Trap;
use freehold_el2_watch::fault::Fault;
use freehold_el2_watch::lock::Lock;
use freehold_el2_watch::platform::Watched;
use freehold_el2_watch::ports::Ports;
use freehold_el2_watch::watcher::{Ground, Watcher};
use freehold_mem::{Host, Machine};
use freehold_trace::traced::Traced;
use freehold_virt::board::Board;
use freehold_virt::handle::MAX_VMS;

/// Records of the trace: 32 MB.
const RECORDS: usize = 1 << 20;

const CLASS_HVC64: u64 = 0x16;
const CLASS_SMC64: u64 = 0x17;
const CLASS_FETCH_ABORT: u64 = 0x20;
const CLASS_DATA_ABORT: u64 = 0x24;
const S1PTW: u64 = 1 << 7;

type Eye = Watcher<Here, RECORDS>;

static WATCHER: Eye = Watcher::new(Here);
static HOME: Home<Debug> = Home::new();
static BOARDS: [BoardLock; MAX_VMS] = [const { Lock::new(Ticket::new(Board::new()), Last::new(&WATCHER)) }; MAX_VMS];

type BoardLock = Lock<Ticket<Board>, Last<&'static Eye>>;

/// This machine.
#[derive(Clone, Copy, Debug)]
struct Here;

impl Ground for Here {
    fn cpu(self) -> usize {
        this_cpu().index()
    }

    fn cpus(self) -> u8 {
        let known = percpu::all().iter().filter(|cpu| cpu.mpidr.load(Ordering::Relaxed) != percpu::NO_CPU);
        known.count() as u8
    }

    fn ports(self) -> impl Machine {
        Hardware
    }

    fn say(self, line: fmt::Arguments<'_>) {
        // The console cannot fail.
        let _ = writeln!(uart::Uart, "freehold: {line}");
    }

    fn stop(self, line: fmt::Arguments<'_>) -> ! {
        fatal::stop("stop", line)
    }

    fn fault(self) -> Fault {
        crate::FAULT
    }
}

/// The kind of build that is watched.
enum Debug {}

impl Kind for Debug {
    type Machine = Ports<Traced<Hardware, &'static Eye>, &'static Eye>;
    type HostLock = Lock<Ticket<Host<'static>>, &'static Eye>;
    type GuestLock = Lock<Ticket<GuestSlot>, &'static Eye>;
    type Platform = Watched<El2<Self>, Eye, BoardLock>;

    const MACHINE: Self::Machine = Ports { machine: Traced { machine: Hardware, sink: &WATCHER }, ears: &WATCHER };
    const PLATFORM: Self::Platform = Watched::new(El2::HERE, &WATCHER, &BOARDS);

    fn lock_host(host: Host<'static>) -> Self::HostLock {
        WATCHER.built(&host);
        Lock::new(Ticket::new(host), &WATCHER)
    }

    fn lock_guest(slot: GuestSlot) -> Self::GuestLock {
        Lock::new(Ticket::new(slot), &WATCHER)
    }

    fn home() -> &'static Home<Self> {
        &HOME
    }
}

#[unsafe(no_mangle)]
extern "C" fn freehold_main(dtb: usize) -> ! {
    let (at, bytes, count) = WATCHER.ring.place();
    // The console cannot fail.
    let _ = writeln!(uart::Uart, "freehold: trace at {at:#x} bytes {bytes:#x} count {count:#x}");
    boot::main::<Debug>(dtb)
}

#[unsafe(no_mangle)]
extern "C" fn freehold_host_sync(frame: &mut HostFrame) {
    let injected = this_cpu().counters.injected.get();
    WATCHER.begin(trap_of(frame));
    trap::host_sync::<Debug>(frame);
    WATCHER.end(core::array::from_fn(|n| frame.x(n)), this_cpu().counters.injected.get() != injected);
}

#[unsafe(no_mangle)]
extern "C" fn freehold_secondary_main() -> ! {
    trap::secondary_main::<Debug>()
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    fatal::panic(format_args!("{info}"))
}

/// What the host did.
fn trap_of(frame: &HostFrame) -> Trap {
    let syndrome = Syndrome::read();
    match syndrome.class() {
        CLASS_HVC64 | CLASS_SMC64 => {
            // SMCCC's hint that no SVE state is live is no part of an identifier.
            let id = frame.x(0) & !(1 << 16);
            Trap::Call { id: u32::try_from(id).unwrap_or(0), x: core::array::from_fn(|n| frame.x(n + 1)) }
        }
        CLASS_FETCH_ABORT | CLASS_DATA_ABORT => {
            let of_walk = syndrome.bits() & S1PTW != 0;
            Trap::Abort { page: host::fault_page(), kernel: !of_walk && inject::is_of_kernel_address() }
        }
        _ => Trap::Other,
    }
}

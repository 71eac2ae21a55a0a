// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine under the pure half: boot, traps, power and statics, for whichever binary names their symbols.
//!
//! What may happen is decided in `freehold_mem` and `freehold_virt`, how it is done in `freehold_arch`. The one thing
//! that is open here is the [`Kind`] of build: which ports, which locks. The released `el2` is [`Plain`]; a binary that
//! watches itself is another kind of the same source (D20), and nothing here asks which.

pub mod boot;
mod counters;
mod fault;
mod hypercalls;
mod power;
mod statics;
pub mod trap;

pub use hypercalls::El2;
pub use statics::Home;

use crate::calls::{GuestSlot, Platform};
use freehold_arch::lock::Ticket;
use freehold_arch::phys::Hardware;
use freehold_mem::lock::Mutex;
use freehold_mem::{Host, Machine};

/// What a build of el2 is made with.
pub trait Kind: Sized + 'static {
    /// The ports to the machine.
    type Machine: Machine + Copy;
    /// The lock around the host's memory.
    type HostLock: Mutex<Value = Host<'static>> + Sync;
    /// The lock around a VM's.
    type GuestLock: Mutex<Value = GuestSlot> + Sync;
    /// The machine as the calls see it.
    type Platform: Platform<Machine = Self::Machine, HostLock = Self::HostLock, GuestLock = Self::GuestLock>;

    /// The ports.
    const MACHINE: Self::Machine;
    /// The platform.
    const PLATFORM: Self::Platform;

    /// Puts the host's memory behind its lock.
    fn lock_host(host: Host<'static>) -> Self::HostLock;
    /// Puts a VM slot behind its lock.
    fn lock_guest(slot: GuestSlot) -> Self::GuestLock;
    /// Where the binary keeps what the boot leaves behind. Always the same place.
    fn home() -> &'static Home<Self>;
}

/// The released `el2`: the hardware and its locks, and nobody watches.
#[derive(Debug)]
pub enum Plain {}

static PLAIN: Home<Plain> = Home::new();

impl Kind for Plain {
    type Machine = Hardware;
    type HostLock = Ticket<Host<'static>>;
    type GuestLock = Ticket<GuestSlot>;
    type Platform = El2<Self>;

    const MACHINE: Hardware = Hardware;
    const PLATFORM: El2<Self> = El2::HERE;

    fn lock_host(host: Host<'static>) -> Ticket<Host<'static>> {
        Ticket::new(host)
    }

    fn lock_guest(slot: GuestSlot) -> Ticket<GuestSlot> {
        Ticket::new(slot)
    }

    fn home() -> &'static Home<Self> {
        &PLAIN
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lock order, as types: host, then one guest, never the other way round.
//!
//! A CPU inside `el2` has one [`Permit`]. Taking a lock borrows it for as long as the guard lives,
//! so a CPU that holds a guest's lock has nothing left with which to take the host's:
//!
//! ```compile_fail,E0499
//! # use freehold_mem::lock::{Mutex, Permit, World};
//! fn backwards<H: Mutex, G: Mutex>(world: &World<H, G, 4>, permit: &mut Permit) {
//!     let guest = world.guest(permit, 0);
//!     let host = world.host(permit); // the permit is with the guest's guard
//!     drop(guest);
//! }
//! ```
//!
//! while the order that is allowed compiles:
//!
//! ```
//! # use freehold_mem::lock::{Mutex, Permit, World};
//! fn forwards<H: Mutex, G: Mutex>(world: &World<H, G, 4>, permit: &mut Permit) {
//!     let host = world.host(permit);
//!     let both = host.with_guest(world, 0);
//!     drop(both);
//!     let guest = world.guest(permit, 0);
//!     drop(guest);
//! }
//! ```
//!
//! and two guests at once do not:
//!
//! ```compile_fail,E0499
//! # use freehold_mem::lock::{Mutex, Permit, World};
//! fn two<H: Mutex, G: Mutex>(world: &World<H, G, 4>, permit: &mut Permit) {
//!     let one = world.guest(permit, 0);
//!     let other = world.guest(permit, 1);
//!     drop(one);
//! }
//! ```
//!
//! A permit is neither copied nor made up:
//!
//! ```compile_fail,E0599
//! # use freehold_mem::lock::Permit;
//! fn twice(permit: &mut Permit) -> Permit {
//!     permit.clone()
//! }
//! ```
//! ```compile_fail,E0423
//! # use freehold_mem::lock::Permit;
//! let forged = Permit(());
//! ```
//!
//! It does not know how a CPU waits: that is the [`Mutex`] of whoever builds the world, which may use a [`line`]. That
//! each CPU makes one permit per entry to EL2, and no second one, is the trap loop's to keep.

pub mod line;

use core::fmt;
use core::ops::DerefMut;

/// A lock around a value, whoever makes the CPU wait.
pub trait Mutex {
    /// What it protects.
    type Value;
    /// Holds the lock while it lives.
    type Guard<'a>: DerefMut<Target = Self::Value>
    where
        Self: 'a;

    /// Waits until the lock is free and takes it.
    fn acquire(&self) -> Self::Guard<'_>;
}

/// One CPU's right to take locks.
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    /// Makes the permit of one entry to EL2. The trap loop calls it once per entry.
    pub const fn for_this_entry() -> Self {
        Self(())
    }
}

/// All locks of `el2`'s memory: the host's, and one per VM slot.
pub struct World<H, G, const SLOTS: usize> {
    host: H,
    guests: [G; SLOTS],
}

impl<H, G, const SLOTS: usize> fmt::Debug for World<H, G, SLOTS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("slots", &SLOTS).finish_non_exhaustive()
    }
}

impl<H: Mutex, G: Mutex, const SLOTS: usize> World<H, G, SLOTS> {
    /// Puts the locks into their order.
    pub const fn new(host: H, guests: [G; SLOTS]) -> Self {
        Self { host, guests }
    }

    /// How many VM slots there are.
    pub const fn slots(&self) -> usize {
        SLOTS
    }

    /// Takes the host's lock.
    pub fn host<'w>(&'w self, permit: &'w mut Permit) -> HostGuard<'w, H> {
        HostGuard { host: self.host.acquire(), permit }
    }

    /// Takes one guest's lock, without the host's. `None` if there is no such slot.
    pub fn guest<'w>(&'w self, _permit: &'w mut Permit, slot: usize) -> Option<GuestGuard<'w, G>> {
        Some(GuestGuard { guest: self.guests.get(slot)?.acquire(), _order: () })
    }
}

/// The host's lock is held.
#[must_use]
pub struct HostGuard<'w, H: Mutex + 'w> {
    host: H::Guard<'w>,
    permit: &'w mut Permit,
}

impl<'w, H: Mutex> HostGuard<'w, H> {
    /// What the lock protects.
    pub fn get(&mut self) -> &mut H::Value {
        &mut self.host
    }

    /// Takes one guest's lock as well. `None`, and the host's lock let go, if there is no such slot.
    pub fn with_guest<G: Mutex, const SLOTS: usize>(
        self,
        world: &'w World<H, G, SLOTS>,
        slot: usize,
    ) -> Option<BothGuards<'w, H, G>> {
        let guest = world.guests.get(slot)?.acquire();
        Some(BothGuards { guest, host: self.host, permit: self.permit })
    }
}

/// One guest's lock is held, and no other.
#[must_use]
pub struct GuestGuard<'w, G: Mutex + 'w> {
    guest: G::Guard<'w>,
    _order: (),
}

impl<G: Mutex> GuestGuard<'_, G> {
    /// What the lock protects.
    pub fn get(&mut self) -> &mut G::Value {
        &mut self.guest
    }
}

/// The host's lock and one guest's are held. The guest's is let go first.
#[must_use]
pub struct BothGuards<'w, H: Mutex + 'w, G: Mutex + 'w> {
    guest: G::Guard<'w>,
    host: H::Guard<'w>,
    permit: &'w mut Permit,
}

impl<'w, H: Mutex, G: Mutex> BothGuards<'w, H, G> {
    /// What the two locks protect.
    pub fn get(&mut self) -> (&mut H::Value, &mut G::Value) {
        (&mut self.host, &mut self.guest)
    }

    /// Lets the guest's lock go and keeps the host's.
    pub fn without_guest(self) -> HostGuard<'w, H> {
        drop(self.guest);
        HostGuard { host: self.host, permit: self.permit }
    }
}

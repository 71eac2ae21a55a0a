// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's interrupt controller: where it is, and the SPIs that the host raises.

use super::{Platform, give, with_guest};
use freehold_mem::Life;
use freehold_mem::lock::{Mutex, Permit};
use freehold_virt::Refused;
use freehold_virt::call::Reply;
use freehold_virt::handle::Handle;
use freehold_virt::vgic::{Intid, Window};
use freehold_virt::vm::Phase;

/// `VM_GIC`.
pub(super) fn declare(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    distributor: u64,
    redistributors: u64,
) -> Result<Reply, Refused> {
    with_guest(p, permit, vm, |guest| {
        let (Life::Building, Some((_, ipa_bits))) = (guest.memory.life(), guest.memory.root()) else {
            return Err(Refused::WrongState);
        };
        let window = Window::new(distributor, redistributors, ipa_bits)?;
        p.board(vm.slot()).acquire().declare(window);
        Ok(Reply::done())
    })
}

/// `VM_IRQ`.
pub(super) fn set(p: &impl Platform, vm: Handle, spi: Intid, high: bool, resample: bool) -> Result<Reply, Refused> {
    let mut board = p.board(vm.slot()).acquire();
    // Under the board's lock: the slot's next VM gets its board under it too.
    if p.vms().phase(vm)? != Phase::Live {
        return Err(Refused::WrongState);
    }
    let vgic = board.vgic().ok_or(Refused::WrongState)?;
    vgic.resample(spi, resample);
    Ok(Reply::value(give(p, vgic.set_spi(spi, high))))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What reaches a vCPU, when, and in which list register.

use super::rig::*;
use crate::Refused;
use crate::exit::Width;
use crate::vgic::{Frame, Intid, Kicks, Lists, Vgic, Window};

#[test]
fn the_host_raises_spis_of_this_vm_and_nothing_else() {
    for number in [0, 15, 16, 27, 31, 256, 1020, 1023, 8192, 1 << 32 | 40, u64::MAX] {
        assert_eq!(Intid::spi(number), Err(Refused::BadArgument), "{number}");
    }
    assert_eq!(Intid::spi(32).map(Intid::number), Ok(32));
    assert_eq!(Intid::spi(255).map(Intid::number), Ok(255));
    let mut vgic = Vgic::new();
    for private in [0, 15, 27, 30] {
        assert_eq!(vgic.set_spi(intid(private), true), Kicks::NONE);
        vgic.resample(intid(private), true);
    }
    assert_eq!(vgic, Vgic::new(), "a private interrupt is not the host's");
}

#[test]
fn nothing_is_delivered_before_the_guest_opens_every_gate() {
    // Group, distributor, redistributor, enable: each one closed keeps it back, and opening it delivers it.
    for closed in 0..4 {
        let mut rig = Rig::new(1, 4);
        rig.bit(0, ENABLE, 40);
        match closed {
            0 => rig.store(Frame::Distributor, 0, 1),
            1 => rig.store(Frame::Control(vcpu(0)), 0x14, 2),
            2 => rig.bit(0, DISABLE, 40),
            _ => rig.route(40, 1),
        }
        rig.wire(40, true);
        assert_eq!(rig.cpus[0].offers(), None, "gate {closed}");
        match closed {
            0 => rig.store(Frame::Distributor, 0, 3),
            1 => rig.store(Frame::Control(vcpu(0)), 0x14, 0),
            2 => rig.bit(0, ENABLE, 40),
            _ => rig.route(40, 0),
        }
        assert_eq!(rig.cpus[0].offers(), Some(40), "gate {closed}");
    }
}

#[test]
fn a_level_is_seen_again_until_it_drops() {
    let mut rig = Rig::new(1, 4);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    for _ in 0..3 {
        assert_eq!(rig.acknowledge(0), Some(40));
        assert_eq!(rig.cpus[0].offers(), None, "active");
        assert_eq!(rig.end(0), Some(40));
    }
    assert_eq!(rig.cpus[0].maintenance, 3, "the end of a level comes out");
    rig.wire(40, false);
    assert_eq!(rig.cpus[0].offers(), None, "it dropped before it was acknowledged");
}

#[test]
fn an_edge_is_seen_once_and_another_one_behind_it() {
    let mut rig = Rig::new(1, 4);
    rig.edge(40, true);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    rig.wire(40, true);
    assert_eq!(rig.acknowledge(0), Some(40));
    rig.wire(40, false);
    rig.wire(40, true);
    rig.wire(40, false);
    rig.wire(40, true);
    assert_eq!(rig.end(0), Some(40));
    assert_eq!(rig.cpus[0].maintenance, 0, "the list register keeps pending behind active");
    assert_eq!(rig.acknowledge(0), Some(40), "two edges while it was active are one");
    assert_eq!(rig.end(0), Some(40));
    assert_eq!(rig.cpus[0].offers(), None);
}

#[test]
fn the_end_of_an_edge_comes_out_for_nothing() {
    let mut rig = Rig::new(1, 4);
    rig.edge(40, true);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    assert_eq!(rig.acknowledge(0), Some(40));
    // It comes back to a list register, active alone.
    rig.leave(0);
    rig.enter(0);
    assert_eq!(rig.end(0), Some(40));
    assert_eq!(rig.cpus[0].maintenance, 0);
}

#[test]
fn an_edge_that_was_withdrawn_is_gone_even_out_of_a_list_register() {
    let mut rig = Rig::new(2, 4);
    rig.edge(40, true);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    assert_eq!(rig.cpus[0].offers(), Some(40));
    rig.bit(1, UNPEND, 40);
    assert_eq!(rig.cpus[0].offers(), None);
    rig.leave(0);
    assert!(!rig.is(1, PEND, 40));
}

#[test]
fn an_sgi_reaches_whom_it_names() {
    const OTHERS: u64 = 1 << 40;
    for (value, expected) in [
        (0b101, vec![0, 2]),
        (5 << 24 | 0b10, vec![1]),
        (OTHERS, vec![0, 2]),
        (OTHERS | 0xffff, vec![0, 2]),
        (0, vec![]),
        (0xfff8, vec![]),          // vCPUs that there are not
        (1 << 16 | 0b111, vec![]), // Aff1
        (1 << 32 | 0b111, vec![]), // Aff2
        (1 << 44 | 0b111, vec![]), // range selector
        (1 << 48 | 0b111, vec![]), // Aff3
    ] {
        let mut rig = Rig::new(3, 4);
        let number = u32::try_from(value >> 24 & 0xf).unwrap();
        for n in 0..3 {
            rig.bit(n, ENABLE, number);
        }
        // The sender is out while it acts.
        rig.leave(1);
        rig.sgi(1, value);
        rig.enter(1);
        let got: Vec<usize> = (0..3).filter(|n| rig.cpus[*n].offers() == Some(number)).collect();
        assert_eq!(got, expected, "{value:#x}");
    }
}

#[test]
fn an_sgi_of_group_0_does_not_raise_one_of_group_1() {
    let mut rig = Rig::new(1, 4);
    rig.bit(0, ENABLE, 3);
    rig.bit(0, ENABLE, 4);
    rig.store(Frame::Private(vcpu(0)), 0x80, !(1 << 4));
    for number in [3, 4] {
        let kicks = rig.vgic.send_sgi(vcpu(0), number << 24 | 1, true);
        rig.give(kicks);
    }
    assert_eq!(rig.acknowledge(0), Some(4));
    assert_eq!(rig.cpus[0].offers(), None);
}

#[test]
fn the_highest_priority_gets_the_only_list_register() {
    let mut rig = Rig::new(1, 1);
    for (n, priority) in [(40, 0xa0), (41, 0x80), (42, 0x80), (3, 0xc0), (43, 0x10)] {
        rig.prioritize(0, n, priority);
        rig.bit(0, ENABLE, n);
    }
    for n in 40..43 {
        rig.wire(n, true);
    }
    rig.sgi(0, 3 << 24 | 1);
    assert_eq!(rig.acknowledge(0), Some(41));
    // One that preempts gets the register although the active one has no other.
    rig.wire(43, true);
    assert_eq!(rig.acknowledge(0), Some(43));
    for n in [43, 41, 42, 40] {
        rig.wire(n, false);
    }
    assert_eq!((rig.end(0), rig.end(0)), (Some(43), Some(41)));
    assert_eq!(rig.acknowledge(0), Some(3));
    assert_eq!(rig.end(0), Some(3));
    rig.leave(0);
    assert!((0..44).all(|n| !rig.is(0, ACTIVATE, n)), "what was ended without a list register is inactive");
}

#[test]
fn what_is_of_a_group_that_is_off_keeps_nothing_else_back() {
    // Of more than there are list registers all but one are urgent, of group 0, and off.
    for room in [1, 2, 4] {
        let mut rig = Rig::new(1, room);
        rig.store(Frame::Private(vcpu(0)), 0x80, 1 << 7);
        rig.prioritize(0, 7, 0x80);
        for n in [0, 1, 2, 3, 7] {
            rig.bit(0, ENABLE, n);
        }
        rig.switch(0, 2);
        for n in [0, 1, 2, 3, 7] {
            rig.sgi(0, n << 24 | 1);
        }
        assert_eq!(rig.acknowledge(0), Some(7), "room {room}");
        assert_eq!(rig.end(0), Some(7));
        assert_eq!(rig.cpus[0].offers(), None);
        rig.switch(0, 1);
        let got: Vec<_> = (0..4).map(|_| (rig.acknowledge(0), rig.end(0))).collect();
        assert_eq!(got, [0, 1, 2, 3].map(|n| (Some(n), Some(n))), "room {room}: the control");
        // And the other way round, while they wait.
        rig.switch(0, 3);
        for n in [0, 1, 2, 3, 7] {
            rig.sgi(0, n << 24 | 1);
        }
        assert_eq!(rig.cpus[0].offers(), Some(0));
        rig.switch(0, 2);
        assert_eq!(rig.acknowledge(0), Some(7), "room {room}: switched off while they were in list registers");
    }
}

#[test]
fn priorities_have_five_bits() {
    let mut rig = Rig::new(1, 4);
    rig.prioritize(0, 40, 0xff);
    assert_eq!(rig.load(Frame::Distributor, 0x400 + 40), 0xf8);
}

#[test]
fn an_interrupt_that_moves_is_given_up_and_found_by_its_new_cpu() {
    let mut rig = Rig::new(2, 4);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    assert_eq!((rig.cpus[0].offers(), rig.cpus[1].offers()), (Some(40), None));
    rig.route(40, 1);
    assert_eq!((rig.cpus[0].offers(), rig.cpus[1].offers()), (None, Some(40)));
    assert_eq!(rig.acknowledge(1), Some(40));
    // Active: it stays with who acknowledged it, and its end there lets the new target have it.
    rig.route(40, 0);
    assert_eq!(rig.cpus[0].offers(), None);
    assert_eq!(rig.end(1), Some(40));
    assert_eq!((rig.cpus[0].offers(), rig.cpus[1].offers()), (Some(40), None));
}

#[test]
fn an_edge_behind_an_active_one_goes_to_the_new_target() {
    let mut rig = Rig::new(2, 4);
    rig.edge(40, true);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    assert_eq!(rig.acknowledge(0), Some(40));
    rig.route(40, 1);
    rig.wire(40, false);
    rig.wire(40, true);
    assert_eq!((rig.cpus[0].offers(), rig.cpus[1].offers()), (None, None), "pending behind active is not signalled");
    assert_eq!(rig.end(0), Some(40));
    assert_eq!((rig.cpus[0].offers(), rig.cpus[1].offers()), (None, Some(40)));
}

#[test]
fn any_cpu_may_deactivate_an_spi_and_none_another_ones_ppi() {
    let mut rig = Rig::new(2, 4);
    for n in [40, 20] {
        rig.bit(0, ENABLE, n);
    }
    rig.wire(40, true);
    assert_eq!(rig.acknowledge(0), Some(40));
    rig.wire(40, false);
    let kicks = rig.vgic.deactivate(vcpu(1), 40);
    rig.give(kicks);
    rig.leave(0);
    assert!(!rig.is(0, ACTIVATE, 40));
    rig.bit(0, ACTIVATE, 20);
    assert_eq!(rig.vgic.deactivate(vcpu(1), 20), Kicks::NONE);
    assert!(rig.is(0, ACTIVATE, 20));
    for nonsense in [256, 1023, 0xff_ffff, u64::MAX] {
        assert_eq!(rig.vgic.deactivate(vcpu(0), nonsense), Kicks::NONE);
    }
    assert!(rig.is(0, ACTIVATE, 20));
}

#[test]
fn the_virtual_timer_is_linked_to_the_cpus_own() {
    let mut vgic = Rig::new(1, 4).vgic;
    let timer = Intid::VIRTUAL_TIMER;
    let _ = vgic.write(Frame::Private(vcpu(0)), ENABLE, crate::exit::Width::Word, 1 << 27, 1);
    let mut lists = loaded(&mut vgic, vcpu(0), 0, 4);
    assert!(!lists.holds_timer(), "the CPU's own may fire");
    let _ = vgic.save(vcpu(0), &mut lists);
    vgic.set_timer(vcpu(0), timer, true);
    let mut lists = loaded(&mut vgic, vcpu(0), 0, 4);
    assert_eq!(lists.entries(), [PENDING | 1 << 61 | 1 << 60 | 27 << 32 | 27]);
    assert!(lists.holds_timer());
    // The guest has acknowledged it, and the line drops.
    lists.entries()[0] ^= PENDING | ACTIVE;
    let _ = vgic.save(vcpu(0), &mut lists);
    vgic.set_timer(vcpu(0), timer, false);
    let mut lists = loaded(&mut vgic, vcpu(0), 0, 4);
    assert_eq!(lists.entries(), [ACTIVE | 1 << 61 | 1 << 60 | 27 << 32 | 27]);
    assert!(lists.holds_timer(), "until its end deactivates the CPU's own");
    lists.entries()[0] ^= ACTIVE;
    let _ = vgic.save(vcpu(0), &mut lists);
    assert!(!loaded(&mut vgic, vcpu(0), 0, 4).holds_timer());
}

#[test]
fn a_timer_that_found_no_list_register_is_kept_quiet_too() {
    let mut vgic = Rig::new(1, 1).vgic;
    let (mine, timer) = (Frame::Private(vcpu(0)), Intid::VIRTUAL_TIMER);
    let _ = vgic.write(mine, ENABLE, crate::exit::Width::Word, 1 << 27 | 1, 1);
    let _ = vgic.write(mine, 0x41b, crate::exit::Width::Byte, 0x80, 1);
    vgic.set_timer(vcpu(0), timer, true);
    let mut lists = loaded(&mut vgic, vcpu(0), 0, 1);
    // The guest acknowledges it. One that goes first comes, and has the only list register.
    lists.entries()[0] ^= PENDING | ACTIVE;
    let _ = vgic.save(vcpu(0), &mut lists);
    let _ = vgic.send_sgi(vcpu(0), 1, false);
    for high in [true, false] {
        vgic.set_timer(vcpu(0), timer, high);
        let mut lists = loaded(&mut vgic, vcpu(0), 0, 1);
        assert_eq!(lists.entries(), [PENDING | 1 << 60], "the SGI");
        assert!(lists.holds_timer(), "else the CPU's own would fire for ever: {high}");
        let _ = vgic.save(vcpu(0), &mut lists);
    }
}

#[test]
fn a_timer_that_the_guest_does_not_want_is_kept_quiet() {
    let mut vgic = Rig::new(1, 4).vgic;
    let timer = Intid::VIRTUAL_TIMER;
    vgic.set_timer(vcpu(0), timer, true);
    assert!(!vgic.wants_timer(vcpu(0), timer));
    let mut lists = loaded(&mut vgic, vcpu(0), 0, 4);
    assert_eq!(lists.entries(), []);
    assert!(lists.holds_timer(), "else the CPU's own would fire for ever");
    let _ = vgic.write(Frame::Private(vcpu(0)), ENABLE, crate::exit::Width::Word, 1 << 27, 1);
    assert!(vgic.wants_timer(vcpu(0), timer));
}

#[test]
fn the_host_hears_of_the_end_of_a_level_that_it_asked_for() {
    let mut rig = Rig::new(1, 4);
    for n in [40, 41, 42] {
        rig.bit(0, ENABLE, n);
    }
    rig.edge(42, true);
    rig.vgic.resample(intid(40), true);
    rig.vgic.resample(intid(42), true);
    for n in [40, 41, 42] {
        rig.wire(n, true);
    }
    for _ in 0..3 {
        assert_eq!(rig.vgic.take_ended(), None);
        rig.acknowledge(0);
        rig.end(0);
        if let Some(ended) = rig.vgic.take_ended() {
            assert_eq!(ended, intid(40), "41 was not asked for, 42 is an edge");
            rig.wire(40, false);
            rig.vgic.resample(intid(40), false);
        }
        rig.wire(41, false);
    }
    assert_eq!(rig.cpus[0].offers(), None);
    assert_eq!(rig.vgic.take_ended(), None);
}

/// Each at the same place of its bank.
#[test]
fn the_host_hears_of_the_ends_of_two_banks() {
    let mut rig = Rig::new(1, 4);
    for n in [40, 72] {
        rig.bit(0, ENABLE, n);
        rig.vgic.resample(intid(n), true);
        rig.wire(n, true);
    }
    for _ in 0..2 {
        let n = rig.acknowledge(0).unwrap();
        assert_eq!(rig.end(0), Some(n));
        rig.wire(n, false);
    }
    assert_eq!([rig.vgic.take_ended(), rig.vgic.take_ended()], [Some(intid(40)), Some(intid(72))]);
    assert_eq!(rig.vgic.take_ended(), None);
}

/// The first and the last interrupt of each bank of SPIs.
#[test]
fn the_host_hears_of_the_end_of_every_spi_that_it_asked_for() {
    for bank in 1..8 {
        for n in [32 * bank, 32 * bank + 31] {
            let mut rig = Rig::new(1, 4);
            rig.bit(0, ENABLE, n);
            rig.vgic.resample(intid(n), true);
            rig.wire(n, true);
            assert_eq!(rig.acknowledge(0), Some(n));
            assert_eq!(rig.vgic.take_ended(), None);
            rig.end(0);
            assert_eq!(rig.vgic.take_ended(), Some(intid(n)));
            assert_eq!(rig.vgic.take_ended(), None);
        }
    }
}

#[test]
fn two_kicks_of_one_are_one() {
    let both = Kicks { cpus: 0b11, sleepers: 0b101 }.and(Kicks { cpus: 0b110, sleepers: 0b100 });
    assert_eq!(both, Kicks { cpus: 0b111, sleepers: 0b101 });
}

#[test]
fn what_was_not_active_has_not_ended() {
    let mut rig = Rig::new(1, 4);
    rig.vgic.resample(intid(40), true);
    rig.wire(40, true);
    rig.bit(0, DEACTIVATE, 40);
    assert_eq!(rig.vgic.take_ended(), None);
    rig.bit(0, ACTIVATE, 40);
    rig.bit(0, DEACTIVATE, 40);
    assert_eq!(rig.vgic.take_ended(), Some(intid(40)));
}

#[test]
fn what_software_made_active_goes_to_whom_it_is_routed_to_and_to_nobody_else() {
    let mut rig = Rig::new(2, 4);
    rig.route(40, 1);
    rig.bit(0, ACTIVATE, 40);
    for n in 0..2 {
        rig.leave(n);
        rig.enter(n);
    }
    assert!(rig.cpus[0].lists.entries().is_empty());
    let [entry] = rig.cpus[1].lists.entries() else { panic!("one list register") };
    assert_eq!((number(*entry), *entry & (PENDING | ACTIVE)), (40, ACTIVE));
}

#[test]
fn what_software_makes_active_of_another_vcpus_own_reaches_it_at_once() {
    let mut rig = Rig::new(2, 4);
    rig.bit(0, ACTIVATE, 3);
    let kicks = rig.vgic.write(Frame::Private(vcpu(1)), ACTIVATE, Width::Word, 1 << 4, 2);
    assert_eq!(kicks, Kicks { cpus: 0b10, sleepers: 0 });
    rig.give(kicks);
    let [entry] = rig.cpus[1].lists.entries() else { panic!("one list register") };
    assert_eq!((number(*entry), *entry & (PENDING | ACTIVE)), (4, ACTIVE));
    // It is out now, and whoever is out is told of nothing.
    rig.leave(1);
    assert_eq!(rig.vgic.write(Frame::Private(vcpu(1)), ACTIVATE, Width::Word, 1 << 5, 2), Kicks::NONE);
}

#[test]
fn asking_twice_for_the_end_of_a_level_is_asking_once() {
    let mut rig = Rig::new(1, 4);
    for n in [40, 41] {
        rig.bit(0, ENABLE, n);
        rig.wire(n, true);
        rig.vgic.resample(intid(40), true);
    }
    assert_eq!(rig.acknowledge(0), Some(40));
    assert_eq!(rig.vgic.take_ended(), None, "nothing has ended");
    rig.end(0);
    assert_eq!(rig.vgic.take_ended(), Some(intid(40)));
    assert_eq!(rig.vgic.take_ended(), None, "41 was not asked for, and has not ended");
}

#[test]
fn a_sleeper_is_woken_once_for_what_it_can_take() {
    let mut rig = Rig::new(2, 4);
    rig.bit(1, ENABLE, 3);
    rig.leave(1);
    rig.vgic.sleeps(vcpu(1));
    rig.sgi(0, 4 << 24 | 2);
    assert_eq!(rig.woken, 0, "disabled");
    rig.sgi(0, 3 << 24 | 1);
    assert_eq!(rig.woken, 0, "for another one");
    rig.sgi(0, 3 << 24 | 2);
    assert_eq!(rig.woken, 2);
    assert_eq!(rig.vgic.send_sgi(vcpu(0), 3 << 24 | 2, false), Kicks::NONE, "it is on its way");
    assert!(rig.vgic.wakes(vcpu(1), 0xff00_0003));
}

#[test]
fn a_sleeper_is_not_woken_again_for_what_it_was_told() {
    let mut rig = Rig::new(1, 4);
    rig.bit(0, ENABLE, 40);
    rig.leave(0);
    rig.vgic.sleeps(vcpu(0));
    rig.wire(40, true);
    assert_eq!(rig.woken, 1);
    // It sleeps again with 40 still pending; 41, which is disabled, is nothing new for it.
    rig.vgic.sleeps(vcpu(0));
    assert_eq!(rig.vgic.set_spi(intid(41), true), Kicks::NONE);
}

#[test]
fn only_the_holder_comes_out_for_what_it_holds() {
    let mut rig = Rig::new(3, 4);
    for n in [40, 41] {
        rig.bit(0, ENABLE, n);
    }
    rig.route(41, 1);
    rig.wire(40, true);
    rig.wire(41, true);
    assert_eq!((rig.cpus[0].offers(), rig.cpus[1].offers()), (Some(40), Some(41)));
    let kicks = rig.vgic.deactivate(vcpu(2), 40);
    assert_eq!(kicks, Kicks { cpus: 1, sleepers: 0 }, "neither who holds another one nor who holds none");
}

#[test]
fn a_group_that_is_closed_is_closed_whatever_the_other_one_is() {
    for (group1, opens) in [(false, 1), (true, 2)] {
        let mut rig = Rig::new(1, 4);
        rig.store(Frame::Distributor, 0x84, if group1 { u32::MAX } else { 0 });
        rig.bit(0, ENABLE, 40);
        for groups in [0, 3 - opens] {
            rig.store(Frame::Distributor, 0, groups);
            rig.wire(40, true);
            assert_eq!(rig.cpus[0].offers(), None, "group 1: {group1}, open: {groups}");
        }
        rig.store(Frame::Distributor, 0, opens);
        assert_eq!(rig.cpus[0].offers(), Some(40), "group 1: {group1}");
    }
}

#[test]
fn an_edge_behind_one_in_a_list_register_reads_as_pending() {
    let mut rig = Rig::new(2, 4);
    rig.edge(40, true);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    rig.wire(40, false);
    // The next edge, before its holder has come out.
    let _ = rig.vgic.set_spi(intid(40), true);
    assert!(rig.is(1, PEND, 40));
}

#[test]
fn what_the_cpu_masks_wakes_nobody_from_wfi() {
    let mut rig = Rig::new(1, 4);
    rig.prioritize(0, 40, 0x80);
    rig.bit(0, ENABLE, 40);
    rig.leave(0);
    assert!(!rig.vgic.wakes(vcpu(0), 0xff00_0003), "nothing is pending");
    rig.wire(40, true);
    assert!(rig.vgic.wakes(vcpu(0), 0xff00_0003));
    assert!(!rig.vgic.wakes(vcpu(0), 0x8000_0003), "priority mask");
    assert!(rig.vgic.wakes(vcpu(0), 0x8100_0003), "a mask that it passes");
    assert!(!rig.vgic.wakes(vcpu(0), 0x0100_0003), "a mask that hardly anything passes");
    assert!(!rig.vgic.wakes(vcpu(0), 0xff00_0001), "group 1 is off in the interface");
}

#[test]
fn who_holds_what_changes_its_group_comes_out_and_nobody_else() {
    let mut rig = Rig::new(2, 4);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    let mut write = |groups: u32| rig.vgic.write(Frame::Distributor, 0x84, Width::Word, groups.into(), 2);
    assert_eq!(write(u32::MAX), Kicks::NONE, "it stays in its group");
    assert_eq!(write(!(1 << 9)), Kicks::NONE, "another one changes");
    assert_eq!(write(!(1 << 8)), Kicks { cpus: 1, sleepers: 0 });
}

#[test]
fn a_group_that_is_off_in_the_interface_wakes_nobody() {
    for (group, vmcr) in [(0, 0xff00_0001), (u32::MAX, 0xff00_0002)] {
        let mut rig = Rig::new(1, 4);
        rig.store(Frame::Distributor, 0x84, group);
        rig.bit(0, ENABLE, 40);
        rig.leave(0);
        rig.wire(40, true);
        assert!(rig.vgic.wakes(vcpu(0), vmcr));
        assert!(!rig.vgic.wakes(vcpu(0), vmcr ^ 3), "the other one is on");
    }
}

#[test]
fn who_reads_what_another_one_holds_makes_it_come_out() {
    let mut rig = Rig::new(2, 4);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    assert_eq!(rig.acknowledge(0), Some(40));
    let first = rig.is(1, ACTIVATE, 40);
    let second = rig.is(1, ACTIVATE, 40);
    assert_eq!((first, second), (false, true), "as it was loaded, then as it is");
}

#[test]
fn at_most_as_many_list_registers_are_used_as_there_are() {
    for room in [0, 1, 4, 16, 17, usize::MAX] {
        let mut rig = Rig::new(1, room);
        rig.leave(0);
        for n in 32..64 {
            rig.bit(0, ENABLE, n);
            rig.wire(n, true);
        }
        let mut lists: Lists = loaded(&mut rig.vgic, vcpu(0), 0, room);
        assert_eq!(lists.entries().len(), room.min(16));
        lists.note(0, u32::MAX, true);
        let _ = rig.vgic.save(vcpu(0), &mut lists);
        assert_eq!(lists, Lists::EMPTY, "nothing stays for the next one");
    }
}

#[test]
fn what_a_guest_left_alone_stays_until_somebody_is_told_of_something() {
    let mut rig = Rig::new(2, 2);
    for n in [40, 41] {
        rig.bit(0, ENABLE, n);
        rig.wire(n, true);
    }
    let cpu = 0;
    let mut kept = rig.cpus[cpu].lists;
    assert_eq!(kept.entries().len(), 2);
    rig.leave(cpu);
    assert_eq!(rig.cpus[cpu].lists.entries(), kept.entries(), "it is out");
    rig.enter(cpu);
    assert_eq!(rig.cpus[cpu].lists.entries(), kept.entries(), "the same");
    // Each of these is noticed while it is out.
    let acts: [fn(&mut Rig); 8] = [
        |rig| rig.wire(40, false),
        |rig| rig.bit(1, DISABLE, 40),
        |rig| rig.route(40, 1),
        |rig| rig.prioritize(1, 41, 0x80),
        |rig| rig.sgi(1, 1),
        |rig| rig.store(Frame::Distributor, 0, 1),
        |rig| rig.store(Frame::Control(vcpu(0)), 0x14, 2),
        |rig| rig.vgic.sleeps(vcpu(0)),
    ];
    for (n, act) in acts.into_iter().enumerate() {
        let mut rig = rig.clone();
        rig.bit(0, ENABLE, 0);
        rig.leave(cpu);
        let mut before = rig.cpus[cpu].lists;
        assert_eq!(before.entries().len(), 2, "act {n}: it had something");
        act(&mut rig);
        assert_eq!(rig.vgic.wakes(vcpu(0), 0xff00_0003), !matches!(n, 5 | 6), "act {n}");
        rig.enter(cpu);
        assert_eq!(rig.cpus[cpu].lists.entries() == before.entries(), n == 7, "act {n}");
        assert_eq!(rig.cpus[1].offers(), (n == 2).then_some(40), "act {n}: it went to another one");
    }
    // What its block lost, its controller did not.
    rig.leave(cpu);
    rig.cpus[cpu].lists = Lists::EMPTY;
    rig.enter(cpu);
    assert_eq!(rig.cpus[cpu].lists.entries(), kept.entries(), "its list registers were reset");
    // A CPU that has fewer takes what fits.
    rig.leave(cpu);
    rig.room = 1;
    rig.enter(cpu);
    assert_eq!(rig.cpus[cpu].lists.entries().len(), 1);
}

#[test]
fn what_is_kept_wakes_whose_it_is() {
    let mut rig = Rig::new(1, 2);
    rig.bit(0, ENABLE, 40);
    rig.wire(40, true);
    rig.leave(0);
    assert_eq!(rig.cpus[0].lists.entries().len(), 1);
    assert!(rig.vgic.wakes(vcpu(0), 0xff00_0003), "a WFI goes on");
    rig.vgic.sleeps(vcpu(0));
    rig.wire(40, false);
    assert!(!rig.vgic.wakes(vcpu(0), 0xff00_0003));
}

#[test]
fn what_was_kept_goes_to_another_one_that_it_is_routed_to() {
    for (is_in, is_asleep) in [(true, false), (false, false), (false, true)] {
        let mut rig = Rig::new(2, 4);
        rig.bit(0, ENABLE, 40);
        rig.wire(40, true);
        assert_eq!(rig.acknowledge(0), Some(40));
        if !is_in {
            rig.leave(1);
        }
        if is_asleep {
            rig.vgic.sleeps(vcpu(1));
        }
        rig.route(40, 1);
        rig.leave(0);
        rig.enter(0);
        rig.leave(0);
        assert_eq!(rig.cpus[0].lists.entries().len(), 1, "vCPU 0 has it, and is out");
        let kicks = rig.vgic.deactivate(vcpu(1), 40);
        rig.give(kicks);
        assert_eq!(rig.woken, u8::from(is_asleep) << 1);
        if !is_in {
            rig.enter(1);
        }
        assert_eq!(rig.cpus[1].offers(), Some(40), "{is_in} {is_asleep}");
    }
}

#[test]
fn the_timer_of_a_vcpu_that_is_out_reaches_it_whatever_it_has_kept() {
    let mut rig = Rig::new(1, 4);
    rig.bit(0, ENABLE, 27);
    for high in [true, false] {
        rig.leave(0);
        rig.vgic.set_timer(vcpu(0), Intid::VIRTUAL_TIMER, high);
        rig.enter(0);
        assert_eq!(rig.cpus[0].offers(), high.then_some(27));
    }
}

#[test]
fn the_frames_lie_where_the_host_said() {
    for odd in [1, 8, 15, 0x3_fff1] {
        assert_eq!(Window::new(odd, 0, 40), Err(Refused::Unaligned));
        assert_eq!(Window::new(0, odd, 40), Err(Refused::Unaligned));
    }
    for (bits, base) in [(40, 1 << 28), (32, 0xf_fff0), (40, 1 << 52), (40, !0xf)] {
        let refused = Err(Refused::Memory(freehold_mem::Refused::GfnOutOfRange));
        assert_eq!(Window::new(base, 0, bits), refused);
        assert_eq!(Window::new(0, base, bits), refused);
    }
    let window = Window::new(0x3_fff0, 0x3_ffb0, 40).unwrap();
    for (ipa, expected) in [
        (0x3fff_0000, Some((Frame::Distributor, 0))),
        (0x3fff_ffff, Some((Frame::Distributor, 0xffff))),
        (0x4000_0000, None),
        (0x3ffb_0014, Some((Frame::Control(vcpu(0)), 0x14))),
        (0x3ffc_0100, Some((Frame::Private(vcpu(0)), 0x100))),
        (0x3ffd_0000, Some((Frame::Control(vcpu(1)), 0))),
        (0x3ffe_ffff, Some((Frame::Private(vcpu(1)), 0xffff))),
        (0x3ffa_ffff, None),
        (0, None),
        (u64::MAX, None),
    ] {
        assert_eq!(window.locate(ipa, 2), expected, "{ipa:#x}");
    }
    assert_eq!(window.locate(0x3ffd_0000, 1), None, "a vCPU that there is not has no frame");
    // RAM right beside the frames that there are is elsewhere; one granule of them is not.
    let redistributors = Window::new(0x1000, 0x2000, 40).unwrap();
    for (first, count, vcpus, clear) in [
        (0x2000 + 64, 1 << 20, 2, true),
        (0x2000 + 63, 1, 2, false),
        (0x2000 + 64, 1, 3, false),
        (0x1010, 0xff0, 2, true),
        (0x1010, 0xff1, 2, false),
        (0x100f, 1, 2, false),
        (0, 0x1000, 2, true),
        (0, 0x1001, 2, false),
    ] {
        let ram = freehold_mem::GfnRun::decode(first, count).unwrap();
        assert_eq!(redistributors.is_clear_of(ram, vcpus), clear, "{first:#x}+{count:#x}, {vcpus}");
    }
    let overlap = Window::new(0, 0, 40).unwrap();
    assert_eq!(overlap.locate(8, 8), Some((Frame::Distributor, 8)));
    assert_eq!(overlap.locate(8 << 17, 8), None, "no ninth vCPU");
    assert_eq!(overlap.locate(8 << 17, usize::MAX), None);
}

/// The distributor's frame, and two for each of eight CPUs.
#[test]
fn near_is_what_any_cpu_may_have_as_a_frame() {
    let window = Window::new(0x1000, 0x2000, 40).unwrap();
    for (ipa, near) in [
        (0xff_ffff, false),
        (0x100_0000, true),
        (0x100_ffff, true),
        (0x101_0000, false),
        (0x1ff_ffff, false),
        (0x200_0000, true),
        (0x20f_ffff, true),
        (0x210_0000, false),
        (0, false),
        (u64::MAX, false),
    ] {
        assert_eq!(window.is_near(ipa), near, "{ipa:#x}");
    }
}

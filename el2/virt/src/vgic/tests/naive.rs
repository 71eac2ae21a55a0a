// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same random life for the controller and for a naive one, which has no list registers and no memory of them.

use super::rig::*;
use crate::vgic::{Frame, Kicks};

/// One interrupt, of the VM or of one vCPU.
#[derive(Clone, Copy, Debug, Default)]
struct One {
    enabled: bool,
    group1: bool,
    edge: bool,
    line: bool,
    latch: bool,
    active: bool,
    priority: u8,
    route: usize,
}

impl One {
    fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }
}

/// A `GICv3` as a table.
struct Naive {
    groups: [bool; 2],
    awake: Vec<bool>,
    /// By vCPU, then by interrupt; SPIs are the first vCPU's.
    all: Vec<Vec<One>>,
    running: Vec<Vec<(u32, u8)>>,
    /// By vCPU: the groups that are on in its CPU interface.
    on: Vec<u64>,
}

/// The interrupts that take part: two SGIs, a PPI, SPIs of three banks.
const SOME: [u32; 9] = [0, 7, 20, 32, 33, 63, 64, 200, 255];

impl Naive {
    fn new(vcpus: usize) -> Self {
        let one = |n: u32| One { group1: true, edge: n < 16, ..One::default() };
        Self {
            groups: [true; 2],
            awake: vec![true; vcpus],
            all: vec![(0..256).map(one).collect(); vcpus],
            running: vec![Vec::new(); vcpus],
            on: vec![3; vcpus],
        }
    }

    fn one(&mut self, cpu: usize, n: u32) -> &mut One {
        &mut self.all[if n < 32 { cpu } else { 0 }][n as usize]
    }

    fn offers(&mut self, cpu: usize) -> Option<u32> {
        let limit = self.running[cpu].last().map_or(IDLE, |(_, priority)| *priority);
        let (groups, awake, on) = (self.groups, self.awake[cpu], self.on[cpu]);
        let ready = SOME.into_iter().filter(|n| {
            let one = *self.one(cpu, *n);
            let mine = *n < 32 || one.route == cpu;
            let open = groups[usize::from(one.group1)] && on >> u32::from(one.group1) & 1 != 0;
            awake && mine && open && one.enabled && one.pending() && !one.active && one.priority < limit
        });
        let mut ready: Vec<u32> = ready.collect();
        ready.sort_by_key(|n| (self.one(cpu, *n).priority, *n));
        ready.first().copied()
    }
}

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn step(dice: &mut Dice, rig: &mut Rig, naive: &mut Naive, roomy: bool) {
    let cpus = rig.cpus.len() as u64;
    let cpu = usize::try_from(dice.throw(cpus)).unwrap();
    let n = SOME[usize::try_from(dice.throw(SOME.len() as u64)).unwrap()];
    let yes = dice.throw(2) == 0;
    let one = *naive.one(cpu, n);
    match dice.throw(20) {
        0..3 if n >= 32 => {
            rig.wire(n, yes);
            let one = naive.one(cpu, n);
            one.latch |= one.edge && yes && !one.line;
            one.line = yes;
        }
        3..5 => {
            let (number, targets) = (dice.throw(2) * 7, dice.throw(1 << cpus));
            rig.sgi(cpu, number << 24 | targets);
            for target in (0..rig.cpus.len()).filter(|t| targets >> t & 1 != 0) {
                naive.one(target, u32::try_from(number).unwrap()).latch = true;
            }
        }
        5 => {
            rig.bit(cpu, if yes { ENABLE } else { DISABLE }, n);
            naive.one(cpu, n).enabled = yes;
        }
        6 => {
            rig.bit(cpu, if yes { PEND } else { UNPEND }, n);
            naive.one(cpu, n).latch = yes;
        }
        // Of what a CPU has acknowledged the state is that CPU's to change.
        7 if roomy && !naive.running.iter().flatten().any(|(running, _)| *running == n) => {
            rig.bit(cpu, if yes { ACTIVATE } else { DEACTIVATE }, n);
            naive.one(cpu, n).active = yes;
        }
        8 if !one.active => {
            let priority = u8::try_from(dice.throw(4) * 0x40).unwrap();
            rig.prioritize(cpu, n, priority);
            naive.one(cpu, n).priority = priority;
        }
        9 if n >= 32 => {
            rig.route(n, cpu as u64);
            naive.one(cpu, n).route = cpu;
        }
        10 if n >= 32 && !one.active && !one.line => {
            rig.edge(n, yes);
            naive.one(cpu, n).edge = yes;
        }
        11 if dice.throw(4) == 0 => {
            let groups = dice.throw(4);
            rig.store(Frame::Distributor, 0, u32::try_from(groups).unwrap());
            naive.groups = [groups & 1 != 0, groups & 2 != 0];
        }
        11 => {
            // Open most of the time, else nothing happens.
            rig.store(Frame::Distributor, 0, 3);
            naive.groups = [true; 2];
        }
        12 if dice.throw(3) == 0 => {
            let frame = Frame::Control(vcpu(cpu));
            rig.store(frame, 0x14, if yes { 2 } else { 0 });
            naive.awake[cpu] = !yes;
        }
        13 if rig.cpus[cpu].inside => rig.leave(cpu),
        13 => rig.enter(cpu),
        14..16 if rig.cpus[cpu].inside => {
            let expected = naive.offers(cpu);
            assert_eq!(rig.acknowledge(cpu), expected);
            if let Some(n) = expected {
                let one = naive.one(cpu, n);
                (one.latch, one.active) = (false, true);
                let priority = one.priority;
                naive.running[cpu].push((n, priority));
            }
        }
        16..18 if rig.cpus[cpu].inside => {
            let ended = naive.running[cpu].pop();
            assert_eq!(rig.end(cpu), ended.map(|(n, _)| n));
            if let Some((n, _)) = ended {
                naive.one(cpu, n).active = false;
            }
        }
        // Both most of the time.
        18 if rig.cpus[cpu].inside => {
            let on = 3 & !(dice.throw(6) * u64::from(yes));
            rig.switch(cpu, on);
            naive.on[cpu] = on;
        }
        // Of its 32 this one alone may be of group 0.
        19 if !one.active => {
            let frame = if n < 32 { Frame::Private(vcpu(cpu)) } else { Frame::Distributor };
            let word = if yes { u32::MAX } else { !(1 << (n % 32)) };
            rig.store(frame, 0x80 + 4 * u64::from(n / 32), word);
            for other in SOME.into_iter().filter(|other| other / 32 == n / 32) {
                naive.one(cpu, other).group1 = yes || other != n;
            }
        }
        _ => {}
    }
}

fn compare(rig: &mut Rig, naive: &mut Naive, at: &str) {
    for cpu in 0..rig.cpus.len() {
        if rig.cpus[cpu].inside {
            assert_eq!(rig.cpus[cpu].offers(), naive.offers(cpu), "{at}: vCPU {cpu}");
        }
    }
}

/// Brings everybody out, and compares every state that a register shows.
fn compare_registers(rig: &mut Rig, naive: &mut Naive, at: &str) {
    let inside: Vec<usize> = (0..rig.cpus.len()).filter(|n| rig.cpus[*n].inside).collect();
    for n in &inside {
        rig.leave(*n);
    }
    for cpu in 0..rig.cpus.len() {
        for n in SOME {
            let one = *naive.one(cpu, n);
            let seen = [ENABLE, PEND, ACTIVATE].map(|base| rig.is(cpu, base, n));
            assert_eq!(seen, [one.enabled, one.pending(), one.active], "{at}: {n} of vCPU {cpu}");
        }
    }
    for n in inside {
        rig.enter(n);
    }
}

/// How often something was offered, and how often something stayed in the list registers of a vCPU that was out.
fn live(vcpus: usize, room: usize, seed: u64, steps: u32) -> [u32; 2] {
    let (mut rig, mut naive, mut dice) = (Rig::new(vcpus, room), Naive::new(vcpus), Dice(seed));
    let mut offered = 0;
    for n in 0..steps {
        // Who ends something without a list register says only that, so software must not make others active then.
        step(&mut dice, &mut rig, &mut naive, room == 16);
        let at = std::format!("room {room}, seed {seed:#x}, step {n}");
        compare(&mut rig, &mut naive, &at);
        if n % 16 == 0 {
            compare_registers(&mut rig, &mut naive, &at);
        }
        offered += u32::from((0..vcpus).any(|cpu| rig.cpus[cpu].inside && rig.cpus[cpu].offers().is_some()));
    }
    [offered, rig.cpus.iter().map(|cpu| cpu.kept).sum()]
}

#[test]
fn it_offers_what_a_gic_would() {
    let (lives, steps) = if cfg!(miri) { (1, 40) } else { (19, 1500) };
    for (vcpus, room) in [(1, 1), (1, 4), (2, 2), (3, 1), (3, 4), (3, 16), (8, 16)] {
        let seeds = (1..=lives).map(|n| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(n));
        let lives = seeds.map(|seed| live(vcpus, room, seed, steps));
        let [offered, kept] = lives.fold([0; 2], |[a, b], [offered, kept]| [a + offered, b + kept]);
        assert!(cfg!(miri) || offered > 3000, "something was pending often enough: {offered}");
        assert!(cfg!(miri) || kept > 100, "and was kept outside often enough: {kept}");
    }
}

#[test]
fn a_kick_that_is_not_given_shows() {
    // The control: the same comparison sees a vCPU that was not told.
    let (mut rig, mut naive) = (Rig::new(2, 4), Naive::new(2));
    rig.bit(1, ENABLE, 7);
    naive.one(1, 7).enabled = true;
    naive.one(1, 7).latch = true;
    let lost = rig.vgic.send_sgi(vcpu(0), 7 << 24 | 2, false);
    assert_ne!(lost, Kicks::NONE);
    assert_ne!(rig.cpus[1].offers(), naive.offers(1));
    rig.give(lost);
    compare(&mut rig, &mut naive, "given");
}

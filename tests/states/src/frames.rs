// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every verb of `el2/mem`, from every state of a frame, at each time of a VM's life.

use crate::Table;
use crate::machine::Machine;
use freehold_mem::verbs::{
    el2_return_host, el2_revoke_guest, guest_relinquish, guest_share_host, guest_unshare_host, host_donate_el2,
    host_donate_guest, host_reclaim, host_share_guest, host_unshare_guest,
};
use freehold_mem::{
    Access, Attributes, Claim, GfnRun, Guest, Host, Kind, Lot, MemoryMap, Pfn, PfnRun, Refused, State, VmSlot,
};
use freehold_uapi::hvc;
use std::fmt::{self, Write};

const RAM: u64 = 0x4_0000;
const CARVE_OUT: u64 = RAM + 3 * 512;
const NO_MAP: u64 = RAM + 512;
const DEVICE: u64 = 0x9000;
/// The frame in question, unless it is one of the above.
const FRAME: u64 = RAM + 5;
const POOLS: [u64; 3] = [RAM + 16, RAM + 32, RAM + 48];
const GUEST_RAM: u64 = 0x8_0000;
/// Where the frame is seen, and where nothing is.
const AT: u64 = GUEST_RAM + 3;
const VACANT: u64 = GUEST_RAM + 9;

/// The VM that a call names, another protected one, and an ordinary one.
const THIS: usize = 0;
const OTHER: usize = 1;
const BORROWER: usize = 2;

/// Where a frame starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    NotMemory,
    NoMap,
    Host,
    Lent,
    El2,
    Pool(usize),
    Private(usize),
    Revocable,
    Shared(usize),
}

const STARTS: [(Start, &str); 12] = [
    (Start::NotMemory, "not RAM"),
    (Start::NoMap, "`NoMap`"),
    (Start::Host, "`Host`"),
    (Start::Lent, "`Lent` to an ordinary VM"),
    (Start::El2, "`El2`"),
    (Start::Pool(THIS), "`Pool` of this VM"),
    (Start::Pool(OTHER), "`Pool` of another"),
    (Start::Private(THIS), "`Private` of this VM"),
    (Start::Revocable, "`Private` of this VM, revocable"),
    (Start::Private(OTHER), "`Private` of another"),
    (Start::Shared(THIS), "`Shared` by this VM"),
    (Start::Shared(OTHER), "`Shared` by another"),
];

/// Where the VM that a call names is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Building,
    Running,
    Dying,
}

const TIMES: [(When, &str); 3] =
    [(When::Building, "before its first run"), (When::Running, "running"), (When::Dying, "dying")];

struct World {
    host: Host<'static>,
    guests: Vec<Guest>,
    m: Machine,
}

fn pfn(raw: u64) -> Pfn {
    Pfn::new(raw).unwrap_or_else(|| unreachable!("a frame number of the machine"))
}

fn frames(from: u64, count: u64) -> Claim<PfnRun> {
    Claim::new(PfnRun::decode(from, count).unwrap_or_else(|why| unreachable!("{why:?}")))
}

fn places(from: u64, count: u64) -> Claim<GfnRun> {
    Claim::new(GfnRun::decode(from, count).unwrap_or_else(|why| unreachable!("{why:?}")))
}

fn lot(at: u64) -> Claim<Lot> {
    Claim::new(Lot::decode(FRAME, at, 1).unwrap_or_else(|why| unreachable!("{why:?}")))
}

/// What was refused where the scene needs it; the scene is wrong then.
fn must<T>(done: Result<T, Refused>) -> T {
    done.unwrap_or_else(|why| unreachable!("the scene: {why:?}"))
}

impl World {
    fn new(kind: Kind) -> Self {
        let mut map = MemoryMap::new(32).unwrap_or_else(|why| unreachable!("{why:?}"));
        let bank = PfnRun::decode(RAM, 4 * 512).and_then(|bank| Ok((bank, PfnRun::decode(CARVE_OUT, 512)?)));
        let (bank, carve_out) = must(bank);
        let added = map.add_bank(bank).and_then(|()| map.add_carve_out(carve_out));
        added.unwrap_or_else(|why| unreachable!("{why:?}"));
        let storage = vec![0; map.needs().words as usize].leak();
        let mut m = Machine::default();
        let host = Host::build(map, pfn(CARVE_OUT), storage, Attributes::Combined, &mut m);
        let mut host = host.unwrap_or_else(|why| unreachable!("{why:?}"));
        host.mark_no_map(must(PfnRun::decode(NO_MAP, 1)), &m);
        let slot = |slot| VmSlot::new(slot).unwrap_or_else(|| unreachable!("a slot"));
        let guests = (0..3).map(|n| Guest::new(slot(n))).collect();
        let mut world = Self { host, guests, m };
        for (slot, kind) in [(THIS, kind), (OTHER, Kind::Protected), (BORROWER, Kind::Ordinary)] {
            let guest = &mut world.guests[slot];
            let checked = host_donate_el2::check_birth(&mut world.host, guest, frames(POOLS[slot], 8), kind, 32);
            must(checked).commit(&mut world.m);
            must(guest.declare_ram(places(GUEST_RAM, 512)));
        }
        must(world.guests[OTHER].start());
        must(world.guests[BORROWER].start());
        world
    }

    fn donate(&mut self, slot: usize, revocable: bool) {
        let checked = host_donate_guest::check(&mut self.host, &mut self.guests[slot], lot(AT), revocable, &self.m);
        must(checked).commit(&mut self.m, &mut || false, &mut |_, _| {});
    }

    fn lend(&mut self, slot: usize) {
        let access = Access { write: true, execute: false };
        let checked = host_share_guest::check(&mut self.host, &mut self.guests[slot], lot(AT), access, &self.m);
        must(checked).commit(&mut self.m, &mut || false);
    }

    fn share(&mut self, slot: usize) {
        let checked = guest_share_host::check(&mut self.host, &mut self.guests[slot], places(AT, 1), &self.m);
        must(checked).commit(&mut self.m);
    }

    /// Brings the frame to its start, and the VM to its time. `None` if no such moment exists.
    fn at(start: Start, when: When, kind: Kind) -> Option<(Self, u64)> {
        let mut world = Self::new(kind);
        let owns = kind == Kind::Protected;
        let mut frame = FRAME;
        match start {
            Start::NotMemory => frame = DEVICE,
            Start::NoMap => frame = NO_MAP,
            Start::El2 => frame = CARVE_OUT,
            Start::Host => {}
            Start::Lent if owns => world.lend(BORROWER),
            Start::Lent => world.lend(THIS),
            // The last frame of the run, so that it is no table.
            Start::Pool(slot) => frame = POOLS[slot] + 7,
            Start::Private(THIS) | Start::Revocable | Start::Shared(THIS) if !owns => return None,
            Start::Private(slot) => world.donate(slot, false),
            Start::Revocable => world.donate(THIS, true),
            Start::Shared(OTHER) => {
                world.donate(OTHER, false);
                world.share(OTHER);
            }
            Start::Shared(_) if when == When::Building => return None,
            Start::Shared(slot) => {
                world.donate(slot, false);
                must(world.guests[slot].start());
                world.share(slot);
            }
        }
        if when != When::Building {
            must(world.guests[THIS].start());
        }
        if when == When::Dying {
            must(world.guests[THIS].begin_death(&mut world.m));
        }
        world.m.zeroed.clear();
        Some((world, frame))
    }
}

/// A verb as the tables call it: its module, the call or event that brings it, which kind of VM it is for, what it does
/// to the frame.
struct Verb {
    name: &'static str,
    calls: &'static [&'static str],
    by: &'static str,
    kind: Kind,
    act: Act,
}

/// Where the guest sees the frame, or a place where it sees nothing.
fn seen(world: &World, frame: u64) -> u64 {
    match Pfn::new(frame).and_then(|pfn| world.host.ledger().state(pfn)) {
        Some(State::Private { vm, .. } | State::Shared { vm, .. }) if vm == world.guests[THIS].vm() => AT,
        Some(State::Lent(_)) if world.guests[THIS].kind() == Some(Kind::Ordinary) => AT,
        _ => VACANT,
    }
}

fn one(frame: u64) -> Result<Claim<PfnRun>, Refused> {
    PfnRun::decode(frame, 1).map(Claim::new)
}

fn vacant(frame: u64) -> Result<Claim<Lot>, Refused> {
    Lot::decode(frame, VACANT, 1).map(Claim::new)
}

fn donate_el2(World { host, guests, m }: &mut World, frame: u64) -> Result<(), Refused> {
    host_donate_el2::check(host, &mut guests[THIS], one(frame)?)?.commit(m);
    Ok(())
}

fn donate_guest(World { host, guests, m }: &mut World, frame: u64) -> Result<(), Refused> {
    let checked = host_donate_guest::check(host, &mut guests[THIS], vacant(frame)?, false, m)?;
    checked.commit(m, &mut || false, &mut |_, _| {});
    Ok(())
}

fn share_guest(World { host, guests, m }: &mut World, frame: u64) -> Result<(), Refused> {
    let access = Access { write: true, execute: false };
    host_share_guest::check(host, &mut guests[THIS], vacant(frame)?, access, m)?.commit(m, &mut || false);
    Ok(())
}

fn unshare_guest(world: &mut World, frame: u64) -> Result<(), Refused> {
    let at = places(seen(world, frame), 1);
    host_unshare_guest::check(&mut world.host, &mut world.guests[THIS], at, &world.m)?.commit(&mut world.m);
    Ok(())
}

fn share_host(world: &mut World, frame: u64) -> Result<(), Refused> {
    let at = places(seen(world, frame), 1);
    guest_share_host::check(&mut world.host, &mut world.guests[THIS], at, &world.m)?.commit(&mut world.m);
    Ok(())
}

fn unshare_host(world: &mut World, frame: u64) -> Result<(), Refused> {
    let at = places(seen(world, frame), 1);
    guest_unshare_host::check(&mut world.host, &mut world.guests[THIS], at, &world.m)?.commit(&mut world.m);
    Ok(())
}

fn relinquish(world: &mut World, frame: u64) -> Result<(), Refused> {
    let at = places(seen(world, frame), 1);
    guest_relinquish::check(&mut world.host, &mut world.guests[THIS], at, &world.m)?.commit(&mut world.m);
    Ok(())
}

fn revoke(World { host, guests, m }: &mut World, frame: u64) -> Result<(), Refused> {
    el2_revoke_guest::check(host, &mut guests[THIS], Claim::new(pfn(frame)))?.commit(m);
    Ok(())
}

fn reclaim(World { host, guests, m }: &mut World, frame: u64) -> Result<(), Refused> {
    host_reclaim::check(host, &mut guests[THIS], one(frame)?)?.commit(m, &mut || false);
    Ok(())
}

fn give_back(World { host, guests, m }: &mut World, frame: u64) -> Result<(), Refused> {
    let _ = el2_return_host::check(host, &mut guests[THIS], one(frame)?)?.commit(m, &mut || false);
    Ok(())
}

type Act = fn(&mut World, u64) -> Result<(), Refused>;

const fn verb(name: &'static str, calls: &'static [&'static str], by: &'static str, act: Act) -> Verb {
    Verb { name, calls, by, kind: Kind::Protected, act }
}

const fn ordinary(verb: Verb) -> Verb {
    Verb { kind: Kind::Ordinary, ..verb }
}

const VERBS: [Verb; 10] = [
    verb("host_donate_el2", &["VM_CREATE", "POOL_TOPUP"], "the host", donate_el2),
    verb("host_donate_guest", &["MEM_DONATE", "MEM_DONATE_LIST"], "the host", donate_guest),
    verb("guest_share_host", &["GUEST_ACCEPT"], "the guest, with `MEM_SHARE`; the host accepts", share_host),
    verb("guest_unshare_host", &["GUEST_ACCEPT"], "the guest, with `MEM_UNSHARE`; the host accepts", unshare_host),
    verb("guest_relinquish", &["GUEST_ACCEPT"], "the guest, with `MEM_RELINQUISH`; the host accepts", relinquish),
    verb("el2_revoke_guest", &[], "`el2`, when the host's kernel touches the frame at an address of its own", revoke),
    verb("host_reclaim", &["VM_RECLAIM"], "the host", reclaim),
    verb("el2_return_host", &["VM_RECLAIM"], "the host, once no guest frame is left", give_back),
    ordinary(verb("host_share_guest", &["MEM_SHARE"], "the host", share_guest)),
    ordinary(verb("host_unshare_guest", &["MEM_UNSHARE"], "the host", unshare_guest)),
];

/// Runs a verb, and says what came of it.
fn cell(verb: &Verb, start: Start, when: When) -> String {
    let Some((mut world, frame)) = World::at(start, when, verb.kind) else { return "".to_owned() };
    match (verb.act)(&mut world, frame) {
        Ok(()) => {
            let state = world.host.ledger().state(pfn(frame)).map_or("nothing", name);
            let contents = if world.m.zeroed.contains(&pfn(frame)) { "zeroed" } else { "kept" };
            format!("→ `{state}`, {contents}")
        }
        Err(why) => format!("{why:?}"),
    }
}

const fn name(state: State) -> &'static str {
    match state {
        State::NoMap => "NoMap",
        State::Host => "Host",
        State::Lent(_) => "Lent",
        State::El2 => "El2",
        State::Pool { .. } => "Pool",
        State::Private { .. } => "Private",
        State::Shared { .. } => "Shared",
    }
}

/// Every change of state that some verb makes, with the verbs that make it.
fn edges() -> Vec<String> {
    let mut all: std::collections::BTreeMap<(&str, String), Vec<&str>> = std::collections::BTreeMap::new();
    for verb in &VERBS {
        for (start, from) in STARTS {
            for (when, _) in TIMES {
                let cell = cell(verb, start, when);
                let Some(to) = cell.strip_prefix("→ ").and_then(|to| to.split(',').next()) else { continue };
                let from = from.split(' ').next().unwrap_or(from);
                let verbs = all.entry((from, to.to_owned())).or_default();
                if !verbs.contains(&verb.name) {
                    verbs.push(verb.name);
                }
            }
        }
    }
    all.into_iter().map(|((from, to), verbs)| format!("{from} → {to}: {}", verbs.join(", "))).collect()
}

pub(crate) fn write(out: &mut String) -> fmt::Result {
    out.push_str(
        "| state | who has the frame | who reaches it |\n|---|---|---|\n\
         | `NoMap` | firmware | the host may |\n\
         | `Host` | the host | the host |\n\
         | `Lent` | the host | the host, and the ordinary VMs that it lent it to |\n\
         | `El2` | `el2`, since boot | `el2` |\n\
         | `Pool` | `el2`, for one VM: tables, vCPUs | `el2` |\n\
         | `Private` | one protected VM | that VM |\n\
         | `Shared` | one protected VM | that VM, and the host |\n\n\
         The edges, by the verbs below:\n\n",
    );
    for edge in edges() {
        writeln!(out, "- {edge}")?;
    }
    out.push_str(
        "\n\
         Each table is one verb of `el2/mem`. The VM that the call names is protected, or ordinary where the table says\n\
         so; an empty cell is a moment that does not exist.\n",
    );
    for verb in &VERBS {
        let kind = if verb.kind == Kind::Ordinary { ", for an ordinary VM" } else { "" };
        writeln!(out, "\n### `{}`{kind}\n", verb.name)?;
        writeln!(out, "By {}.", verb.by)?;
        for call in verb.calls {
            let known = hvc::CALLS.iter().find(|known| known.name == *call);
            let when = known.map_or("?", |known| known.when);
            writeln!(out, "`{call}`: {when}.")?;
        }
        writeln!(out)?;
        let heads = std::iter::once("frame").chain(TIMES.iter().map(|(_, name)| *name)).map(str::to_owned).collect();
        let row = |(start, name): &(Start, &str)| {
            let cells = TIMES.iter().map(|(when, _)| cell(verb, *start, *when));
            std::iter::once((*name).to_owned()).chain(cells).collect()
        };
        write!(out, "{}", Table { heads, rows: STARTS.iter().map(row).collect() })?;
    }
    Ok(())
}

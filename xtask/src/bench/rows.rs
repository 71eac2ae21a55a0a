// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rows of the table: what each is called, where its figure stands, and what it may be at most.

use freehold_uapi::hvc;

use super::marks::{Counts, Marks};

#[path = "../../../tests/guest/src/rows.rs"]
pub(super) mod marked;

use marked as m;

/// Where a figure stands.
#[derive(Clone, Copy, Debug)]
enum Figure {
    /// All instructions of a round, its marks' own taken off.
    All(u64),
    /// Those of EL2.
    El2(u64),
    /// The same; the peer's are those of a call that something else makes.
    El2OrCall(u64, u32),
    /// All but the payload's, which waits in a loop.
    Host(u64),
    /// What the payload measured by the counter: its waiting is no instruction.
    Value(u64),
    /// EL2's part of a call of the host and the call itself: Freehold's number, the peer's.
    Call(u32, u32),
    /// All instructions from power on to a mark.
    Until(u64),
    /// Entries to EL2 from power on to a mark.
    Entries(u64),
    /// TLB broadcasts of a round.
    Broadcasts(u64),
    /// Those of EL2, without zeroing and maintenance of caches, on average.
    Lean(u64),
    /// Bytes that EL2 keeps of the machine's RAM.
    Memory,
    /// Bytes of EL2 that are loaded.
    Image,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Its name.
    pub name: &'static str,
    figure: Figure,
    /// How many things a round does.
    per: u64,
    /// The most it may be on `max`.
    pub target: Option<u64>,
    /// What is counted.
    pub unit: &'static str,
    /// Why the peer has no figure, where it can have none.
    pub no_peer: Option<&'static str>,
}

/// A row's figure, and who executed what of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The figure.
    pub figure: u64,
    /// Of the same round, per thing.
    pub el2: u64,
    /// The host's kernel's.
    pub kernel: u64,
    /// The VMM's.
    pub user: u64,
    /// TLB broadcasts of the whole round.
    pub broadcasts: u64,
    /// The least round.
    pub least: u64,
    /// The greatest.
    pub most: u64,
}

const fn row(name: &'static str, figure: Figure, target: Option<u64>) -> Row {
    Row { name, figure, per: 1, target, unit: "instructions", no_peer: None }
}

const fn own(name: &'static str, figure: Figure, per: u64, target: Option<u64>, why: &'static str) -> Row {
    Row { per, no_peer: Some(why), ..row(name, figure, target) }
}

const ONE_BY_ONE: &str = "donates and reclaims single pages, inside other calls";
const NO_CALL: &str = "has no such call";

const NO_ROOM: &str = "is part of its kernel";
/// 0.4 % of 2 GiB, and 4 MiB.
const MEMORY: u64 = (2 << 30) / 250 + (4 << 20);

/// Rows that a short run has: of EL2, of a guest, and of what both keep. What the host's kernel does has no part in them but
/// in the first, which it makes.
pub(super) const QUICK: [&str; 11] = [
    "host call",
    "guest HVC",
    "vGIC register read",
    "world switch",
    "world switch, 2 list registers",
    "world switch, FP",
    "SGI to itself",
    "timer to handler",
    "EL2 memory, 2 GiB of RAM",
    "EL2 image",
    "EL2 entries, host boot",
];

/// `__timer_set_cntvoff`, the host's least call of the peer.
const PEER_LEAST: u32 = 0xc600_0010;
const PEER_DONATE: u32 = 0xc600_001f;
const PEER_RECLAIM: u32 = 0xc600_002c;

/// All of them.
pub(super) const ROWS: [Row; 61] = [
    row("host call", Figure::Call(hvc::VERSION, PEER_LEAST), Some(70)),
    row("guest HVC", Figure::All(m::GUEST_HVC), Some(200)),
    row("vGIC register read", Figure::All(m::VGIC_READ), Some(400)),
    row("MMIO read by the VMM", Figure::All(m::VMM_READ), Some(4_500)),
    row("world switch", Figure::El2(m::VMM_READ), Some(600)),
    row("world switch, 2 list registers", Figure::El2(m::VMM_READ_LISTED), None),
    row("world switch, FP", Figure::El2(m::VMM_READ_FP), None),
    row("MMIO read, 8 VMs", Figure::All(m::VMM_READ_8), None),
    row("MMIO read, 64 VMs", Figure::All(m::VMM_READ_64), None),
    row("world switch, 64 VMs", Figure::El2(m::VMM_READ_64), None),
    row("IPI", Figure::Host(m::IPI), Some(3_500)),
    row("SGI to itself", Figure::All(m::SELF_SGI), None),
    row("timer to handler", Figure::Value(m::TIMER), Some(1_800)),
    row("timer, EL2 and host", Figure::Host(m::TIMER), None),
    row("wake-up from WFI", Figure::Value(m::WAKE), None),
    row("first touch", Figure::All(m::TOUCH), None),
    row("first touch, 4 MiB guest", Figure::All(m::TOUCH_4M), None),
    row("first touch, 64 MiB guest", Figure::All(m::TOUCH_64M), None),
    row("first touch, 1 GiB guest", Figure::All(m::TOUCH_1G), None),
    row("share", Figure::All(m::SHARE), None),
    row("unshare", Figure::All(m::UNSHARE), None),
    own("relinquish", Figure::All(m::RELINQUISH), 1, None, NO_CALL),
    row("donate, batch 1", Figure::El2OrCall(m::DONATE_1, PEER_DONATE), None),
    own("donate, batch 64", Figure::El2(m::DONATE_64), 64, None, ONE_BY_ONE),
    own("donate, batch 512", Figure::El2(m::DONATE_512), 512, Some(400), ONE_BY_ONE),
    own("donate, 64 scattered", Figure::El2(m::DONATE_LIST_64), 64, None, ONE_BY_ONE),
    own("donate, 256 scattered", Figure::El2(m::DONATE_LIST_256), 256, None, ONE_BY_ONE),
    own("donate, 64 blocks, whole", Figure::El2(m::DONATE_WHOLE_64), 64, None, ONE_BY_ONE),
    own("donate, 256 blocks, whole", Figure::El2(m::DONATE_WHOLE_256), 256, None, ONE_BY_ONE),
    own("donate, 64 blocks, split", Figure::El2(m::DONATE_SPLIT_64), 64, None, ONE_BY_ONE),
    own("donate, 256 blocks, split", Figure::El2(m::DONATE_SPLIT_256), 256, None, ONE_BY_ONE),
    own("broadcasts, batch 512", Figure::Broadcasts(m::DONATE_512), 1, None, ONE_BY_ONE).of("broadcasts"),
    row("reclaim, batch 1", Figure::El2OrCall(m::RECLAIM_1, PEER_RECLAIM), None),
    own("reclaim, batch 64", Figure::El2(m::RECLAIM_64), 64, None, ONE_BY_ONE),
    own("reclaim, batch 512", Figure::El2(m::RECLAIM_512), 512, Some(400), ONE_BY_ONE),
    own("broadcasts, reclaim 512", Figure::Broadcasts(m::RECLAIM_512), 1, None, ONE_BY_ONE).of("broadcasts"),
    own("4 KiB to private", Figure::All(m::PRIVATE_4K), 1, None, NO_CALL),
    own("2 MiB to private", Figure::All(m::PRIVATE_2M), 1, None, NO_CALL),
    own("2 MiB to private, per page", Figure::All(m::PRIVATE_2M), 512, None, NO_CALL),
    own("64 MiB to private", Figure::All(m::PRIVATE_64M), 1, None, NO_CALL),
    own("64 MiB to private, per page", Figure::All(m::PRIVATE_64M), 16_384, None, NO_CALL),
    own("4 KiB to shared", Figure::All(m::SHARED_4K), 1, None, NO_CALL),
    own("2 MiB to shared", Figure::All(m::SHARED_2M), 1, None, NO_CALL),
    own("64 MiB to shared", Figure::All(m::SHARED_64M), 1, None, NO_CALL),
    own("64 MiB to shared, per page", Figure::All(m::SHARED_64M), 16_384, None, NO_CALL),
    own("2 MiB to private, 1 mapping", Figure::All(m::MAPPED_1), 1, None, NO_CALL),
    own("2 MiB to private, 64 mappings", Figure::All(m::MAPPED_64), 1, None, NO_CALL),
    row("VM create", Figure::All(m::VM_CREATE), None),
    row("first run", Figure::All(m::FIRST_RUN), None),
    row("VM end", Figure::All(m::VM_END), None),
    row("host boot", Figure::Until(m::BOOT), None),
    row("EL2 entries, host boot", Figure::Entries(m::BOOT), Some(20)).of("entries"),
    own("EL2 memory, 2 GiB of RAM", Figure::Memory, 1, Some(MEMORY), NO_ROOM).of("bytes"),
    own("EL2 memory per GiB", Figure::Memory, 2, None, NO_ROOM).of("bytes"),
    own("EL2 memory of a VM", Figure::Value(m::VM_MEMORY), 1, None, NO_ROOM).of("bytes"),
    own("host faults at rest, 1 s", Figure::Value(m::FAULTS_AT_REST), 1, Some(0), NO_ROOM).of("faults"),
    own("EL2 image", Figure::Image, 1, Some(256 << 10), NO_ROOM).of("bytes"),
    row("system call of the host", Figure::All(m::SYSTEM_CALL), None),
    own("donate, 512, but zeroing", Figure::Lean(m::DONATE_512), 512, None, ONE_BY_ONE),
    own("reclaim, 512, but zeroing", Figure::Lean(m::RECLAIM_512), 512, None, ONE_BY_ONE),
    own("counter, by the driver", Figure::All(m::HOST_CALL), 1, None, NO_CALL),
];

/// The marks of a row do not count.
fn less(counts: Counts, nothing: Counts) -> Counts {
    Counts {
        user: counts.user.saturating_sub(nothing.user),
        guest: counts.guest.saturating_sub(nothing.guest),
        ..counts
    }
}

/// What the marks of a row cost themselves.
fn nothing(marks: &Marks, row: u64) -> Counts {
    let empty = if row < m::USER_NOTHING { m::GUEST_NOTHING } else { m::USER_NOTHING };
    marks.median(empty).unwrap_or_default()
}

impl Row {
    const fn of(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    /// Whether the host's kernel does it without asking EL2: beside it stands the same kernel without EL2.
    pub(super) fn is_of_the_host(&self) -> bool {
        matches!(self.figure, Figure::Until(_) | Figure::All(m::SYSTEM_CALL))
    }

    /// The call that its figure is of.
    fn call(&self, peer: bool) -> Option<u32> {
        match self.figure {
            Figure::Call(_, theirs) | Figure::El2OrCall(_, theirs) if peer => Some(theirs),
            Figure::Call(ours, _) => Some(ours),
            Figure::All(_)
            | Figure::El2(_)
            | Figure::El2OrCall(..)
            | Figure::Host(_)
            | Figure::Value(_)
            | Figure::Until(_)
            | Figure::Entries(_)
            | Figure::Broadcasts(_)
            | Figure::Lean(_)
            | Figure::Memory
            | Figure::Image => None,
        }
    }

    /// What a machine shows of it.
    pub(super) fn seen(&self, marks: &Marks, peer: bool) -> Option<Seen> {
        if let Some(number) = self.call(peer) {
            // The instruction that calls is the host's; the round trip has it.
            let all = marks.calls(number.into())?.least + 1;
            return Some(Seen { figure: all, el2: all - 1, least: all, most: all, ..Seen::default() });
        }
        let figure = |c: &Counts| self.figure_of(c);
        match self.figure {
            Figure::Until(row) | Figure::Entries(row) => {
                let counts = marks.until(row)?;
                Some(self.of_round(&counts, figure(&counts), figure(&counts)))
            }
            Figure::All(row)
            | Figure::El2(row)
            | Figure::El2OrCall(row, _)
            | Figure::Host(row)
            | Figure::Value(row)
            | Figure::Broadcasts(row) => {
                let nothing = nothing(marks, row);
                let mut rounds: Vec<Counts> = marks.rounds(row).into_iter().map(|c| less(c, nothing)).collect();
                rounds.sort_by_key(&figure);
                let middle = rounds.get(rounds.len() / 2)?;
                Some(self.of_round(middle, figure(rounds.first()?), figure(rounds.last()?)))
            }
            Figure::Lean(row) => self.alone(marks.lean.get(&m::end(row)).copied()?),
            Figure::Memory => self.alone(marks.memory),
            Figure::Image => self.alone(marks.image),
            Figure::Call(..) => None,
        }
    }

    /// A figure that nobody's instructions stand beside.
    fn alone(&self, whole: u64) -> Option<Seen> {
        let figure = whole / self.per;
        (whole != 0).then_some(Seen { figure, least: figure, most: figure, ..Seen::default() })
    }

    fn figure_of(&self, counts: &Counts) -> u64 {
        let whole = match self.figure {
            Figure::All(_) | Figure::Until(_) => counts.all(),
            Figure::El2(_) | Figure::El2OrCall(..) => counts.el2,
            Figure::Host(_) => counts.all() - counts.guest,
            Figure::Value(_) => counts.value,
            Figure::Entries(_) => counts.entries,
            Figure::Broadcasts(_) => counts.broadcasts,
            Figure::Call(..) | Figure::Lean(_) | Figure::Memory | Figure::Image => 0,
        };
        whole / self.per
    }

    fn of_round(&self, counts: &Counts, least: u64, most: u64) -> Seen {
        Seen {
            figure: self.figure_of(counts),
            el2: counts.el2 / self.per,
            kernel: counts.kernel / self.per,
            user: counts.user / self.per,
            broadcasts: counts.broadcasts,
            least,
            most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "mark 0x2 0 0 0 10 0 0 0 0 0\nmark 0x3 0 0 0 13 0 0 0 0 0\n\
                        call 0xc6000080 1 152 152 152\ncall 0xc6000010 1 151 151 151\n\
                        mark 0x4 0 0 0 20 0 0 0 0 0\nmark 0x5 0 0 5 31 200 1 0 0 0\n";

    fn of(name: &str) -> Row {
        ROWS.into_iter().find(|row| row.name == name).unwrap()
    }

    #[test]
    fn marks_are_taken_off_and_parts_are_apart() {
        let marks = Marks::parse(TEXT).unwrap();
        let seen = of("guest HVC").seen(&marks, false).unwrap();
        assert_eq!((seen.figure, seen.el2, seen.kernel), (213, 200, 5));
        assert_eq!(of("vGIC register read").seen(&marks, false), None);
    }

    #[test]
    fn a_call_is_each_sides_own() {
        let marks = Marks::parse(TEXT).unwrap();
        assert_eq!(of("host call").seen(&marks, false).unwrap().figure, 153);
        assert_eq!(of("host call").seen(&marks, true).unwrap().figure, 152);
    }

    #[test]
    fn a_short_run_has_rows_that_there_are() {
        assert!(QUICK.into_iter().all(|name| of(name).name == name));
    }

    #[test]
    fn names_are_told_apart() {
        for (n, row) in ROWS.iter().enumerate() {
            assert!(ROWS.iter().skip(n + 1).all(|other| other.name != row.name), "{}", row.name);
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Addresses, frame numbers and runs of them, and the claims that lower ELs make about them.
//!
//! Guarantees that a `Pfn` is below 2^36, a `Gfn` below 2^28, and that a run neither is empty nor
//! passes those limits, so that no later sum can overflow. It does not know what is RAM: that is
//! the ledger's to say. Keeps the arithmetic half of I7.

use crate::Refused;

/// Bytes in a granule.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Frames in a 2 MB block.
pub const BLOCK_FRAMES: u64 = 512;
/// Frames that one run may name, and that one call handles.
pub const MAX_FRAMES: u64 = 512;
/// Records that fill a list frame, of 16 bytes each.
pub const MAX_RECORDS: u64 = 256;

const PAGE_SHIFT: u32 = 12;
/// 48-bit physical addresses; 52-bit ones are capped by the caller.
const PFN_LIMIT: u64 = 1 << 36;
/// 40-bit intermediate physical addresses.
const GFN_LIMIT: u64 = 1 << 28;
/// A frame number whose address does not fit 64 bits overflows.
const ADDRESSABLE: u64 = 1 << (64 - PAGE_SHIFT);

/// A number from a lower EL that nobody has checked.
///
/// Holding one proves nothing. Only code of this crate can look inside, and it does so under the
/// lock of what the claim is about.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Claim<T>(T);

impl<T> Claim<T> {
    /// Wraps what a lower EL said.
    pub const fn new(said: T) -> Self {
        Self(said)
    }

    /// Takes the claim out, to be checked by the caller.
    pub(crate) fn examine(self) -> T {
        self.0
    }
}

/// A physical address below 2^48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pa(u64);

impl Pa {
    /// Accepts an address below 2^48.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw >> PAGE_SHIFT < PFN_LIMIT { Some(Self(raw)) } else { None }
    }

    /// The address as a number.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The frame that holds the address.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

/// The number of a 4K frame of physical memory, below 2^36.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u64);

impl Pfn {
    /// Accepts a number below 2^36.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw < PFN_LIMIT { Some(Self(raw)) } else { None }
    }

    /// Keeps the low 36 bits; for decoding words that this crate wrote itself.
    pub(crate) const fn from_bits(raw: u64) -> Self {
        // INVARIANT: the mask keeps it below PFN_LIMIT.
        Self(raw & (PFN_LIMIT - 1))
    }

    /// The number.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The address of the frame's first byte.
    pub const fn pa(self) -> Pa {
        Pa(self.0 << PAGE_SHIFT)
    }

    /// The frame `count` further on, if there is one.
    pub const fn add(self, count: u64) -> Option<Self> {
        Self::new(self.0.saturating_add(count))
    }
}

/// An intermediate physical address below 2^48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipa(u64);

impl Ipa {
    /// Accepts an address below 2^48.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw >> PAGE_SHIFT < PFN_LIMIT { Some(Self(raw)) } else { None }
    }

    /// The address as a number.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The guest frame that holds the address, if it is below 2^40.
    pub const fn gfn(self) -> Option<Gfn> {
        Gfn::new(self.0 >> PAGE_SHIFT)
    }

    /// The frame that an identity map takes the address to.
    pub const fn identity(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

/// The number of a 4K frame in a guest's address space, below 2^28.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(u64);

impl Gfn {
    /// Accepts a number below 2^28.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw < GFN_LIMIT { Some(Self(raw)) } else { None }
    }

    /// Keeps the low 28 bits; for decoding words that this crate wrote itself.
    pub(crate) const fn from_bits(raw: u64) -> Self {
        // INVARIANT: the mask keeps it below GFN_LIMIT.
        Self(raw & (GFN_LIMIT - 1))
    }

    /// The number.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The address of the guest frame's first byte.
    pub const fn ipa(self) -> Ipa {
        Ipa(self.0 << PAGE_SHIFT)
    }
}

/// One or more consecutive frames.
///
/// # Invariants
/// `count` is at least 1 and `start + count` is at most 2^36.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfnRun {
    start: Pfn,
    count: u64,
}

impl PfnRun {
    /// Decodes a run that a caller named.
    ///
    /// # Errors
    /// `ZeroCount`, `Overflow`, and `NotMemory` where the run passes 2^36.
    pub const fn decode(pfn: u64, count: u64) -> Result<Self, Refused> {
        match end_of(pfn, count) {
            Err(why) => Err(why),
            Ok(end) if end > PFN_LIMIT => Err(Refused::NotMemory),
            // INVARIANT: end_of refuses a zero count; the end was compared just above.
            Ok(_) => Ok(Self { start: Pfn(pfn), count }),
        }
    }

    /// A run of one frame.
    pub const fn one(pfn: Pfn) -> Self {
        // INVARIANT: pfn < 2^36, so pfn + 1 <= 2^36.
        Self { start: pfn, count: 1 }
    }

    /// The first frame.
    pub const fn start(&self) -> Pfn {
        self.start
    }

    /// How many frames.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The number one past the last frame.
    pub const fn end(&self) -> u64 {
        self.start.0.saturating_add(self.count)
    }

    /// Whether the frame is in the run.
    pub const fn contains(&self, pfn: Pfn) -> bool {
        self.start.0 <= pfn.0 && pfn.0 < self.end()
    }

    /// Whether all of `other` is in the run.
    pub const fn covers(&self, other: &Self) -> bool {
        self.start.0 <= other.start.0 && other.end() <= self.end()
    }

    /// Whether the runs have a frame in common.
    pub const fn meets(&self, other: &Self) -> bool {
        self.start.0 < other.end() && other.start.0 < self.end()
    }

    /// The frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = Pfn> + Clone + use<> {
        (self.start.0..self.end()).map(Pfn)
    }
}

/// One or more consecutive guest frames.
///
/// # Invariants
/// `count` is at least 1 and `start + count` is at most 2^28.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GfnRun {
    start: Gfn,
    count: u64,
}

impl GfnRun {
    /// Decodes a run that a caller named.
    ///
    /// # Errors
    /// `ZeroCount`, `Overflow`, and `GfnOutOfRange` where the run passes 2^28.
    pub const fn decode(gfn: u64, count: u64) -> Result<Self, Refused> {
        match end_of(gfn, count) {
            Err(why) => Err(why),
            Ok(end) if end > GFN_LIMIT => Err(Refused::GfnOutOfRange),
            // INVARIANT: end_of refuses a zero count; the end was compared just above.
            Ok(_) => Ok(Self { start: Gfn(gfn), count }),
        }
    }

    /// The first guest frame.
    pub const fn start(&self) -> Gfn {
        self.start
    }

    /// How many guest frames.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The number one past the last guest frame.
    pub const fn end(&self) -> u64 {
        self.start.0.saturating_add(self.count)
    }

    /// Whether the guest frame is in the run.
    pub const fn contains(&self, gfn: Gfn) -> bool {
        self.start.0 <= gfn.0 && gfn.0 < self.end()
    }

    /// Whether the runs have a guest frame in common.
    pub const fn meets(&self, other: &Self) -> bool {
        self.start.0 < other.end() && other.start.0 < self.end()
    }

    /// The guest frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = Gfn> + Clone + use<> {
        (self.start.0..self.end()).map(Gfn)
    }
}

/// A run of frames and the run of guest frames, of the same length, that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lot {
    frames: PfnRun,
    at: GfnRun,
}

impl Lot {
    /// Decodes one (pfn, gfn, count) record.
    ///
    /// # Errors
    /// What [`PfnRun::decode`] and [`GfnRun::decode`] refuse.
    pub const fn decode(pfn: u64, gfn: u64, count: u64) -> Result<Self, Refused> {
        match (PfnRun::decode(pfn, count), GfnRun::decode(gfn, count)) {
            (Ok(frames), Ok(at)) => Ok(Self { frames, at }),
            (Err(why), _) | (Ok(_), Err(why)) => Err(why),
        }
    }

    /// The frames.
    pub const fn frames(&self) -> PfnRun {
        self.frames
    }

    /// The guest frames.
    pub const fn at(&self) -> GfnRun {
        self.at
    }
}

/// A VM's place in the table of VMs, 0 to 253.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmSlot(u8);

impl VmSlot {
    /// How many slots an 8-bit VMID allows besides the host's.
    pub const COUNT: usize = 254;

    /// Accepts a number below [`Self::COUNT`].
    pub const fn new(raw: u8) -> Option<Self> {
        if (raw as usize) < Self::COUNT { Some(Self(raw)) } else { None }
    }

    /// Keeps the byte; for decoding words that this crate wrote itself.
    pub(crate) const fn from_bits(raw: u8) -> Self {
        Self(raw)
    }

    /// The number.
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// The VMID of the slot: the host has 0, slot `s` has `s + 1`.
    pub const fn vmid(self) -> Vmid {
        Vmid(self.0.saturating_add(1))
    }
}

/// The tag that TLB entries of one VM carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vmid(u8);

impl Vmid {
    /// The host's.
    pub const HOST: Self = Self(0);

    /// The number, for VTTBR_EL2.
    pub const fn raw(self) -> u8 {
        self.0
    }
}

const fn end_of(start: u64, count: u64) -> Result<u64, Refused> {
    if count == 0 {
        return Err(Refused::ZeroCount);
    }
    match start.checked_add(count) {
        Some(end) if end <= ADDRESSABLE => Ok(end),
        Some(_) | None => Err(Refused::Overflow),
    }
}

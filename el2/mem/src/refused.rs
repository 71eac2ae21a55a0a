// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a call was refused: one variant per cause, each naming what was wrong with whom.
//!
//! A refusal means that no ledger record, no table and no counter changed (I6). The crate knows no
//! ABI code; the table from here to status codes is `virt`'s, and a test walks it.

/// What was wrong with a claim, a frame, a guest frame or a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The call names no frame at all.
    ZeroCount,
    /// The call names more frames or records than one call may.
    CountTooLarge,
    /// Number plus count does not fit the address space.
    Overflow,
    /// The frame is not RAM: a device, a hole, or beyond the machine.
    NotMemory,
    /// The frame is RAM that firmware marked `no-map`.
    NoMap,
    /// The frame is `el2`'s own since boot.
    El2Owned,
    /// The frame already belongs to the VM that the call names.
    AlreadyDonated,
    /// The frame belongs to another VM.
    Foreign,
    /// The frame is lent: by the host to ordinary VMs, or by a guest to the host.
    Shared,
    /// The frame is lent as often as can be counted.
    LentTooOften,
    /// One call names a frame, or a guest frame, twice.
    Twice,
    /// The guest frame lies outside the RAM that the VM declared.
    GfnOutOfRange,
    /// The guest frame is mapped already.
    GfnMapped,
    /// Nothing is mapped at the guest frame.
    GfnNotMapped,
    /// The guest frame was revoked and stays unusable.
    GfnPoisoned,
    /// The guest frame is not shared with the host.
    NotShared,
    /// The frame is the host's already, where the call needs one of this VM's.
    HostOwned,
    /// The VM's pool lacks this many pages for tables.
    NeedPages(u32),
    /// The VM is not in a state in which the call is allowed.
    WrongState,
    /// The call exists only for the other kind of VM (protected or ordinary).
    WrongKind,
    /// The IPA size is not one that `el2` can serve.
    BadIpaSize,
    /// The RAM range meets one declared before.
    RamOverlap,
    /// The VM declared as many RAM ranges as it may.
    TooManyRanges,
    /// Guest frames are still out: the pool can not go back yet.
    GuestFramesLeft,
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What may come of an operation.

/// The status of a driver move that the driver itself refuses.
pub const REFUSED: i64 = -127;

/// A set of statuses, each between 0 and -127.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Statuses(u128);

impl Statuses {
    /// No status.
    pub const NONE: Self = Self(0);

    /// The set of one.
    #[must_use]
    pub const fn one(status: i64) -> Self {
        Self(1 << (status.unsigned_abs() & 127))
    }

    /// The set with one more where `condition` holds.
    #[must_use]
    pub const fn when(self, condition: bool, status: i64) -> Self {
        if condition { self.and(Self::one(status)) } else { self }
    }

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether a status is in it.
    #[must_use]
    pub const fn has(self, status: i64) -> bool {
        status <= 0 && status > -128 && self.0 & Self::one(status).0 != 0
    }

    /// How many are in it.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether it is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members, from the one nearest zero on.
    pub fn iter(self) -> impl Iterator<Item = i64> {
        (0..128).map(|n: i64| -n).filter(move |s| self.has(*s))
    }
}

impl core::fmt::Debug for Statuses {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A result register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// This value.
    Is(u64),
    /// A value that the specification does not say.
    Any,
}

impl Value {
    /// Whether a register may hold `x`.
    #[must_use]
    pub const fn permits(self, x: u64) -> bool {
        match self {
            Self::Is(v) => v == x,
            Self::Any => true,
        }
    }
}

/// Success, by kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Done {
    /// A host call succeeded: x1 to x4.
    Host([Value; 4]),
    /// A vCPU runs now. The guest finds these in x0 and x1, if it waited for an answer.
    Entered(Option<(u64, u64)>),
    /// A guest left: x1 to x4 of the host's [`VCPU_RUN`](freehold_uapi::hvc::VCPU_RUN).
    Exit([Value; 4]),
    /// A guest goes on after a call: x0 to x3.
    Answered([Value; 4]),
    /// An access goes through.
    Allowed,
    /// A guest's access ends in an external abort of its own.
    Aborted,
    /// The host's access ends in an alignment fault.
    Injected,
    /// The host's access took the page: it is the host's, zero, and the access goes through.
    Revoked,
    /// The driver moved.
    Moved,
    /// No document says what follows; the records stay as they are.
    Unsaid,
}

/// Translations that may not outlive the operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Debts {
    /// Those of the host.
    pub host: bool,
    /// Those of VMs, a bit per slot.
    pub guests: u64,
}

/// All that may come of an operation. A refusal changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// Statuses with which it may be refused.
    pub refused: Statuses,
    /// What it returns if it is done; none if it must be refused.
    pub done: Option<Done>,
    /// What its success must invalidate.
    pub debts: Debts,
}

impl Outcome {
    /// It must be refused, with one of these.
    #[must_use]
    pub const fn refused(refused: Statuses) -> Self {
        Self { refused, done: None, debts: Debts { host: false, guests: 0 } }
    }

    /// It must be done.
    #[must_use]
    pub const fn done(done: Done) -> Self {
        Self { refused: Statuses::NONE, done: Some(done), debts: Debts { host: false, guests: 0 } }
    }

    /// Whether a host call may answer so: the status and x1 to x4.
    #[must_use]
    pub fn permits(&self, status: i64, x: [u64; 4]) -> bool {
        match (status, self.done) {
            (0, Some(Done::Host(values) | Done::Exit(values))) => values.iter().zip(x).all(|(v, x)| v.permits(x)),
            (0, _) => false,
            (status, _) => self.refused.has(status),
        }
    }
}

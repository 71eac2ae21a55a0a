// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why the boot does not go on: one line that says what is wrong and where.

use core::fmt;

/// What is wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    what: &'static str,
    place: &'static str,
    number: Option<u64>,
}

impl Stop {
    /// A stop at a named place.
    pub const fn new(what: &'static str, place: &'static str) -> Self {
        Self { what, place, number: None }
    }

    /// A stop at a place that a number (an address, an offset, a count) makes exact.
    pub const fn with(what: &'static str, place: &'static str, number: u64) -> Self {
        Self { what, place, number: Some(number) }
    }

    /// What is wrong.
    pub fn what(&self) -> &'static str {
        self.what
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.what, self.place)?;
        match self.number {
            Some(number) => write!(f, " {number:#x}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Stop;

    #[test]
    fn a_stop_says_what_and_where() {
        assert_eq!(Stop::new("no memory", "/memory").to_string(), "no memory at /memory");
        assert_eq!(Stop::with("too long", "offset", 16).to_string(), "too long at offset 0x10");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Doorbells: stores outside RAM that signal an eventfd and are no exit (`KVM_IOEVENTFD`).
//!
//! Which store rings which, and which may stand beside each other, is as in Linux `virt/kvm/eventfd.c`.

use crate::error::Error;
use crate::exit::Mmio;
use freehold_uapi::ioctl as io;

/// Doorbells of a VM, at most.
pub const MAX_DOORBELLS: usize = 256;

/// What rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    address: u64,
    /// 0: of any size.
    len: u32,
    /// `None`: whatever is stored.
    data: Option<u64>,
}

/// What `KVM_IOEVENTFD` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A new one.
    Assign(Match),
    /// It goes.
    Deassign(Match),
}

impl Ask {
    /// Decodes the argument.
    ///
    /// # Errors
    /// `Invalid` for an unknown flag, the bus of ports included, a size that no store has, an address that overflows, or
    /// data to compare of no size.
    pub fn decode(ask: &io::Ioeventfd) -> Result<Self, Error> {
        let flags = u64::from(ask.flags);
        if flags & !(io::KVM_IOEVENTFD_FLAG_DATAMATCH | io::KVM_IOEVENTFD_FLAG_DEASSIGN) != 0 {
            return Err(Error::Invalid);
        }
        let compared = flags & io::KVM_IOEVENTFD_FLAG_DATAMATCH != 0;
        if !matches!(ask.len, 0 | 1 | 2 | 4 | 8) || ask.addr.checked_add(u64::from(ask.len)).is_none() {
            return Err(Error::Invalid);
        }
        if ask.len == 0 && compared {
            return Err(Error::Invalid);
        }
        let what = Match { address: ask.addr, len: ask.len, data: compared.then_some(ask.datamatch) };
        Ok(if flags & io::KVM_IOEVENTFD_FLAG_DEASSIGN != 0 { Self::Deassign(what) } else { Self::Assign(what) })
    }
}

impl Match {
    /// Whether some store would ring both.
    fn meets(&self, other: &Self) -> bool {
        let either = self.data.is_none() || other.data.is_none() || self.data == other.data;
        self.address == other.address && (self.len == 0 || other.len == 0 || (self.len == other.len && either))
    }

    fn is_rung_by(&self, address: u64, size: u8, data: u64) -> bool {
        self.address == address
            && (self.len == 0 || self.len == u32::from(size))
            && self.data.is_none_or(|wanted| wanted == data)
    }
}

/// A place for a doorbell; `E` is an eventfd, held.
pub type Place<E> = Option<(Match, E)>;

/// The doorbells of a VM, in as many places as there are.
#[derive(Debug)]
pub struct Doorbells<'a, E>(pub &'a mut [Place<E>]);

impl<E: PartialEq> Doorbells<'_, E> {
    /// Adds one.
    ///
    /// # Errors
    /// `Exists` if some store would ring another one too, `NoSpace` if there are too many.
    pub fn add(&mut self, what: Match, event: E) -> Result<(), Error> {
        if self.0.iter().flatten().any(|(other, _)| other.meets(&what)) {
            return Err(Error::Exists);
        }
        let place = self.0.iter_mut().find(|place| place.is_none()).ok_or(Error::NoSpace)?;
        *place = Some((what, event));
        Ok(())
    }

    /// Takes one out.
    ///
    /// # Errors
    /// `NoEntry` if there is none like it.
    pub fn remove(&mut self, what: Match, event: &E) -> Result<E, Error> {
        let same = |place: &&mut Place<E>| place.as_ref().is_some_and(|(m, e)| *m == what && e == event);
        let place = self.0.iter_mut().find(same).and_then(Option::take);
        place.map(|(_, event)| event).ok_or(Error::NoEntry)
    }

    /// Takes any out, until there is none.
    pub fn pop(&mut self) -> Option<E> {
        self.0.iter_mut().find_map(Option::take).map(|(_, event)| event)
    }

    /// The one that an access rings: only stores do.
    #[must_use]
    pub fn rung_by(&self, access: &Mmio) -> Option<&E> {
        let data = access.store?;
        let found = self.0.iter().flatten().find(|(what, _)| what.is_rung_by(access.address, access.size, data));
        found.map(|(_, event)| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: io::Ioeventfd =
        io::Ioeventfd { datamatch: 7, addr: 0x5000_0010, len: 4, fd: 3, flags: 1, pad: [0xff; 36] };

    fn what(len: u32, data: Option<u64>) -> Match {
        Match { address: 0x5000_0010, len, data }
    }

    fn store(address: u64, size: u8, data: u64) -> Mmio {
        Mmio { address, size, store: Some(data) }
    }

    #[test]
    fn arguments_are_kvms() {
        assert_eq!(Ask::decode(&ASK), Ok(Ask::Assign(what(4, Some(7)))));
        assert_eq!(Ask::decode(&io::Ioeventfd { flags: 5, ..ASK }), Ok(Ask::Deassign(what(4, Some(7)))));
        assert_eq!(Ask::decode(&io::Ioeventfd { flags: 0, len: 0, ..ASK }), Ok(Ask::Assign(what(0, None))));
        for bad in [
            io::Ioeventfd { flags: 2, ..ASK },
            io::Ioeventfd { flags: 8, ..ASK },
            io::Ioeventfd { flags: 1 << 31, ..ASK },
            io::Ioeventfd { len: 3, ..ASK },
            io::Ioeventfd { len: 16, ..ASK },
            io::Ioeventfd { len: 0, ..ASK },
            io::Ioeventfd { addr: u64::MAX - 3, ..ASK },
        ] {
            assert_eq!(Ask::decode(&bad), Err(Error::Invalid), "{bad:?}");
        }
    }

    #[test]
    fn a_store_rings_the_one_that_names_it() {
        let mut places = [const { None }; MAX_DOORBELLS];
        let mut bells = Doorbells(&mut places);
        bells.add(what(4, Some(7)), 'a').unwrap();
        bells.add(what(4, Some(8)), 'b').unwrap();
        bells.add(what(2, None), 'c').unwrap();
        bells.add(Match { address: 0x6000, len: 0, data: None }, 'd').unwrap();
        let rung = |address, size, data| bells.rung_by(&store(address, size, data)).copied();
        assert_eq!(rung(0x5000_0010, 4, 7), Some('a'));
        assert_eq!(rung(0x5000_0010, 4, 8), Some('b'));
        assert_eq!(rung(0x5000_0010, 4, 9), None);
        assert_eq!(rung(0x5000_0010, 2, 9), Some('c'));
        assert_eq!(rung(0x5000_0010, 1, 7), None);
        assert_eq!(rung(0x5000_0014, 4, 7), None);
        for size in [1, 2, 4, 8] {
            assert_eq!(rung(0x6000, size, 1), Some('d'));
        }
        // A load is the VMM's.
        assert_eq!(bells.rung_by(&Mmio { address: 0x6000, size: 4, store: None }), None);
    }

    #[test]
    fn two_that_one_store_would_ring_do_not_stand_together() {
        let mut places = [const { None }; MAX_DOORBELLS];
        let mut bells = Doorbells(&mut places);
        bells.add(what(4, Some(7)), 1).unwrap();
        for bad in [what(4, Some(7)), what(4, None), what(0, None)] {
            assert_eq!(bells.add(bad, 2), Err(Error::Exists), "{bad:?}");
        }
        bells.add(what(2, None), 2).unwrap();
        assert_eq!(bells.add(what(2, Some(1)), 3), Err(Error::Exists));
    }

    #[test]
    fn the_one_that_goes_is_the_one_that_was_added() {
        let mut places = [const { None }; MAX_DOORBELLS];
        let mut bells = Doorbells(&mut places);
        bells.add(what(4, Some(7)), 1).unwrap();
        for (what, event) in [(what(4, Some(8)), 1), (what(4, None), 1), (what(8, Some(7)), 1), (what(4, Some(7)), 2)] {
            assert_eq!(bells.remove(what, &event), Err(Error::NoEntry));
        }
        assert_eq!(bells.remove(what(4, Some(7)), &1), Ok(1));
        assert_eq!(bells.remove(what(4, Some(7)), &1), Err(Error::NoEntry));
        bells.add(what(4, Some(7)), 3).unwrap();
        assert_eq!((bells.pop(), bells.pop()), (Some(3), None));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut places = [const { None }; MAX_DOORBELLS];
        let mut bells = Doorbells(&mut places);
        for n in 0..MAX_DOORBELLS as u64 {
            bells.add(what(8, Some(n)), n).unwrap();
        }
        assert_eq!(bells.add(what(4, None), 0), Err(Error::NoSpace));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A short list in place: what a `Vec` would be, without an allocator.

/// At most `N` items, in the order in which they were put in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Few<T, const N: usize> {
    items: [Option<T>; N],
    len: usize,
}

impl<T: Copy, const N: usize> Few<T, N> {
    /// Holds nothing.
    pub(crate) const fn new() -> Self {
        Self { items: [None; N], len: 0 }
    }

    /// Adds an item, and says whether there was room.
    #[must_use]
    pub(crate) fn push(&mut self, item: T) -> bool {
        let Some(place) = self.items.get_mut(self.len) else { return false };
        *place = Some(item);
        self.len = self.len.saturating_add(1);
        true
    }

    /// How many items there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The items, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + Clone + '_ {
        self.items.iter().map_while(|item| *item)
    }

    /// Puts the items into the order of `key`, smallest first.
    pub(crate) fn sort_by_key(&mut self, key: impl Fn(T) -> u64) {
        if let Some(held) = self.items.get_mut(..self.len) {
            held.sort_unstable_by_key(|item| item.map_or(u64::MAX, &key));
        }
    }
}

//! Longest-prefix match over a table that is built once and only read.
//!
//! Nested prefixes are flattened into intervals that do not overlap. Leases of one network have one
//! length, so their borders lie on a grid: then a look-up is one subtraction, one shift and one
//! load. Irregular tables fall back to a binary search over the same intervals.

use alloc::vec::Vec;

/// An address as a number.
pub trait Bits: Copy + Ord {
    /// Bits of an address.
    const WIDTH: u32;
    /// All ones.
    const MAX: Self;
    /// `self - base`, shifted right; `None` if below `base` or if the result exceeds `usize`.
    fn grid(self, base: Self, shift: u32) -> Option<usize>;
    /// The next address, if there is one.
    fn next(self) -> Option<Self>;
    /// The last address of the prefix of `len` bits that starts at `self`.
    fn last_of(self, len: u8) -> Self;
    /// Trailing zero bits of `self - base`.
    fn alignment(self, base: Self) -> u32;
}

macro_rules! bits {
    ($int:ty) => {
        impl Bits for $int {
            const WIDTH: u32 = <$int>::BITS;
            const MAX: Self = <$int>::MAX;
            #[inline]
            fn grid(self, base: Self, shift: u32) -> Option<usize> {
                usize::try_from(self.checked_sub(base)?.checked_shr(shift)?).ok()
            }
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
            fn last_of(self, len: u8) -> Self {
                self | Self::MAX.checked_shr(u32::from(len)).unwrap_or(0)
            }
            fn alignment(self, base: Self) -> u32 {
                self.wrapping_sub(base).trailing_zeros()
            }
        }
    };
}
bits!(u32);
bits!(u128);

/// The value of addresses that no prefix covers.
pub const NONE: u32 = u32::MAX;

/// A grid this small (256 KiB) is built however few prefixes it serves.
const SMALL_GRID: usize = 1 << 16;
/// A larger grid must be filled at least this densely: entries for each interval.
const GRID_PER_INTERVAL: usize = 8;

/// Prefixes of one family, each with a value other than [`NONE`].
#[derive(Clone, Debug)]
pub struct PrefixMap<A> {
    /// Where each interval starts, ascending; it ends where the next one starts. Empty where there is a grid.
    starts: Vec<A>,
    values: Vec<u32>,
    grid: Option<Grid<A>>,
}

#[derive(Clone, Debug)]
struct Grid<A> {
    base: A,
    shift: u32,
    cells: Vec<u32>,
}

impl<A: Bits> PrefixMap<A> {
    /// Builds the map from (network address, length, value). Of two equal prefixes the later one counts.
    #[must_use]
    pub fn build(mut prefixes: Vec<(A, u8, u32)>) -> Self {
        prefixes.sort_by_key(|(start, len, _)| (*start, *len));
        let mut map = Self { starts: Vec::new(), values: Vec::new(), grid: None };
        // The enclosing prefixes of the place reached, innermost last: (last address, value).
        let mut open: Vec<(A, u32)> = Vec::new();
        for (start, len, value) in prefixes {
            map.close_until(&mut open, Some(start));
            open.push((start.last_of(len), value));
            map.begin(start, value);
        }
        map.close_until(&mut open, None);
        map.grid = map.lay_grid();
        if map.grid.is_some() {
            // The grid answers every question, and a hundred thousand leases come and go by whole tables.
            (map.starts, map.values) = (Vec::new(), Vec::new());
        }
        map.starts.shrink_to_fit();
        map.values.shrink_to_fit();
        map
    }

    /// Ends every open prefix that does not reach `start`; its encloser goes on behind it.
    fn close_until(&mut self, open: &mut Vec<(A, u32)>, start: Option<A>) {
        while let Some((last, _)) = open.last().copied() {
            if start.is_some_and(|start| start <= last) {
                return;
            }
            open.pop();
            if let Some(after) = last.next() {
                self.begin(after, open.last().map_or(NONE, |(_, value)| *value));
            }
        }
    }

    fn begin(&mut self, start: A, value: u32) {
        if self.starts.last() == Some(&start) {
            self.values.pop();
            self.values.push(value);
        } else if self.values.last() != Some(&value) {
            self.starts.push(start);
            self.values.push(value);
        }
    }

    fn lay_grid(&self) -> Option<Grid<A>> {
        let base = *self.starts.first()?;
        let end = *self.starts.last()?;
        let shift = self.starts.iter().map(|start| start.alignment(base)).min()?.min(A::WIDTH - 1);
        // The last interval is either the gap behind the last prefix or reaches the highest address.
        let last_is_gap = self.values.last() == Some(&NONE);
        let cells =
            if last_is_gap { end.grid(base, shift)? } else { A::MAX.grid(base, shift)?.checked_add(1)? };
        if cells > SMALL_GRID.max(GRID_PER_INTERVAL.saturating_mul(self.starts.len())) {
            return None;
        }
        let mut grid = Vec::with_capacity(cells);
        for (i, (start, value)) in self.starts.iter().zip(&self.values).enumerate() {
            let from = start.grid(base, shift)?;
            let to = match self.starts.get(i + 1) {
                Some(next) => next.grid(base, shift)?,
                None if last_is_gap => from,
                None => cells,
            };
            grid.extend(core::iter::repeat_n(*value, to - from));
        }
        Some(Grid { base, shift, cells: grid })
    }

    /// The value of the longest prefix that covers `address`, or [`NONE`].
    #[inline]
    #[must_use]
    pub fn get(&self, address: A) -> u32 {
        match &self.grid {
            Some(grid) => address
                .grid(grid.base, grid.shift)
                .and_then(|cell| grid.cells.get(cell))
                .copied()
                .unwrap_or(NONE),
            None => self.search(address),
        }
    }

    fn search(&self, address: A) -> u32 {
        let after = self.starts.partition_point(|start| *start <= address);
        after.checked_sub(1).and_then(|at| self.values.get(at)).copied().unwrap_or(NONE)
    }

    /// Whether look-ups take the one-load path.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.grid.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::Ipv4Net;
    use prefix_trie::PrefixMap as Oracle;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn linear(prefixes: &[(u128, u8, u32)], address: u128) -> u32 {
        let covers = |(start, len, _): &&(u128, u8, u32)| {
            *len == 0 || (address ^ start).checked_shr(128 - u32::from(*len)) == Some(0)
        };
        prefixes.iter().filter(covers).max_by_key(|(_, len, _)| *len).map_or(NONE, |(_, _, value)| *value)
    }

    #[test]
    fn leases_of_one_network_take_one_load() {
        let leases = (0..100_000u32).map(|i| (0x0a00_0000 + (i << 8), 24, i)).collect();
        let map = PrefixMap::<u32>::build(leases);
        assert!(map.is_dense());
        assert_eq!(map.get(0x0a00_0000), 0);
        assert_eq!(map.get(0x0a00_01ff), 1);
        assert_eq!(map.get(0x0a00_0000 + (99_999 << 8) + 255), 99_999);
        assert_eq!(map.get(0x0a00_0000 + (100_000 << 8)), NONE);
        assert_eq!(map.get(0x09ff_ffff), NONE);
    }

    #[test]
    fn the_whole_address_space_is_a_prefix() {
        for map in
            [PrefixMap::<u32>::build([(0, 0, 7)].into()), PrefixMap::build([(0, 0, 7), (5, 32, 9)].into())]
        {
            assert_eq!(map.get(0), 7);
            assert_eq!(map.get(u32::MAX), 7);
        }
        assert_eq!(PrefixMap::<u128>::build([(0, 0, 7), (5, 128, 9)].into()).get(5), 9);
        assert_eq!(PrefixMap::<u32>::build(Vec::new()).get(3), NONE);
    }

    proptest! {
        #[test]
        fn equals_a_trie(entries in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..200), probes in proptest::collection::vec(any::<u32>(), 200)) {
            let mut oracle = Oracle::<Ipv4Net, u32>::new();
            let mut prefixes = Vec::new();
            for (i, (address, len)) in entries.iter().enumerate() {
                let net = Ipv4Net::new(Ipv4Addr::from(*address), *len).unwrap().trunc();
                oracle.insert(net, i as u32);
                prefixes.push((u32::from(net.network()), *len, i as u32));
            }
            let map = PrefixMap::build(prefixes);
            let near = entries.iter().flat_map(|(a, _)| [*a, a.wrapping_add(1), a.wrapping_sub(1)]);
            for address in probes.iter().copied().chain(near) {
                let net = Ipv4Net::new(Ipv4Addr::from(address), 32).unwrap();
                let expected = oracle.get_lpm(&net).map_or(NONE, |(_, value)| *value);
                prop_assert_eq!(map.get(address), expected);
            }
        }

        #[test]
        fn equals_a_linear_search_in_ipv6(entries in proptest::collection::vec((0u128..64, 0u8..=8, 0u32..9), 0..40), low in any::<bool>()) {
            // Few distinct prefixes close together, so that they nest and touch.
            let base = if low { 0 } else { 0xfd00_u128 << 112 };
            let mut prefixes: Vec<_> = Vec::new();
            for (at, len, value) in entries {
                let len = 120 + len;
                let start = (base + (at << 2)) & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                if !prefixes.iter().any(|(s, l, _)| (*s, *l) == (start, len)) {
                    prefixes.push((start, len, value));
                }
            }
            let map = PrefixMap::build(prefixes.clone());
            for offset in 0..600u128 {
                let address = base.wrapping_add(offset).wrapping_sub(20);
                prop_assert_eq!(map.get(address), linear(&prefixes, address));
            }
        }
    }
}

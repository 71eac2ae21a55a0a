// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instructions of a linked image, and as much of their meaning as the audit asks for.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

/// What an instruction does to the flow of control, or to order. Arm ARM C4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// Goes there.
    Jump(u64),
    /// Goes there, or on.
    Branch(u64),
    /// Goes there, and comes back if that does.
    Call(u64),
    /// Goes where a register says.
    JumpRegister,
    /// Calls what a register says.
    CallRegister,
    Return,
    ExceptionReturn,
    /// `BRK`, `HLT`, `UDF`: a trap, after which nothing follows.
    Trap,
    /// `DSB` with its domain and kind, or `SB`.
    Dsb(Dsb),
    Isb,
    Sb,
    /// A TLB invalidation; whether it is broadcast.
    Tlbi {
        broadcast: bool,
    },
    /// The invalidation of a VMID's both stages on this CPU alone, which is nothing that el2 may do.
    TlbiVmidHere,
    /// The broadcast invalidation of one page of EL2's own: it repeats the wait for the one before it.
    TlbiAgain,
    /// `DC CVAC` or `DC CIVAC`.
    CleanData,
    /// `IC IALLUIS`.
    DropFetches,
    /// `CLRBHB`.
    ClearBranches,
    /// An arithmetic shift of a 64-bit register by 63: a mask made of its sign.
    SignMask,
    /// Anything else.
    Other,
}

/// How far a `DSB` reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dsb {
    /// `NSH`
    Here,
    /// `ISHST`
    StoresInner,
    /// `ISH`
    Inner,
    /// `SY`
    System,
    /// Another.
    Else,
}

/// What the word at `at` does.
pub(super) fn decode(at: u64, word: u32) -> Does {
    let to = |bits: u32, shift: u32| {
        let offset = i64::from(word >> shift & ((1 << bits) - 1)) << (64 - bits) >> (62 - bits);
        at.wrapping_add_signed(offset)
    };
    let is = |mask: u32, value: u32| word & mask == value;
    match () {
        () if is(0xfc00_0000, 0x1400_0000) => Does::Jump(to(26, 0)),
        () if is(0xfc00_0000, 0x9400_0000) => Does::Call(to(26, 0)),
        // B.cond and BC.cond, CBZ and CBNZ, TBZ and TBNZ.
        () if is(0xff00_0000, 0x5400_0000) || is(0x7e00_0000, 0x3400_0000) => Does::Branch(to(19, 5)),
        () if is(0x7e00_0000, 0x3600_0000) => Does::Branch(to(14, 5)),
        // BR, BLR, RET and ERET, with and without authentication.
        () if is(0xfe00_0000, 0xd600_0000) => match word >> 21 & 7 {
            0 => Does::JumpRegister,
            1 => Does::CallRegister,
            2 => Does::Return,
            4 => Does::ExceptionReturn,
            _ => Does::Trap,
        },
        () if is(0xff00_0000, 0xd400_0000) && !is(0xe0_0000, 0) || is(0xffff_0000, 0) => Does::Trap,
        () if is(0xffff_f0ff, 0xd503_309f) => Does::Dsb(match word >> 8 & 15 {
            7 => Dsb::Here,
            10 => Dsb::StoresInner,
            11 => Dsb::Inner,
            15 => Dsb::System,
            _ => Dsb::Else,
        }),
        () if is(0xffff_f0ff, 0xd503_30df) => Does::Isb,
        () if word == 0xd503_30ff => Does::Sb,
        () if word == 0xd503_22df => Does::ClearBranches,
        // TLBI VMALLS12E1.
        () if word == 0xd50c_87df => Does::TlbiVmidHere,
        // TLBI VALE2IS, of whatever page.
        () if is(0xffff_ffe0, 0xd50c_83a0) => Does::TlbiAgain,
        // SYS with CRn 8 is TLBI; CRm 0 to 3 is the inner or outer shareable form.
        () if is(0xfff8_f000, 0xd508_8000) => Does::Tlbi { broadcast: word >> 8 & 15 < 4 },
        // DC CVAC, DC CIVAC; IC IALLUIS.
        () if is(0xffff_ffe0, 0xd50b_7a20) || is(0xffff_ffe0, 0xd50b_7e20) => Does::CleanData,
        () if is(0xffff_ffe0, 0xd508_7100) => Does::DropFetches,
        () if is(0xffff_fc00, 0x937f_fc00) => Does::SignMask,
        () => Does::Other,
    }
}

/// A run of instructions under one name.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Of the compiler: control never runs over its end.
    pub(super) is_closed: bool,
}

/// The executable part of an image.
#[derive(Clone, Debug)]
pub(super) struct Code {
    /// Address of the first word.
    start: u64,
    words: Vec<u32>,
    functions: Vec<Function>,
    labels: BTreeMap<String, u64>,
    /// What the linker script names, wherever it is.
    linker: BTreeMap<String, u64>,
    /// Where the linker says that words are data.
    data: Vec<(u64, u64)>,
}

impl Code {
    /// Reads the section `.text` of an ELF file.
    pub(super) fn read(file: &[u8]) -> Result<Self> {
        let parsed = ElfFile64::<Endianness>::parse(file).context("not a 64-bit ELF file")?;
        let text = parsed.section_by_name(".text").context("no .text")?;
        let (start, bytes) = (text.address(), text.data()?);
        let words = bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        let end = start + bytes.len() as u64;
        let named = |s: &object::read::elf::ElfSymbol<'_, '_, _>| Some((s.name().ok()?.to_owned(), s.address()));
        let linker = parsed.symbols().filter_map(|s| named(&s)).filter(|(name, _)| name.starts_with("__")).collect();
        let symbols = parsed.symbols().filter(|s| s.section_index() == Some(text.index()));
        let mut all: Vec<(u64, String, bool)> = symbols
            .map(|s| (s.address(), s.name().unwrap_or("").to_owned(), s.kind() == SymbolKind::Text && s.size() > 0))
            .collect();
        all.sort();
        let data = marks(&all, end);
        let named: Vec<_> = all.into_iter().filter(|(_, name, _)| !name.is_empty() && !name.starts_with('$')).collect();
        let labels = named.iter().map(|(at, name, _)| (name.clone(), *at)).collect();
        let mut functions: Vec<Function> = Vec::new();
        for (start, name, is_closed) in named {
            match functions.last_mut() {
                // Several names of one place: that of the compiler counts.
                Some(last) if last.start == start => {
                    last.is_closed |= is_closed;
                    if is_closed {
                        last.name = name;
                    }
                }
                _ => functions.push(Function { name, start, end, is_closed }),
            }
        }
        for at in 1..functions.len() {
            functions[at - 1].end = functions[at].start;
        }
        Ok(Self { start, words, functions, labels, linker, data })
    }

    /// Where a label stands.
    pub(super) fn label(&self, name: &str) -> Result<u64> {
        self.labels.get(name).copied().with_context(|| format!("the image has no {name}"))
    }

    /// A place of the linker script's.
    pub(super) fn linker(&self, name: &str) -> Result<u64> {
        self.linker.get(name).copied().with_context(|| format!("the image has no {name}"))
    }

    pub(super) fn does(&self, at: u64) -> Option<Does> {
        Some(decode(at, self.word(at)?))
    }

    /// The instruction itself.
    pub(super) fn word(&self, at: u64) -> Option<u32> {
        self.words.get(self.index(at)?).copied()
    }

    fn index(&self, at: u64) -> Option<usize> {
        usize::try_from(at.checked_sub(self.start)? / 4).ok()
    }

    /// The function that holds an address.
    pub(super) fn function(&self, at: u64) -> Option<&Function> {
        let after = self.functions.partition_point(|f| f.start <= at);
        self.functions.get(after.checked_sub(1)?).filter(|f| at < f.end)
    }

    /// As `function`, but what assembly names one behind the other is one: control runs over such ends.
    pub(super) fn routine(&self, at: u64) -> Option<Function> {
        let found = self.function(at)?;
        let index = self.functions.iter().position(|f| f.start == found.start)?;
        let open = |f: &&Function| !f.is_closed && !found.is_closed;
        let first = self.functions[..index].iter().rev().take_while(open).last().unwrap_or(found);
        let last = self.functions[index..].iter().skip(1).take_while(open).last().unwrap_or(found);
        Some(Function { start: first.start, end: last.end, ..found.clone() })
    }

    pub(super) fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Every instruction, with its address.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, Does)> + '_ {
        let places = (self.start..).step_by(4);
        let is_code = |at: u64| !self.data.iter().any(|(from, to)| (*from..*to).contains(&at));
        places.zip(&self.words).filter(move |(at, _)| is_code(*at)).map(|(at, word)| (at, decode(at, *word)))
    }

    /// Puts another instruction at a place. For what shows that the audit can find something.
    pub(super) fn patch(&mut self, at: u64, word: u32) {
        if let Some(place) = self.index(at).and_then(|index| self.words.get_mut(index)) {
            *place = word;
        }
    }

    /// A place by name, for people.
    pub(super) fn shown(&self, at: u64) -> String {
        let name = self.function(at).map_or_else(String::new, |f| format!("{}+{:#x}", plain(&f.name), at - f.start));
        format!("{at:#x} {name}")
    }
}

/// The stretches between a mapping symbol for data and the next for code.
fn marks(symbols: &[(u64, String, bool)], end: u64) -> Vec<(u64, u64)> {
    let mut data = Vec::new();
    let mut from = None;
    for (at, name, _) in symbols {
        match name.as_bytes() {
            [b'$', b'd', ..] => from = from.or(Some(*at)),
            [b'$', b'x', ..] => data.extend(from.take().map(|from| (from, *at))),
            _ => {}
        }
    }
    data.extend(from.map(|from| (from, end)));
    data
}

/// A symbol without its hash, its lengths as separators: readable, and the same in every build.
pub(super) fn plain(symbol: &str) -> String {
    let Some(mut rest) = symbol.strip_prefix("_ZN") else { return symbol.to_owned() };
    let mut parts = Vec::new();
    while let Some(digits) = rest.find(|c: char| !c.is_ascii_digit()).filter(|n| *n > 0) {
        let Ok(length) = rest[..digits].parse::<usize>() else { break };
        let Some(part) = rest.get(digits..digits + length) else { break };
        parts.push(part);
        rest = &rest[digits + length..];
    }
    if parts.last().is_some_and(|p| p.len() == 17 && p.starts_with('h')) {
        parts.pop();
    }
    parts.join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_decoded() {
        assert_eq!(decode(0x1000, 0x1400_0002), Does::Jump(0x1008));
        assert_eq!(decode(0x1000, 0x17ff_ffff), Does::Jump(0xffc));
        assert_eq!(decode(0x1000, 0x9400_0000), Does::Call(0x1000));
        assert_eq!(decode(0x1000, 0x54ff_ffe1), Does::Branch(0xffc), "b.ne");
        assert_eq!(decode(0x1000, 0xb400_0040), Does::Branch(0x1008), "cbz x0");
        assert_eq!(decode(0x1000, 0x3747_ffe0), Does::Branch(0xffc), "tbnz w0");
        assert_eq!(decode(0, 0xd61f_0100), Does::JumpRegister);
        assert_eq!(decode(0, 0xd63f_0100), Does::CallRegister);
        assert_eq!(decode(0, 0xd65f_03c0), Does::Return);
        assert_eq!(decode(0, 0xd69f_03e0), Does::ExceptionReturn);
        assert_eq!(decode(0, 0xd69f_0bff), Does::ExceptionReturn, "eretaa");
        assert_eq!(decode(0, 0xd420_0020), Does::Trap, "brk");
        assert_eq!(decode(0, 0xd400_0002), Does::Other, "hvc");
        assert_eq!(decode(0, 0), Does::Trap, "udf");
    }

    #[test]
    fn order_is_decoded() {
        assert_eq!(decode(0, 0xd503_379f), Does::Dsb(Dsb::Here));
        assert_eq!(decode(0, 0xd503_3a9f), Does::Dsb(Dsb::StoresInner));
        assert_eq!(decode(0, 0xd503_3b9f), Does::Dsb(Dsb::Inner));
        assert_eq!(decode(0, 0xd503_3f9f), Does::Dsb(Dsb::System));
        assert_eq!(decode(0, 0xd503_3fdf), Does::Isb);
        assert_eq!(decode(0, 0xd50c_83df), Does::Tlbi { broadcast: true }, "vmalls12e1is");
        assert_eq!(decode(0, 0xd50c_83bf), Does::TlbiAgain, "vale2is");
        assert_eq!(decode(0, 0xd50c_87df), Does::TlbiVmidHere, "vmalls12e1");
        assert_eq!(decode(0, 0xd50c_879f), Does::Tlbi { broadcast: false }, "alle1");
        assert_eq!(decode(0, 0xd508_871f), Does::Tlbi { broadcast: false }, "vmalle1");
        assert_eq!(decode(0, 0xd50b_7e29), Does::CleanData, "civac");
        assert_eq!(decode(0, 0xd508_711f), Does::DropFetches);
        assert_eq!(decode(0, 0xd508_751f), Does::Other, "ic iallu, this CPU only");
        assert_eq!(decode(0, 0x937f_fd29), Does::SignMask);
    }

    #[test]
    fn names_lose_their_hash() {
        assert_eq!(plain("_ZN13freehold_arch5fatal5panic17h51448a4a8588f6eaE"), "freehold_arch::fatal::panic");
        assert_eq!(plain("freehold_vectors"), "freehold_vectors");
    }
}

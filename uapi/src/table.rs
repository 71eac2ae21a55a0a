// SPDX-License-Identifier: MIT OR Apache-2.0
//! Declares numbered items once: as a constant each, and as a row of a table that documents are made from.

/// One documented number: a status code, an exit reason, a counter, a flag or a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Name of the constant.
    pub name: &'static str,
    /// Its value, sign-extended.
    pub value: i64,
    /// Its documentation, one line each.
    pub doc: &'static [&'static str],
}

/// One documented call: a function identifier with its arguments, results and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name of the constant.
    pub name: &'static str,
    /// SMCCC function identifier.
    pub id: u32,
    /// Its documentation, one line each.
    pub doc: &'static [&'static str],
    /// Arguments from x1 on: name and meaning.
    pub args: &'static [(&'static str, &'static str)],
    /// Results from x1 on: name and meaning.
    pub rets: &'static [(&'static str, &'static str)],
    /// Names of the statuses that it may return besides success.
    pub errors: &'static [&'static str],
    /// When, and by whom, it may be called.
    pub when: &'static str,
}

/// One field of a documented structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name.
    pub name: &'static str,
    /// Rust type: `u8`, `u32`, `u64`, or an array of one.
    pub ty: &'static str,
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// Its documentation, one line each.
    pub doc: &'static [&'static str],
}

/// One documented structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Struct {
    /// Rust name.
    pub name: &'static str,
    /// C tag.
    pub tag: &'static str,
    /// Bytes.
    pub size: usize,
    /// Its documentation, one line each.
    pub doc: &'static [&'static str],
    /// Its fields in order.
    pub fields: &'static [Field],
}

/// Declares `#[repr(C)]` structures and a `pub const STRUCTS: &[Struct]` of them.
macro_rules! structs {
    ($( $(#[doc = $doc:literal])+ $name:ident = $tag:literal {
        $( $(#[doc = $fdoc:literal])+ $field:ident : $ty:ty, )+
    } )+) => {
        $( $(#[doc = $doc])+
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $( $(#[doc = $fdoc])+ pub $field: $ty, )+ } )+
        /// Every structure above, in declaration order.
        pub const STRUCTS: &[$crate::table::Struct] = &[
            $( $crate::table::Struct {
                name: stringify!($name), tag: $tag, size: core::mem::size_of::<$name>(), doc: &[$($doc),+],
                fields: &[$( $crate::table::Field {
                    name: stringify!($field), ty: stringify!($ty),
                    offset: core::mem::offset_of!($name, $field), doc: &[$($fdoc),+],
                }, )+],
            }, )+
        ];
    };
}

/// Declares `pub const`s of one type and a `pub const TABLE: &[Item]` of them.
macro_rules! items {
    ($(#[$tmeta:meta])* $table:ident : $ty:ty; $( $(#[doc = $doc:literal])+ $name:ident = $value:expr; )+) => {
        $( $(#[doc = $doc])+ pub const $name: $ty = $value; )+
        $(#[$tmeta])*
        pub const $table: &[$crate::table::Item] = &[
            $( $crate::table::Item { name: stringify!($name), value: $name as i64, doc: &[$($doc),+] }, )+
        ];
    };
}

/// Declares call identifiers and a `pub const CALLS: &[Call]` of them.
macro_rules! calls {
    ($( $(#[doc = $doc:literal])+ $name:ident = $id:expr;
        args($($arg:literal : $argdoc:literal),* $(,)?);
        rets($($ret:literal : $retdoc:literal),* $(,)?);
        errors($($err:ident),* $(,)?);
        when($when:literal); )+) => {
        $( $(#[doc = $doc])+ pub const $name: u32 = $id; )+
        /// Every call above, in declaration order.
        pub const CALLS: &[$crate::table::Call] = &[
            $( $crate::table::Call {
                name: stringify!($name), id: $id, doc: &[$($doc),+],
                args: &[$(($arg, $argdoc)),*], rets: &[$(($ret, $retdoc)),*],
                errors: &[$({ let _ = $err; stringify!($err) }),*], when: $when,
            }, )+
        ];
    };
}

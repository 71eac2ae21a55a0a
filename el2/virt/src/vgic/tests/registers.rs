// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every offset of every frame, at every width.

use super::rig::*;
use crate::exit::Width;
use crate::vgic::{Frame, Vgic};

const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];

fn read(vgic: &mut Vgic, frame: Frame, offset: u64, width: Width) -> u64 {
    vgic.read(frame, offset, width, 2).0
}

/// The widths that IHI 0069 gives the register at this offset of a frame; none if it is reserved or not implemented.
fn widths(frame: Frame, offset: u64) -> &'static [Width] {
    let word = offset.is_multiple_of(4);
    let private = matches!(frame, Frame::Private(_));
    let (first, last) = if private { (0, 1) } else { (1, 8) };
    let per = |base: u64, size: u64| (base + first * size..base + last * size).contains(&offset);
    match frame {
        Frame::Distributor if word && matches!(offset, 0 | 4 | 8 | 0xffe8) => &[Width::Word],
        Frame::Distributor if word && (0x6100..0x6800).contains(&offset) && offset & 4 != 0 => &[],
        Frame::Distributor if word && (0x6100..0x6800).contains(&offset) => &[Width::Word, Width::Double],
        Frame::Control(_) if word && matches!(offset, 4 | 12 | 0x14 | 0xffe8) => &[Width::Word],
        Frame::Control(_) if offset == 8 => &[Width::Word, Width::Double],
        Frame::Control(_) => &[],
        Frame::Distributor | Frame::Private(_) if per(0x400, 32) => {
            if word {
                &[Width::Byte, Width::Word]
            } else {
                &[Width::Byte]
            }
        }
        Frame::Distributor | Frame::Private(_) if word && per(0xc00, 8) => &[Width::Word],
        Frame::Distributor | Frame::Private(_) if word && (0x80..0x400).step_by(0x80).any(|base| per(base, 4)) => {
            &[Width::Word]
        }
        Frame::Distributor | Frame::Private(_) => &[],
    }
}

#[test]
fn what_is_reserved_or_of_the_wrong_width_reads_zero_and_changes_nothing() {
    // A state in which every register that exists reads something.
    let mut full = Rig::new(2, 4).vgic;
    let mut set = 0;
    for frame in [Frame::Distributor, Frame::Private(vcpu(0))] {
        for offset in (0x80..0xd00).step_by(4) {
            if offset < 0x400 && (offset >> 7 == 3 || offset >> 7 == 5 || offset >> 7 == 7) {
                continue; // the clearing ones
            }
            let _ = full.write(frame, offset, Width::Word, u64::MAX, 2);
            set += 1;
        }
    }
    assert!(set > 1000);
    let mut served = 0;
    for frame in [Frame::Distributor, Frame::Control(vcpu(0)), Frame::Private(vcpu(0))] {
        for offset in (0..0x1_0000).step_by(if cfg!(miri) { 4093 } else { 1 }) {
            for width in WIDTHS {
                if widths(frame, offset).contains(&width) {
                    served += 1;
                    continue;
                }
                let before = full.clone();
                let (value, _) = full.read(frame, offset, width, 2);
                assert_eq!(value, 0, "{frame:?} {offset:#x} {width:?}");
                let _ = full.write(frame, offset, width, u64::MAX, 2);
                assert!(full == before, "{frame:?} {offset:#x} {width:?}");
            }
        }
    }
    // 7 of one bit, 8 words or 32 bytes of priority, 2 of configuration: per bank. 224 routes of two widths.
    let all = 8 * (7 + 8 + 32 + 2) + 224 * 2 + 4 + 6;
    assert!(cfg!(miri) || served == all, "the control: the other accesses are served, and not {served}");
}

#[test]
fn identification_says_what_there_is() {
    let mut vgic = Vgic::new();
    let d = Frame::Distributor;
    let typer = read(&mut vgic, d, 4, Width::Word);
    assert_eq!((typer & 0x1f) * 32 + 32, 256, "INTIDs");
    assert_eq!(typer >> 16 & 3, 0, "no message-based SPIs, no LPIs");
    assert_eq!(typer >> 10 & 1, 0, "one security state");
    assert_eq!(typer >> 24 & 3, 2, "no Aff3, no 1-of-N");
    assert_eq!(read(&mut vgic, d, 0xffe8, Width::Word) >> 4 & 0xf, 3, "GICv3");
    assert_eq!(read(&mut vgic, d, 0, Width::Word), 0x50, "affinity routing and one security state, nothing enabled");
    for (n, last) in [(0, 0), (1, 1)] {
        let frame = Frame::Control(vcpu(n));
        let whole = read(&mut vgic, frame, 8, Width::Double);
        assert_eq!(whole, (n as u64) << 32 | (n as u64) << 8 | last << 4);
        assert_eq!(read(&mut vgic, frame, 12, Width::Word) << 32 | read(&mut vgic, frame, 8, Width::Word), whole);
    }
}

#[test]
fn what_reads_only_stays() {
    for (frame, offset) in [
        (Frame::Distributor, 4),
        (Frame::Distributor, 8),
        (Frame::Distributor, 0xffe8),
        (Frame::Control(vcpu(0)), 4),
        (Frame::Control(vcpu(0)), 8),
        (Frame::Private(vcpu(0)), 0xc00),
        (Frame::Private(vcpu(0)), 0xc04),
    ] {
        let mut vgic = Vgic::new();
        let _ = vgic.write(frame, offset, Width::Word, u64::MAX, 2);
        assert_eq!(vgic, Vgic::new(), "{frame:?} {offset:#x}");
    }
    let mut vgic = Vgic::new();
    assert_eq!(read(&mut vgic, Frame::Private(vcpu(0)), 0xc00, Width::Word), 0xaaaa_aaaa, "SGIs are edges");
    assert_eq!(read(&mut vgic, Frame::Private(vcpu(0)), 0xc04, Width::Word), 0, "PPIs are levels");
}

#[test]
fn a_redistributor_sleeps_until_it_is_woken() {
    let mut vgic = Vgic::new();
    let frame = Frame::Control(vcpu(1));
    assert_eq!(read(&mut vgic, frame, 0x14, Width::Word), 6);
    let _ = vgic.write(frame, 0x14, Width::Word, !2, 2);
    assert_eq!(read(&mut vgic, frame, 0x14, Width::Word), 0, "its children with it");
    assert_eq!(read(&mut vgic, Frame::Control(vcpu(0)), 0x14, Width::Word), 6, "nobody else");
}

#[test]
fn bits_are_set_and_cleared_one_by_one() {
    for (set, clear) in [(ENABLE, DISABLE), (PEND, UNPEND), (ACTIVATE, DEACTIVATE)] {
        for (frame, at) in [(Frame::Distributor, 4), (Frame::Distributor, 28), (Frame::Private(vcpu(1)), 0)] {
            let mut vgic = Vgic::new();
            let _ = vgic.write(frame, set + at, Width::Word, 0xf00f, 2);
            let _ = vgic.write(frame, set + at, Width::Word, 0, 2);
            for base in [set, clear] {
                assert_eq!(read(&mut vgic, frame, base + at, Width::Word), 0xf00f);
            }
            let _ = vgic.write(frame, clear + at, Width::Word, 0xff, 2);
            assert_eq!(read(&mut vgic, frame, set + at, Width::Word), 0xf000);
            let _ = vgic.write(frame, clear + at, Width::Word, 0xf000, 2);
            assert_eq!(vgic, Vgic::new(), "nothing else moved");
        }
    }
}

#[test]
fn a_vcpus_own_registers_are_its_own() {
    let mut vgic = Vgic::new();
    let _ = vgic.write(Frame::Private(vcpu(0)), ENABLE, Width::Word, 0xffff_ffff, 2);
    let _ = vgic.write(Frame::Private(vcpu(0)), 0x41c, Width::Word, 0xffff_ffff, 2);
    assert_eq!(read(&mut vgic, Frame::Private(vcpu(1)), ENABLE, Width::Word), 0);
    assert_eq!(read(&mut vgic, Frame::Private(vcpu(1)), 0x41c, Width::Word), 0);
    assert_eq!(read(&mut vgic, Frame::Distributor, ENABLE, Width::Word), 0, "reserved with affinity routing");
}

#[test]
fn priorities_are_bytes_and_words() {
    let mut vgic = Vgic::new();
    let d = Frame::Distributor;
    let _ = vgic.write(d, 0x4fc, Width::Word, 0x1122_33ff, 2);
    assert_eq!(read(&mut vgic, d, 0x4fc, Width::Word), 0x1020_30f8);
    assert_eq!(read(&mut vgic, d, 0x4fd, Width::Byte), 0x30);
    let _ = vgic.write(d, 0x4fe, Width::Byte, 0xab, 2);
    assert_eq!(read(&mut vgic, d, 0x4fc, Width::Word), 0x10a8_30f8);
}

#[test]
fn configuration_is_two_bits_of_which_one_counts() {
    let mut vgic = Vgic::new();
    let d = Frame::Distributor;
    let _ = vgic.write(d, 0xc08, Width::Word, 0xffff_0003, 2);
    let _ = vgic.write(d, 0xc0c, Width::Word, 0x8000_0001, 2);
    assert_eq!(read(&mut vgic, d, 0xc08, Width::Word), 0xaaaa_0002);
    assert_eq!(read(&mut vgic, d, 0xc0c, Width::Word), 0x8000_0000);
    let _ = vgic.write(d, 0xc08, Width::Word, 0, 2);
    assert_eq!(read(&mut vgic, d, 0xc0c, Width::Word), 0x8000_0000);
}

#[test]
fn a_route_keeps_its_affinity_and_nothing_else() {
    let mut vgic = Vgic::new();
    let d = Frame::Distributor;
    for spi in [32, 255] {
        let at = 0x6000 + 8 * spi;
        let _ = vgic.write(d, at, Width::Double, u64::MAX, 2);
        assert_eq!(read(&mut vgic, d, at, Width::Double), 0xff_ffff, "no Aff3, no 1-of-N");
        let _ = vgic.write(d, at, Width::Word, 1, 2);
        let _ = vgic.write(d, at + 4, Width::Word, u64::MAX, 2);
        assert_eq!(read(&mut vgic, d, at, Width::Double), 1);
        assert_eq!(read(&mut vgic, d, at + 4, Width::Word), 0);
        let _ = vgic.write(d, at, Width::Word, 0, 2);
    }
    assert_eq!(vgic, Vgic::new());
    let _ = vgic.write(d, 0x60f8, Width::Double, 1, 2);
    let _ = vgic.write(d, 0x6800, Width::Double, 1, 2);
    assert_eq!(vgic, Vgic::new(), "INTIDs below 32 and from 256 on have no route");
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device tree out of bytes: whole good nodes, single tokens, and damage afterwards.

/// Names and strings that `el2` looks for, and near misses.
const TEXTS: [&str; 44] = [
    "",
    "memory",
    "memory@40000000",
    "device_type",
    "reg",
    "cpu",
    "cpus",
    "cpu@0",
    "enable-method",
    "psci",
    "spin-table",
    "arm,psci-1.0",
    "arm,psci-0.2",
    "method",
    "smc",
    "hvc",
    "compatible",
    "status",
    "okay",
    "disabled",
    "fail",
    "#address-cells",
    "#size-cells",
    "ranges",
    "reserved-memory",
    "no-map",
    "chosen",
    "stdout-path",
    "linux,initrd-start",
    "linux,initrd-end",
    "arm,pl011",
    "/pl011@9000000",
    "pl011@9000000",
    "arm,gic-v3",
    "arm,cortex-a15-gic",
    "#redistributor-regions",
    "arm,armv8-timer",
    "interrupts",
    "interrupt-names",
    "virt",
    "hyp-phys",
    "qemu,fw-cfg-mmio",
    "virtio,mmio",
    "arm,smmu-v3",
];

/// Numbers of cells.
const NUMBERS: [u32; 20] = [
    0,
    1,
    2,
    3,
    4,
    0x10,
    0x200,
    0x1000,
    0x20_0000,
    0x10_0000,
    0x800_0000,
    0x900_0000,
    0xa00_0000,
    0x4000_0000,
    0x4800_0000,
    0x8000_0000,
    0xffff_f000,
    0xffff_ffff,
    0x7fff_ffff,
    0xfff,
];

/// Bytes, read one by one; zero when there are no more.
pub(super) struct Bytes<'d>(pub(super) &'d [u8]);

impl Bytes<'_> {
    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(super) fn number(&mut self) -> u32 {
        match self.byte() {
            0xff => u32::from_be_bytes(core::array::from_fn(|_| self.byte())),
            index => NUMBERS[usize::from(index) % NUMBERS.len()],
        }
    }

    fn text(&mut self) -> &'static str {
        TEXTS[usize::from(self.byte()) % TEXTS.len()]
    }
}

/// A blob under construction.
struct Writer {
    structure: Vec<u8>,
    strings: Vec<u8>,
    depth: u32,
}

impl Writer {
    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }

    fn pad(&mut self) {
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    fn begin(&mut self, name: &str) {
        self.word(1);
        self.structure.extend(name.bytes().chain([0]));
        self.pad();
        self.depth += 1;
    }

    fn end(&mut self) {
        self.word(2);
        self.depth = self.depth.saturating_sub(1);
    }

    fn property(&mut self, name: &str, value: &[u8]) {
        self.word(3);
        self.word(value.len() as u32);
        self.word(self.strings.len() as u32);
        self.structure.extend(value);
        self.pad();
        self.strings.extend(name.bytes().chain([0]));
    }

    fn text(&mut self, name: &str, value: &str) {
        self.property(name, &[value.as_bytes(), &[0]].concat());
    }

    fn cells(&mut self, name: &str, cells: &[u32]) {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.property(name, &value);
    }

    /// A node that a machine has, as it should be but for one number.
    fn good(&mut self, which: u8, bytes: &mut Bytes<'_>) {
        match which % 10 {
            0 => {
                self.begin("memory@40000000");
                self.text("device_type", "memory");
                let start = 0x4000_0000 | u32::from(bytes.byte()) << 20;
                self.cells("reg", &[0, start, u32::from(bytes.byte() & 3), bytes.number()]);
            }
            1 => {
                self.begin("psci");
                self.text("compatible", "arm,psci-1.0\0arm,psci-0.2");
                self.text("method", "smc");
            }
            2 => {
                self.begin("cpus");
                self.cells("#address-cells", &[1]);
                self.cells("#size-cells", &[0]);
                for cpu in 0..u32::from(bytes.byte() & 7) {
                    self.begin("cpu@0");
                    self.text("device_type", "cpu");
                    self.cells("reg", &[cpu]);
                    self.text("enable-method", "psci");
                    self.end();
                }
            }
            3 => {
                self.begin("timer");
                self.text("compatible", "arm,armv8-timer");
                if bytes.byte() & 1 == 1 {
                    self.text("interrupt-names", "phys\0virt\0hyp-phys");
                }
                self.cells("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
            }
            4 => {
                self.begin("fw-cfg@9020000");
                self.text("compatible", ["qemu,fw-cfg-mmio", "virtio,mmio"][usize::from(bytes.byte() & 1)]);
                self.cells("reg", &[0, 0x902_0000, 0, bytes.number()]);
            }
            5 => {
                self.begin("intc@8000000");
                self.text("compatible", "arm,gic-v3");
                self.cells("reg", &[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, bytes.number()]);
            }
            6 => {
                self.begin("pl011@9000000");
                self.text("compatible", "arm,pl011\0arm,primecell");
                self.cells("reg", &[0, bytes.number(), 0, 0x1000]);
            }
            7 => {
                self.begin("reserved-memory");
                self.cells("#address-cells", &[2]);
                self.cells("#size-cells", &[2]);
                self.begin("secure@50000000");
                self.cells("reg", &[0, 0x5000_0000, 0, bytes.number()]);
                self.property("no-map", &[]);
                self.end();
            }
            8 => {
                self.begin("chosen");
                self.text("stdout-path", "/pl011@9000000");
                self.cells("linux,initrd-start", &[0x4800_0000]);
                self.cells("linux,initrd-end", &[bytes.number()]);
            }
            _ => {
                self.begin("bus");
                self.cells("#address-cells", &[1]);
                self.cells("#size-cells", &[1]);
                self.cells("ranges", &[0, 0, bytes.number(), 0x1000]);
                self.good(bytes.byte() % 9, bytes);
            }
        }
        self.end();
    }

    fn value(&mut self, bytes: &mut Bytes<'_>) {
        let name = bytes.text();
        let kind = bytes.byte();
        match kind & 3 {
            0 => self.text(name, bytes.text()),
            1 => self.text(name, &[bytes.text(), "\0", bytes.text()].concat()),
            2 => {
                let cells: Vec<u32> = (0..kind >> 4).map(|_| bytes.number()).collect();
                self.cells(name, &cells);
            }
            _ => {
                let raw: Vec<u8> = (0..kind >> 3).map(|_| bytes.byte()).collect();
                self.property(name, &raw);
            }
        }
    }

    fn blob(mut self, reservations: &[u64]) -> Vec<u8> {
        while self.depth != 0 {
            self.end();
        }
        self.word(9);
        let reserved: Vec<u8> = reservations.iter().chain(&[0, 0]).flat_map(|word| word.to_be_bytes()).collect();
        let structure_at = 40 + reserved.len();
        let strings_at = structure_at + self.structure.len();
        let total = strings_at + self.strings.len();
        let lengths = [self.strings.len(), self.structure.len()];
        let header = [0xd00d_feed, total, structure_at, strings_at, 40, 17, 16, 0, lengths[0], lengths[1]];
        let header = header.iter().flat_map(|word| (*word as u32).to_be_bytes());
        header.chain(reserved).chain(self.structure).chain(self.strings).collect()
    }
}

/// Builds a tree, and then spoils as many of its bytes as the first byte says.
pub(super) fn build(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let flags = bytes.byte();
    let damage: Vec<(u8, u8, u8)> = (0..flags & 3).map(|_| (bytes.byte(), bytes.byte(), bytes.byte())).collect();
    let mut writer = Writer { structure: Vec::new(), strings: Vec::new(), depth: 0 };
    writer.begin("");
    writer.cells("#address-cells", &[2]);
    writer.cells("#size-cells", &[2]);
    // The nodes without which there is no machine, unless the input does without.
    for good in (0..3).filter(|good| flags >> (2 + good) & 1 == 0) {
        writer.good(good, bytes);
    }
    while !bytes.0.is_empty() {
        match bytes.byte() % 16 {
            0..8 => {
                let which = bytes.byte();
                writer.good(which, bytes);
            }
            8 | 9 => writer.begin(bytes.text()),
            10..13 => writer.value(bytes),
            13 | 14 => writer.end(),
            _ => writer.word(4),
        }
    }
    let reserved = if flags & 0x40 == 0 { vec![] } else { vec![0x4100_0000, 0x1000] };
    let mut blob = writer.blob(&reserved);
    for (low, high, xor) in damage {
        let at = usize::from(u16::from_le_bytes([low, high])) % blob.len();
        blob[at] ^= xor;
    }
    blob
}

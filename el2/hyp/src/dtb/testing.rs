// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device tree builder for the tests, and a board made with it.

/// A tree under construction: top-level nodes by name.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// What the header reserves: start and size.
    reserved: Vec<[u64; 2]>,
}

#[derive(Clone)]
struct Node {
    name: String,
    properties: Vec<(String, Vec<u8>)>,
    children: Vec<Node>,
}

impl Node {
    fn new(name: &str) -> Self {
        Self { name: name.into(), properties: Vec::new(), children: Vec::new() }
    }

    fn text(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.into(), [value.as_bytes(), &[0]].concat()));
        self
    }

    fn cells(mut self, name: &str, cells: &[u32]) -> Self {
        self.properties.push((name.into(), cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()));
        self
    }

    fn wide(self, name: &str, values: &[u64]) -> Self {
        let cells: Vec<u32> = values.iter().flat_map(|v| [(v >> 32) as u32, *v as u32]).collect();
        self.cells(name, &cells)
    }

    fn child(mut self, child: Node) -> Self {
        self.children.push(child);
        self
    }
}

impl Tree {
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.nodes.retain(|node| node.name != name);
        self
    }

    pub(crate) fn with_reservation(mut self, start: u64, size: u64) -> Self {
        self.reserved.push([start, size]);
        self
    }

    pub(crate) fn with_memory(mut self, start: u64, size: u64) -> Self {
        self.nodes.push(memory(start, size));
        self
    }

    pub(crate) fn with_cpu(mut self, reg: u32, method: &str) -> Self {
        let cpus = self.nodes.iter_mut().find(|node| node.name == "cpus").unwrap();
        cpus.children.push(cpu(reg, method));
        self
    }

    /// The node at a path, which is made if it is not there.
    fn at(&mut self, path: &str) -> &mut Node {
        let mut nodes = &mut self.nodes;
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        for step in above.split('/').filter(|step| !step.is_empty()) {
            nodes = &mut nodes.iter_mut().find(|node| node.name == step).unwrap().children;
        }
        if nodes.iter().all(|node| node.name != name) {
            nodes.push(Node::new(name));
        }
        nodes.iter_mut().find(|node| node.name == name).unwrap()
    }

    /// The same with this property of a node, instead of what it had.
    pub(crate) fn with_cells(mut self, path: &str, name: &str, cells: &[u32]) -> Self {
        let node = self.at(path);
        node.properties.retain(|(own, _)| own != name);
        *node = node.clone().cells(name, cells);
        self
    }

    pub(crate) fn with_text(mut self, path: &str, name: &str, value: &str) -> Self {
        let node = self.at(path);
        node.properties.retain(|(own, _)| own != name);
        *node = node.clone().text(name, value);
        self
    }

    pub(crate) fn without_property(mut self, path: &str, name: &str) -> Self {
        self.at(path).properties.retain(|(own, _)| own != name);
        self
    }

    /// Makes the node (or, with "node/below", the first node below it) a device that must be hidden.
    pub(crate) fn hiding(mut self, name: &str) -> Self {
        let (name, below) = name.split_once('/').map_or((name, false), |(name, _)| (name, true));
        let node = self.nodes.iter_mut().find(|node| node.name == name).unwrap();
        let node = if below { &mut node.children[0] } else { node };
        node.properties.retain(|(name, _)| name != "compatible");
        *node = node.clone().text("compatible", "virtio,mmio");
        if node.properties.iter().all(|(name, _)| name != "reg") {
            *node = node.clone().wide("reg", &[0xb00_0000, 0x1000]);
        }
        self
    }

    /// One more timer, that names its interrupts.
    pub(crate) fn with_timer(mut self, name: &str, names: &str, interrupts: &[u32]) -> Self {
        let timer = Node::new(name).text("compatible", "arm,armv8-timer").text("interrupt-names", names);
        self.nodes.push(timer.cells("interrupts", interrupts));
        self
    }

    /// A console at 0x200 behind a bus with `ranges` (one cell each) and one that changes nothing.
    pub(crate) fn with_buses(mut self, name: &str, ranges: &[u32], stdout: &str) -> Self {
        let narrow = |name: &str| Node::new(name).cells("#address-cells", &[1]).cells("#size-cells", &[1]);
        let uart = Node::new("pl011@200").text("compatible", "arm,pl011").cells("reg", &[0x200, 0x1000]);
        let outer = [&[ranges[0], 0], &ranges[1..]].concat();
        let bus = narrow(name).cells("ranges", &[outer[0], outer[1], outer[2], outer[3]]);
        self.nodes.push(bus.child(narrow("inner").cells("ranges", &[]).child(uart)));
        let chosen = self.nodes.iter_mut().find(|node| node.name == "chosen").unwrap();
        chosen.properties.retain(|(name, _)| name != "stdout-path");
        *chosen = chosen.clone().text("stdout-path", stdout);
        self
    }

    pub(crate) fn blob(&self) -> Vec<u8> {
        let mut structure = Vec::new();
        let mut strings = Vec::new();
        let root = Node {
            name: String::new(),
            properties: Node::new("").cells("#address-cells", &[2]).cells("#size-cells", &[2]).properties,
            children: self.nodes.clone(),
        };
        write(&root, &mut structure, &mut strings);
        structure.extend(9u32.to_be_bytes());
        let reserved = self.reserved.iter().chain(&[[0; 2]]).flatten();
        let reserved: Vec<u8> = reserved.flat_map(|word| word.to_be_bytes()).collect();
        let structure_at = 40 + reserved.len();
        let strings_at = structure_at + structure.len();
        let total = strings_at + strings.len();
        let header = [0xd00d_feed, total, structure_at, strings_at, 40, 17, 16, 0, strings.len(), structure.len()];
        let header = header.iter().flat_map(|word| (*word as u32).to_be_bytes());
        header.chain(reserved).chain(structure).chain(strings).collect()
    }
}

fn write(node: &Node, structure: &mut Vec<u8>, strings: &mut Vec<u8>) {
    let pad = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(4), 0);
    structure.extend(1u32.to_be_bytes());
    structure.extend(node.name.as_bytes());
    structure.push(0);
    pad(structure);
    for (name, value) in &node.properties {
        structure.extend(3u32.to_be_bytes());
        structure.extend((value.len() as u32).to_be_bytes());
        structure.extend((strings.len() as u32).to_be_bytes());
        structure.extend(value);
        pad(structure);
        strings.extend(name.as_bytes());
        strings.push(0);
    }
    for child in &node.children {
        write(child, structure, strings);
    }
    structure.extend(2u32.to_be_bytes());
}

fn memory(start: u64, size: u64) -> Node {
    Node::new(&format!("memory@{start:x}")).text("device_type", "memory").wide("reg", &[start, size])
}

fn cpu(reg: u32, method: &str) -> Node {
    Node::new(&format!("cpu@{reg}")).text("device_type", "cpu").cells("reg", &[reg]).text("enable-method", method)
}

/// A two-CPU board with everything that the boot looks for.
pub(crate) fn board() -> Tree {
    let cpus = Node::new("cpus").cells("#address-cells", &[1]).cells("#size-cells", &[0]);
    let reserved = Node::new("reserved-memory").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    let secret = Node::new("secure@50000000").wide("reg", &[0x5000_0000, 0x10_0000]).cells("no-map", &[]);
    Tree {
        reserved: Vec::new(),
        nodes: vec![
            memory(0x4000_0000, 0x8000_0000),
            Node::new("psci").text("compatible", "arm,psci-1.0\0arm,psci-0.2").text("method", "smc"),
            cpus.child(cpu(0, "psci")).child(cpu(1, "psci")),
            Node::new("timer")
                .text("compatible", "arm,armv8-timer")
                .cells("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]),
            Node::new("fw-cfg@9020000").text("compatible", "qemu,fw-cfg-mmio").wide("reg", &[0x902_0000, 0x18]),
            Node::new("virtio_mmio@a000000")
                .text("compatible", "virtio,mmio")
                .wide("reg", &[0xa00_0000, 0x200])
                .child(Node::new("below")),
            Node::new("intc@8000000")
                .text("compatible", "arm,gic-v3")
                .wide("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000]),
            Node::new("pl011@9000000")
                .text("compatible", "arm,pl011\0arm,primecell")
                .wide("reg", &[0x900_0000, 0x1000]),
            reserved.child(secret),
            Node::new("chosen")
                .text("bootargs", "console=ttyAMA0")
                .text("stdout-path", "/pl011@9000000")
                .wide("linux,initrd-start", &[0x4800_0000])
                .wide("linux,initrd-end", &[0x4900_0000]),
        ],
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device trees as values: read QEMU's, change a node, write it again (Devicetree Specification 0.4, chapter 5).

use anyhow::{Context as _, Result, bail};

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
const HEADER: usize = 40;

/// A tree; memory reservations are not kept, for QEMU makes none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The root node.
    pub root: Node,
}

/// A node with its properties and children, in order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Node {
    /// Its name, with the unit address.
    pub name: String,
    /// Its properties.
    pub properties: Vec<(String, Vec<u8>)>,
    /// Its children.
    pub children: Vec<Node>,
}

impl Node {
    /// Whether its name is `name`, whatever the unit address.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name.split('@').next() == Some(name)
    }

    /// Its first child called `name`, whatever the unit address.
    pub(crate) fn child(&mut self, name: &str) -> Option<&mut Node> {
        self.children.iter_mut().find(|n| n.is(name))
    }

    /// Sets the property `name`, new or not.
    pub(crate) fn set(&mut self, name: &str, value: &[u8]) {
        match self.properties.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.properties.push((name.to_owned(), value.to_vec())),
        }
    }
}

impl Tree {
    /// Reads a blob.
    ///
    /// # Errors
    /// If it is not one.
    pub(crate) fn parse(blob: &[u8]) -> Result<Self> {
        let word = |at: usize| be32(blob, at);
        if word(0)? != MAGIC {
            bail!("no device tree");
        }
        let structure = word(8)? as usize;
        let strings = word(12)? as usize;
        let mut reader = Reader { blob, at: structure, strings };
        match reader.token()? {
            BEGIN_NODE => Ok(Self { root: reader.node()? }),
            other => bail!("token {other} where the root should be"),
        }
    }

    /// Writes a blob of version 17.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (mut structure, mut strings) = (Vec::new(), Vec::new());
        write_node(&self.root, &mut structure, &mut strings);
        put(&mut structure, END);
        let reservations = [0u8; 16];
        let structure_at = HEADER + reservations.len();
        let strings_at = structure_at + structure.len();
        let total = strings_at + strings.len();
        let mut blob = Vec::with_capacity(total);
        let lengths = [strings.len(), structure.len()].map(|l| l as u32);
        let header = [
            MAGIC,
            total as u32,
            structure_at as u32,
            strings_at as u32,
            HEADER as u32,
            17,
            16,
            0,
            lengths[0],
            lengths[1],
        ];
        for word in header {
            put(&mut blob, word);
        }
        blob.extend(reservations);
        blob.extend(structure);
        blob.extend(strings);
        blob
    }
}

struct Reader<'b> {
    blob: &'b [u8],
    at: usize,
    strings: usize,
}

impl Reader<'_> {
    fn token(&mut self) -> Result<u32> {
        loop {
            let word = be32(self.blob, self.at)?;
            self.at += 4;
            if word != NOP {
                return Ok(word);
            }
        }
    }

    fn node(&mut self) -> Result<Node> {
        let mut node = Node { name: text(self.blob, self.at)?, ..Node::default() };
        self.at = (self.at + node.name.len() + 1).next_multiple_of(4);
        loop {
            match self.token()? {
                BEGIN_NODE => node.children.push(self.node()?),
                END_NODE => return Ok(node),
                PROP => {
                    let length = be32(self.blob, self.at)? as usize;
                    let name = text(self.blob, self.strings + be32(self.blob, self.at + 4)? as usize)?;
                    let from = self.at + 8;
                    let value = self.blob.get(from..from + length).context("a property beyond the end")?;
                    node.properties.push((name, value.to_vec()));
                    self.at = (from + length).next_multiple_of(4);
                }
                other => bail!("token {other} inside a node"),
            }
        }
    }
}

fn write_node(node: &Node, out: &mut Vec<u8>, strings: &mut Vec<u8>) {
    put(out, BEGIN_NODE);
    out.extend(node.name.as_bytes());
    out.push(0);
    pad(out);
    for (name, value) in &node.properties {
        put(out, PROP);
        put(out, value.len() as u32);
        put(out, strings.len() as u32);
        strings.extend(name.as_bytes());
        strings.push(0);
        out.extend(value);
        pad(out);
    }
    for child in &node.children {
        write_node(child, out, strings);
    }
    put(out, END_NODE);
}

fn put(out: &mut Vec<u8>, word: u32) {
    out.extend(word.to_be_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn be32(blob: &[u8], at: usize) -> Result<u32> {
    let bytes = blob.get(at..at + 4).context("a device tree that ends early")?;
    Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn text(blob: &[u8], at: usize) -> Result<String> {
    let rest = blob.get(at..).context("a name beyond the end")?;
    let end = rest.iter().position(|b| *b == 0).context("a name without an end")?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut root = Node::default();
        root.set("compatible", b"test\0");
        root.children.push(Node { name: "memory@0".to_owned(), ..Node::default() });
        root.child("memory").unwrap().set("reg", &[1, 2, 3, 4, 5]);
        root.child("memory").unwrap().set("reg", &[9]);
        let tree = Tree { root };
        assert_eq!(Tree::parse(&tree.bytes()).unwrap(), tree);
    }

    #[test]
    fn damaged_trees_are_errors() {
        let tree = Tree { root: Node { name: "r".to_owned(), ..Node::default() } }.bytes();
        for length in 0..tree.len() - 4 {
            assert!(Tree::parse(&tree[..length]).is_err(), "{length}");
        }
    }
}

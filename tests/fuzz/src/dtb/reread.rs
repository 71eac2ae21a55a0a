// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second reader of the structure block (Devicetree Specification 0.4, 5.4), straight from the format.

use freehold_el2::dtb::Event;

fn word(blob: &[u8], at: usize) -> Option<u32> {
    let bytes = blob.get(at..at + 4)?;
    Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn text(blob: &[u8]) -> Option<&str> {
    let end = blob.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(&blob[..end]).ok()
}

/// All events, if the structure block can be read to its end.
pub(super) fn events(blob: &[u8]) -> Option<Vec<Event<'_>>> {
    let field = |index: usize| Some(word(blob, 4 * index)? as usize);
    let (total, structure, strings) = (field(1)?, field(2)?, field(3)?);
    let blob = blob.get(..total)?;
    let names = blob.get(strings..strings + field(8)?)?;
    let block = blob.get(structure..structure + field(9)?)?;
    let mut at = 0;
    let mut found = Vec::new();
    loop {
        let token = word(block, at)?;
        at += 4;
        match token {
            1 => {
                let name = text(block.get(at..)?)?;
                at = (at + name.len() + 1).next_multiple_of(4);
                found.push(Event::Begin(name));
            }
            2 => found.push(Event::End),
            3 => {
                let (len, name) = (word(block, at)? as usize, word(block, at + 4)? as usize);
                let value = block.get(at + 8..at + 8 + len)?;
                at = (at + 8 + len).next_multiple_of(4);
                found.push(Event::Property { name: text(names.get(name..)?)?, value });
            }
            4 => {}
            9 => return Some(found),
            _ => return None,
        }
    }
}

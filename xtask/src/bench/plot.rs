// SPDX-License-Identifier: MIT OR Apache-2.0
//! A picture of the rows that both have: two bars each, on a logarithmic scale.

use std::fmt::Write as _;

const LEFT: f64 = 220.0;
const WIDTH: f64 = 480.0;
const ROW: f64 = 26.0;
const TOP: f64 = 44.0;

/// One row's name and figures: Freehold's, the peer's, and the target.
pub(super) type Bars<'b> = (&'b str, u64, u64, Option<u64>);

/// The picture, as SVG.
pub(super) fn svg(title: &str, rows: &[Bars<'_>]) -> String {
    let most = rows.iter().map(|(_, ours, theirs, _)| *ours.max(theirs)).max().unwrap_or(1);
    let decades = (most.max(10) as f64).log10().ceil();
    let x = |value: u64| LEFT + WIDTH * (value.max(1) as f64).log10() / decades;
    let height = TOP + ROW * rows.len() as f64 + 24.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->\n\
         <rect width=\"760\" height=\"{height:.0}\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"16\" font-size=\"13\">{title}</text>\n\
         <text x=\"8\" y=\"32\" fill=\"#1b6e53\">Freehold</text><text x=\"64\" y=\"32\" fill=\"#999\">pKVM</text>\
         <text x=\"104\" y=\"32\" fill=\"#c00\">target</text>\n"
    );
    for decade in 0..=decades as u32 {
        let at = x(10u64.pow(decade));
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">10^{decade}</text>",
            height - 18.0,
            height - 6.0
        );
    }
    for (n, (name, ours, theirs, target)) in rows.iter().enumerate() {
        let y = TOP + ROW * n as f64;
        let _ = writeln!(text, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 6.0, y + 14.0);
        for (value, colour, at) in [(ours, "#1b6e53", y + 3.0), (theirs, "#999", y + 13.0)] {
            let _ = writeln!(
                text,
                "<rect x=\"{LEFT}\" y=\"{at:.1}\" width=\"{:.1}\" height=\"9\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\">{value}</text>",
                x(*value) - LEFT,
                x(*value) + 3.0,
                at + 8.0
            );
        }
        if let Some(target) = target {
            let at = x(*target);
            let _ = writeln!(
                text,
                "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#c00\" stroke-width=\"2\"/>",
                y + 1.0,
                y + 24.0
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_holds_every_row_and_closes() {
        let text = svg("t", &[("one", 10, 100, Some(20)), ("two", 1, 1_000_000, None)]);
        assert_eq!(text.matches("<rect x=").count(), 4);
        assert_eq!(text.matches("stroke=\"#c00\"").count(), 1);
        assert!(text.contains(">one<") && text.contains(">1000000<") && text.ends_with("</svg>\n"));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The only cases that may be skipped, each with its reason. A skip that is not listed here is a failure.

use super::{Item, Verdict};

/// Name of a case (or its beginning, up to a `*`), and why it may be skipped.
const SKIPS: [(&str, &str); 0] = [];

/// Lets a listed skip through and turns any other into a failure.
pub(super) fn judge(item: Item) -> Item {
    judge_by(&SKIPS, item)
}

fn judge_by(skips: &[(&str, &str)], item: Item) -> Item {
    let Verdict::Skipped(own) = &item.verdict else { return item };
    let listed = skips.iter().find(|(name, _)| match name.strip_suffix('*') {
        Some(start) => item.name.starts_with(start),
        None => item.name == *name,
    });
    let verdict = match listed {
        Some((_, reason)) => Verdict::Skipped((*reason).to_owned()),
        None => Verdict::Failed(format!("skipped, but not listed as a skip: {own}")),
    };
    Item { verdict, ..item }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unlisted_skip_is_a_failure() {
        let skip = |name: &str| Item { name: name.to_owned(), verdict: Verdict::Skipped("own".to_owned()) };
        let list = [("life/later*", "issue 3"), ("unit/one", "issue 4")];
        let reason = |name: &str| judge_by(&list, skip(name)).verdict;
        assert_eq!(reason("life/later/7"), Verdict::Skipped("issue 3".to_owned()));
        assert_eq!(reason("unit/one"), Verdict::Skipped("issue 4".to_owned()));
        assert!(matches!(reason("unit/one-more"), Verdict::Failed(_)));
        assert_eq!(judge_by(&list, Item::new("unit/one", None)).verdict, Verdict::Passed);
    }
}

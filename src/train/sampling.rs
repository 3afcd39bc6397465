//! What a run says about the order of its images: how often balanced classes repeat, and that the images do not fit into
//! memory.
//!
//! The order belongs to the recipe: it never follows from the memory of a machine, so that the same command gives the same
//! run everywhere. Therefore a set that does not fit is said, with the setting that helps, and nothing is chosen.

use indicatif::{HumanBytes, HumanCount};

use super::recipe::Recipe;
use crate::data::sampler::blocks::{BLOCK_BYTES, BUFFER};
use crate::data::{Shuffle, Source, Split};
use crate::names::shown;

/// A line about training images that do not fit into the memory that is available.
pub fn memory_line(recipe: &Recipe, bytes: u64, available: Option<u64>, resumed: bool) -> Option<String> {
    let available = available.filter(|available| bytes > *available)?;
    let numbers =
        format!("the training images have {}, free memory {}", HumanBytes(bytes), HumanBytes(available));
    let buffer = HumanBytes(BLOCK_BYTES * BUFFER);
    Some(match (recipe.sampling.shuffle, resumed) {
        (Shuffle::Blocks, _) => {
            let block = HumanBytes(BLOCK_BYTES);
            format!(
                "{numbers}: each epoch reads them from disk, in blocks of {block} that are mixed over {buffer}"
            )
        }
        (Shuffle::Full, false) => format!(
            "{numbers}: each epoch reads them from disk, in random order; if steps wait for images, --shuffle blocks reads \
             neighbours together and mixes them over {buffer}"
        ),
        // The order is that of the checkpoint.
        (Shuffle::Full, true) => format!("{numbers}: each epoch reads them from disk, in random order"),
    })
}

/// A line about the classes of a balanced run.
pub fn balance_line(recipe: &Recipe, source: &Source) -> Option<String> {
    if !recipe.sampling.balance {
        return None;
    }
    let names = source.class_names();
    let counts = source.class_counts(Split::Train);
    let present = |(_, count): &(usize, &u64)| **count > 0;
    let (rarest, least) = counts.iter().enumerate().filter(present).min_by_key(|(_, count)| **count)?;
    let (common, most) = counts.iter().enumerate().max_by_key(|(_, count)| **count)?;
    let classes = counts.iter().enumerate().filter(present).count();
    let draws = counts.iter().sum::<u64>() as f64 / classes as f64;
    let times = |count: &u64| format!("{:.3}", draws / *count as f64);
    let times = |count: &u64| times(count).trim_end_matches('0').trim_end_matches('.').to_string();
    Some(format!(
        "balance: an epoch draws each of {} classes {} times; the {} image{} of {}, the rarest, come {} times each, the {} \
         of {} {} times",
        HumanCount(classes as u64),
        HumanCount(draws.round() as u64),
        HumanCount(*least),
        if *least == 1 { "" } else { "s" },
        shown(&names[rarest]),
        times(least),
        HumanCount(*most),
        shown(&names[common]),
        times(most)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sampling;
    use crate::model::Variant;

    #[test]
    fn memory_that_is_too_small_is_said_with_its_remedy() {
        let full = Recipe::reference(Variant::B0, 8);
        let sampling = Sampling { shuffle: Shuffle::Blocks, balance: false };
        let blocks = Recipe { sampling, ..full.clone() };
        let (set, memory) = (310 << 30, Some(64 << 30));
        let line = memory_line(&full, set, memory, false).unwrap();
        assert!(line.contains("310.00 GiB") && line.contains("64.00 GiB"), "{line}");
        assert!(line.contains("--shuffle blocks"), "{line}");
        for (recipe, resumed) in [(&full, true), (&blocks, false), (&blocks, true)] {
            let line = memory_line(recipe, set, memory, resumed).unwrap();
            assert!(line.contains("310.00 GiB") && !line.contains("--shuffle"), "{line}");
        }
        assert_eq!(memory_line(&full, set, Some(set), false), None);
        assert_eq!(memory_line(&full, set, None, false), None);
    }

    #[test]
    fn balance_says_how_often_classes_repeat() {
        let source = Source::synthetic(4, 4 * 7 + 2, 4, 32).unwrap();
        let plain = Recipe::reference(Variant::B0, 8);
        assert_eq!(balance_line(&plain, &source), None);
        let sampling = Sampling { balance: true, ..Sampling::PLAIN };
        let line = balance_line(&Recipe { sampling, ..plain }, &source).unwrap();
        assert_eq!(
            line,
            "balance: an epoch draws each of 4 classes 8 times; the 7 images of 2, the rarest, come 1.071 times each, the \
             8 of 1 0.938 times"
        );
    }
}

//! How the batch of a recipe is divided among ranks and micro-batches.

use super::recipe::Recipe;
use super::recipe_limits::RecipeError;

impl Recipe {
    /// Divides the batch among ranks. If the micro-batch does not divide the share of a rank and may be changed, it
    /// becomes the largest that does; then a line that says so is returned.
    ///
    /// # Errors
    /// A batch that the ranks do not divide, or a fixed micro-batch that does not divide the share of a rank.
    pub fn divide(&mut self, ranks: usize, may_change: bool) -> Result<Option<String>, RecipeError> {
        let Recipe { batch_size, micro_batch, .. } = *self;
        if !batch_size.is_multiple_of(ranks) {
            return Err(RecipeError::Ranks { batch_size, ranks });
        }
        let share = batch_size / ranks;
        if share.is_multiple_of(micro_batch) {
            return Ok(None);
        }
        if !may_change {
            return Err(RecipeError::MicroBatchOfRanks { micro_batch, share, batch_size, ranks });
        }
        let least = self.least_micro_batch();
        let largest = largest_divisor(share, micro_batch, least).ok_or(RecipeError::OddShare {
            batch_size,
            share,
            ranks,
            even: batch_size.next_multiple_of(2 * ranks),
        })?;
        self.micro_batch = largest;
        Ok(Some(format!(
            "micro-batch: {} images instead of {micro_batch}, because each of {ranks} ranks has {share} of a step's \
             {batch_size}: batch norm sees fewer from here on",
            self.micro_batch
        )))
    }

    /// What the images of a micro-batch are a multiple of: pairs that are mixed stay together.
    pub fn least_micro_batch(&self) -> usize {
        if self.mixes() { 2 } else { 1 }
    }
}

/// The largest micro-batch of at most `most` images that divides so many and is a multiple of `least`.
pub(super) fn largest_divisor(images: usize, most: usize, least: usize) -> Option<usize> {
    let fits = |size: &usize| images.is_multiple_of(*size) && size.is_multiple_of(least);
    (1..=most.min(images)).rev().find(fits)
}

/// The next smaller and the next larger number of ranks that divide the batch: "6 or 8 ranks".
pub(super) fn ranks_that_divide(batch_size: usize, ranks: usize) -> String {
    let smaller = (1..ranks).rev().find(|ranks| batch_size.is_multiple_of(*ranks)).unwrap_or(1);
    let larger = (ranks + 1..=batch_size).find(|ranks| batch_size.is_multiple_of(*ranks));
    match larger {
        Some(larger) => format!("{smaller} or {larger} ranks"),
        None => format!("{smaller} rank{}", if smaller == 1 { "" } else { "s" }),
    }
}

/// The next smaller and the next larger batch that the ranks divide: "91 or 98".
pub(super) fn batches_that_divide(batch_size: usize, ranks: usize) -> String {
    let larger = batch_size.next_multiple_of(ranks);
    match larger.saturating_sub(ranks) {
        0 => larger.to_string(),
        smaller => format!("{smaller} or {larger}"),
    }
}

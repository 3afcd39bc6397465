//! The settings that the command line leaves open, once the images and the device are known.

use indicatif::HumanCount;

use super::Job;
use crate::data::{Source, Split};
use crate::train::device::{Selected, host_memory};
use crate::train::events::Reporter;
use crate::train::fit::{self, Circumstances, FEW_STEPS, fit};
use crate::train::schedule::Schedule;
use crate::train::{DeviceChoice, Recipe, RecipeError, sampling};

impl Job {
    /// The recipe for these images: see [`fit`]. What was chosen is reported.
    ///
    /// # Errors
    /// A batch that the ranks do not divide.
    pub(super) fn fitted(
        &self,
        source: &Source,
        on_gpu: bool,
        report: &mut dyn Reporter,
    ) -> Result<Recipe, RecipeError> {
        // Generated images stand for the reference's data set.
        let Source::Packed(_) = source else { return self.divided(&self.recipe) };
        let ranks = self.options.ranks.world().size;
        self.fitted_to(&Circumstances::of(source, on_gpu, ranks), report)
    }

    /// [`Job::fitted`] to circumstances.
    ///
    /// # Errors
    /// A batch that the ranks do not divide.
    pub(super) fn fitted_to(
        &self,
        circumstances: &Circumstances,
        report: &mut dyn Reporter,
    ) -> Result<Recipe, RecipeError> {
        let Some(given) = &self.given else { return self.divided(&self.recipe) };
        let (recipe, lines) = fit(&self.recipe, |flag| given.contains(flag), circumstances);
        recipe.validate()?;
        lines.iter().for_each(|line| report.notice(line));
        self.divided(&recipe)
    }

    /// Reports settings with which a new run cannot learn, and what the order of the images costs.
    pub(super) fn warn(&self, recipe: &Recipe, source: &Source, report: &mut dyn Reporter) {
        let (images, resumed) = (source.samples(Split::Train), self.options.resume);
        if !resumed && !self.demo {
            warnings(recipe, images).iter().for_each(|line| report.notice(line));
        }
        let of_memory = sampling::memory_line(recipe, source.bytes(Split::Train), host_memory(), resumed);
        let lines = of_memory.into_iter().chain(sampling::balance_line(recipe, source));
        lines.for_each(|line| report.notice(&line));
    }

    fn divided(&self, recipe: &Recipe) -> Result<Recipe, RecipeError> {
        let mut recipe = recipe.clone();
        // The recipe of a resumed run is first compared with the checkpoint's.
        if !self.options.resume {
            recipe.divide(self.options.ranks.world().size, self.options.auto_micro_batch)?;
        }
        Ok(recipe)
    }
}

/// Whether the device is a GPU.
pub(super) fn is_gpu(selected: &Selected) -> bool {
    matches!(selected, Selected::Cuda(_))
}

/// Whether the ranks that a launcher starts compute on GPUs: its flags say so.
pub(super) fn ranks_on_gpus(device: DeviceChoice) -> bool {
    device == DeviceChoice::Cuda
}

/// One line for each reason why a run over so many images cannot learn much.
fn warnings(recipe: &Recipe, images: usize) -> Vec<String> {
    let Recipe { batch_size, micro_batch, epochs, .. } = *recipe;
    let mut lines = Vec::new();
    let smaller = fit::batch_for(images);
    if batch_size > images {
        lines.push(format!(
            "warning: a batch of {batch_size} is larger than the {} training images: each step takes every image {:.1} \
             times; --batch-size {smaller} suits them",
            HumanCount(images as u64),
            batch_size as f64 / images as f64
        ));
    }
    if let Ok(schedule) = Schedule::new(recipe, images)
        && schedule.steps() < FEW_STEPS
    {
        let (steps, wanted) = (schedule.steps(), (FEW_STEPS * batch_size as u64).div_ceil(images as u64));
        let batch = if smaller < batch_size { format!(", or --batch-size {smaller}") } else { String::new() };
        lines.push(format!(
            "warning: --epochs {epochs} makes {steps} step{}, too few to learn much; --epochs {wanted} makes {FEW_STEPS}{batch}",
            if steps == 1 { "" } else { "s" }
        ));
    }
    let resolution = recipe.least_resolution();
    let smallest = recipe.architecture(2).and_then(|arch| arch.at(resolution));
    let values = smallest.map_or(2, |arch| arch.final_side().pow(2) * micro_batch);
    if values < 2 && !recipe.sync_bn && !recipe.freeze_bn {
        lines.push(format!(
            "warning: with --micro-batch {micro_batch} at {resolution}×{resolution} batch norm sees one value of each \
             channel of the last maps, and the network's output is the same for all images; take a larger --batch-size, \
             --micro-batch or --resolution"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;

    #[test]
    fn warnings_name_what_to_change() {
        let recipe = |batch, epochs| Recipe { epochs, ..Recipe::reference(Variant::B0, batch) };
        assert_eq!(warnings(&recipe(16, 20.0), 1000), [""; 0]);
        let lines = warnings(&recipe(1024, 46.0), 22);
        assert!(lines[0].contains("46.5 times; --batch-size 16 suits them"), "{lines:?}");
        assert!(lines[1].contains("--epochs 46 makes 1 step, "), "{lines:?}");
        assert!(lines[1].ends_with("--epochs 46546 makes 1000, or --batch-size 16"), "{lines:?}");
        let lines = warnings(&recipe(16, 5.0), 1000);
        assert!(lines.len() == 1 && lines[0].ends_with("--epochs 16 makes 1000"), "{lines:?}");
        let single = Recipe { resolution: 32, ..recipe(1, 5.0) };
        assert!(warnings(&single, 1000)[0].contains("--micro-batch 1 at 32×32"));
        let staged = Recipe { resolution: 64, progressive: vec![32], ..single.clone() };
        assert_eq!(warnings(&staged, 1000).len(), 1);
        assert_eq!(warnings(&Recipe { resolution: 64, ..single }, 1000), [""; 0]);
        assert_eq!(warnings(&Recipe { resolution: 32, ..recipe(2, 5.0) }, 1000), [""; 0]);
    }
}

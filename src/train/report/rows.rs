//! The text of a report, the same on a terminal and in a file.

use indicatif::{HumanBytes, HumanCount};

use super::events::{End, EvaluationRecord, Header, Outcome, StepRecord};
use super::{curves, log_csv, page};
use crate::data::augment::Mixing;
use crate::data::{CropMode, Normalise, NormaliseBy};
use crate::train::optimizer::Decayed;
use crate::train::recipe::Recipe;

/// A name and a value.
pub type Row = (&'static str, String);

/// Describes a run that starts.
pub fn header_rows(header: &Header) -> Vec<Row> {
    let Header { recipe, .. } = header;
    let side = recipe.resolution;
    let average = match recipe.ema {
        0.0 => "off".to_string(),
        decay => format!("of the weights, decay {decay}"),
    };
    let normalised = match recipe.normalise {
        NormaliseBy::Dataset => String::new(),
        other => format!(", normalised by {other}"),
    };
    let earlier = match recipe.progressive.as_slice() {
        [] => String::new(),
        sides => {
            let sides: Vec<String> = sides.iter().map(|side| format!("{side}×{side}")).collect();
            format!(" after {}", sides.join(", "))
        }
    };
    let weighted = recipe.class_weights.as_ref();
    let weighted = weighted.map_or(String::new(), |weights| format!(", class weights {weights}"));
    let each = if header.ranks > 1 { ", in each rank" } else { "" };
    vec![
        ("model", format!("{}, {} parameters", header.model_name(), count(header.parameters))),
        (
            "input",
            format!("{side}×{side}{earlier}, crop {}, padding {}{normalised}", recipe.crop, recipe.padding),
        ),
        ("data", format!("{} ({} classes, fingerprint {})", header.data, header.classes, header.fingerprint)),
        (
            "images",
            format!("{} training, {} validation", count(header.train_images), count(header.val_images)),
        ),
        ("augmentation", augmentation(recipe)),
        ("batch", batch(header)),
        ("schedule", schedule(header)),
        ("optimizer", optimizer(header)),
        (
            "regularisation",
            format!(
                "label smoothing {}, dropout {}, stochastic depth {}{}",
                recipe.label_smoothing, recipe.dropout, recipe.drop_connect, weighted
            ),
        ),
        (
            "batch norm",
            format!(
                "momentum {} ({} in TensorFlow's convention), epsilon {}",
                recipe.bn_momentum,
                rounded(1.0 - recipe.bn_momentum),
                small(recipe.bn_eps)
            ),
        ),
        ("moving average", average),
        ("seed", recipe.seed.to_string()),
        ("device", header.device.trim_start_matches("device: ").to_string()),
        ("threads", format!("{} computing, {} loading{each}", header.threads, header.loader_threads)),
        ("memory", format!("{} planned{each}", HumanBytes(header.memory))),
        ("run directory", header.out.display().to_string()),
    ]
}

pub(super) fn augmentation(recipe: &Recipe) -> String {
    let policy = recipe.policy(Normalise::IMAGENET);
    let whole = |share: f64| format!("{} %", rounded(share * 100.0));
    let mut parts = vec![match recipe.crop {
        CropMode::Pad => "random shifts".to_string(),
        _ => format!("random crops of {} to {}", whole(policy.crop_area[0]), whole(policy.crop_area[1])),
    }];
    if !policy.auto.is_none() {
        parts.push(policy.auto.to_string());
    }
    let shares = [
        (policy.flip, "mirrored"),
        (policy.vertical_flip, "upside down"),
        (policy.random_erasing, "with a part erased"),
    ];
    parts.extend(
        shares
            .iter()
            .filter(|(share, _)| *share > 0.0)
            .map(|(share, what)| format!("{} {what}", whole(*share))),
    );
    if policy.color_jitter > 0.0 {
        parts.push(format!("colour jitter {}", policy.color_jitter));
    }
    parts.extend(mixing(policy.mixing));
    if let Some(first) = recipe.progressive_augment {
        parts.push(format!("at first at {first} of its strength"));
    }
    parts.join(", ")
}

fn mixing(mixing: Mixing) -> Option<String> {
    let Mixing { mixup, cutmix, probability, switch, off_epoch } = mixing;
    let mut text = match (mixup > 0.0, cutmix > 0.0) {
        (false, false) => return None,
        (true, false) => format!("mixup {mixup}"),
        (false, true) => format!("cutmix {cutmix}"),
        (true, true) => {
            format!("mixup {mixup} or cutmix {cutmix} ({} %)", rounded(switch * 100.0))
        }
    };
    if probability < 1.0 {
        text += &format!(" of {} %", rounded(probability * 100.0));
    }
    if let Some(epoch) = off_epoch {
        text += &format!(" in the first {epoch} epoch{}", if epoch == 1 { "" } else { "s" });
    }
    Some(text)
}

fn batch(header: &Header) -> String {
    let batch = header.recipe.batch_size;
    let ranks = match header.ranks {
        1 => String::new(),
        ranks => format!(", {} for each of {ranks} ranks", batch / ranks),
    };
    format!("{batch}{ranks}, in micro-batches of {}", header.recipe.micro_batch)
}

fn schedule(header: &Header) -> String {
    let mut text = format!(
        "{} epochs = {} steps, warm-up {} steps",
        header.recipe.epochs,
        HumanCount(header.steps),
        HumanCount(header.warmup_steps)
    );
    if let Some(words) = header.recipe.schedule_words() {
        text += &format!(", {words}");
    }
    if header.first_step > 0 {
        text += &format!(", going on after step {}", HumanCount(header.first_step));
    }
    if header.last_step < header.steps {
        text += &format!(", stopping after step {}", HumanCount(header.last_step));
    }
    text
}

fn optimizer(header: &Header) -> String {
    let recipe = &header.recipe;
    let hyper_parameters = recipe.update().rule.hyper_parameters();
    // The shortest decimal of an fp32 number is what the recipe says.
    let decimal = |value: f32| value.to_string().parse().expect("a number's text is a number");
    let own: String =
        hyper_parameters.iter().map(|(name, value)| format!(", {name} {}", small(decimal(*value)))).collect();
    let decayed = match recipe.weight_decay_of {
        Decayed::All => "",
        Decayed::NoBatchNorm => " without batch norm",
        Decayed::Weights => " of weights only",
    };
    let batch_norm =
        recipe.weight_decay_bn.map_or(String::new(), |rate| format!(", {} of batch norm", small(rate)));
    let clipped = recipe.clip_norm.map_or(String::new(), |norm| format!(", gradient norm at most {norm}"));
    format!(
        "{}, learning rate {}{own}, weight decay {}{decayed}{batch_norm}{clipped}",
        recipe.optimizer,
        small(recipe.lr),
        small(recipe.weight_decay)
    )
}

/// Describes the result of a run.
pub fn outcome_rows(outcome: &Outcome) -> Vec<Row> {
    let end = match outcome.end {
        End::Finished => "finished",
        End::Patience => "ended by --patience",
        End::MaxSteps => "stopped by --max-steps",
        End::Interrupted => "interrupted",
    };
    let place = format!("step {} of {}", HumanCount(outcome.step), HumanCount(outcome.steps));
    let mut rows = vec![("run", format!("{end} after {place}, epoch {:.2}", outcome.epoch))];
    if let Some(last) = &outcome.last {
        let figures = |top1, top5, loss| {
            let text = figures(top1, top5, loss, outcome.classes);
            // A run that was stopped is not evaluated once more.
            if last.step == outcome.step {
                text
            } else {
                format!("{text}, at step {}", HumanCount(last.step))
            }
        };
        rows.push(("test accuracy", figures(last.top1, last.top5, last.loss)));
        if let (Some(top1), Some(top5), Some(loss)) = (last.ema_top1, last.ema_top5, last.ema_loss) {
            rows.push(("moving average", figures(top1, top5, loss)));
        }
    }
    if let Some(best) = &outcome.best {
        let weights = if best.ema { " by the moving average" } else { "" };
        let top1 = percent(best.top1);
        rows.push(("best", format!("top-1 {top1} at step {}{weights}", HumanCount(best.step))));
    }
    rows.push((
        "training",
        format!(
            "{}, {:.0} images/s, {} of it waiting for images",
            span(outcome.train_seconds),
            outcome.images_per_second,
            percent(outcome.data_wait)
        ),
    ));
    rows.push(("checkpoint", outcome.checkpoint.display().to_string()));
    let files = [
        ("best checkpoint", "best.bin"),
        ("report", page::FILE),
        ("curves", curves::FILE),
        ("log", "log.jsonl"),
        ("log as CSV", log_csv::FILE),
        ("recipe", "recipe.toml"),
    ];
    for (what, name) in files {
        let file = outcome.out.join(name);
        if file.exists() {
            rows.push((what, file.display().to_string()));
        }
    }
    if let Some(command) = &outcome.resume {
        rows.push(("to go on", command.clone()));
    }
    rows
}

/// Five classes or fewer are always among the five most probable.
pub const FEW_CLASSES: usize = 5;

fn figures(top1: f64, top5: f64, loss: f64, classes: usize) -> String {
    let top5 = if classes > FEW_CLASSES { format!("top-5 {}, ", percent(top5)) } else { String::new() };
    format!("top-1 {}, {top5}loss {}", percent(top1), decimals(loss))
}

/// A loss with four decimals, or with an exponent if it is that of weights that have diverged.
pub fn decimals(loss: f64) -> String {
    if loss.abs() < 1e6 { format!("{loss:.4}") } else { format!("{loss:.1e}") }
}

/// The line of an evaluation during a run.
pub fn evaluation_line(record: &EvaluationRecord, best: bool, classes: usize) -> String {
    let figures = figures(record.top1, record.top5, record.loss, classes);
    let mut line = format!("epoch {:.2}: {figures}", record.epoch);
    if let Some(top1) = record.ema_top1 {
        line += &format!(", moving average top-1 {}", percent(top1));
    }
    if best {
        line += ", the best so far";
    }
    line
}

/// Means over the last steps.
#[derive(Default)]
pub struct StepMeans {
    steps: f64,
    loss: f64,
    accuracy: f64,
    images: f64,
    seconds: f64,
    wait: f64,
    /// Of the gradients, and the weight of the steps that have one.
    norm: f64,
    norms: f64,
}

impl StepMeans {
    /// Adds a step of `batch` images; the weight of earlier steps is multiplied by `keep`.
    pub fn add(&mut self, record: &StepRecord, batch: usize, keep: f64) {
        let seconds = batch as f64 / record.images_per_second;
        let seconds = if seconds.is_finite() { seconds } else { 0.0 };
        let add = |sum: &mut f64, new: f64| *sum = *sum * keep + new;
        add(&mut self.steps, 1.0);
        add(&mut self.loss, record.loss);
        add(&mut self.accuracy, record.accuracy);
        add(&mut self.images, batch as f64);
        add(&mut self.seconds, seconds);
        add(&mut self.wait, record.data_wait);
        add(&mut self.norm, record.gradient_norm.unwrap_or_default());
        add(&mut self.norms, f64::from(u8::from(record.gradient_norm.is_some())));
    }

    pub fn is_empty(&self) -> bool {
        self.steps == 0.0
    }

    pub fn line(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        let norm = match self.norms {
            0.0 => String::new(),
            norms => format!(", gradient norm {:.3}", self.norm / norms),
        };
        format!(
            "loss {}, accuracy {}{norm}, {:.0} images/s, data wait {}",
            decimals(self.loss / self.steps),
            percent(self.accuracy / self.steps),
            self.images / seconds,
            percent(self.wait / seconds)
        )
    }
}

fn count(number: usize) -> HumanCount {
    HumanCount(number as u64)
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Writes 0.00001 as 1e-5.
pub(super) fn small(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:e}") } else { value.to_string() }
}

/// Removes the last digits, which a subtraction leaves inexact.
fn rounded(value: f64) -> f64 {
    (value * 1e9).round() / 1e9
}

/// "4.2 s", "1 min 15 s", "2 h 1 min".
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{} h {minutes} min", HumanCount(hours)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_and_small_write_short_numbers() {
        assert_eq!(span(4.25), "4.2 s");
        assert_eq!(span(61.0), "1 min 1 s");
        assert_eq!(span(7300.0), "2 h 1 min");
        assert_eq!(small(1e-5), "1e-5");
        assert_eq!(small(0.08), "0.08");
        assert_eq!([2.0, 3.8e37, f64::NAN].map(decimals), ["2.0000", "3.8e37", "NaN"]);
    }
}

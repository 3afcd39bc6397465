//! Recipes by name: how they are chosen, overridden and printed.

use effnet::cli::{Flags, Parsed, parse};
use effnet::model::{ParamRole, ParamTable};
use effnet::train::{Recipe, ScheduleKind};

use crate::common::programs::{program, run};

fn recipe(arguments: &str) -> Result<Recipe, String> {
    let words = ["effnet-train"].into_iter().chain(arguments.split_whitespace()).map(Into::into);
    match parse::<Flags>(words).map_err(|error| error.to_string())? {
        Parsed::Flags(flags) => flags.job().map(|job| job.recipe).map_err(|error| format!("{error:#}")),
        Parsed::Text(text) => panic!("{text}"),
    }
}

#[test]
fn flags_and_files_override_a_preset() {
    let tpu = recipe("--preset tpu").unwrap();
    assert_eq!((tpu.lr, tpu.batch_size, tpu.ema), (0.128, 2048, 0.9999));
    let given = recipe("--preset tpu --lr 0.2 --ema 0 --batch-size 256").unwrap();
    assert_eq!((given.lr, given.batch_size, given.ema), (0.2, 256, 0.0));
    assert_eq!(given.decay_rate, Some(0.97));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.toml");
    std::fs::write(
        &file,
        "ema = 0.5\nmomentum = 0.8\nschedule = \"steps\"\ndecay-rate = 0.1\nmilestones = [30, 60.5]",
    )
    .unwrap();
    let layered = recipe(&format!("--preset tpu --config {} --momentum 0.7", file.display())).unwrap();
    assert_eq!((layered.ema, layered.momentum, layered.rms_eps), (0.5, 0.7, 0.001));
    assert_eq!((layered.decay_epochs, layered.milestones), (None, vec![30.0, 60.5]));
    // What no layer sets is the reference's; the preset of the default is the default.
    assert_eq!(recipe("--preset composer"), recipe(""));
    assert_eq!(recipe("--preset composer --model b3 --batch-size 96"), recipe("--model b3 --batch-size 96"));
}

#[test]
fn rates_of_a_preset_follow_the_batch() {
    assert_eq!(recipe("--preset tpu --batch-size 256").unwrap().lr, 0.016);
    let tuned = recipe("--preset finetune --batch-size 128").unwrap();
    assert_eq!((tuned.lr, tuned.min_lr), (0.2, 2e-5));
    assert_eq!((tuned.body_lr, tuned.classifier_epochs), (Some(0.5), Some(1.0)));
    assert_eq!(recipe("--preset nvidia --model b4").unwrap().lr, 0.16);
}

/// Otherwise the preset's decay rate would be refused, which the user has not given.
#[test]
fn another_schedule_or_optimizer_drops_what_belongs_to_the_preset_s() {
    let cosine = recipe("--preset tpu --schedule cosine").unwrap();
    assert_eq!((cosine.schedule, cosine.decay_rate, cosine.decay_epochs), (ScheduleKind::Cosine, None, None));
    assert!(!recipe("--preset finetune --optimizer adamw").unwrap().nesterov);
    let line = recipe("--preset tpu --schedule cosine --decay-rate 0.9").unwrap_err();
    assert!(line.contains("--decay-rate 0.9") && line.contains("--schedule cosine has none"), "{line}");
}

/// NVIDIA's and Google's programs decay every parameter but the scale and shift of batch norm, by its name; Composer's decay
/// all; timm leaves out vectors.
#[test]
fn presets_decay_what_their_programs_decay() {
    for (name, decays) in [
        ("composer", (|_, _| true) as fn(&str, usize) -> bool),
        ("nvidia", |name, _| !name.contains("bn")),
        ("tpu", |name, _| !name.contains("bn")),
        ("finetune", |_, axes| axes > 1),
        ("small", |_, axes| axes > 1),
    ] {
        let recipe = recipe(&format!("--preset {name}")).unwrap();
        let table = ParamTable::new(&recipe.architecture(10).unwrap());
        let factors = recipe.decay_factors(&table);
        for entry in table.entries().iter().filter(|entry| entry.role.trainable()) {
            let expected = if decays(&entry.name, entry.shape.len()) { 1.0 } else { 0.0 };
            let right = factors[entry.range()].iter().all(|factor| *factor == expected);
            assert!(right, "{name}: {}", entry.name);
        }
        assert!(table.entries().iter().any(|entry| entry.role == ParamRole::Scale));
    }
}

#[test]
fn preset_is_listed_shown_and_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let effnet = |arguments: &str| {
        run(program("effnet-train").current_dir(dir.path()).args(arguments.split_whitespace()))
    };
    let list = effnet("--preset list").good().out;
    for name in ["composer", "nvidia", "tpu", "finetune", "small"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{list}");
    }
    let shown = effnet("--preset show nvidia").good().out;
    assert!(shown.contains("77.42") && shown.contains("mixup = 0.2"), "{shown}");
    let names = "composer, nvidia, tpu, finetune and small";
    effnet("--preset imagenet").refused(2, &["--preset imagenet", names]);
    effnet("--preset show imagenet").refused(2, &["--preset imagenet", names]);
    effnet("--preset tpu small").refused(2, &["--preset tpu small", names]);
    effnet("--preset tpu --demo").refused(2, &["--preset tpu", "--demo has a recipe"]);
    effnet("--preset tpu --resume").refused(2, &["--preset tpu", "--resume has a recipe"]);
    let tiny = "--data synthetic --model b0 --resolution 32 --batch-size 4 --max-steps 1 --epochs 1";
    let out = effnet(&format!("--preset finetune {tiny} --out run")).good().out;
    assert!(out.contains("--init-from names none"), "{out}");
    let kept = std::fs::read_to_string(dir.path().join("run/recipe.toml")).unwrap();
    assert!(kept.contains("nesterov = true") && kept.contains("clip-norm = 5"), "{kept}");
}

/// A file that somebody wrote for another optimiser is refused. The recipe of a run has a value of every setting, and an
/// optimiser on the command line replaces the file's.
#[test]
fn file_for_an_optimiser_is_refused_with_another_one_s_settings() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let own = file("own.toml", "optimizer = \"sgd\"\nalpha = 0.9\n");
    let line = recipe(&format!("--config {own}")).unwrap_err();
    assert_eq!(line, "--alpha 0.9: --optimizer sgd has none; leave it out");
    let rms = file("rms.toml", "alpha = 0.95\n");
    assert_eq!(recipe(&format!("--config {rms}")).unwrap().alpha, 0.95);
    recipe(&format!("--optimizer sgd --config {rms}")).unwrap();
    let flags = "--optimizer sgd --data synthetic --device cpu --resolution 32 --batch-size 4 --max-steps 1 --out run";
    run(program("effnet-train").current_dir(dir.path()).args(flags.split_whitespace())).good();
    let place = dir.path().join("run/recipe.toml");
    let text = std::fs::read_to_string(&place).unwrap();
    assert!(text.contains("optimizer = \"sgd\"") && text.contains("rms-eps = "), "{text}");
    recipe(&format!("--config {}", place.display())).unwrap();
    recipe(&format!("--resume --out {}", place.parent().unwrap().display())).unwrap();
}

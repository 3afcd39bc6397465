//! What a recipe allows, how it is changed, and how it is written.

use super::*;

#[test]
fn reference_is_valid_and_survives_json_and_toml() {
    for model in Variant::ALL {
        let recipe = Recipe { seed: i64::MAX as u64, lr: 0.1 + 0.2, ..Recipe::reference(model, 96) };
        assert_eq!(recipe.validate(), Ok(()));
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
        let text = toml::to_string(&recipe).unwrap();
        assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe);
    }
    let recipe = Recipe::reference(Variant::B0, 64);
    let json = serde_json::to_string(&recipe).unwrap();
    let earlier = 22;
    assert_eq!(recipe.fields().len(), earlier, "an old checkpoint would not be equal: {json}");
    let every = recipe.with_every_key();
    assert!(every.fields().len() > earlier);
    assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&every).unwrap()).unwrap(), every);
    let synced = Recipe { sync_bn: true, ..recipe };
    let text = serde_json::to_string(&synced).unwrap();
    assert!(text.contains("\"sync-bn\":true"), "{text}");
    assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), synced);
    assert!(serde_json::from_str::<Recipe>(&json.replace("\"lr\"", "\"learning\"")).is_err());
}

#[test]
fn with_sets_the_recipe_s_fields_and_no_others() {
    let recipe = Recipe { init_from: Some("crc".into()), ..Recipe::reference(Variant::B0, 64) };
    let settings = "lr = 0.5\nsync-bn = true\nmodel = \"b1\"\nthreads = 3\ninit-from = \"w.safetensors\"";
    let set = recipe.with(&settings.parse().unwrap()).unwrap();
    assert_eq!(set, Recipe { lr: 0.5, sync_bn: true, model: Variant::B1, ..recipe.clone() });
    assert!(recipe.with(&"lr = \"fast\"".parse().unwrap()).is_err());
}

#[test]
fn divide_gives_equal_shares_or_says_what_works() {
    let recipe = || Recipe::reference(Variant::B0, 96);
    let mut four = recipe();
    let line = four.divide(4, true).unwrap().unwrap();
    assert!(line.contains("24 images instead of 96"), "{line}");
    assert_eq!((four.batch_size, four.micro_batch), (96, 24));
    // A micro-batch that divides the share stays.
    let mut eight = Recipe { micro_batch: 8, ..recipe() };
    assert_eq!(eight.divide(3, false), Ok(None));
    assert_eq!(eight.micro_batch, 8);
    let line = Recipe { micro_batch: 16, ..recipe() }.divide(4, false).unwrap_err().to_string();
    assert!(line.contains("--micro-batch 16") && line.contains("24 images"), "{line}");
    let line = recipe().divide(7, true).unwrap_err().to_string();
    assert!(line.contains("7 ranks") && line.contains("6 or 8") && line.contains("91 or 98"), "{line}");
}

#[test]
fn divide_keeps_pairs_that_are_mixed_together() {
    let recipe = |batch_size, micro_batch| Recipe {
        cutmix: 1.0,
        batch_size,
        micro_batch,
        ..Recipe::reference(Variant::B0, 64)
    };
    let divided = |mut recipe: Recipe, ranks| recipe.divide(ranks, true).map(|_| recipe.micro_batch);
    assert_eq!(divided(recipe(30, 30), 3), Ok(10));
    // Five images would divide ten, too.
    assert_eq!(divided(recipe(30, 6), 3), Ok(2));
    assert_eq!(divided(Recipe { cutmix: 0.0, ..recipe(30, 6) }, 3), Ok(5));
    let line = divided(recipe(30, 30), 2).unwrap_err().to_string();
    assert!(line.contains("each of 2 ranks has 15 images") && line.ends_with("--batch-size 32"), "{line}");
}

#[test]
fn differences_name_every_field() {
    let saved = Recipe::reference(Variant::B0, 64);
    assert!(saved.differences(&saved).is_empty());
    let here = Recipe { epochs: 3.0, init_from: Some("0badcafe".into()), ..saved.clone() };
    let found = here.differences(&saved);
    let expected =
        ["epochs is 3.0, the checkpoint's 400.0", "init-from is \"0badcafe\", the checkpoint's not set"];
    assert_eq!(found, expected);
}

#[test]
fn classes_are_evened_out_once() {
    let sampling = Sampling { balance: true, ..Sampling::PLAIN };
    let class_weights = Some(ClassWeights::Balanced);
    let both = Recipe { sampling, class_weights, ..Recipe::reference(Variant::B0, 8) };
    let said = both.validate().unwrap_err().to_string();
    assert_eq!(said, "--class-weights balanced: --balance already gives every class its part; leave one out");
}

#[test]
fn kept_statistics_are_not_shared() {
    let recipe = |freeze_bn, sync_bn| Recipe { freeze_bn, sync_bn, ..Recipe::reference(Variant::B0, 8) };
    assert_eq!(recipe(true, false).validate(), Ok(()));
    assert_eq!(recipe(false, true).validate(), Ok(()));
    let said = recipe(true, true).validate().unwrap_err().to_string();
    let line = "--sync-bn true: with --freeze-bn there are no statistics of a batch to share; leave one out";
    assert_eq!(said, line);
}

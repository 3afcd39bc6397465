//! The head against the oracle: pooling, dropout, classifier, loss.

use crate::common::fixture::Fixture;
use crate::common::fixture::cases::{Case, check_on_cpu, on_every_device};
use effnet::ops::*;

/// Images, pixels, channels, classes.
const SHAPES: [(usize, usize, usize, usize); 10] = [
    (1, 1, 8, 2),
    (5, 1, 1280, 10),
    (2, 4, 24, 3),
    (3, 9, 40, 7),
    (4, 49, 112, 1000),
    (1, 64, 1152, 101),
    (5, 49, 1792, 10),
    (2, 81, 320, 37),
    (67, 4, 1280, 33),
    (300, 4, 40, 3),
];

/// For the CPU only, since the kernels need multiples of eight: channels that do not fill the last vector.
const ODD_SHAPES: [(usize, usize, usize, usize); 1] = [(6, 2, 13, 7)];

fn dropout(f: &mut Fixture, elements: usize) -> Tensor {
    let factors = f.noise("mask", elements, 0.0, 1.0);
    f.input("dropout", factors.into_iter().map(|u| if u < 0.2 { 0.0 } else { 1.25 }).collect())
}

/// The pass over y, with biases of its batch norm near `bias`.
fn forward(
    f: &mut Fixture,
    (images, pixels, channels, classes): (usize, usize, usize, usize),
    y: Vec<f32>,
    bias: f64,
    drops: bool,
) -> HeadForward {
    HeadForward {
        images,
        pixels,
        channels,
        classes,
        bn: f.norm_of_around("bn", &y, channels, bias),
        y: f.input("y", y),
        pooled: f.output("pooled", images * channels),
        dropout: drops.then(|| dropout(f, images * channels)),
        classifier: f.dense("classifier", channels, classes),
        logits: f.output("logits", images * classes),
    }
}

fn forward_cases(shapes: &[(usize, usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, pixels, channels, classes) in shapes {
        for (drops, weights) in [(false, Weights::Raw), (true, Weights::Raw), (false, Weights::Ema)] {
            let name =
                format!("head {images}×{pixels}×{channels} to {classes}, dropout {drops}, {weights:?}");
            let mut f = Fixture::new(name);
            f.weights = weights;
            let y = f.activation("y", images * pixels, channels);
            let pass = forward(&mut f, (images, pixels, channels, classes), y, 0.0, drops);
            cases.push(Case::new(f, Pass::HeadForward(pass), channels.max(pixels)));
        }
    }
    cases
}
on_every_device!(forward_agrees_with_the_oracle, forward_cases(&SHAPES));

/// Where z is −8 or so: silu(z) is small there, but what it is must be right to the storage type's precision. A sigmoid by
/// way of tanh loses all of it, because ½·tanh(½z) + ½ cancels.
fn tail_cases() -> Vec<Case> {
    [(4, 9, 40, 7), (2, 49, 1280, 10)]
        .map(|(images, pixels, channels, classes)| {
            let mut f = Fixture::new(format!("negative tail, {images}×{pixels}×{channels}"));
            let y = f.activation("y", images * pixels, channels);
            let pass = forward(&mut f, (images, pixels, channels, classes), y, -8.0, false);
            Case::new(f, Pass::HeadForward(pass), pixels)
        })
        .into()
}
on_every_device!(silu_is_right_in_its_negative_tail, tail_cases());

fn loss(f: &mut Fixture, images: usize, classes: usize, width: f64, smoothing: f32) -> Loss {
    Loss {
        images,
        classes,
        logits: f.input_noise("logits", images * classes, -width, width),
        labels: f.input_labels((0..images).map(|n| (37 * n % classes) as u32).collect()),
        form: LabelForm::PLAIN,
        smoothing,
        scale: 1.0 / 64.0,
        losses: f.output("losses", images),
        dlogits: f.output("dlogits", images * classes),
    }
}

fn loss_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (images, _, _, classes) in SHAPES {
        for smoothing in [0.0, 0.1] {
            for width in [0.1, 3.0, 30.0] {
                let name = format!("loss of {images}×{classes}, smoothing {smoothing}, logits up to {width}");
                let mut f = Fixture::new(name);
                let pass = loss(&mut f, images, classes, width, smoothing);
                cases.push(Case::new(f, Pass::Loss(pass), classes));
            }
        }
    }
    cases
}
on_every_device!(loss_agrees_with_the_oracle, loss_cases());

const MIXED: LabelForm = LabelForm { mixed: true, weighted: false };
const WEIGHTED: LabelForm = LabelForm { mixed: false, weighted: true };
const BOTH: LabelForm = LabelForm { mixed: true, weighted: true };

/// The words of this form for the labels of [`loss`]. Every third image has one label, some have the same one twice.
fn words(f: &Fixture, form: LabelForm, images: usize, classes: usize) -> Vec<u32> {
    let of = |factor: usize| (0..images).map(move |image| (factor * image % classes) as u32);
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits);
    let mut words: Vec<u32> = of(37).collect();
    if form.mixed {
        let mut shares = f.noise("shares", images, 0.0, 1.0);
        shares.iter_mut().step_by(3).for_each(|share| *share = 1.0);
        words.extend(of(11));
        words.extend(bits(shares));
    }
    if form.weighted {
        words.extend(bits(f.noise("class weights", classes, 0.0, 4.0)));
    }
    words
}

fn formed_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (images, _, _, classes) in SHAPES {
        for (form, smoothing, width) in
            [(MIXED, 0.0, 3.0), (MIXED, 0.1, 30.0), (WEIGHTED, 0.1, 3.0), (BOTH, 0.0, 30.0), (BOTH, 0.1, 3.0)]
        {
            let mut f = Fixture::new(format!("loss of {images}×{classes}, {form:?}, smoothing {smoothing}"));
            let labels = words(&f, form, images, classes);
            let pass = Loss {
                labels: f.input_labels(labels),
                form,
                ..loss(&mut f, images, classes, width, smoothing)
            };
            cases.push(Case::new(f, Pass::Loss(pass), classes));
        }
    }
    cases
}
on_every_device!(loss_of_mixed_and_weighted_images_agrees_with_the_oracle, formed_cases());

/// A share of 1 and weights of 1 change no bit.
#[test]
fn loss_of_one_label_is_the_same_in_every_form() {
    let (images, classes) = (9, 101);
    let mut f = Fixture::new("one label");
    let plain = loss(&mut f, images, classes, 20.0, 0.1);
    let of = |f: &Fixture, pass: Loss| {
        let both = |tensor| f.output_on_cpu(Pass::Loss(pass), tensor);
        [both(pass.losses), both(pass.dlogits)].concat()
    };
    let expected = of(&f, plain);
    for form in [MIXED, WEIGHTED, BOTH] {
        let mut labels = words(&f, form, images, classes);
        let one = 1.0_f32.to_bits();
        if form.mixed {
            labels[2 * images..3 * images].fill(one);
        }
        if form.weighted {
            let end = labels.len();
            labels[end - classes..].fill(one);
        }
        let pass = Loss { labels: f.input_labels(labels), form, ..plain };
        assert_eq!(form.words(images, classes), pass.labels.elements);
        let found = of(&f, pass);
        // The sum of equal weights is rounded once more.
        let exact = !form.weighted;
        let near =
            |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (!exact && (a - b).abs() <= 1e-6 * b.abs());
        assert!(found.iter().zip(&expected).all(near), "{form:?}");
    }
}

/// e^300 overflows fp32, so the largest logit must be subtracted first.
fn large_logits() -> [Case; 1] {
    let mut f = Fixture::new("large logits");
    let pass = loss(&mut f, 5, 10, 300.0, 0.1);
    [Case::new(f, Pass::Loss(pass), 10)]
}
on_every_device!(loss_of_large_logits_is_finite, large_logits());

/// A logit that is not a number, or a label that is not a class, makes the loss NaN.
#[test]
fn loss_does_not_hide_what_is_not_a_number() {
    for (logits, label) in [(vec![0.0, f32::NAN, 1.0], 0), (vec![0.0, 1.0], 2)] {
        let mut f = Fixture::new("not a number");
        let pass = Loss {
            logits: f.input("given logits", logits.clone()),
            labels: f.input_labels(vec![label]),
            ..loss(&mut f, 1, logits.len(), 1.0, 0.1)
        };
        assert!(f.output_on_cpu(Pass::Loss(pass), pass.losses)[0].is_nan(), "{logits:?}, label {label}");
    }
}

pub fn backward_cases(shapes: &[(usize, usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, pixels, channels, classes) in shapes {
        for drops in [false, true] {
            let name = format!("head {images}×{pixels}×{channels} to {classes}, dropout {drops}");
            let mut f = Fixture::new(name);
            let y = f.activation("y", images * pixels, channels);
            let pass = HeadBackward {
                images,
                pixels,
                channels,
                classes,
                bn: f.norm_of("bn", &y, channels),
                y: f.input("y", y),
                pooled: f.input_noise("pooled", images * channels, -0.2, 1.0),
                dropout: drops.then(|| dropout(&mut f, images * channels)),
                classifier: f.dense("classifier", channels, classes),
                dlogits: f.input_noise("dlogits", images * classes, -0.1, 0.1),
                du: Some(f.output("du", images * pixels * channels)),
            };
            let terms = classes.max(images * pixels);
            cases.push(Case::new(f, Pass::HeadBackward(pass), terms));
        }
    }
    cases
}
on_every_device!(backward_agrees_with_the_oracle, backward_cases(&SHAPES));

#[test]
fn odd_channels_agree_with_the_oracle() {
    check_on_cpu(forward_cases(&ODD_SHAPES).into_iter().chain(backward_cases(&ODD_SHAPES)));
}

//! The optimiser over all parameters of a network: each rule, with and without the EMA; see [`common`].

mod common;

use effnet::ops::{Pass, RmsPropForm, Rule, Update};

fn main() {
    let rms = |form| Rule::RmsProp { form, alpha: 0.9, momentum: 0.9, eps: 1e-3 };
    let rules = [rms(RmsPropForm::PyTorch), rms(RmsPropForm::TensorFlow), Rule::Sgd { momentum: 0.9 }];
    let updates = rules.map(|rule| [false, true].map(|ema| Update { rule, weight_decay: 1e-5, ema }));
    common::main(|pass| matches!(pass, Pass::Update(_)), updates.as_flattened());
}

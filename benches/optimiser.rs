//! The optimiser over all parameters of a network: each rule, with and without the EMA.

mod common;
mod gpu;

use common::{Setup, cases, group};
use criterion::{Criterion, Throughput, criterion_group};
use effnet::model::ParamTable;
use effnet::ops::Pass;
use effnet::ops::{Ops, RmsPropForm, Rule, Update};

fn optimiser(c: &mut Criterion) {
    for case in [&cases()[0], &cases()[2]] {
        let elements = ParamTable::new(&case.net).total();
        let mut group = group(c, &format!("update, {}", case.net.variant));
        let rms = |form| Rule::RmsProp { form, alpha: 0.9, momentum: 0.9, eps: 1e-3 };
        let rules = [
            ("RMSprop (PyTorch)", rms(RmsPropForm::PyTorch), 7),
            ("RMSprop (TensorFlow)", rms(RmsPropForm::TensorFlow), 7),
            ("SGD", Rule::Sgd { momentum: 0.9 }, 5),
        ];
        for (name, rule, buffers) in rules {
            for (ema, suffix, more) in [(false, "", 0), (true, " and EMA", 2)] {
                let mut s = Setup::default();
                s.parameter(elements);
                let pass = Update { rule, weight_decay: 1e-5, ema };
                let (mut ops, _) = s.start(|ops: &mut dyn Ops| ops.update(&pass));
                group.throughput(Throughput::Bytes((elements * 4 * (buffers + more)) as u64));
                group.bench_function(format!("{name}{suffix}"), |b| b.iter(|| ops.update(&pass).unwrap()));
            }
        }
        group.finish();
    }
}

criterion_group!(benches, optimiser);

fn main() {
    gpu::main(
        |pass| matches!(pass, Pass::Update(_)),
        || {
            benches();
            Criterion::default().configure_from_args().final_summary();
        },
    );
}

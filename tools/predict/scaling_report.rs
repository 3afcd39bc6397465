//! How a step scales over cards, as Markdown: the tables of docs/scaling.md. *Predicted, not measured.*

use std::fmt::Write;

use effnet::model::Variant;
use effnet::ops::Result;

use crate::card::CARDS;
use crate::exchange::Bus;
use crate::scaling::{Among, Load, MACHINES, Machine, Step, loads};
use crate::step::Case;

/// nccl-tests' `all_reduce_perf` on two cards that cannot reach each other's memory: bytes, measured µs.
const MEASURED: [(f64, f64); 6] = [
    (262_144.0, 86.04),
    (1_048_576.0, 279.5),
    (4_194_304.0, 1065.1),
    (8_388_608.0, 2113.2),
    (33_554_432.0, 8399.7),
    (134_217_728.0, 33587.0),
];

/// Images of ImageNet's training set, and the reference recipe's epochs and seconds on 8 RTX 3080.
const IMAGENET: f64 = 1_281_167.0;
const REFERENCE: (f64, f64) = (400.0, 23.3 * 3600.0);

/// All tables.
///
/// # Errors
/// If a step cannot be recorded.
pub fn tables() -> Result<String> {
    let loads = loads();
    let mut steps: Vec<Step> = Vec::new();
    for load in &loads {
        if !steps.iter().any(|step| step.case == load.case) {
            steps.push(Step::record(load.case)?);
        }
    }
    let mut text = bus_table();
    for model in [Variant::B0, Variant::B7] {
        if let Some(step) = steps.iter().find(|step| step.case.model == model) {
            text.push_str(&bucket_table(step));
        }
    }
    for load in &loads {
        if let Some(step) = steps.iter().find(|step| step.case == load.case) {
            text.push_str(&step_table(step, load));
        }
    }
    text.push_str(&slow_table(&steps, &loads));
    text.push_str(&reference(&steps[0]));
    Ok(text)
}

/// "a – b", the worst and the best case; one figure if both print alike.
fn range(values: [f64; 2], digits: usize) -> String {
    let [worst, best] = values.map(|value| format!("{value:.digits$}"));
    if worst == best { worst } else { format!("{worst} – {best}") }
}

fn bus_table() -> String {
    let mut text = String::from(
        "### The bus\n\n| cards, joined by | base µs | hop µs | rate GB/s | latency of 8 µs | busbw of 4 MiB | of 25 MiB |\n\
        |---|---:|---:|---:|---:|---:|---:|\n",
    );
    let both = |machine: &Machine, of: &dyn Fn(&Bus) -> f64, digits| {
        range([of(&machine.buses[0]), of(&machine.buses[1])], digits)
    };
    for machine in &MACHINES {
        let bandwidth = |bytes: f64| move |bus: &Bus| 1.75 * bytes / bus.sum(bytes, 8) / 1e3;
        let (four, large) = (bandwidth((4 << 20) as f64), bandwidth((25 << 20) as f64));
        let _ = writeln!(
            text,
            "| {}, {} | {} | {} | {} | {} | {} | {} |",
            CARDS[machine.card].name,
            machine.joined,
            both(machine, &|bus| bus.base, 1),
            both(machine, &|bus| bus.hop, 1),
            both(machine, &|bus| bus.rate, 0),
            both(machine, &|bus| bus.latency(8), 0),
            both(machine, &four, 1),
            both(machine, &large, 1),
        );
    }
    text.push_str(
        "\nThe formula against a public measurement, two RTX 2080 Ti through host memory, with NCCL's own base and hop and \
         4 GB/s:\n\n| bytes | measured µs | formula µs | |\n|---:|---:|---:|---:|\n",
    );
    let bus = Bus { rate: 4.0, ..MACHINES[0].buses[1] };
    for (bytes, measured) in MEASURED {
        let sum = bus.sum(bytes, 2);
        let _ = writeln!(
            text,
            "| {bytes:.0} | {measured:.1} | {sum:.1} | {:+.2} % |",
            100.0 * (sum / measured - 1.0)
        );
    }
    text
}

fn bucket_table(step: &Step) -> String {
    let alone = [0, 1].map(|machine| step.alone(&CARDS[MACHINES[machine].card], 1, 1.0));
    let [a, b] = [0, 1].map(|machine: usize| CARDS[MACHINES[machine].card].name);
    let mut text = format!(
        "\n### Buckets of {}\n\n| bucket | MB | begins with | complete after | {a} ms | {b} ms |\n\
        |---:|---:|---|---|---:|---:|\n",
        step.case
    );
    for (number, ((pass, _), bytes)) in step.buckets.iter().zip(step.bytes()).enumerate() {
        let _ = writeln!(
            text,
            "| {} | {:.2} | `{}` | pass {}, {} | {:.2} | {:.2} |",
            number + 1,
            bytes / 1e6,
            step.first[number],
            pass + 1,
            step.passes[pass + 1].name,
            alone[0].complete[number] / 1e3,
            alone[1].complete[number] / 1e3
        );
    }
    let bytes: f64 = step.bytes().iter().sum();
    let passes = step.passes.len() - 2;
    let [a, b] = alone.each_ref().map(|alone| alone.backward_end / 1e3);
    let _ = writeln!(text, "| all | {:.2} | | {passes} passes | {a:.2} | {b:.2} |", bytes / 1e6);
    let [a, b] = alone.each_ref().map(|alone| alone.update / 1e3);
    let _ = writeln!(text, "| | | | update | {a:.2} | {b:.2} |");
    text
}

fn step_table(step: &Step, load: &Load) -> String {
    let Case { model, side, images, precision, .. } = load.case;
    let name = model.name().to_uppercase();
    let mut text = format!("\n### {name} at {side}², {} images a card, {precision}", load.images());
    if load.micro_batches > 1 {
        let _ = write!(text, ": {} micro-batches of {images}", load.micro_batches);
    }
    text.push_str(
        "\n\n| cards | images a step | step ms | sums ms | exposed ms | images/s | efficiency % | nothing hidden % |\n\
        |---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for machine in &MACHINES {
        let card = &CARDS[machine.card];
        let alone = step.alone(card, load.micro_batches, 1.0);
        for cards in [1, 2, 4, 8] {
            let among = machine.buses.map(|bus| step.among(&alone, &bus, cards));
            let images = (cards * load.images()) as f64;
            let both = |of: fn(&Among) -> f64, digits| range(among.each_ref().map(of), digits);
            let _ = writeln!(
                text,
                "| {cards} × {} | {images} | {} | {} | {} | {} | {} | {} |",
                card.name,
                both(|among| among.step / 1e3, 2),
                both(|among| among.sums / 1e3, 2),
                both(|among| among.exposed / 1e3, 2),
                range(among.each_ref().map(|among| images * 1e6 / among.step), 0),
                both(Among::efficiency, 1),
                both(Among::efficiency_unhidden, 1),
            );
        }
    }
    text
}

/// The efficiency depends little on how near kernels are to their bound.
fn slow_table(steps: &[Step], loads: &[Load]) -> String {
    let mut text = String::from(
        "\n### Where kernels take longer than their bound: efficiency of 8 cards, %\n\n\
        | a card's work | card | as the bound | twice | three times |\n|---|---|---:|---:|---:|\n",
    );
    for load in loads {
        let Some(step) = steps.iter().find(|step| step.case == load.case) else { continue };
        for machine in &MACHINES {
            let card = &CARDS[machine.card];
            let cells = [1.0, 2.0, 3.0].map(|slow| {
                let alone = step.alone(card, load.micro_batches, slow);
                range(machine.buses.map(|bus| step.among(&alone, &bus, 8).efficiency()), 1)
            });
            let name = load.case.model.name().to_uppercase();
            let _ = writeln!(
                text,
                "| {name}, {} × {} images | {} | {} |",
                load.micro_batches,
                load.case.images,
                card.name,
                cells.join(" | ")
            );
        }
    }
    text
}

/// Compared with the reference recipe's published time; and what images need of the gradients' bus.
fn reference(step: &Step) -> String {
    let (epochs, seconds) = REFERENCE;
    let published = epochs * IMAGENET / seconds;
    let mut text = format!(
        "\n### Beside the published run\n\n\
        {epochs:.0} epochs of {IMAGENET:.0} images in 23.3 hours are {published:.0} images/s on 8 × RTX 3080, {:.0} a card. \
        That was measured, with\nanother program; these were not, and leave out what a loader, an evaluation and a kernel \
        above its bound cost:\n\n| 8 cards, {} | images/s | {epochs:.0} epochs, hours | GB/s of images to each card |\n\
        |---|---:|---:|---:|\n",
        published / 8.0,
        step.case
    );
    for machine in &MACHINES {
        let card = &CARDS[machine.card];
        for slow in [1.0, 2.0, 3.0] {
            let alone = step.alone(card, 1, slow);
            let rates = machine
                .buses
                .map(|bus| 8.0 * step.case.images as f64 * 1e6 / step.among(&alone, &bus, 8).step);
            let name = match slow as usize {
                1 => "kernels at their bound".to_string(),
                times => format!("kernels at {times} times their bound"),
            };
            let side = step.case.side as f64;
            let _ = writeln!(
                text,
                "| {}, {name} | {} | {} | {} |",
                card.name,
                range(rates, 0),
                range(rates.map(|rate| epochs * IMAGENET / rate / 3600.0), 1),
                // A crop comes from an image of about twice its square, a byte a colour.
                range(rates.map(|rate| rate / 8.0 * 6.0 * side * side / 1e9), 1),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between its marks, docs/scaling.md has what `predict scaling` prints.
    #[test]
    fn scaling_page_has_the_printed_tables() {
        let page = include_str!("../../docs/scaling.md");
        let printed = page.split("<!-- printed -->\n").nth(1).expect("the page marks what was printed");
        let tables = tables().unwrap();
        let differs = printed.lines().zip(tables.lines()).find(|(page, now)| page != now);
        assert_eq!(differs, None, "run: cargo run --example predict -- scaling");
        assert_eq!(printed, tables, "run: cargo run --example predict -- scaling");
    }
}

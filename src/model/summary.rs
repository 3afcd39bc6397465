//! The layer table that `--summary` prints, as text or JSON: each layer's shapes, costs and memory.
//!
//! Parameters come from the parameter table by name, so the sum of the rows shows that rows and table list the same
//! tensors. A multiply-add is one weight applied to one value; batch norms, activations, pooling and the gate's product
//! count none. Activation bytes are what a training step keeps of one image for its backward pass in fp32: raw
//! convolution outputs, the outputs of the blocks, and the short vectors of squeeze-excite and head. Frozen layers keep
//! nothing, but for the output of the last one, which the first trained one reads.

use std::fmt::Write;

use indicatif::HumanCount;
use serde_json::{Value, json};

use super::{Architecture, Block, ParamTable};

/// One layer of the table.
struct Row {
    name: String,
    /// "3x3 / 2": kernel and stride; empty where there is none.
    kernel: String,
    input: String,
    output: String,
    /// Weights and biases, with those of batch norm.
    parameters: usize,
    multiply_adds: usize,
    /// Values kept per image.
    kept: usize,
    frozen: bool,
}

/// The table as text with aligned columns, ending in the totals. `frozen` is the last frozen layer or stage.
pub fn summary(net: &Architecture, params: &ParamTable, frozen: Option<&str>) -> String {
    let rows = rows(net, params, frozen);
    let total = |of: fn(&Row) -> usize| rows.iter().map(of).sum::<usize>();
    let header = ["layer", "kernel", "input", "output", "parameters", "multiply-adds", "activations"];
    let mut lines = vec![header.map(String::from)];
    lines.extend(rows.iter().map(|row| {
        [
            if row.frozen { format!("{} (frozen)", row.name) } else { row.name.clone() },
            row.kernel.clone(),
            row.input.clone(),
            row.output.clone(),
            thousands(row.parameters),
            millions(row.multiply_adds),
            bytes(row.kept * 4),
        ]
    }));
    lines.push([
        "total".into(),
        String::new(),
        map(net.resolution, 3),
        format!("{}", net.classes),
        thousands(total(|row| row.parameters)),
        millions(total(|row| row.multiply_adds)),
        bytes(total(|row| row.kept) * 4),
    ]);
    let running = params.total() - params.trainable();
    let mut text = format!(
        "EfficientNet-{} at {}x{}, {} classes; multiply-adds and activations (fp32, kept for backward) per \
         image\n\n",
        net.variant.name().to_uppercase(),
        net.resolution,
        net.resolution,
        net.classes
    );
    text += &align(&lines);
    // Writing to a string does not fail.
    let _ = writeln!(text, "\nand {} running statistics, which are not trained", thousands(running));
    if frozen.is_some() {
        let still = frozen_parameters(&rows);
        let trained = thousands(params.trainable() - still);
        let _ = writeln!(text, "{} parameters are frozen, {trained} are trained", thousands(still));
    }
    text
}

/// The same as one JSON object: the layers and the totals, with numbers in place of rounded text.
pub fn json(net: &Architecture, params: &ParamTable, frozen: Option<&str>) -> Value {
    let rows = rows(net, params, frozen);
    let total = |of: fn(&Row) -> usize| rows.iter().map(of).sum::<usize>();
    let layers: Vec<Value> = (rows.iter())
        .map(|row| {
            json!({
                "layer": row.name, "kernel": row.kernel, "input": row.input, "output": row.output,
                "parameters": row.parameters, "multiply_adds": row.multiply_adds, "activation_bytes": row.kept * 4,
                "frozen": row.frozen,
            })
        })
        .collect();
    json!({
        "model": net.variant.name(), "resolution": net.resolution, "classes": net.classes, "layers": layers,
        "parameters": total(|row| row.parameters), "multiply_adds": total(|row| row.multiply_adds),
        "activation_bytes": total(|row| row.kept) * 4, "running_statistics": params.total() - params.trainable(),
        "frozen_parameters": frozen_parameters(&rows),
    })
}

fn frozen_parameters(rows: &[Row]) -> usize {
    rows.iter().filter(|row| row.frozen).map(|row| row.parameters).sum()
}

/// All layers, of which those up to `frozen` are.
fn rows(net: &Architecture, params: &ParamTable, frozen: Option<&str>) -> Vec<Row> {
    let mut rows = layers(net, params);
    let of = |frozen: &str, row: &Row| row.name == frozen || row.name.starts_with(&format!("{frozen}."));
    let last = frozen.and_then(|frozen| rows.iter().rposition(|row| of(frozen, row)));
    for (number, row) in rows.iter_mut().enumerate().take(last.map_or(0, |last| last + 1)) {
        row.frozen = true;
        row.kept = match row.name.as_str() {
            "conv_stem" if last == Some(number) => row.kept,
            // The head hands pooled features on, which are the classifier's.
            "conv_head" => 0,
            // Of a projection's two tensors, the block's output.
            _ if last == Some(number) => row.kept / 2,
            _ => 0,
        };
    }
    rows
}

fn layers(net: &Architecture, params: &ParamTable) -> Vec<Row> {
    let stem = Row {
        name: "conv_stem".into(),
        kernel: kernel(net.stem.kernel, net.stem.stride),
        input: map(net.stem.input, 3),
        output: map(net.stem.output, net.stem_channels),
        parameters: parameters(params, &["conv_stem", "bn1"]),
        multiply_adds: net.stem.output_pixels() * net.stem_channels * 27,
        kept: net.stem.output_pixels() * net.stem_channels,
        frozen: false,
    };
    let (side, narrow, wide) = (net.final_side(), net.final_channels(), net.head_channels);
    let head = Row {
        name: "conv_head".into(),
        kernel: kernel(1, 1),
        input: map(side, narrow),
        output: map(side, wide),
        parameters: parameters(params, &["conv_head", "bn2"]),
        multiply_adds: side * side * narrow * wide,
        kept: side * side * wide,
        frozen: false,
    };
    let classifier = Row {
        name: "classifier".into(),
        kernel: String::new(),
        input: wide.to_string(),
        output: net.classes.to_string(),
        parameters: parameters(params, &["classifier"]),
        multiply_adds: wide * net.classes,
        kept: wide + net.classes,
        frozen: false,
    };
    let blocks = net.blocks.iter().flat_map(|block| block_rows(block, params));
    std::iter::once(stem).chain(blocks).chain([head, classifier]).collect()
}

/// The rows of a block, with timm's names for their tensors.
fn block_rows(block: &Block, params: &ParamTable) -> Vec<Row> {
    let wide = block.expanded;
    let pixels = block.window.output_pixels();
    let input = map(block.window.input, wide);
    let side = block.window.output;
    let [first, second, project] = block.late_names();
    let own = |suffixes: &[&str]| {
        let names: Vec<String> = suffixes.iter().map(|suffix| format!("{}.{suffix}", block.name)).collect();
        parameters(params, &names)
    };
    let expand = block.expands.then(|| {
        let values = block.window.input_pixels() * wide;
        Row {
            name: format!("{} expand", block.name),
            kernel: kernel(1, 1),
            input: map(block.window.input, block.input),
            output: input.clone(),
            parameters: own(&["conv_pw", "bn1"]),
            multiply_adds: values * block.input,
            kept: values,
            frozen: false,
        }
    });
    let depthwise = Row {
        name: format!("{} depthwise", block.name),
        kernel: kernel(block.window.kernel, block.window.stride),
        input,
        output: map(side, wide),
        parameters: own(&["conv_dw", first]),
        multiply_adds: pixels * wide * block.window.kernel * block.window.kernel,
        kept: pixels * wide,
        frozen: false,
    };
    let squeeze_excite = Row {
        name: format!("{} squeeze-excite", block.name),
        kernel: String::new(),
        input: map(side, wide),
        output: format!("{} > {wide}", block.squeeze),
        parameters: own(&["se.conv_reduce", "se.conv_expand"]),
        multiply_adds: 2 * wide * block.squeeze,
        kept: 2 * wide + block.squeeze,
        frozen: false,
    };
    let project = Row {
        name: format!("{} project{}", block.name, if block.residual() { " + input" } else { "" }),
        kernel: kernel(1, 1),
        input: map(side, wide),
        output: map(side, block.output),
        parameters: own(&[project, second]),
        multiply_adds: pixels * wide * block.output,
        // The raw output and, normalised, the block's.
        kept: 2 * pixels * block.output,
        frozen: false,
    };
    expand.into_iter().chain([depthwise, squeeze_excite, project]).collect()
}

/// Trainable elements of the weights and biases with these prefixes.
fn parameters(params: &ParamTable, prefixes: &[impl AsRef<str>]) -> usize {
    let elements = |prefix: &str| -> usize {
        let names = ["weight", "bias"].map(|suffix| format!("{prefix}.{suffix}"));
        names.iter().filter_map(|name| params.get(name)).map(|entry| entry.elements()).sum()
    };
    prefixes.iter().map(|prefix| elements(prefix.as_ref())).sum()
}

fn kernel(size: usize, stride: usize) -> String {
    if stride == 1 { format!("{size}x{size}") } else { format!("{size}x{size} / {stride}") }
}

fn map(side: usize, channels: usize) -> String {
    format!("{side}x{side}x{channels}")
}

/// 5288548 → "5,288,548".
fn thousands(number: usize) -> String {
    HumanCount(number as u64).to_string()
}

fn millions(number: usize) -> String {
    if number < 1_000_000 {
        format!("{:.1} K", number as f64 / 1e3)
    } else {
        format!("{:.2} M", number as f64 / 1e6)
    }
}

fn bytes(number: usize) -> String {
    if number < 1 << 20 {
        format!("{:.1} KiB", number as f64 / 1024.0)
    } else {
        format!("{:.2} MiB", number as f64 / (1 << 20) as f64)
    }
}

/// Aligns the columns: names left, figures right, a rule under the header and above the last line.
fn align(lines: &[[String; 7]]) -> String {
    let mut widths = [0; 7];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let rule = "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1));
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        if number == 1 || number + 1 == lines.len() {
            text += &rule;
            text.push('\n');
        }
        let cells: Vec<String> = (line.iter().zip(widths).enumerate())
            .map(
                |(i, (cell, width))| {
                    if i < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BatchNormConfig, Padding, Variant};

    fn model(variant: Variant, classes: usize, resolution: usize) -> (Architecture, ParamTable) {
        let config = BatchNormConfig::default();
        let net = Architecture::new(variant, classes, resolution, Padding::Symmetric, config).unwrap();
        let params = ParamTable::new(&net);
        (net, params)
    }

    #[test]
    fn summary_has_every_parameter_in_one_row() {
        for variant in Variant::ALL {
            let (net, params) = model(variant, 1000, variant.scaling().resolution);
            let sum: usize = rows(&net, &params, None).iter().map(|row| row.parameters).sum();
            assert_eq!(sum, params.trainable(), "{variant}");
            assert_eq!(sum, variant.scaling().parameters, "{variant}");
        }
    }

    /// The paper's figures: 0.39 billion for B0, 4.2 for B4, 37 for B7.
    #[test]
    fn summary_has_the_published_multiply_adds() {
        let published = [(Variant::B0, 385e6, 405e6), (Variant::B4, 4.1e9, 4.5e9), (Variant::B7, 36e9, 39e9)];
        for (variant, low, high) in published {
            let (net, params) = model(variant, 1000, variant.scaling().resolution);
            let sum = rows(&net, &params, None).iter().map(|row| row.multiply_adds).sum::<usize>() as f64;
            assert!((low..=high).contains(&sum), "{variant}: {sum}");
        }
    }

    #[test]
    fn summary_is_aligned_and_ends_with_the_totals() {
        let (net, params) = model(Variant::B0, 1000, 224);
        let text = summary(&net, &params, None);
        let figures = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert_eq!(
            figures(line("blocks.1.0 depthwise")),
            [
                "blocks.1.0",
                "depthwise",
                "3x3",
                "/",
                "2",
                "112x112x96",
                "56x56x96",
                "1,056",
                "2.71",
                "M",
                "1.15",
                "MiB"
            ]
        );
        assert!(line("total").contains("5,288,548"), "{text}");
        // A row for the stem, 15 blocks of four phases, one of three, the head and the classifier.
        let ends: Vec<usize> = text.lines().filter(|line| line.ends_with("iB")).map(str::len).collect();
        assert_eq!(ends.len(), 1 + 15 * 4 + 3 + 2 + 1);
        assert!(ends.iter().all(|&end| end == ends[0]), "{text}");
    }
}

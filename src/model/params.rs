//! The one table of all state: every tensor of the model once, with its name, shape, role and place.
//!
//! The model's numbers lie in one flat fp32 buffer; gradients, mean-square, momentum and EMA lie in buffers
//! of their own *with the same offsets*. Trainable tensors come first, in forward order, so that gradient buckets
//! can be cut from the end while the backward pass runs; running statistics follow. Initialisation, optimiser, EMA,
//! checkpoint, import, export and summary are all loops over this table: nothing else lists tensors.
//!
//! Shapes and element order are PyTorch's (output, input/groups, height, width), so a checkpoint is a copy.

use std::collections::HashMap;

use super::architecture::Architecture;

/// What a tensor is. Its initial value and its treatment by the optimiser follow from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamRole {
    /// Convolution kernel: normal, standard deviation √(2/fan_out), fan_out divided by the groups.
    Convolution,
    /// Batch-norm γ: one.
    Scale,
    /// Batch-norm β: zero.
    Shift,
    /// Every other bias: zero.
    Bias,
    /// Classifier: uniform within ±1/√classes.
    Linear,
    /// Batch-norm running mean: zero; not trainable.
    RunningMean,
    /// Batch-norm running variance: one; not trainable.
    RunningVariance,
}

impl ParamRole {
    pub fn trainable(self) -> bool {
        !matches!(self, ParamRole::RunningMean | ParamRole::RunningVariance)
    }
}

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// timm's name.
    pub name: String,
    pub shape: Vec<usize>,
    pub role: ParamRole,
    /// First element in the flat buffers.
    pub offset: usize,
}

impl Entry {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.elements()
    }
}

/// All tensors of a model, trainable ones first.
#[derive(Clone, Debug)]
pub struct ParamTable {
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    trainable: usize,
    total: usize,
}

impl ParamTable {
    pub fn new(net: &Architecture) -> ParamTable {
        let mut list = Lister::default();
        list.convolution("conv_stem", [net.stem_channels, 3, 3, 3]);
        list.batch_norm("bn1", net.stem_channels);
        for block in &net.blocks {
            let (name, k, wide) = (&block.name, block.window.kernel, block.expanded);
            if block.expands {
                list.convolution(&format!("{name}.conv_pw"), [wide, block.input, 1, 1]);
                list.batch_norm(&format!("{name}.bn1"), wide);
            }
            let [first, second, project] = block.late_names();
            list.convolution(&format!("{name}.conv_dw"), [wide, 1, k, k]);
            list.batch_norm(&format!("{name}.{first}"), wide);
            list.convolution(&format!("{name}.se.conv_reduce"), [block.squeeze, wide, 1, 1]);
            list.bias(&format!("{name}.se.conv_reduce"), block.squeeze);
            list.convolution(&format!("{name}.se.conv_expand"), [wide, block.squeeze, 1, 1]);
            list.bias(&format!("{name}.se.conv_expand"), wide);
            list.convolution(&format!("{name}.{project}"), [block.output, wide, 1, 1]);
            list.batch_norm(&format!("{name}.{second}"), block.output);
        }
        list.convolution("conv_head", [net.head_channels, net.final_channels(), 1, 1]);
        list.batch_norm("bn2", net.head_channels);
        list.trainable("classifier.weight".into(), vec![net.classes, net.head_channels], ParamRole::Linear);
        list.bias("classifier", net.classes);
        list.finish()
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }

    /// Elements of the gradient, mean-square and momentum buffers, which share the first offsets.
    pub fn trainable(&self) -> usize {
        self.trainable
    }

    /// Elements of the parameter and EMA buffers: trainable ones and running statistics.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Prefixes of the batch norms, in the table's order. Each also has timm's `num_batches_tracked`.
    pub fn batch_norms(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(|e| e.name.strip_suffix(".running_mean"))
    }
}

#[derive(Default)]
struct Lister {
    trainable: Vec<Entry>,
    running: Vec<Entry>,
}

impl Lister {
    fn trainable(&mut self, name: String, shape: Vec<usize>, role: ParamRole) {
        self.trainable.push(Entry { name, shape, role, offset: 0 });
    }

    fn convolution(&mut self, name: &str, shape: [usize; 4]) {
        self.trainable(format!("{name}.weight"), shape.to_vec(), ParamRole::Convolution);
    }

    fn bias(&mut self, name: &str, channels: usize) {
        self.trainable(format!("{name}.bias"), vec![channels], ParamRole::Bias);
    }

    fn batch_norm(&mut self, name: &str, channels: usize) {
        self.trainable(format!("{name}.weight"), vec![channels], ParamRole::Scale);
        self.trainable(format!("{name}.bias"), vec![channels], ParamRole::Shift);
        for (suffix, role) in
            [("running_mean", ParamRole::RunningMean), ("running_var", ParamRole::RunningVariance)]
        {
            let name = format!("{name}.{suffix}");
            self.running.push(Entry { name, shape: vec![channels], role, offset: 0 });
        }
    }

    fn finish(self) -> ParamTable {
        let trainable = self.trainable.iter().map(Entry::elements).sum();
        let mut entries = self.trainable;
        entries.extend(self.running);
        let mut total = 0;
        for entry in &mut entries {
            entry.offset = total;
            total += entry.elements();
        }
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        ParamTable { entries, by_name, trainable, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BatchNormConfig, Padding, Variant};

    fn table(variant: Variant) -> ParamTable {
        let size = variant.scaling().resolution;
        let net = Architecture::new(variant, 1000, size, Padding::Symmetric, BatchNormConfig::default());
        ParamTable::new(&net.unwrap())
    }

    #[test]
    fn param_table_has_the_published_counts() {
        for variant in Variant::ALL {
            assert_eq!(table(variant).trainable(), variant.scaling().parameters, "{variant}");
        }
    }

    #[test]
    fn param_table_tiles_the_buffer_with_trainable_tensors_first() {
        let table = table(Variant::B1);
        let mut end = 0;
        for entry in table.entries() {
            assert_eq!(entry.offset, end, "{}", entry.name);
            end += entry.elements();
            assert_eq!(entry.role.trainable(), entry.offset < table.trainable(), "{}", entry.name);
            assert_eq!(table.get(&entry.name), Some(entry));
        }
        assert_eq!(end, table.total());
    }

    #[test]
    fn param_table_has_timm_names_in_the_first_stage() {
        let table = table(Variant::B0);
        assert_eq!(table.get("blocks.0.0.conv_pw.weight").unwrap().shape, [16, 32, 1, 1]);
        assert_eq!(table.get("blocks.1.0.conv_pw.weight").unwrap().shape, [96, 16, 1, 1]);
        assert_eq!(table.get("blocks.1.0.se.conv_reduce.weight").unwrap().shape, [4, 96, 1, 1]);
        assert!(table.get("blocks.0.0.bn3.weight").is_none());
        assert_eq!(table.batch_norms().count(), 49);
    }
}

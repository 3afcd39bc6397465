//! Weights from a file into a model: what fits is taken, what does not is listed.

use std::collections::BTreeSet;
use std::path::Path;

use super::WeightsError;
use super::naming::Naming;
use super::safetensors::{CLASSIFIER, TRACKED};
use super::stored::Tensor;
use super::weights_file::{Average, NamedCopy, WeightsFile};
use crate::model::architecture::Architecture;
use crate::model::family::Variant;
use crate::model::params::{Entry, ParamRole, ParamTable};

/// What an import has taken and left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Whose names the file has, and under which prefix.
    pub names: String,
    /// Tensors taken.
    pub matched: usize,
    /// The file's class count and the model's, if they differ: then the classifier keeps its initial values.
    pub classes: Option<(usize, usize)>,
    /// Tensors of this model that the file lacks, but for the classifier's; they keep their initial values.
    pub missing: Vec<String>,
    /// The classifier's tensors, if the file lacks them.
    pub missing_classifier: Vec<String>,
    /// Tensors of the file that this model lacks.
    pub unexpected: Vec<String>,
    /// "name: [file's shape], here [shape]"; they keep their initial values.
    pub reshaped: Vec<String>,
    /// The member that the file is of, if it has all tensors of one.
    pub member: Option<Variant>,
}

/// Takes the tensors that fit from a file into `values`, a flat buffer of the table's total length that holds initial
/// values.
///
/// # Errors
/// A file of which no name is known, a stem that does not take three channels, and tensors that hold another type or a
/// value that is not finite.
pub fn import(
    file: &WeightsFile,
    average: Average,
    net: &Architecture,
    values: &mut [f32],
) -> Result<Import, WeightsError> {
    let copy = file.copy(average)?;
    let table = ParamTable::new(net);
    let names = copy.naming.translation(net);
    let mut import = Import { names: copy.description(), member: file.member(copy), ..Import::default() };
    let mut left: BTreeSet<&str> = file.names(copy).collect();
    for entry in table.entries() {
        // Every entry has a name in every naming.
        let name = names.get(&entry.name).map_or("", String::as_str);
        let Some(tensor) = file.tensor(copy, name) else {
            let of_classifier = CLASSIFIER.contains(&entry.name.as_str());
            let list = if of_classifier { &mut import.missing_classifier } else { &mut import.missing };
            list.push(name.to_string());
            continue;
        };
        left.remove(name);
        if let Some(found) = taken(file, copy, name, entry, tensor)? {
            values[entry.range()].copy_from_slice(&found);
            import.matched += 1;
        } else {
            note_shape(&mut import, copy.naming, name, entry, &tensor.shape);
        }
    }
    import.unexpected = left.into_iter().filter(|name| !expected(name)).map(str::to_string).collect();
    Ok(import)
}

/// A tensor's values in the table's order of axes; none if its shape is another.
fn taken(
    file: &WeightsFile,
    copy: &NamedCopy,
    name: &str,
    entry: &Entry,
    tensor: &Tensor,
) -> Result<Option<Vec<f32>>, WeightsError> {
    let full = || format!("{}{name}", copy.prefix);
    let path = || file.path.clone();
    let values = tensor.values().map_err(|dtype| WeightsError::Type {
        path: path(),
        tensor: full(),
        dtype: dtype.into(),
    })?;
    let axes = copy.naming.axes(entry);
    let shape: Vec<usize> = axes.iter().map(|&axis| entry.shape[axis]).collect();
    if entry.name == "conv_stem.weight" && tensor.shape.len() == 4 && tensor.shape != shape {
        let channels = axes.iter().position(|&axis| axis == 1).map_or(0, |place| tensor.shape[place]);
        if channels != entry.shape[1] {
            return Err(WeightsError::Channels { path: path(), tensor: full(), channels });
        }
    }
    if tensor.shape != shape {
        return Ok(None);
    }
    if !values.iter().all(|value| value.is_finite()) {
        return Err(WeightsError::NotFinite { path: path(), tensor: full() });
    }
    if entry.role == ParamRole::RunningVariance && values.iter().any(|value| *value < 0.0) {
        return Err(WeightsError::Variance { path: path(), tensor: full() });
    }
    Ok(Some(in_order(&values, &entry.shape, &axes)))
}

/// Numbers in the order of `shape`, from an order in which its axis `axes[0]` is outermost, then `axes[1]`, and so on.
fn in_order(values: &[f32], shape: &[usize], axes: &[usize]) -> Vec<f32> {
    if axes.is_sorted() {
        return values.to_vec();
    }
    // How far apart two neighbours along each axis are in the file.
    let mut strides = vec![0; shape.len()];
    let mut stride = 1;
    for &axis in axes.iter().rev() {
        strides[axis] = stride;
        stride *= shape[axis];
    }
    let mut ordered = Vec::with_capacity(values.len());
    let mut place = vec![0; shape.len()];
    for _ in values {
        let from: usize = place.iter().zip(&strides).map(|(place, stride)| place * stride).sum();
        ordered.push(values[from]);
        for axis in (0..shape.len()).rev() {
            place[axis] += 1;
            if place[axis] < shape[axis] {
                break;
            }
            place[axis] = 0;
        }
    }
    ordered
}

/// Tensors of a file that no model here has, and that are no surprise: counters, and Keras's normalisation of the input.
fn expected(name: &str) -> bool {
    name.ends_with(TRACKED) || name == "n_averaged" || name.starts_with("normalization.")
}

/// A classifier for other classes is expected; any other shape is worth a line.
fn note_shape(import: &mut Import, naming: Naming, name: &str, entry: &Entry, theirs: &[usize]) {
    let axes = naming.axes(entry);
    let at_output = axes.iter().position(|&axis| axis == 0).unwrap_or(0);
    let others_same = theirs.len() == entry.shape.len()
        && axes.iter().enumerate().all(|(place, &axis)| axis == 0 || theirs[place] == entry.shape[axis]);
    if CLASSIFIER.contains(&entry.name.as_str()) && others_same {
        import.classes = Some((theirs[at_output], entry.shape[0]));
    } else {
        let ours: Vec<usize> = axes.iter().map(|&axis| entry.shape[axis]).collect();
        import.reshaped.push(format!("{name}: {theirs:?}, here {ours:?}"));
    }
}

/// Names in a line; more are counted.
const NAMED: usize = 3;

/// The first names, and how many others there are.
fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl Import {
    /// Checks that the file has this model, apart from a classifier, and is not of another member: the tensors of b0 are
    /// also in b1. With half of a model, a run would start, and learn worse than from none.
    ///
    /// # Errors
    /// [`WeightsError::Partial`].
    pub fn require_whole(&self, path: &Path, net: &Architecture) -> Result<(), WeightsError> {
        let lists = [&self.missing, &self.missing_classifier, &self.reshaped, &self.unexpected];
        let alike = lists.iter().all(|list| list.is_empty());
        let other = if alike { None } else { self.member.filter(|member| *member != net.variant) };
        let unexpected = if other.is_some() { Vec::from_iter(&self.unexpected) } else { Vec::new() };
        let kinds = [
            ("missing", Vec::from_iter(&self.missing)),
            ("of another shape", Vec::from_iter(&self.reshaped)),
            ("not this model's", unexpected),
        ];
        let what: Vec<String> = (kinds.iter())
            .filter_map(|(kind, names)| Some((kind, names.first()?, names.len())))
            .map(|(kind, first, count)| format!("{count} {kind}, such as {first}"))
            .collect();
        if what.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Partial {
            path: path.to_owned(),
            taken: self.matched,
            tensors: ParamTable::new(net).entries().len(),
            what: what.join("; "),
            member: other,
        })
    }

    /// One line that counts, and one for each kind of mismatch.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("weights: {} tensors taken ({})", self.matched, self.names)];
        if let Some((theirs, ours)) = self.classes {
            lines.push(format!("weights: a new classifier for {ours} classes (the file's has {theirs})"));
        }
        let missing = [&self.missing[..], &self.missing_classifier].concat();
        let lists = [
            ("missing in the file, kept at their initial values", &missing),
            ("not part of this model, left out", &self.unexpected),
            ("of another shape, kept at their initial values", &self.reshaped),
        ];
        for (what, names) in lists {
            if !names.is_empty() {
                lines.push(format!("weights: {} {what}: {}", names.len(), shortened(names)));
            }
        }
        lines
    }
}

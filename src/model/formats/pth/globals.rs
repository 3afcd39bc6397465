//! The names that a pickle may use, and what each stands for. Every other name is refused.
//!
//! Nothing here is ever looked up in a Python: a name is compared as text and stands for one of a few meanings of this
//! reader. Most of them are "harmless": what such a class or function makes is not looked at.

use crate::model::formats::stored::Stored;

/// A type of elements that PyTorch knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Element {
    /// The name of its storages' class without `Storage`, if it has one.
    class: &'static str,
    /// The names of the type.
    types: &'static [&'static str],
    /// Its name in messages.
    pub name: &'static str,
    pub bytes: u64,
}

impl Element {
    /// The type of a tensor of these elements. Only floating-point numbers of common types are read.
    pub fn stored(&self) -> Stored {
        match self.name {
            "Float64" => Stored::F64,
            "Float32" => Stored::F32,
            "Float16" => Stored::F16,
            "BFloat16" => Stored::BF16,
            other => Stored::Other(other.to_string()),
        }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// A dictionary: `OrderedDict`, `defaultdict`.
    Dictionary,
    /// `torch.Size`, which is its argument.
    Size,
    Rebuild(Rebuild),
    /// `torch.Tensor` or `Parameter`, as an argument of [`Rebuild::FromType`].
    TensorClass,
    StorageClass(&'static Element),
    Type(&'static Element),
    /// A class or function whose results are opaque.
    Harmless,
}

/// The functions that make a tensor of a storage or of another tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuild {
    /// `(storage, offset, size, stride)`
    Tensor,
    /// `(storage, offset, size, stride, requires_grad, hooks[, metadata])`
    TensorV2,
    /// `(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])`
    TensorV3,
    /// `(storage, offset, size, stride, quantiser, requires_grad, hooks)`
    Quantised,
    /// `(layout, (…, size[, coalesced]))`
    Sparse,
    /// `(tensor, requires_grad, hooks)`
    Parameter,
    /// `(tensor, requires_grad, hooks, state)`
    ParameterWithState,
    /// `(function, class, arguments, state)`
    FromType,
}

static ELEMENTS: [Element; 26] = [
    element("Double", &["float64", "double"], "Float64", 8),
    element("Float", &["float32", "float"], "Float32", 4),
    element("Half", &["float16", "half"], "Float16", 2),
    element("BFloat16", &["bfloat16"], "BFloat16", 2),
    element("Long", &["int64", "long"], "Int64", 8),
    element("Int", &["int32", "int"], "Int32", 4),
    element("Short", &["int16", "short"], "Int16", 2),
    element("Char", &["int8"], "Int8", 1),
    element("Byte", &["uint8"], "UInt8", 1),
    element("Bool", &["bool"], "Bool", 1),
    element("ComplexFloat", &["complex64", "cfloat"], "Complex64", 8),
    element("ComplexDouble", &["complex128", "cdouble"], "Complex128", 16),
    element("QInt8", &["qint8"], "QInt8", 1),
    element("QUInt8", &["quint8"], "QUInt8", 1),
    element("QInt32", &["qint32"], "QInt32", 4),
    element("QUInt4x2", &["quint4x2"], "QUInt4x2", 1),
    element("QUInt2x4", &["quint2x4"], "QUInt2x4", 1),
    element("", &["uint16"], "UInt16", 2),
    element("", &["uint32"], "UInt32", 4),
    element("", &["uint64"], "UInt64", 8),
    element("", &["complex32", "chalf"], "Complex32", 4),
    element("", &["float8_e4m3fn"], "Float8_e4m3fn", 1),
    element("", &["float8_e4m3fnuz"], "Float8_e4m3fnuz", 1),
    element("", &["float8_e5m2"], "Float8_e5m2", 1),
    element("", &["float8_e5m2fnuz"], "Float8_e5m2fnuz", 1),
    element("", &["float8_e8m0fnu"], "Float8_e8m0fnu", 1),
];

const fn element(
    class: &'static str,
    types: &'static [&'static str],
    name: &'static str,
    bytes: u64,
) -> Element {
    Element { class, types, name, bytes }
}

/// Names by module whose results are opaque. Python writes the names of version 2 for protocol 2: `__builtin__`.
const HARMLESS: &[(&str, &[&str])] = &[
    ("argparse", &["Namespace"]),
    ("types", &["SimpleNamespace"]),
    ("builtins", BUILTINS),
    ("__builtin__", BUILTINS),
    ("_codecs", &["encode"]),
    ("collections", &["Counter", "deque"]),
    ("pathlib", PATHS),
    ("pathlib._local", PATHS),
    ("datetime", &["datetime", "date", "time", "timedelta", "timezone"]),
    ("numpy", &["dtype", "ndarray"]),
    ("numpy.core.multiarray", &["scalar", "_reconstruct"]),
    ("numpy._core.multiarray", &["scalar", "_reconstruct"]),
    ("numpy.core.numeric", &["_frombuffer"]),
    ("numpy._core.numeric", &["_frombuffer"]),
    ("torch", TORCH),
    ("torch.serialization", &["_get_layout"]),
    ("torch.torch_version", &["TorchVersion"]),
];
const BUILTINS: &[&str] = &[
    "set",
    "frozenset",
    "complex",
    "bytearray",
    "bytes",
    "slice",
    "range",
    "xrange",
    "list",
    "dict",
    "tuple",
    "int",
    "long",
    "float",
    "bool",
    "str",
    "unicode",
    "object",
];
const PATHS: &[&str] = &["Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"];
const TORCH: &[&str] = &[
    "device",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
    "contiguous_format",
    "channels_last",
    "channels_last_3d",
    "preserve_format",
];

/// What a name stands for, or nothing if it is not allowed.
pub fn lookup(module: &str, name: &str) -> Option<Global> {
    let global = match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => Global::Dictionary,
        ("torch", "Size") => Global::Size,
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Global::TensorClass,
        ("torch._utils", _) => Global::Rebuild(rebuild(name)?),
        ("torch._tensor", "_rebuild_from_type_v2") => Global::Rebuild(Rebuild::FromType),
        ("torch" | "torch.storage", "UntypedStorage") => {
            Global::StorageClass(find(|element| element.class == "Byte")?)
        }
        ("torch" | "torch.cuda", _) if name.ends_with("Storage") => {
            let class = name.strip_suffix("Storage").filter(|class| !class.is_empty())?;
            Global::StorageClass(find(|element| element.class == class)?)
        }
        _ if HARMLESS.iter().any(|(of, names)| *of == module && names.contains(&name)) => Global::Harmless,
        ("torch", _) => Global::Type(find(|element| element.types.contains(&name))?),
        _ => return None,
    };
    Some(global)
}

fn find(is_it: impl Fn(&&Element) -> bool) -> Option<&'static Element> {
    ELEMENTS.iter().find(is_it)
}

fn rebuild(name: &str) -> Option<Rebuild> {
    Some(match name {
        "_rebuild_tensor" => Rebuild::Tensor,
        "_rebuild_tensor_v2" => Rebuild::TensorV2,
        "_rebuild_tensor_v3" => Rebuild::TensorV3,
        "_rebuild_qtensor" => Rebuild::Quantised,
        "_rebuild_sparse_tensor" => Rebuild::Sparse,
        "_rebuild_parameter" => Rebuild::Parameter,
        "_rebuild_parameter_with_state" => Rebuild::ParameterWithState,
        _ => return None,
    })
}

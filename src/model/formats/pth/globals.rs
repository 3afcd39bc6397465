//! The names that a pickle may use, and what each stands for. Every other name is refused.
//!
//! Nothing here is ever looked up in a Python: a name is compared as text and stands for one of a few meanings of this
//! reader. Most of them are "harmless": what such a class or function makes is not looked at.

use crate::model::formats::stored::Stored;

/// A type of elements that PyTorch knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// The name that the file gives it, without `Storage`.
    pub name: &'static str,
    pub bytes: u64,
}

impl Element {
    /// The type of a tensor of these elements. Only floating-point numbers of common types are read.
    pub fn stored(self) -> Stored {
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
    StorageClass(Element),
    Type(Element),
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

/// Names of types: the storage's class without `Storage`, the dtype's names, the name here, bytes of an element.
const ELEMENTS: &[(&str, &[&str], &str, u64)] = &[
    ("Double", &["float64", "double"], "Float64", 8),
    ("Float", &["float32", "float"], "Float32", 4),
    ("Half", &["float16", "half"], "Float16", 2),
    ("BFloat16", &["bfloat16"], "BFloat16", 2),
    ("Long", &["int64", "long"], "Int64", 8),
    ("Int", &["int32", "int"], "Int32", 4),
    ("Short", &["int16", "short"], "Int16", 2),
    ("Char", &["int8"], "Int8", 1),
    ("Byte", &["uint8"], "UInt8", 1),
    ("Bool", &["bool"], "Bool", 1),
    ("ComplexFloat", &["complex64", "cfloat"], "Complex64", 8),
    ("ComplexDouble", &["complex128", "cdouble"], "Complex128", 16),
    ("QInt8", &["qint8"], "QInt8", 1),
    ("QUInt8", &["quint8"], "QUInt8", 1),
    ("QInt32", &["qint32"], "QInt32", 4),
    ("QUInt4x2", &["quint4x2"], "QUInt4x2", 1),
    ("QUInt2x4", &["quint2x4"], "QUInt2x4", 1),
    ("", &["uint16"], "UInt16", 2),
    ("", &["uint32"], "UInt32", 4),
    ("", &["uint64"], "UInt64", 8),
    ("", &["complex32", "chalf"], "Complex32", 4),
    ("", &["float8_e4m3fn"], "Float8_e4m3fn", 1),
    ("", &["float8_e4m3fnuz"], "Float8_e4m3fnuz", 1),
    ("", &["float8_e5m2"], "Float8_e5m2", 1),
    ("", &["float8_e5m2fnuz"], "Float8_e5m2fnuz", 1),
    ("", &["float8_e8m0fnu"], "Float8_e8m0fnu", 1),
];

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
            Global::StorageClass(element(|row| row.0 == "Byte")?)
        }
        ("torch" | "torch.cuda", _) if name.ends_with("Storage") => {
            let class = name.strip_suffix("Storage").filter(|class| !class.is_empty())?;
            Global::StorageClass(element(|row| row.0 == class)?)
        }
        _ if HARMLESS.iter().any(|(of, names)| *of == module && names.contains(&name)) => Global::Harmless,
        ("torch", _) => Global::Type(element(|row| row.1.contains(&name))?),
        _ => return None,
    };
    Some(global)
}

fn element(is_it: impl Fn(&(&str, &[&str], &str, u64)) -> bool) -> Option<Element> {
    let &(_, _, name, bytes) = ELEMENTS.iter().find(|row| is_it(row))?;
    Some(Element { name, bytes })
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

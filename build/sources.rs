//! Reads what launchers must know from the kernels' sources, and writes it as Rust.
//!
//! The sources are `kernels/*.cu` and `kernels/*.cuh`. A source and its header of the same name become one module, and
//! `#include "x.cuh"` becomes `pub use super::x::*`. Apart from that only these lines are read. Each begins in the first
//! column:
//!
//! | in C++ | in Rust |
//! |---|---|
//! | `#define X_FIELDS(F) F(const float*, y) F(int, rows)` | the fields of a struct; `OTHER_FIELDS(F)` among them inserts those |
//! | `ARGUMENTS(Name, X_FIELDS)` | `arguments! { pub struct Name { y: Address, rows: i32 } }` |
//! | `LAYOUT(Name, X_FIELDS)` | `layout! { pub struct Name { … } }` |
//! | `constexpr int TILE = 2 * WARP;` | `pub const TILE: usize = 2 * WARP;` |
//! | `INSTANCE_HALF(X, 64x80, rows = 64, blocks = 4)` | in `instances!(X_HALF as Shape)`: `Shape { name: "64x80", rows: 64 }` |
//!
//! A line that looks like one of these but cannot be read is an error, which names the file and the line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A line of a source without comments, joined with the next lines while it ends with `\`.
struct Line {
    place: String,
    text: String,
}

impl Line {
    fn error(&self, what: &str) -> Error {
        format!("{}: {what}", self.place).into()
    }
}

/// The lists of fields by name: where each is defined, and its text.
type Lists<'a> = BTreeMap<&'a str, (&'a Line, &'a str)>;

/// The Rust modules of all sources in `folder`.
pub fn generate(folder: &Path) -> Result<String, Error> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"));
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        sources.push((path, text));
    }
    translate(&sources)
}

/// The Rust modules of these sources.
fn translate(sources: &[(PathBuf, String)]) -> Result<String, Error> {
    let mut modules: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for (path, text) in sources {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        modules.entry(stem).or_default().extend(lines(&path.display().to_string(), text));
    }
    let mut lists = Lists::new();
    for line in modules.values().flatten() {
        let definition = line.text.strip_prefix("#define ");
        if let Some((name, items)) = definition.and_then(|rest| rest.split_once("(F)")) {
            lists.insert(name, (line, items));
        }
    }
    let mut text = String::new();
    for (stem, lines) in &modules {
        let _ = writeln!(text, "pub mod {stem} {{\n    use super::*;");
        let included: BTreeSet<&str> = lines.iter().filter_map(include).filter(|name| name != stem).collect();
        included.iter().for_each(|name| text += &format!("    pub use super::{name}::*;\n"));
        let mut before = "";
        for line in lines {
            text += &declaration(line, before, &lists)?;
            before = &line.text;
        }
        text += "}\n";
    }
    Ok(text + &instances(&modules)?)
}

/// The macro that lists the instances of a kernel as values of the caller's type.
fn instances(modules: &BTreeMap<String, Vec<Line>>) -> Result<String, Error> {
    let mut tables: BTreeMap<String, String> = BTreeMap::new();
    for line in modules.values().flatten() {
        let Some((kind, inside)) = line.text.strip_prefix("INSTANCE_").and_then(|rest| rest.split_once('('))
        else {
            continue;
        };
        let inside = inside.strip_suffix(')').ok_or_else(|| line.error("an instance stands on one line"))?;
        let mut parts = inside.split(", ");
        let (Some(table), Some(name)) = (parts.next(), parts.next()) else {
            return Err(line.error("an instance has a table and a name"));
        };
        let row = tables.entry(format!("{table}_{kind}")).or_default();
        let _ = write!(row, "        $Shape {{ name: {name:?}");
        for part in parts {
            let (field, value) = part
                .split_once(" = ")
                .ok_or_else(|| line.error(&format!("`{part}` is not `name = value`")))?;
            if field != "blocks" {
                let _ = write!(row, ", {field}: {value}");
            }
        }
        *row += " },\n";
    }
    let arm = |(table, rows): (&String, &String)| {
        format!("    ({table} as $Shape:ident) => {{ [\n{rows}    ] }};\n")
    };
    let arms: String = tables.iter().map(arm).collect();
    Ok(format!("macro_rules! instances {{\n{arms}}}\npub(crate) use instances;\n"))
}

/// Divides a source into lines.
fn lines(path: &str, text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut joined: Option<Line> = None;
    for (number, text) in text.lines().enumerate() {
        let text = without_comments(text);
        let (text, goes_on) = match text.trim_end().strip_suffix('\\') {
            Some(text) => (text, true),
            None => (text.trim_end(), false),
        };
        let line = joined
            .get_or_insert_with(|| Line { place: format!("{path}:{}", number + 1), text: String::new() });
        line.text += text;
        if !goes_on {
            lines.extend(joined.take().filter(|line| !line.text.is_empty()));
        }
    }
    lines
}

fn without_comments(line: &str) -> String {
    let mut text = line.split("//").next().unwrap_or_default().to_string();
    while let Some(start) = text.find("/*") {
        let end = text[start..].find("*/").map_or(text.len(), |end| start + end + 2);
        text.replace_range(start..end, "");
    }
    text
}

/// The stem of the kernels' header that a line includes.
fn include(line: &Line) -> Option<&str> {
    line.text.strip_prefix("#include \"")?.strip_suffix(".cuh\"")
}

/// What a line declares, in Rust; nothing for most lines.
fn declaration(line: &Line, before: &str, lists: &Lists) -> Result<String, Error> {
    for (opening, in_rust) in [("ARGUMENTS(", "arguments"), ("LAYOUT(", "layout")] {
        if let Some(inside) = line.text.strip_prefix(opening) {
            return structure(line, in_rust, inside, lists);
        }
    }
    match line.text.strip_prefix("constexpr int ").and_then(|rest| rest.split_once(" = ")) {
        Some((name, value)) if !before.starts_with("template") => constant(line, name, value),
        _ => Ok(String::new()),
    }
}

fn structure(line: &Line, in_rust: &str, inside: &str, lists: &Lists) -> Result<String, Error> {
    let names = inside.strip_suffix(')').and_then(|inside| inside.split_once(", "));
    let (name, list) = names.ok_or_else(|| line.error("write (Name, X_FIELDS), on one line"))?;
    let file = line.place.split(':').next().unwrap_or_default();
    let fields = fields(line, list, lists)?;
    Ok(format!(
        "    {in_rust}! {{\n        /// `{file}`\n        pub struct {name} {{\n{fields}        }}\n    }}\n"
    ))
}

fn constant(line: &Line, name: &str, value: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || " _+-*/<()".contains(c);
    match value.strip_suffix(';') {
        Some(value) if value.chars().all(plain) => Ok(format!("    pub const {name}: usize = {value};\n")),
        _ => Err(line.error(&format!("the value of {name} is not plain arithmetic on one line"))),
    }
}

/// The fields `F(type, name) …` of the list that a line names, and those of a list `OTHER(F)` in it.
fn fields(line: &Line, list: &str, lists: &Lists) -> Result<String, Error> {
    let found = lists.get(list).ok_or_else(|| line.error(&format!("no `#define {list}(F)` was found")));
    let (line, mut rest) = *found?;
    let mut text = String::new();
    while !rest.trim().is_empty() {
        let call =
            rest.split_once('(').and_then(|(called, rest)| Some((called.trim(), rest.split_once(')')?)));
        let Some((called, (inside, after))) = call else {
            return Err(line.error(&format!("`{}` is no field: write F(type, name)", rest.trim())));
        };
        text += &match (called, inside.rsplit_once(", ")) {
            ("F", Some((of, name))) => format!("            {name}: {},\n", rust_type(line, of)?),
            ("F", None) => return Err(line.error(&format!("F({inside}) lacks a type or a name"))),
            _ => fields(line, called, lists)?,
        };
        rest = after;
    }
    Ok(text)
}

fn rust_type(line: &Line, of: &str) -> Result<&'static str, Error> {
    Ok(match of {
        pointer if pointer.ends_with('*') => "Address",
        "int" => "i32",
        "uint32_t" => "u32",
        "uint64_t" => "u64",
        "float" => "f32",
        "double" => "f64",
        "ImageTable" => "ImageTable",
        "MaskPointers" => "MaskPointers",
        "MaskLayers" => "MaskLayers",
        "MaskRates" => "MaskRates",
        _ => return Err(line.error(&format!("no Rust type for `{of}`: add it in build/sources.rs"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(text: &str) -> Result<String, String> {
        translate(&[("kernels/some.cu".into(), text.into())]).map_err(|error| error.to_string())
    }

    #[test]
    fn declarations_become_rust() {
        let text = "#include \"other.cuh\"
#define ENDS_FIELDS(F) F(int, last)
#define SOME_FIELDS(F)               \\
    F(const float*, x) /* [rows] */  \\
    F(uint64_t, seed)                \\
    ENDS_FIELDS(F)
ARGUMENTS(SomeArguments, SOME_FIELDS)
constexpr int TILE = 2 * WARP;  // of a block
template <int N>
constexpr int TWICE = 2 * N;
INSTANCE_HALF(SOME, 4x8, rows = 4, wide = true, blocks = 3)
";
        let rust = translated(text).unwrap().replace('\n', " ");
        let rust = rust.split_whitespace().collect::<Vec<_>>().join(" ");
        let module = "pub mod some { use super::*; pub use super::other::*; \
            arguments! { /// `kernels/some.cu` pub struct SomeArguments { x: Address, seed: u64, last: i32, } } \
            pub const TILE: usize = 2 * WARP; } \
            macro_rules! instances { \
            (SOME_HALF as $Shape:ident) => { [ $Shape { name: \"4x8\", rows: 4, wide: true }, ] }; } \
            pub(crate) use instances;";
        assert_eq!(rust, module);
    }

    #[test]
    fn errors_name_the_line_and_what_is_wrong() {
        for (text, error) in [
            ("\n#define A_FIELDS(F) F(short, x)\nARGUMENTS(A, A_FIELDS)", "2: no Rust type for `short`"),
            ("#define A_FIELDS(F) \\\n  F(int)\nARGUMENTS(A, A_FIELDS)", "1: F(int) lacks a type or a name"),
            ("#define A_FIELDS(F) x\nARGUMENTS(A, A_FIELDS)", "1: `x` is no field"),
            ("ARGUMENTS(A, A_FIELDS)", "1: no `#define A_FIELDS(F)` was found"),
            ("ARGUMENTS(A,", "1: write (Name, X_FIELDS), on one line"),
            ("constexpr int A = sizeof(B) + x[1];", "1: the value of A is not plain arithmetic"),
            ("constexpr int A = 1 +\n    2;", "1: the value of A is not plain arithmetic"),
            ("INSTANCE_HALF(A, 1x2, rows 4)", "1: `rows 4` is not `name = value`"),
            ("INSTANCE_HALF(A, 1x2,\n  rows = 4)", "1: an instance stands on one line"),
        ] {
            let found = translated(text).unwrap_err();
            assert!(found.starts_with(&format!("kernels/some.cu:{error}")), "{text}: {found}");
        }
    }
}

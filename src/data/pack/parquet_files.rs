//! Lists Parquet files as Hugging Face has them: a column `image` of `{bytes, path}`, and a column of labels. Class
//! names are in the file's metadata.
//!
//! Labels are read while listing. Images are read row by row from one page at a time, so memory holds a page, not a
//! file.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use super::PackOptions;
use super::listing::{Content, Items, Listed, Listing, Part, Stamp, classes_of, identify_by_place};
use super::skipped::{Skipped, SkippedKind};
use crate::data::DataError;
use crate::data::fingerprint::Fnv;

/// Columns with images, in order of preference; `bytes` is in a struct beside `path`.
const IMAGES: [&str; 9] =
    ["image.bytes", "img.bytes", "image", "img", "image_bytes", "bytes", "jpg", "png", "image_data"];
const LABELS: [&str; 8] =
    ["label", "labels", "fine_label", "class", "cls", "target", "category", "class_label"];
/// A place is the number of a file and of a row in it.
const ROW_BITS: u32 = 40;
const ROWS: u64 = (1 << ROW_BITS) - 1;

/// An open file, and its columns of images and labels.
struct Table {
    reader: SerializedFileReader<File>,
    image: usize,
    label: usize,
    label_name: String,
}

/// Runs what reads a file that may be damaged.
fn guarded<T>(path: &Path, action: impl FnOnce() -> Result<T, String>) -> Result<T, DataError> {
    let done =
        catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|_| Err("the reader failed on it".into()));
    done.map_err(|problem| DataError::Source { path: path.to_owned(), problem })
}

fn damaged(error: ParquetError) -> String {
    format!("damaged or cut short: {error}")
}

impl Table {
    fn open(path: &Path) -> Result<Table, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let reader = SerializedFileReader::new(file).map_err(damaged)?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let columns: Vec<(String, Type)> =
            schema.columns().iter().map(|column| (column.path().string(), column.physical_type())).collect();
        let flat = |at: usize| schema.column(at).max_rep_level() == 0;
        let find = |names: &[&str], kinds: &[Type]| {
            names.iter().find_map(|name| {
                columns.iter().enumerate().position(|(at, (column, kind))| {
                    column.eq_ignore_ascii_case(name) && kinds.contains(kind) && flat(at)
                })
            })
        };
        let all = || columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let image = find(&IMAGES, &[Type::BYTE_ARRAY]).ok_or_else(|| {
            format!("no column of images (`image` with `bytes`); its columns are {}", all())
        })?;
        let label = find(&LABELS, &[Type::INT64, Type::INT32, Type::BYTE_ARRAY]).ok_or_else(|| {
            format!("no column of labels (`label` of integers or names); its columns are {}", all())
        })?;
        let label_name = columns[label].0.clone();
        Ok(Table { reader, image, label, label_name })
    }

    /// The class names that the metadata gives for the labels.
    fn class_names(&self) -> Option<Vec<String>> {
        let metadata = self.reader.metadata().file_metadata().key_value_metadata()?;
        let text = metadata.iter().find(|pair| pair.key == "huggingface")?.value.as_ref()?;
        let value: Value = serde_json::from_str(text).ok()?;
        let names = &value["info"]["features"][&self.label_name]["names"];
        let names = names.as_array()?.iter().map(|name| name.as_str().map(String::from));
        names.collect::<Option<Vec<_>>>().filter(|names| !names.is_empty())
    }

    /// Rows in each row group.
    fn groups(&self) -> Vec<u64> {
        self.reader.metadata().row_groups().iter().map(|group| group.num_rows().max(0) as u64).collect()
    }

    fn column(&self, group: usize, column: usize) -> Result<ColumnReader, String> {
        self.reader.get_row_group(group).and_then(|group| group.get_column_reader(column)).map_err(damaged)
    }

    /// All labels as text; none where a row has none.
    fn labels(&self) -> Result<Vec<Option<String>>, String> {
        let mut labels = Vec::new();
        for (group, rows) in self.groups().into_iter().enumerate() {
            let before = labels.len() as u64;
            match self.column(group, self.label)? {
                ColumnReader::Int64ColumnReader(reader) => numbers(reader, rows, &mut labels)?,
                ColumnReader::Int32ColumnReader(reader) => numbers(reader, rows, &mut labels)?,
                ColumnReader::ByteArrayColumnReader(mut reader) => {
                    for _ in 0..rows {
                        let name =
                            next(&mut reader)?.map(|name| String::from_utf8_lossy(name.data()).into_owned());
                        labels.push(name.filter(|name| !name.is_empty()));
                    }
                }
                _ => return Err(format!("column `{}` holds no labels", self.label_name)),
            }
            if labels.len() as u64 - before != rows {
                return Err(format!(
                    "row group {group} has fewer labels than the {rows} rows that it should have"
                ));
            }
        }
        Ok(labels)
    }
}

/// Reads integer labels. A negative one says that there is none.
fn numbers<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: u64,
    labels: &mut Vec<Option<String>>,
) -> Result<(), String>
where
    T::T: ToString,
{
    for _ in 0..rows {
        let number = next(&mut reader)?.map(|number| number.to_string());
        labels.push(number.filter(|number| !number.starts_with('-')));
    }
    Ok(())
}

/// The next value of a column; none for a null.
fn next<T: DataType>(reader: &mut ColumnReaderImpl<T>) -> Result<Option<T::T>, String> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    match reader.read_records(1, Some(&mut levels), None, &mut values).map_err(damaged)? {
        (0, ..) => Err("damaged or cut short: a column ends before the last row".into()),
        _ => Ok(values.pop()),
    }
}

/// Lists files; their names are relative to `root`.
pub fn list<'a>(root: &Path, names: &[PathBuf], options: &PackOptions) -> Result<Listing<'a>, DataError> {
    let mut class_names: Option<Vec<String>> = None;
    let mut rows = Vec::new();
    let mut skipped = Vec::new();
    for (file, name) in (0_u64..).zip(names) {
        let path = root.join(name);
        let part = Part::of_file(name);
        guarded(&path, || {
            let table = Table::open(&path)?;
            let here = table.class_names();
            if class_names.is_some() && here.is_some() && class_names != here {
                return Err("its class names differ from those of the files before it".into());
            }
            class_names = class_names.take().or(here);
            let mut lengths = table.lengths(options)?;
            for (row, label) in (0_u64..).zip(table.labels()?) {
                let length = lengths.next().unwrap_or(0);
                match label {
                    Some(label) => rows.push((part, label, file << ROW_BITS | row, length)),
                    None => {
                        let name = row_name(name, row);
                        skipped.push(Skipped::new(name, SkippedKind::Label, "a row without a label"));
                    }
                }
            }
            Ok(())
        })?;
    }
    let (classes, declared) = match class_names {
        Some(names) => (names, true),
        None => (classes_of(rows.iter().map(|(_, label, ..)| label.as_str())), false),
    };
    let index: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let mut images = Vec::new();
    for (part, label, place, length) in &rows {
        let number = label.parse::<usize>().ok().filter(|&number| declared && number < classes.len());
        match number.map(|number| number as u32).or_else(|| index.get(label.as_str()).copied()) {
            Some(label) => images.push(Listed { part: *part, label, place: *place, length: *length }),
            None => {
                let name = row_name(&names[(place >> ROW_BITS) as usize], place & ROWS);
                let reason = format!("label {label} is none of the {} classes", classes.len());
                skipped.push(Skipped::new(name, SkippedKind::Label, reason));
            }
        }
    }
    let kind = match names.len() {
        1 => "a Parquet file".into(),
        count => format!("{count} Parquet files"),
    };
    let files = names.iter().map(|name| Stamp::at(root, name.clone())).collect();
    let items = Box::new(ParquetItems { root: root.to_owned(), files, open: None });
    Ok(Listing { kind, classes, declared, images, skipped, notices: Vec::new(), items })
}

impl Table {
    /// The estimated stored length of each row: all images of a row group count as its first one does.
    fn lengths(&self, options: &PackOptions) -> Result<impl Iterator<Item = u64>, String> {
        let mut lengths = Vec::new();
        for (group, rows) in self.groups().into_iter().enumerate() {
            let column = self.reader.metadata().row_group(group).column(self.image);
            let average = column.uncompressed_size().max(0) as u64 / rows.max(1);
            let first = || match self.column(group, self.image) {
                Ok(ColumnReader::ByteArrayColumnReader(mut reader)) => next(&mut reader).ok().flatten(),
                _ => None,
            };
            let first = first();
            let start = first.as_ref().map(|bytes| bytes.data());
            let is_jpeg = start.is_some_and(|bytes| bytes.starts_with(&[0xff, 0xd8]));
            let length = options.estimate(is_jpeg, average, || start.map(<[u8]>::to_vec));
            lengths.push((rows, length));
        }
        Ok(lengths.into_iter().flat_map(|(rows, length)| (0..rows).map(move |_| length)))
    }
}

fn row_name(file: &Path, row: u64) -> String {
    format!("{}: row {row}", file.to_string_lossy())
}

/// A file that is being read.
struct Open {
    file: u64,
    table: Table,
    /// The row group, its first row, and the row that its column gives next.
    group: usize,
    first: u64,
    next: u64,
    column: ColumnReaderImpl<ByteArrayType>,
}

struct ParquetItems {
    root: PathBuf,
    files: Vec<Stamp>,
    open: Option<Open>,
}

impl Open {
    /// Opens a file at the row group of a row.
    fn at(path: &Path, file: u64, row: u64) -> Result<Open, String> {
        Open::group(Table::open(path)?, file, row)
    }

    fn group(table: Table, file: u64, row: u64) -> Result<Open, String> {
        let mut first = 0;
        for (group, rows) in table.groups().into_iter().enumerate() {
            if row < first + rows {
                let ColumnReader::ByteArrayColumnReader(column) = table.column(group, table.image)? else {
                    return Err("its column of images holds no bytes".into());
                };
                return Ok(Open { file, table, group, first, next: first, column });
            }
            first += rows;
        }
        Err(format!("it has no row {row}: changed since it was listed"))
    }

    fn row(mut self, row: u64) -> Result<(Open, Option<ByteArray>), String> {
        let rows = self.table.groups()[self.group];
        if row < self.next || row >= self.first + rows {
            let Open { table, file, .. } = self;
            self = Open::group(table, file, row)?;
        }
        let skip = (row - self.next) as usize;
        if self.column.skip_records(skip).map_err(damaged)? != skip {
            return Err("damaged or cut short: a column ends before the last row".into());
        }
        let value = next(&mut self.column)?;
        self.next = row + 1;
        Ok((self, value))
    }
}

impl Items for ParquetItems {
    fn content(&mut self, place: u64) -> Result<Content, DataError> {
        let (file, row) = (place >> ROW_BITS, place & ROWS);
        let path = self.root.join(&self.files[file as usize].path);
        let open = self.open.take().filter(|open| open.file == file);
        let (open, bytes) = guarded(&path, || match open {
            Some(open) => open.row(row),
            None => Open::at(&path, file, row)?.row(row),
        })?;
        self.open = Some(open);
        // An image without bytes is in another file, if anywhere: it counts as empty.
        Ok(Content::Bytes(bytes.map_or(Vec::new(), |bytes| bytes.data().to_vec())))
    }

    fn name(&self, place: u64) -> String {
        row_name(&self.files[(place >> ROW_BITS) as usize].path, place & ROWS)
    }

    fn identify(&self, fnv: Fnv, images: &mut dyn Iterator<Item = Listed>) -> Fnv {
        identify_by_place("parquet", &self.files, fnv, images)
    }
}

//! Lists of images as text: a file and its label in each line. CSV with or without a header, separated by commas, tabs
//! or semicolons, or by spaces as in Caffe's lists.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::listing::Part;
use crate::data::DataError;

/// A line of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub line: u64,
    pub file: String,
    /// Empty where the line has none.
    pub label: String,
    pub part: Option<Part>,
}

const FILES: [&str; 14] = [
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "image_name",
    "images",
    "img",
    "id",
    "image_id",
    "imageid",
];
const LABELS: [&str; 12] = [
    "label",
    "labels",
    "class",
    "target",
    "category",
    "class_name",
    "label_name",
    "class_id",
    "label_id",
    "y",
    "breed",
    "predictionstring",
];
const PARTS: [&str; 4] = ["split", "set", "subset", "partition"];

/// Which columns hold what.
struct Columns {
    file: usize,
    label: usize,
    part: Option<usize>,
}

/// Reads a list.
///
/// # Errors
/// If it is no text in UTF-8, or its columns cannot be told apart.
pub fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let problem = |problem: String| DataError::Source { path: path.to_owned(), problem };
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(_) if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) => {
            return Err(problem("a list in UTF-16; save it as UTF-8".into()));
        }
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
            return Err(problem(format!("line {line} is not UTF-8; save the list as UTF-8")));
        }
    };
    parse(text).map_err(problem)
}

fn parse(text: &str) -> Result<Vec<Row>, String> {
    let text = &text.replace("\r\n", "\n"); // the reader would count lines one too low
    let first = text.lines().find(|line| !line.trim().is_empty()).ok_or("an empty list")?;
    let Some(separator) = ['\t', ',', ';'].into_iter().find(|&separator| first.contains(separator)) else {
        return by_spaces(text);
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(separator as u8)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut columns = None;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| error.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |at: usize| record.get(at).unwrap_or_default().to_string();
        let Columns { file, label, part } = match &columns {
            Some(columns) => columns,
            None => {
                let (found, is_header) = Columns::of(&record)?;
                let found = columns.insert(found);
                if is_header {
                    continue;
                }
                found
            }
        };
        let part = part.and_then(|at| Part::of_folder(&cell(at)));
        rows.push(Row { line, file: cell(*file), label: cell(*label), part });
    }
    Ok(rows)
}

/// "images/1.jpg 7": the last word is the label, because a path may hold spaces.
fn by_spaces(text: &str) -> Result<Vec<Row>, String> {
    let lines = (1_u64..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(line, text)| match text.trim().rsplit_once(char::is_whitespace) {
            Some((file, label)) => {
                Ok(Row { line, file: file.trim_end().into(), label: label.into(), part: None })
            }
            None => {
                Err(format!("line {line} has one column; a list needs a file and its label in each line"))
            }
        })
        .collect()
}

impl Columns {
    /// From the first line. It is a header if it names a column of files and another one, which has the labels.
    fn of(first: &csv::StringRecord) -> Result<(Columns, bool), String> {
        let find = |names: &[&str]| {
            first.iter().position(|cell| names.iter().any(|name| cell.eq_ignore_ascii_case(name)))
        };
        let part = find(&PARTS);
        match (find(&FILES), find(&LABELS)) {
            (Some(file), Some(label)) => Ok((Columns { file, label, part }, true)),
            (Some(file), None) if first.len() == 2 => {
                Ok((Columns { file, label: 1 - file, part: None }, true))
            }
            (None, Some(label)) if first.len() == 2 => {
                Ok((Columns { file: 1 - label, label, part: None }, true))
            }
            (None, None) if first.len() == 2 => Ok((Columns { file: 0, label: 1, part: None }, false)),
            _ if first.len() < 2 => Err("one column; a list needs a file and its label in each line".into()),
            _ => Err(format!(
                "{} columns, of which none is known as that of files and of labels; name them `path` and `label` in \
                 the first line",
                first.len()
            )),
        }
    }
}

/// How a list may name a file: relative to its folder, with slashes.
pub fn key(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

/// Finds the file that a line names: by its path, the end of it, or its name without the ending.
pub fn find(by_name: &HashMap<String, usize>, file: &str) -> Option<usize> {
    let name = file.replace('\\', "/");
    let name = name.strip_prefix("./").unwrap_or(&name);
    let last = name.rsplit('/').next().unwrap_or(name);
    [name, last]
        .into_iter()
        .find_map(|name| by_name.get(name))
        .or_else(|| {
            ["jpg", "JPEG", "jpeg", "png"].iter().find_map(|end| by_name.get(&format!("{last}.{end}")))
        })
        .copied()
}

/// The labels of a list's rows as indices into `classes`: class names, or numbers from 0.
pub fn labels(rows: &[Row], classes: &[String]) -> Vec<Result<u32, String>> {
    let index: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let label = |row: &Row| {
        // A list of boxes begins with the class: "n03995372 85 1 499 272".
        let word = row.label.split_whitespace().next().unwrap_or_default();
        if let Some(&label) = index.get(row.label.as_str()).or_else(|| index.get(word)) {
            return Ok(label);
        }
        match row.label.parse::<usize>() {
            _ if row.label.is_empty() => Err(format!("line {} has no label", row.line)),
            Ok(number) if number < classes.len() => Ok(number as u32),
            Ok(number) => {
                let last = classes.len().saturating_sub(1);
                Err(format!("line {}: label {number} is out of range: classes are 0 to {last}", row.line))
            }
            Err(_) => Err(format!("line {}: `{}` is no class of the training images", row.line, row.label)),
        }
    };
    rows.iter().map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().map(|row| (row.file, row.label)).collect()
    }

    #[test]
    fn list_is_read_in_all_its_forms() {
        let expected = [("a b.jpg", "cat"), ("x/c.png", "dog")].map(|(f, l)| (f.to_string(), l.to_string()));
        for text in [
            "path,label\na b.jpg,cat\nx/c.png,dog\n",
            "label,extra,file\r\ncat,1,a b.jpg\r\ndog,2,x/c.png\r\n",
            "a b.jpg\tcat\nx/c.png\tdog",
            "\"a b.jpg\";\"cat\"\n\n x/c.png ; dog\n",
            "a b.jpg cat\nx/c.png   dog\n",
            "id,what\na b.jpg,cat\nx/c.png,dog\n",
        ] {
            assert_eq!(rows(text), expected, "{text}");
        }
        let parts = parse("file,label,split\na,0,Train\nb,1,validation\nc,0,other\n").unwrap();
        assert_eq!(parts.map_parts(), [Some(Part::Train), Some(Part::Val), None]);
        let crlf = parse("file,label\r\na,0\r\nb,1\r\n").unwrap();
        assert_eq!([parts[1].line, crlf[1].line], [3, 3]);
        for (text, word) in [("", "empty"), ("a\nb\n", "one column"), ("a,b,c\n", "3 columns")] {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }

    trait Parts {
        fn map_parts(&self) -> Vec<Option<Part>>;
    }

    impl Parts for Vec<Row> {
        fn map_parts(&self) -> Vec<Option<Part>> {
            self.iter().map(|row| row.part).collect()
        }
    }

    #[test]
    fn labels_are_names_or_numbers() {
        let classes = ["cat", "dog"].map(String::from);
        let rows = parse("a,dog\nb,0\nc,2\nd,cow\ne,\nf,cat 1 2 3\n").unwrap();
        let labels = labels(&rows, &classes);
        assert_eq!([&labels[0], &labels[1], &labels[5]], [&Ok(1), &Ok(0), &Ok(0)]);
        for (at, word) in [(2, "out of range"), (3, "`cow` is no class"), (4, "line 5 has no label")] {
            assert!(labels[at].as_ref().unwrap_err().contains(word), "{labels:?}");
        }
    }
}

//! Sources that hold many images in a file: tar, Parquet, CIFAR; and lists.

use std::sync::Arc;

use super::*;
use effnet::data::pack::skipped::SKIPPED;
use effnet::data::{Dataset, Split};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// An image file of a set: its class, its name and its bytes.
pub struct Photo {
    pub class: &'static str,
    pub name: String,
    pub bytes: Vec<u8>,
}

/// `each` images of two classes, PNG and JPEG, in the order of their paths.
pub fn photos(each: u64, width: u32, height: u32) -> Vec<Photo> {
    let mut photos = Vec::new();
    for (class, salt) in [("cat", 0), ("dog", 1000)] {
        for number in 0..each {
            let image = picture(width, height, salt + number);
            let (ending, bytes) = if number % 3 == 0 {
                ("jpg", jpeg_bytes(&image))
            } else {
                let mut bytes = Vec::new();
                image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
                ("png", bytes)
            };
            photos.push(Photo { class, name: format!("{number:03}.{ending}"), bytes });
        }
    }
    photos
}

fn as_folder(root: &Path, photos: &[Photo]) {
    for photo in photos {
        let path = root.join(photo.class).join(&photo.name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &photo.bytes).unwrap();
    }
}

fn tar_bytes<'f>(files: impl IntoIterator<Item = (String, &'f [u8])>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn as_tar(path: &Path, photos: &[Photo]) {
    let files =
        photos.iter().map(|photo| (format!("set/{}/{}", photo.class, photo.name), photo.bytes.as_slice()));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, tar_bytes(files)).unwrap();
}

/// Writes rows of an image, or none, and a label, or none, as Hugging Face's `datasets` lays them out.
fn as_parquet_rows(
    path: &Path,
    rows: &[(Option<&[u8]>, Option<i64>)],
    names: Option<&[&str]>,
    compression: Compression,
) {
    let schema = "message schema { optional group image { optional binary bytes; optional binary path (STRING); } \
                  optional int64 label; }";
    let features = |names: &[&str]| {
        let label = serde_json::json!({"names": names, "_type": "ClassLabel"});
        let info = serde_json::json!({"info": {"features": {"image": {"_type": "Image"}, "label": label}}});
        vec![KeyValue::new("huggingface".to_string(), info.to_string())]
    };
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_data_page_row_count_limit(2)
        .set_write_batch_size(1)
        .set_key_value_metadata(names.map(features))
        .build();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(path).unwrap();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(7) {
        let mut group = writer.next_row_group().unwrap();
        let bytes: Vec<ByteArray> = rows.iter().filter_map(|row| row.0).map(|b| b.to_vec().into()).collect();
        let levels: Vec<i16> = rows.iter().map(|row| if row.0.is_some() { 2 } else { 1 }).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&bytes, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = rows.iter().filter_map(|row| row.1).collect();
        let levels: Vec<i16> = rows.iter().map(|row| row.1.is_some() as i16).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

pub fn as_parquet(path: &Path, photos: &[Photo], names: Option<&[&str]>, compression: Compression) {
    let label = |photo: &Photo| Some((photo.class == "dog") as i64);
    let rows: Vec<_> = photos.iter().map(|photo| (Some(photo.bytes.as_slice()), label(photo))).collect();
    as_parquet_rows(path, &rows, names, compression);
}

pub fn as_list(path: &Path, photos: &[Photo]) {
    as_folder(&path.parent().unwrap().join("images"), photos);
    let line = |photo: &Photo| format!("images/{0}/{1},{0}\r\n", photo.class, photo.name);
    let lines: String = photos.iter().map(line).collect();
    fs::write(path, format!("\u{feff}path,label\r\n{lines}")).unwrap();
}

/// An image of CIFAR with its label or, in CIFAR-100, labels.
pub fn cifar_image(labels: &[u8], salt: u64) -> Vec<u8> {
    labels.iter().copied().chain((0..3072).map(|place| noise(place + salt * 5000))).collect()
}

fn counts(out: &Path) -> [Vec<u64>; 2] {
    let dataset = Dataset::open(out).unwrap();
    Split::BOTH.map(|split| dataset.class_counts(split))
}

const NAMES: [&str; 2] = ["cat", "dog"];

/// The photographs as a WebDataset: half of the labels in `.cls`, half in `.json`.
fn web_bytes(photos: &[Photo]) -> Vec<u8> {
    let files = photos.iter().enumerate().flat_map(|(at, photo)| {
        let label = if at % 2 == 0 {
            (format!("{at:05}.cls"), photo.class.as_bytes().to_vec())
        } else {
            (format!("{at:05}.json"), format!("{{\"label\": \"{}\", \"n\": 1}}", photo.class).into_bytes())
        };
        let ending = photo.name.split('.').nth(1).unwrap();
        [label, (format!("{at:05}.{ending}"), photo.bytes.clone())]
    });
    let files: Vec<(String, Vec<u8>)> = files.collect();
    tar_bytes(files.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())))
}

/// Writes the photographs in every form.
fn in_every_form(root: &Path, photos: &[Photo]) {
    let at = |name: &str| root.join(name);
    as_folder(&at("folder"), photos);
    as_tar(&at("one.tar"), photos);
    let (first, rest) = photos.split_at(10);
    as_tar(&at("tars/x-000.tar"), first);
    as_tar(&at("tars/x-001.tar"), rest);
    fs::write(at("web.tar"), web_bytes(photos)).unwrap();
    fs::create_dir(at("gzipped")).unwrap();
    for (plain, compressed) in [
        ("one.tar", "one.tgz"),
        ("tars/x-000.tar", "gzipped/x-000.tar.gz"),
        ("tars/x-001.tar", "gzipped/x-001.TGZ"),
        ("web.tar", "web.tar.gz"),
    ] {
        fs::write(at(compressed), gzip(&fs::read(at(plain)).unwrap())).unwrap();
    }
    as_parquet(&at("one.parquet"), photos, Some(&NAMES), Compression::SNAPPY);
    let zstd = Compression::ZSTD(ZstdLevel::default());
    as_parquet(&at("parquets/data/x-0.parquet"), first, Some(&NAMES), zstd);
    as_parquet(&at("parquets/data/x-1.parquet"), rest, Some(&NAMES), Compression::UNCOMPRESSED);
    as_list(&at("listed/all.csv"), photos);
}

/// The same images give the same set, byte for byte, whatever they lie in.
#[test]
fn every_form_of_a_set_is_packed_to_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    in_every_form(dir.path(), &photos(23, 24, 16));
    for encoding in ["auto", "raw"] {
        let expected = at(&format!("expected-{encoding}"));
        pack_ok(&[text(&at("folder")), text(&expected), "--encoding", encoding, "--val-fraction", "0.3"]);
        assert_eq!(counts(&expected), [[16, 16], [7, 7]]);
        for (name, said) in [
            ("one.tar", "packed a tar file (class folders) to"),
            ("tars", "packed 2 tar files (class folders) to"),
            ("web.tar", "packed a tar file (WebDataset) to"),
            ("one.tgz", "packed a tar file (class folders) to"),
            ("gzipped", "packed 2 tar files (class folders) to"),
            ("web.tar.gz", "packed a tar file (WebDataset) to"),
            ("one.parquet", "packed a Parquet file to"),
            ("parquets", "packed 2 Parquet files to"),
            ("listed/all.csv", "packed the images listed in all.csv to"),
            ("listed", "packed the images listed in all.csv to"),
        ] {
            let out = at(&format!("out-{encoding}-{}", name.replace('/', "-")));
            let printed =
                pack_ok(&[text(&at(name)), text(&out), "--encoding", encoding, "--val-fraction", "0.3"]);
            assert!(printed.contains(said), "{name}: {printed}");
            assert!(files(&out) == files(&expected), "{name} {encoding}: {printed}");
        }
    }
}

#[test]
fn parts_are_known_by_the_names_of_files() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (folder, train, val, test) in [
        ("tar", "imagenet-train-000.tar", "imagenet-val-000.tar", "imagenet-test-000.tar"),
        ("sub", "train/0.tar", "validation/0.tar", "test/0.tar"),
        ("parquet", "data/train-00000-of-00001.parquet", "data/validation-0.parquet", "data/test-0.parquet"),
    ] {
        for (each, name) in [(5, train), (3, val), (2, test)] {
            let photos = photos(each, 8, 8);
            match folder {
                "parquet" => as_parquet(&at(folder).join(name), &photos, Some(&NAMES), Compression::SNAPPY),
                _ => as_tar(&at(folder).join(name), &photos),
            }
        }
        let out = at(&format!("{folder}-out"));
        let said = pack_ok(&[text(&at(folder)), text(&out)]);
        assert_eq!(counts(&out), [[5, 5], [3, 3]], "{folder}");
        assert_eq!(Dataset::open(&out).unwrap().class_counts(Split::Test), [2, 2], "{folder}");
        assert!(said.contains("4 test images are training images too"), "{said}");
        assert!(said.contains("6 validation images are training images too"), "{said}");
        fs::remove_file(at(folder).join(val)).unwrap();
        let said = pack_ok(&[text(&at(folder)), text(&out), "--force"]);
        assert_eq!(counts(&out), [[5, 5], [2, 2]], "{folder}");
        assert!(said.contains("no validation images: the test images are taken"), "{said}");
        let (one, two) = (at(folder).join(train), at(folder).join(test));
        pack_ok(&[text(&one), text(&out), "--val", text(&two), "--force"]);
        assert_eq!(counts(&out), [[5, 5], [2, 2]], "{folder}");
    }
}

#[test]
fn parts_are_known_by_folders_and_columns() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    // A tar file of a tree with both parts; and lists, of which one has its parts in a column.
    let (photos, out) = (photos(4, 8, 8), at("out"));
    let parts = ["train", "val"].into_iter().flat_map(|part| {
        photos
            .iter()
            .map(move |photo| (format!("{part}/{}/{}", photo.class, photo.name), photo.bytes.as_slice()))
    });
    fs::write(at("tree.tar"), tar_bytes(parts)).unwrap();
    pack_ok(&[text(&at("tree.tar")), text(&out)]);
    assert_eq!(counts(&out), [[4, 4], [4, 4]]);
    as_folder(&at("lists/train"), &photos);
    let lines = |part: &str, from: usize, to: usize| -> String {
        let line = |photo: &Photo| format!("{}/{}\t{}\t{part}\n", photo.class, photo.name, photo.class);
        photos[from..to].iter().map(line).collect()
    };
    let table =
        format!("file\tlabel\tsplit\n{}{}{}", lines("train", 0, 3), lines("val", 3, 5), lines("train", 5, 8));
    fs::write(at("lists/set.tsv"), table).unwrap();
    pack_ok(&[text(&at("lists/set.tsv")), text(&out), "--force"]);
    assert_eq!(counts(&out), [[3, 3], [1, 1]]);
}

/// Flat folders, ids without endings, test images without labels.
#[test]
fn list_of_ids_beside_a_flat_folder_is_packed() {
    let dir = TempDir::new().unwrap();
    let (photos, out, flat) = (photos(4, 8, 8), dir.path().join("out"), dir.path().join("kaggle"));
    for (number, photo) in photos.iter().enumerate() {
        fs::create_dir_all(flat.join("train")).unwrap();
        fs::write(flat.join(format!("train/id{number}.jpg")), &photo.bytes).unwrap();
    }
    let ids = |photos: &[Photo]| -> String {
        photos.iter().enumerate().map(|(n, photo)| format!("id{n},{}\n", photo.class)).collect()
    };
    fs::write(flat.join("train.csv"), format!("id,breed\n{}", ids(&photos))).unwrap();
    fs::write(flat.join("test.csv"), "id\nid9\n").unwrap();
    let said = pack_ok(&[text(&flat), text(&out)]);
    assert_eq!(counts(&out), [[3, 3], [1, 1]]);
    assert!(said.contains("notice: left out: ") && said.contains("test.csv"), "{said}");
}

#[test]
fn cifar_is_packed_with_its_names() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let image = cifar_image;
    fs::create_dir(at("ten")).unwrap();
    for batch in 1..=5_u8 {
        let images = (0..4).flat_map(|n| image(&[(batch * 4 + n) % 10], u64::from(batch * 10 + n)));
        fs::write(at(&format!("ten/data_batch_{batch}.bin")), images.collect::<Vec<u8>>()).unwrap();
    }
    fs::write(at("ten/test_batch.bin"), image(&[7], 999)).unwrap();
    let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
    fs::write(at("ten/batches.meta.txt"), names).unwrap();
    let said = pack_ok(&[text(&at("ten")), text(&at("out"))]);
    assert!(said.contains("packed CIFAR-10 (binary)"), "{said}");
    let dataset = Dataset::open(&at("out")).unwrap();
    assert_eq!((dataset.samples(Split::Train), dataset.samples(Split::Val)), (20, 1));
    assert_eq!((dataset.classes()[3].as_str(), dataset.sample(Split::Val, 0).unwrap().label), ("cat", 7));
    // Image 5 is the second of the second batch: three planes become pixels.
    let sample = dataset.sample(Split::Train, 5).unwrap();
    let planes = &image(&[0], 21)[1..];
    assert_eq!((sample.label, sample.width, sample.height, sample.channels), (9, 32, 32, 3));
    assert_eq!(
        sample.bytes[..6],
        [planes[0], planes[1024], planes[2048], planes[1], planes[1025], planes[2049]]
    );

    fs::create_dir(at("hundred")).unwrap();
    let images: Vec<u8> = (0..100).flat_map(|fine| image(&[fine / 5, fine], u64::from(fine))).collect();
    fs::write(at("hundred/train.bin"), &images).unwrap();
    fs::write(at("hundred/test.bin"), image(&[3, 42], 5000)).unwrap();
    pack_ok(&[text(&at("hundred")), text(&at("out")), "--force"]);
    let dataset = Dataset::open(&at("out")).unwrap();
    assert_eq!((dataset.classes().len(), dataset.sample(Split::Val, 0).unwrap().label), (100, 42));

    fs::write(at("hundred/train.bin"), &images[..images.len() - 1]).unwrap();
    let out = at("never");
    pack_fails(&[text(&at("hundred")), text(&out)], &["train.bin", "no whole number", "cut short"]);
    fs::write(at("ten/data_batch_2.bin"), image(&[10], 1)).unwrap();
    pack_fails(&[text(&at("ten")), text(&out)], &["data_batch_2.bin: image 0 has label 10"]);
    fs::remove_file(at("ten/data_batch_2.bin")).unwrap();
    pack_fails(&[text(&at("ten")), text(&out)], &["CIFAR-10 without data_batch_2.bin"]);
    fs::create_dir(at("python")).unwrap();
    ["data_batch_1", "test_batch"].iter().for_each(|name| fs::write(at("python").join(name), "x").unwrap());
    pack_fails(&[text(&at("python")), text(&out)], &["Python objects", "binary version"]);
    assert!(!out.exists());
}

#[test]
fn images_without_a_usable_label_are_left_out() {
    let dir = TempDir::new().unwrap();
    let (out, at) = (dir.path().join("out"), |name: &str| dir.path().join(name));
    let photos = photos(5, 8, 8);
    let image = |n: usize| Some(photos[n].bytes.as_slice());
    let mut rows: Vec<_> = (0..10).map(|n| (image(n), Some((n / 5) as i64))).collect();
    rows.extend([(image(0), None), (image(1), Some(-1)), (image(2), Some(7)), (None, Some(1))]);
    as_parquet_rows(&at("a.parquet"), &rows, Some(&NAMES), Compression::SNAPPY);
    let said = pack_ok(&[text(&at("a.parquet")), text(&out)]);
    assert!(said.contains("3  images without a usable label left out, such as a.parquet: row 10"), "{said}");
    assert!(said.contains("left out a.parquet: row 13: empty file"), "{said}");
    assert!(fs::read_to_string(out.join(SKIPPED)).unwrap().contains("label 7 is none of the 2 classes"));

    let mut members: Vec<(String, &[u8])> = Vec::new();
    for (n, photo) in photos.iter().enumerate() {
        members.push((format!("{n}.{}", photo.name), &photo.bytes));
        members.push((format!("{n}.cls"), if n < 5 { b"3\n" } else { b"12" }));
    }
    members.push(("nolabel.jpg".into(), &photos[0].bytes));
    members.push(("5.txt".into(), b"a caption"));
    fs::write(at("web.tar"), tar_bytes(members)).unwrap();
    let said = pack_ok(&[text(&at("web.tar")), text(&out), "--force"]);
    assert_eq!(Dataset::open(&out).unwrap().classes(), ["3", "12"], "numbers in their order");
    assert!(
        said.contains("1  image without a usable label left out, such as web.tar: nolabel.jpg"),
        "{said}"
    );

    as_list(&at("list/l.csv"), &photos);
    let mut lines = fs::read_to_string(at("list/l.csv")).unwrap();
    lines.push_str("images/cat/000.jpg,\r\nnowhere.jpg,cat\r\n");
    fs::write(at("list/l.csv"), lines).unwrap();
    let said = pack_ok(&[text(&at("list/l.csv")), text(&out), "--force"]);
    assert!(said.contains("1  listed image that is not there, such as nowhere.jpg: line 13"), "{said}");
    assert!(said.contains("such as images/cat/000.jpg: line 12 has no label"), "{said}");
}

#[test]
fn damaged_parquet_file_is_named() {
    let dir = TempDir::new().unwrap();
    let (out, at) = (dir.path().join("out"), |name: &str| dir.path().join(name));
    as_parquet(&at("a.parquet"), &photos(4, 20, 20), Some(&NAMES), Compression::SNAPPY);
    let parquet = fs::read(at("a.parquet")).unwrap();
    for share in 1..8 {
        fs::write(at("cut.parquet"), &parquet[..parquet.len() * share / 8]).unwrap();
        pack_fails(&[text(&at("cut.parquet")), text(&out)], &["cut.parquet: damaged or cut short"]);
    }
    for (at_byte, _) in (0..parquet.len()).step_by(97).zip(0..60) {
        let mut changed = parquet.clone();
        changed[at_byte] ^= 0x41;
        fs::write(at("changed.parquet"), changed).unwrap();
        let ran = pack(&[text(&at("changed.parquet")), text(&out), "--force"]);
        assert!(matches!(ran.status, Some(0 | 1)), "byte {at_byte}: {}", ran.printed());
        if ran.status == Some(1) {
            let printed = ran.printed();
            assert!(ran.err.lines().count() == 1 && ran.err.starts_with("error: "), "{printed}");
        }
    }
}

#[test]
fn container_that_cannot_be_packed_is_named() {
    let dir = TempDir::new().unwrap();
    let (out, at) = (dir.path().join("out"), |name: &str| dir.path().join(name));
    for (name, bytes, word) in [
        ("a.gz", &b"\x1f\x8b\x08xxxxxx"[..], "compressed by gzip; unpack it first"),
        ("a.zip", b"PK\x03\x04xxxx", "a ZIP archive; unpack it first"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file; effnet-pack takes"),
        ("a.npy", b"\x93NUMPY\x01", "a NumPy array; effnet-pack takes"),
        ("a.bin", b"\0\x01\0\0", "a kind that is not known; effnet-pack takes"),
        ("a.csv", b"a,b,c\n1,2,3\n", "3 columns"),
        ("b.csv", b"\xff\xfea\0,\0b\0", "UTF-16"),
        ("c.csv", b"", "an empty file"),
        ("d.csv", b"path,label\nx.jpg,1\n", "1 left out, such as x.jpg: line 2: no such file"),
    ] {
        fs::write(at(name), bytes).unwrap();
        pack_fails(&[text(&at(name)), text(&at("other"))], &[name, word]);
    }
    assert!(!at("other").exists());
    fs::create_dir(at("zipped")).unwrap();
    fs::write(at("zipped/images.csv.gz"), "x").unwrap();
    pack_fails(&[text(&at("zipped")), text(&out)], &["images.csv.gz is compressed; unpack it first"]);
}

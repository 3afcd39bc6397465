//! Writes archives and pickles by hand, sound ones and others.

/// An entry of a zip file. What differs from the truth is given as `Some`.
#[derive(Clone, Default)]
pub struct Entry {
    pub name: String,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub crc: Option<u32>,
    pub size: Option<u32>,
    pub compressed: Option<u32>,
    /// Where its local header lies.
    pub place: Option<u32>,
}

impl Entry {
    pub fn new(name: &str, data: &[u8]) -> Entry {
        Entry { name: name.to_string(), data: data.to_vec(), ..Entry::default() }
    }

    /// What the local and the central header have in common.
    fn common(&self) -> Vec<u8> {
        let length = self.data.len() as u32;
        let mut bytes = Vec::new();
        for field in [20, self.flags, self.method, 0, 33] {
            bytes.extend(u16::to_le_bytes(field));
        }
        let size = self.size.unwrap_or(length);
        let crc = self.crc.unwrap_or_else(|| crc32fast::hash(&self.data));
        for field in [crc, self.compressed.unwrap_or(size), size, self.name.len() as u32] {
            bytes.extend(field.to_le_bytes());
        }
        bytes
    }
}

pub fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let place = entry.place.unwrap_or(file.len() as u32);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(entry.common());
        directory.extend([0; 10]);
        directory.extend(place.to_le_bytes());
        directory.extend(entry.name.as_bytes());
        if entry.place.is_none() {
            file.extend(b"PK\x03\x04");
            file.extend(entry.common());
            file.extend(entry.name.as_bytes());
            file.extend(&entry.data);
        }
    }
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([(entries.len() as u16).to_le_bytes(); 2].concat());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0; 2]);
    file
}

/// The entries of a sound file.
pub fn entries(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<Entry> {
    let mut entries = vec![Entry::new("a/data.pkl", pickle), Entry::new("a/byteorder", b"little")];
    entries.extend(storages.iter().map(|(key, data)| Entry::new(&format!("a/data/{key}"), data)));
    entries.push(Entry::new("a/version", b"3\n"));
    entries
}

pub fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    zip(&entries(pickle, storages))
}

// Pieces of pickles, in protocol 2.

pub fn program(body: impl AsRef<[u8]>) -> Vec<u8> {
    [b"\x80\x02", body.as_ref(), b"."].concat()
}

pub fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn integer(number: i64) -> Vec<u8> {
    [b"\x8a\x08", &number.to_le_bytes()[..]].concat()
}

pub fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub fn integers(numbers: &[i64]) -> Vec<u8> {
    tuple(&numbers.iter().map(|number| integer(*number)).collect::<Vec<_>>())
}

pub fn call(function: Vec<u8>, arguments: &[Vec<u8>]) -> Vec<u8> {
    [function, tuple(arguments), b"R".to_vec()].concat()
}

pub fn dictionary(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<_> = entries.iter().map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", &entries.concat()[..], b"u"].concat()
}

pub fn storage(class: &str, key: &str, count: i64) -> Vec<u8> {
    let id = tuple(&[text("storage"), global("torch", class), text(key), text("cpu"), integer(count)]);
    [id, b"Q".to_vec()].concat()
}

/// A view of a storage of floats.
pub fn view(key: &str, count: i64, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    let hooks = call(global("collections", "OrderedDict"), &[]);
    let place = [storage("FloatStorage", key, count), integer(offset), integers(size), integers(stride)];
    call(global("torch._utils", "_rebuild_tensor_v2"), &[&place[..], &[b"\x89".to_vec(), hooks]].concat())
}

/// A vector of `count` floats.
pub fn vector(key: &str, count: i64) -> Vec<u8> {
    view(key, count, 0, &[count], &[1])
}

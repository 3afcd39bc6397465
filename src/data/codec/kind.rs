//! What kind of file it is, by its first bytes. Names lie: large collections have PNGs called `.JPEG`.

use std::path::Path;

use strum::Display;

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
pub enum Kind {
    #[strum(to_string = "JPEG")]
    Jpeg,
    #[strum(to_string = "PNG")]
    Png,
    WebP,
    #[strum(to_string = "GIF")]
    Gif,
    #[strum(to_string = "BMP")]
    Bmp,
    #[strum(to_string = "TIFF")]
    Tiff,
}

/// Endings of the names of files that are read.
pub const IMAGE_ENDINGS: [&str; 11] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"];

/// Whether a file's name is that of an image that is read, in small or capital letters.
pub fn is_image_name(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| IMAGE_ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

/// The kind of a file that is read; else what it is and what to do.
pub fn kind(bytes: &[u8]) -> Result<Kind, String> {
    let starts = |start: &[u8]| bytes.starts_with(start);
    let has = |at: usize, part: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(part));
    Ok(match () {
        _ if starts(b"\xff\xd8\xff") => Kind::Jpeg,
        _ if starts(b"\x89PNG\r\n\x1a\n") => Kind::Png,
        _ if starts(b"RIFF") && has(8, b"WEBP") => Kind::WebP,
        _ if starts(b"GIF87a") || starts(b"GIF89a") => Kind::Gif,
        // Two letters are too few: the length of the header that follows is small.
        _ if starts(b"BM") && has(15, &[0; 3]) => Kind::Bmp,
        _ if starts(b"II\x2a\0") || starts(b"MM\0\x2a") || starts(b"II\x2b\0") || starts(b"MM\0\x2b") => {
            Kind::Tiff
        }
        _ => return Err(other_kind(bytes)),
    })
}

/// Names a file that is no image or of no kind that is read.
fn other_kind(bytes: &[u8]) -> String {
    let starts = |start: &[u8]| bytes.starts_with(start);
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_ascii_lowercase();
    let text = head.trim_start_matches('\u{feff}').trim_start();
    let convert = |kind: &str| format!("{kind}, which is not read; convert it to JPEG or PNG");
    match () {
        _ if bytes.is_empty() => "empty file".into(),
        _ if bytes.iter().all(|&byte| byte == 0) => "no image: only zeros".into(),
        _ if starts(b"\x1f\x8b") => "compressed by gzip; unpack it (gunzip)".into(),
        _ if starts(b"PK\x03\x04") => "a ZIP archive; unpack it".into(),
        _ if starts(b"\xfd7zXZ") || starts(b"BZh") || starts(b"\x28\xb5\x2f\xfd") => {
            "compressed by xz, bzip2 or zstd; unpack it".into()
        }
        _ if bytes.get(4..8) == Some(b"ftyp") => match bytes.get(8..12).unwrap_or(b"") {
            b"avif" | b"avis" => convert("AVIF"),
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1" => convert("HEIC"),
            _ => "a video or sound file (MP4), no image".into(),
        },
        _ if starts(b"\xff\x0a") || starts(b"\0\0\0\x0cJXL ") => convert("JPEG XL"),
        _ if starts(b"\0\0\0\x0cjP  ") || starts(b"\xff\x4f\xff\x51") => convert("JPEG 2000"),
        _ if starts(b"8BPS") => convert("Photoshop's PSD"),
        _ if starts(b"%PDF") => convert("PDF"),
        _ if starts(b"\0\0\x01\0") => convert("an icon (ICO)"),
        _ if starts(b"\x76\x2f\x31\x01") => convert("OpenEXR"),
        _ if matches!(bytes, [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..]) => convert("PNM"),
        _ if text.starts_with("<svg") || text.starts_with("<?xml") && text.contains("<svg") => convert("SVG"),
        _ if text.starts_with("<!doctype html") || text.starts_with("<html") => {
            "an HTML page, no image: the download failed".into()
        }
        _ if text.starts_with("version https://git-lfs") => {
            "a pointer of Git LFS, no image; run `git lfs pull`".into()
        }
        _ if bytes.iter().take(1024).all(|byte| !matches!(byte, 0..=8 | 14..=31))
            && !head.contains('\u{fffd}') =>
        {
            "text, no image".into()
        }
        _ => "no image of a kind that is read (JPEG, PNG, WebP, GIF, BMP, TIFF)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_told_by_content_and_else_named() {
        assert_eq!(kind(b"RIFF\x10\0\0\0WEBPVP8 "), Ok(Kind::WebP));
        assert_eq!(kind(b"BM\x10\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"), Ok(Kind::Bmp));
        let cases: [(&[u8], &str); 12] = [
            (b"", "empty"),
            (&[0; 40], "zeros"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
            (b"<?xml version='1.0'?>\n<svg xmlns=", "SVG"),
            (b"%PDF-1.7", "PDF"),
            (b"\xef\xbb\xbf <!DOCTYPE html><html>", "HTML"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"BMW is a car, and this is a letter", "text"),
            (b"Dear sir", "text"),
            (b"\x01\x02\x03\x04", "no image of a kind that is read"),
        ];
        for (bytes, word) in cases {
            let said = kind(bytes).unwrap_err();
            assert!(said.contains(word), "{said}: {word}");
        }
    }

    #[test]
    fn image_names_are_told_by_their_endings() {
        for name in ["a.jpg", "b.JPEG", "c.Webp", "d.tiff", "e.x.gif"] {
            assert!(is_image_name(Path::new(name)), "{name}");
        }
        for name in ["jpg", "a.txt", "a.jpg.gz", "a.heic", ".png"] {
            assert!(!is_image_name(Path::new(name)), "{name}");
        }
    }
}

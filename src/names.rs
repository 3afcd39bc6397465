//! Names in flags, files and messages: those of an enum's variants, and those that users give to files and classes.
//!
//! A user's name may hold anything, so it is printed by [`shown`] or [`shown_path`], and in a command by [`quoted`].
//!
//! For its variants' names, an enum derives `strum`'s `Display`, `EnumString` and `VariantNames`, so that its names are written once, and
//! [`unknown`] words the error for any other name:
//!
//! ```ignore
//! #[derive(Display, EnumString, VariantNames)]
//! #[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = Split::unknown)]
//! pub enum Split { Train, Val }
//!
//! impl Split {
//!     fn unknown(name: &str) -> String {
//!         names::unknown::<Split>("split", name)
//!     }
//! }
//! ```

use std::fmt::Write;
use std::path::Path;

use strum::VariantNames;

/// "`x` is no crop mode: use auto, resized or pad".
pub fn unknown<T: VariantNames>(what: &str, name: &str) -> String {
    let choice = match T::VARIANTS {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        only => only.concat(),
    };
    format!("`{name}` is no {what}: use {choice}")
}

/// A text for a terminal or a log: what would move the cursor, colour the screen, end the line or turn the direction of
/// writing is escaped. To show a text twice changes nothing more.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// A path for a terminal; bytes that are not UTF-8 become replacement characters.
pub fn shown_path(path: &Path) -> String {
    shown(&path.to_string_lossy())
}

/// Control characters; line and paragraph separators; marks and overrides of the direction of writing.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A path, quoted for a shell. A name with control characters, or one that is not UTF-8, takes the form `$'...'`.
pub fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    match path.to_str() {
        Some(text) if text.chars().any(is_control) => escaped(bytes),
        None => escaped(bytes),
        Some(text) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
            if !text.is_empty() && text.chars().all(plain) {
                text.into()
            } else {
                format!("'{}'", text.replace('\'', r"'\''"))
            }
        }
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::from("$'");
    for &byte in bytes {
        match byte {
            b'\'' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}"); // writing to a string does not fail
            }
        }
    }
    text.push('\'');
    text
}

/// The ending of a noun of which there are so many.
pub fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_escapes_what_a_terminal_would_obey() {
        assert_eq!(shown("a photo \u{1f600} \u{e4}\\b"), "a photo \u{1f600} \u{e4}\\b");
        assert_eq!(shown("red\x1b[31m\nnew"), "red\\u{1b}[31m\\nnew");
        assert_eq!(shown("a\u{202e}b\u{85}"), "a\\u{202e}b\\u{85}");
        let once = shown("\t\r\x07");
        assert_eq!((once.as_str(), shown(&once)), ("\\t\\r\\u{7}", once.clone()));
    }

    #[test]
    fn quoted_protects_paths_that_a_shell_would_split() {
        assert_eq!(quoted(Path::new("runs/b0")), "runs/b0");
        assert_eq!(quoted(Path::new("my runs/it's")), r"'my runs/it'\''s'");
        assert_eq!(quoted(Path::new("a\x1b\n'b\u{e4}")), r"$'a\x1b\x0a\'b\xc3\xa4'");
        assert_eq!(quoted(Path::new("")), "''");
    }

    #[derive(VariantNames)]
    #[strum(serialize_all = "lowercase")]
    #[allow(dead_code)]
    enum One {
        Red,
    }

    #[derive(VariantNames)]
    #[strum(serialize_all = "kebab-case")]
    #[allow(dead_code)]
    enum Three {
        Red,
        LightGreen,
        Blue,
    }

    #[test]
    fn unknown_lists_every_name() {
        assert_eq!(unknown::<One>("colour", "x"), "`x` is no colour: use red");
        assert_eq!(unknown::<Three>("colour", "x"), "`x` is no colour: use red, light-green or blue");
    }
}

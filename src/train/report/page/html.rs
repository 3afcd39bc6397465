//! Text for a page: escaped names, and numbers as people read them.
//!
//! Names of classes, files and folders may hold anything, so every one of them goes through [`text`], or through
//! [`data`] into a script.

use std::fmt::Write;

use serde::Serialize;

use crate::names::shown;

/// A text as HTML shows it, also inside an attribute's quotes. What would hide or turn other text is escaped.
pub fn text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in shown(text).chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            _ => escaped.push(c),
        }
    }
    escaped
}

/// A value as JSON that may stand in a `script` element: nothing in it ends the element, begins a comment or turns the
/// direction of writing.
pub fn data(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("numbers and texts become JSON");
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let _ = write!(escaped, "\\u{:04x}", c as u32);
            }
            _ => escaped.push(c),
        }
    }
    escaped
}

/// "87.45 %", which no line's end divides; a dash where there is no share.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.2}\u{a0}%", share * 100.0) } else { "–".into() }
}

/// The share `part` of `whole`; a dash of nothing.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "–".into() } else { format!("{:.1}\u{a0}%", part as f64 / whole as f64 * 100.0) }
}

/// A number with five digits, without an exponent where that is short: what a curve needs.
pub fn short(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    format!("{value:.4e}").parse().unwrap_or(0.0)
}

/// "one image", "2,000 images".
pub fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("one {noun}"),
        _ => format!("{} {noun}s", indicatif::HumanCount(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_data_let_no_name_out() {
        let hostile = "</script><script>alert('x')</script>\" onload=\"&\u{202e}\n";
        let safe = text(hostile);
        assert!(!safe.contains(['<', '>', '"', '\'', '\n', '\u{202e}']), "{safe}");
        assert!(safe.starts_with("&lt;/script&gt;") && safe.contains("&amp;\\u{202e}\\n"), "{safe}");
        let json = data(&[hostile]);
        assert!(!json.contains(['<', '>', '&', '\u{202e}']), "{json}");
        let back: Vec<String> = serde_json::from_str(&json).unwrap();
        assert_eq!(back, [hostile]);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            (percent(0.8745), share(1, 3), share(0, 0)),
            ("87.45\u{a0}%".into(), "33.3\u{a0}%".into(), "–".into())
        );
        assert_eq!(percent(f64::NAN), "–");
        assert_eq!(
            [short(0.123456789), short(-1.0), short(f64::NAN), short(1e-12)],
            [0.12346, -1.0, 0.0, 1e-12]
        );
        assert_eq!(
            (counted(1, "image"), counted(2000, "image")),
            ("one image".into(), "2,000 images".into())
        );
    }
}

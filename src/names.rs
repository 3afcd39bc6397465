//! The names of an enum's variants in flags, files and messages.
//!
//! Such an enum derives `strum`'s `Display`, `EnumString` and `VariantNames`, so that its names are written once, and
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

use strum::VariantNames;

/// "`x` is no crop mode: use auto, resized or pad".
pub fn unknown<T: VariantNames>(what: &str, name: &str) -> String {
    let choice = match T::VARIANTS {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        only => only.concat(),
    };
    format!("`{name}` is no {what}: use {choice}")
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! `--freeze`: which layers a run leaves as they are.
//!
//! One name freezes a layer or stage and all before it: the way back ends where the first trained layer begins, which is
//! what makes a frozen layer cheap. So there is no list of single layers.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use crate::names;
use crate::network::Depth;

/// The last frozen layer or stage, by the names of `--summary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames)]
#[strum(parse_err_ty = String, parse_err_fn = Freeze::unknown)]
pub enum Freeze {
    #[serde(rename = "conv_stem")]
    #[strum(serialize = "conv_stem")]
    Stem,
    #[serde(rename = "blocks.0")]
    #[strum(serialize = "blocks.0")]
    Blocks0,
    #[serde(rename = "blocks.1")]
    #[strum(serialize = "blocks.1")]
    Blocks1,
    #[serde(rename = "blocks.2")]
    #[strum(serialize = "blocks.2")]
    Blocks2,
    #[serde(rename = "blocks.3")]
    #[strum(serialize = "blocks.3")]
    Blocks3,
    #[serde(rename = "blocks.4")]
    #[strum(serialize = "blocks.4")]
    Blocks4,
    #[serde(rename = "blocks.5")]
    #[strum(serialize = "blocks.5")]
    Blocks5,
    #[serde(rename = "blocks.6")]
    #[strum(serialize = "blocks.6")]
    Blocks6,
    #[serde(rename = "conv_head")]
    #[strum(serialize = "conv_head")]
    Head,
}

impl Freeze {
    fn unknown(name: &str) -> String {
        let more = match name {
            _ if name.contains(',') => "; one name freezes all before it too, so no list is needed",
            "classifier" => "; with the classifier nothing would be trained",
            _ => "",
        };
        names::unknown::<Freeze>("layer or stage to freeze", name) + more
    }

    /// The place after it.
    pub fn first_trained(self) -> Depth {
        match self {
            Freeze::Stem => Depth::Stage(0),
            Freeze::Blocks0 => Depth::Stage(1),
            Freeze::Blocks1 => Depth::Stage(2),
            Freeze::Blocks2 => Depth::Stage(3),
            Freeze::Blocks3 => Depth::Stage(4),
            Freeze::Blocks4 => Depth::Stage(5),
            Freeze::Blocks5 => Depth::Stage(6),
            Freeze::Blocks6 => Depth::Head,
            Freeze::Head => Depth::Classifier,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Architecture, BatchNormConfig, Padding, Variant};
    use strum::VariantNames;

    #[test]
    fn names_are_those_of_the_layers_in_their_order() {
        let mut places = vec![Depth::Stem];
        for name in Freeze::VARIANTS {
            let freeze: Freeze = name.parse().unwrap();
            assert_eq!(freeze.to_string(), *name);
            assert_eq!(serde_json::to_string(&freeze).unwrap(), format!("\"{name}\""));
            places.push(freeze.first_trained());
        }
        assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
        for variant in Variant::ALL {
            let side = variant.scaling().resolution;
            let arch = Architecture::new(variant, 10, side, Padding::Symmetric, BatchNormConfig::default());
            let stages = arch.unwrap().blocks.last().unwrap().stage + 1;
            let named = Freeze::VARIANTS.iter().filter(|name| name.starts_with("blocks."));
            assert_eq!(named.count(), stages, "{variant}");
        }
    }

    #[test]
    fn other_names_are_refused_with_the_list() {
        let all = "use conv_stem, blocks.0, blocks.1, blocks.2, blocks.3, blocks.4, blocks.5, blocks.6 or conv_head";
        for (name, more) in [
            ("blocks.7", ""),
            ("blocks.4.1", ""),
            ("", ""),
            ("conv_stem,blocks.0", "; one name freezes all before it too, so no list is needed"),
            ("classifier", "; with the classifier nothing would be trained"),
        ] {
            let said = name.parse::<Freeze>().unwrap_err();
            assert_eq!(said, format!("`{name}` is no layer or stage to freeze: {all}{more}"));
        }
    }
}

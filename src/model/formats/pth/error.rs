//! Why a file is refused.

use std::fmt::Write as _;
use std::io;

/// What is wrong with a file of PyTorch. Each message is one line that follows the file's name.
#[derive(Debug, thiserror::Error)]
pub enum PthError {
    #[error("{0}")]
    Io(io::Error),
    #[error(
        "it has PyTorch's form from before version 1.6, which is not read; convert it in Python: \
        torch.save(torch.load(FILE), NEW)"
    )]
    Legacy,
    #[error(
        "it is a program of TorchScript and not weights alone; save these in Python: \
        torch.save(torch.jit.load(FILE).state_dict(), NEW)"
    )]
    TorchScript,
    #[error("it is no zip file as torch.save writes it: {0}")]
    Archive(String),
    /// The text after the second `{}` is what to do, if that is known.
    #[error("its pickle names {global}, which is not among what weights need; nothing of it was run{}",
        if *model { ". It seems to hold a whole model: torch.save(model.state_dict(), NEW) saves the weights alone" }
        else { "" })]
    Global {
        /// Module and name.
        global: String,
        /// Whether the pickle has the text that every pickled `nn.Module` has.
        model: bool,
    },
    #[error("its pickle has the instruction {name}, which torch.save does not write; nothing of it was run")]
    Instruction { name: String },
    #[error("its pickle is damaged at byte {at}: {problem}")]
    Pickle { at: usize, problem: String },
    #[error("{0}")]
    TooLarge(String),
    #[error("{tensor}: {problem}")]
    Tensor { tensor: String, problem: String },
    #[error("there are no tensors in it")]
    NoTensors,
}

/// A name out of a file as a part of a message: no control characters, and not too long.
pub fn shown(name: &str) -> String {
    const SHOWN: usize = 120;
    let mut shown = String::new();
    for (count, letter) in name.chars().enumerate() {
        if count == SHOWN {
            shown.push('…');
            break;
        }
        // Writing to a string does not fail.
        let _ = if letter.is_control() {
            write!(shown, "{}", letter.escape_default())
        } else {
            write!(shown, "{letter}")
        };
    }
    shown
}

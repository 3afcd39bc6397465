//! The progress of a pack on a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

use crate::data::pack::Progress;

/// A bar with the time left; nothing where standard error is no terminal.
pub struct PackBar(ProgressBar);

impl PackBar {
    pub fn new() -> PackBar {
        let bar = if io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} images, {eta} left");
        bar.set_style(style.expect("a template without mistakes"));
        PackBar(bar)
    }

    pub fn show(&self, progress: Progress) {
        self.0.set_message(progress.split.to_string());
        self.0.set_length(progress.total);
        self.0.set_position(progress.done);
    }
}

impl Default for PackBar {
    fn default() -> PackBar {
        PackBar::new()
    }
}

impl Drop for PackBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

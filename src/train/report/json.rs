//! A report for programs: each event is a JSON object on a line of its own, and its `event` field names the event.

use std::io::Write;

use super::events::{Event, Reporter};

pub struct Json<W>(pub W);

impl<W: Write> Reporter for Json<W> {
    fn report(&mut self, event: Event) {
        // The evaluation's own event follows.
        if matches!(event, Event::Evaluating { .. }) {
            return;
        }
        // Converted to a value first, because its objects are sorted.
        if let Ok(object) = serde_json::to_value(event) {
            let _ = writeln!(self.0, "{object}").and_then(|()| self.0.flush());
        }
    }
}

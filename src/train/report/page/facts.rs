//! What neither the log nor the checkpoint of a run keeps, because it does not change the result: the machine, the
//! program's version, what the run said. A page holds it as JSON, and a later page of the same run takes it from there.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::processors;
use crate::train::recipe::Recipe;
use crate::train::report::events::Header;

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The name of the data.
    pub data: String,
    pub train_images: u64,
    /// Each call of the program that trained the run, in order.
    pub sessions: Vec<Session>,
    /// What the recipe is compared with: its name and the recipe's fields.
    pub base: Option<Base>,
    /// Lines of the last session: what was chosen for the data, warnings.
    pub notes: Vec<String>,
    /// "finished after step 12 of 12, epoch 2.40".
    pub end: Option<String>,
    /// The command that continues the run.
    pub resume: Option<String>,
}

/// A recipe that others are compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Base {
    pub name: String,
    pub recipe: Map<String, Value>,
}

impl Base {
    pub fn new(name: &str, recipe: &Recipe) -> Base {
        Base { name: name.into(), recipe: recipe.fields() }
    }

    /// The reference recipe for the model and batch of another.
    pub fn reference(recipe: &Recipe) -> Base {
        let reference = Recipe::reference(recipe.model, recipe.batch_size);
        Base::new("the reference recipe for this model and batch", &reference)
    }
}

/// One call of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub version: String,
    pub device: String,
    /// The processor's name, where the system says it.
    pub processor: Option<String>,
    pub ranks: usize,
    pub threads: usize,
    pub loader_threads: usize,
    /// Steps before it, and at its end.
    pub first_step: u64,
    pub last_step: u64,
}

impl Session {
    pub fn of(header: &Header, last_step: u64) -> Session {
        Session {
            version: env!("CARGO_PKG_VERSION").into(),
            device: header.device.trim_start_matches("device: ").into(),
            processor: processors::name(),
            ranks: header.ranks,
            threads: header.threads,
            loader_threads: header.loader_threads,
            first_step: header.first_step,
            last_step,
        }
    }
}

impl Facts {
    /// The facts in the page at `path`; none if there is no such page.
    pub fn of_page(path: &Path) -> Option<Facts> {
        if !super::is_page(path) {
            return None;
        }
        let text = fs::read_to_string(path).ok()?;
        let (_, json) = text.rsplit_once("id=\"facts\">")?;
        serde_json::from_str(json.split("</script>").next()?).ok()
    }

    /// What still holds of a run that has a record of this step: if it went on without a page, the end is another one,
    /// and nobody knows where the last steps were taken.
    pub fn at(self, step: u64) -> Facts {
        let known = self.sessions.last().map_or(0, |session| session.last_step);
        if known >= step {
            return self;
        }
        Facts { notes: Vec::new(), end: None, resume: None, ..self }
    }

    /// Adds a session. Earlier ones end where it begins: their later steps were taken again.
    pub fn add(&mut self, session: Session) {
        let first = session.first_step;
        self.sessions.retain(|earlier| earlier.first_step < first);
        self.sessions.iter_mut().for_each(|earlier| earlier.last_step = earlier.last_step.min(first));
        self.sessions.push(session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_end_where_the_next_begins() {
        let session = |first_step, last_step| Session {
            version: "1".into(),
            device: "cpu".into(),
            processor: None,
            ranks: 1,
            threads: 2,
            loader_threads: 1,
            first_step,
            last_step,
        };
        let mut facts = Facts::default();
        for (first, last) in [(0, 10), (8, 20), (20, 25), (20, 30)] {
            facts.add(session(first, last));
        }
        let spans: Vec<_> = facts.sessions.iter().map(|s| (s.first_step, s.last_step)).collect();
        assert_eq!(spans, [(0, 8), (8, 20), (20, 30)]);
        // A run that has gone on since has another end.
        let facts = Facts { end: Some("interrupted".into()), notes: vec!["a".into()], ..facts };
        assert_eq!(facts.clone().at(30), facts);
        let later = facts.clone().at(31);
        assert_eq!((later.end, later.notes.len(), later.sessions.len()), (None, 0, 3));
        let mut facts = facts;
        // A run that begins anew has no earlier sessions.
        facts.add(session(0, 3));
        assert_eq!(facts.sessions.len(), 1);
    }
}

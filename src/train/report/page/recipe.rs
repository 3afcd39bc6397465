//! The recipe as a difference, the machine, and the commands that repeat the run.

use std::collections::BTreeSet;
use std::fmt::Write;

use indicatif::HumanCount;
use serde_json::{Map, Value};

use super::facts::{Base, Session};
use super::history::History;
use super::html::text;
use super::{Page, section};
use crate::names::{plural, quoted};
use crate::train::checkpoint::RunDirectory;
use crate::train::report::rows::small;

pub(super) fn render(page: &Page) -> String {
    let recipe = &page.metadata.recipe;
    let base = page.facts.base.clone().unwrap_or_else(|| Base::reference(recipe));
    let fields = recipe.fields();
    let mut html = format!(
        "<div class=\"beside\">\n{}<div class=\"grow\">\n{}",
        differences(&base, &fields),
        machine(page)
    );
    if !page.facts.notes.is_empty() {
        html += "<h3>What the run said</h3>\n<ul>\n";
        page.facts.notes.iter().for_each(|note| {
            let _ = writeln!(html, "<li>{}</li>", text(note));
        });
        html += "</ul>\n";
    }
    html += "</div></div>\n";
    html += &commands(page);
    let lines: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name} = {}", text(&value.to_string()))).collect();
    let _ = write!(
        html,
        "<details><summary>The whole recipe</summary>\n<pre><code>{}</code></pre></details>\n",
        lines.join("\n")
    );
    section("recipe", "Recipe", &html)
}

/// A value of a recipe as people write it.
pub(super) fn value(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "–".into(),
        Some(Value::String(word)) => text(word),
        Some(Value::Number(number)) if number.is_f64() => small(number.as_f64().unwrap_or(f64::NAN)),
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| self::value(Some(part))).collect::<Vec<_>>().join(", ")
        }
        Some(other) => text(&other.to_string()),
    }
}

fn differences(base: &Base, fields: &Map<String, Value>) -> String {
    let names: BTreeSet<&String> = fields.keys().chain(base.recipe.keys()).collect();
    let others: Vec<&String> =
        names.into_iter().filter(|name| fields.get(*name) != base.recipe.get(*name)).collect();
    let name = text(&base.name);
    if others.is_empty() {
        return format!("<p>The recipe is that of {name}, in every setting.</p>\n");
    }
    let mut html = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Settings\"><table>\
         <caption>Settings that differ from {name}</caption><thead><tr><th scope=\"col\">Setting</th>\
         <th scope=\"col\">This run</th><th scope=\"col\">There</th></tr></thead>\n<tbody>\n"
    );
    for name in others {
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\"><code>{}</code></th><td class=\"t\">{}</td><td class=\"t\">{}</td></tr>",
            text(name),
            value(fields.get(name)),
            value(base.recipe.get(name))
        );
    }
    html += "</tbody></table></div>\n";
    html
}

fn machine(page: &Page) -> String {
    let mut html = String::from("<h3>Machine</h3>\n");
    if page.facts.sessions.is_empty() {
        html += "<p>No earlier page of this run says where it was trained.</p>\n";
        return html;
    }
    let last = page.history.as_ref().map_or(0, History::last_step);
    let whole = page.facts.sessions.len() == 1 && page.facts.sessions[0].last_step >= last;
    html += "<ul>\n";
    for session in &page.facts.sessions {
        let Session { version, device, processor, ranks, threads, loader_threads, first_step, last_step } =
            session;
        let steps = match whole {
            true => String::new(),
            false => format!("Steps {} to {}: ", HumanCount(first_step + 1), HumanCount(*last_step)),
        };
        let processor = processor.as_deref().map_or(String::new(), |name| format!(", {}", text(name)));
        let each = if *ranks > 1 { format!("{ranks} ranks, each with ") } else { String::new() };
        let _ = writeln!(
            html,
            "<li>{steps}{}{processor}; {each}{threads} computing thread{} and {loader_threads} loading; effnet {}</li>",
            text(device),
            plural(*threads as u64),
            text(version)
        );
    }
    html += "</ul>\n";
    html
}

fn commands(page: &Page) -> String {
    let run = page.run();
    let mut lines = Vec::new();
    let file = RunDirectory::at(run).recipe();
    if file.exists() {
        let mut out = run.as_os_str().to_owned();
        out.push("-again");
        lines.push((
            "repeats the run, byte for byte",
            format!("effnet-train --config {} --out {}", quoted(&file), quoted(out.as_ref())),
        ));
    }
    if let Some(resume) = &page.facts.resume {
        lines.push(("goes on with it", resume.clone()));
    }
    lines.push(("evaluates this checkpoint", format!("effnet-eval {}", quoted(&page.checkpoint))));
    let mut html = String::from("<h3>Commands</h3>\n<dl class=\"commands\">\n");
    for (what, command) in lines {
        let _ = writeln!(html, "<dt>{what}</dt><dd><pre><code>{}</code></pre></dd>", text(&command));
    }
    html += "</dl>\n";
    html
}

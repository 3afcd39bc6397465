//! The accuracy of each class, and which classes are taken for which.

use std::collections::BTreeMap;
use std::fmt::Write;

use indicatif::HumanCount;

use super::html::{counted, share, text};
use super::shown::Shown;
use super::{Page, section};
use crate::train::details::{ClassCounts, Details};

/// The most classes of a matrix that one can still read.
const MATRIX: usize = 30;
/// Pairs in the list beside a matrix, and without one.
const FEW_PAIRS: usize = 10;
const MANY_PAIRS: usize = 40;
/// Among more classes than these one can search.
const FINDABLE: usize = 12;
/// More rows than these are not printed; page.css counts them too.
const PRINTED: usize = 60;

pub(super) fn render(page: &Page, shown: &Shown) -> String {
    let classes: Vec<String> = page.metadata.classes.iter().map(|class| text(class)).collect();
    let details = &shown.details;
    let mut html = format!("<p>{}.</p>\n", text(&shown.words()));
    if details.without_prediction > 0 {
        let images = counted(details.without_prediction, "image");
        let _ = writeln!(html, "<p class=\"warning\">The network's output for {images} is not a number.</p>");
    }
    html += &table(&classes, page, details);
    let mut confusion = String::new();
    if classes.len() <= MATRIX {
        confusion += &matrix(&classes, details);
    }
    confusion = format!("<div class=\"beside\">\n{confusion}{}</div>\n", pairs(&classes, details));
    section("classes", "Classes", &html) + &section("confusion", "What is taken for what", &confusion)
}

/// Accuracy as a number that sorts classes without images to the end.
fn order(counts: &ClassCounts) -> f64 {
    if counts.images == 0 { 2.0 } else { counts.correct as f64 / counts.images as f64 }
}

/// For each label, the class that it is most often taken for.
fn worst(details: &Details) -> BTreeMap<u32, (u32, u64)> {
    let mut worst = BTreeMap::new();
    for (&(label, predicted), &images) in &details.confused {
        let entry = worst.entry(label).or_insert((predicted, images));
        if images > entry.1 {
            *entry = (predicted, images);
        }
    }
    worst
}

fn table(classes: &[String], page: &Page, details: &Details) -> String {
    let mut numbers: Vec<usize> = (0..classes.len()).collect();
    numbers.sort_by(|&a, &b| order(&details.classes[a]).total_cmp(&order(&details.classes[b])));
    let training = Some(&page.training_images).filter(|images| !images.is_empty());
    let column = |name: &str, class: &str, sorted: &str| {
        format!("<th scope=\"col\"{class}{sorted}><button type=\"button\">{name}</button></th>")
    };
    let n = " class=\"n\"";
    let many = classes.len() > PRINTED;
    let mut html = String::new();
    if classes.len() > FINDABLE {
        html += "<p class=\"tools\" hidden><label>Find a class <input type=\"search\" id=\"find\" \
                 autocomplete=\"off\"></label></p>\n";
    }
    let _ = write!(
        html,
        "<div class=\"scroll tall{}\" tabindex=\"0\" role=\"region\" aria-label=\"Accuracy of each class\">\
         <table class=\"sortable\"><caption>Accuracy of each class, the worst first. A heading sorts by its \
         column.</caption><thead><tr>{}{}{}{}{}{}{}</tr></thead>\n<tbody>\n",
        if many { " many" } else { "" },
        column("Class", "", ""),
        column("Accuracy", n, " aria-sort=\"ascending\""),
        column("Images", n, ""),
        column("Correct", n, ""),
        column("Precision", n, ""),
        column("Most often taken for", "", ""),
        training.map_or(String::new(), |_| column("Training images", n, ""))
    );
    let worst = worst(details);
    for number in numbers {
        html += &row(number, classes, details, worst.get(&(number as u32)), training);
    }
    html += "</tbody></table></div>\n";
    if many {
        let _ = writeln!(html, "<p class=\"print\">Printed are the first {PRINTED} rows.</p>");
    }
    html
}

/// The row of a class; `worst` is what it is most often taken for, and how often.
fn row(
    number: usize,
    classes: &[String],
    details: &Details,
    worst: Option<&(u32, u64)>,
    training: Option<&Vec<u64>>,
) -> String {
    let ClassCounts { images, correct, predicted } = details.classes[number];
    let bar = if images == 0 { 0.0 } else { correct as f64 / images as f64 * 100.0 };
    let taken = worst.map_or("–".into(), |&(other, times)| {
        let (other, part) = (&classes[other as usize], share(times, images));
        format!("{other} <small>{}×, {part}</small>", HumanCount(times))
    });
    let training =
        training.map_or(String::new(), |counts| format!("<td>{}</td>", HumanCount(counts[number])));
    format!(
        "<tr><th scope=\"row\">{}</th><td class=\"bar\" style=\"--w:{bar:.1}%\">{}</td><td>{}</td><td>{}</td>\
         <td>{}</td><td class=\"t\">{taken}</td>{training}</tr>\n",
        classes[number],
        share(correct, images),
        HumanCount(images),
        HumanCount(correct),
        share(correct, predicted)
    )
}

fn matrix(classes: &[String], details: &Details) -> String {
    let mut html = String::from(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Confusion matrix\"><table class=\"matrix\">\
         <caption>Confusion matrix: images of the class at the left that were taken for the class at the top. The \
         colour is the share of the row.</caption>\n<thead><tr><td></td>",
    );
    for class in classes {
        let _ = write!(html, "<th scope=\"col\"><span>{class}</span></th>");
    }
    html += "</tr></thead>\n<tbody>\n";
    for (label, counts) in details.classes.iter().enumerate() {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", classes[label]);
        for other in 0..classes.len() {
            let times = match other == label {
                true => counts.correct,
                false => details.confused.get(&(label as u32, other as u32)).copied().unwrap_or(0),
            };
            if times == 0 {
                html +=
                    if counts.images == 0 { "<td class=\"no\">–</td>" } else { "<td class=\"no\">·</td>" };
                continue;
            }
            let part = times as f64 / counts.images as f64;
            let class = if other == label { "right" } else { "wrong" };
            // Small shares of mistakes should be seen too.
            let depth = if other == label { part } else { part.sqrt() } * 100.0;
            // Where the ink must change, on a light ground and on a dark one.
            let deep = match depth {
                82.0.. => " mid deep",
                50.0.. => " mid",
                _ => "",
            };
            let _ = write!(
                html,
                "<td class=\"{class}{deep}\" style=\"--w:{depth:.0}%\">{}</td>",
                HumanCount(times)
            );
        }
        html += "</tr>\n";
    }
    html += "</tbody></table></div>\n";
    html
}

fn pairs(classes: &[String], details: &Details) -> String {
    let most = if classes.len() <= MATRIX { FEW_PAIRS } else { MANY_PAIRS };
    let pairs = details.worst_pairs(most);
    if pairs.is_empty() {
        return "<p class=\"none\">No class was taken for another one.</p>\n".into();
    }
    let all = details.confused.len() as u64;
    let caption = if all > pairs.len() as u64 {
        format!("The most frequent mistakes, of {}", counted(all, "pair"))
    } else {
        "All mistakes".into()
    };
    let mut html = format!(
        "<div class=\"scroll tall\" tabindex=\"0\" role=\"region\" aria-label=\"The most frequent mistakes\"><table>\
         <caption>{caption}</caption><thead><tr><th scope=\"col\">Class</th><th scope=\"col\">Taken for</th>\
         <th scope=\"col\" class=\"n\">Images</th><th scope=\"col\" class=\"n\">Of the class</th></tr></thead>\n\
         <tbody>\n"
    );
    for (label, predicted, images) in pairs {
        let whole = details.classes[label as usize].images;
        let part = images as f64 / whole.max(1) as f64 * 100.0;
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\">{}</th><td class=\"t\">{}</td><td>{}</td>\
             <td class=\"bar wrong\" style=\"--w:{part:.1}%\">{}</td></tr>",
            classes[label as usize],
            classes[predicted as usize],
            HumanCount(images),
            share(images, whole)
        );
    }
    html += "</tbody></table></div>\n";
    html
}

//! The table: medians, spread, ratios.

use std::fmt::Write as _;

use cairn_lab::workloads::Measure;

use crate::Results;

fn median(figures: &[Measure]) -> Option<f64> {
    let mut values: Vec<f64> = figures.iter().map(|m| m.value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn cell(figures: Option<&Vec<Measure>>) -> String {
    let Some(figures) = figures else {
        return "–".to_owned();
    };
    let Some(median) = median(figures) else {
        return "–".to_owned();
    };
    let low = figures
        .iter()
        .map(|m| m.value)
        .fold(f64::INFINITY, f64::min);
    let high = figures.iter().map(|m| m.value).fold(0.0, f64::max);
    let text = |value: f64| {
        if value >= 100.0 {
            format!("{value:.0}")
        } else {
            format!("{value:.2}")
        }
    };
    format!("{} ({}–{})", text(median), text(low), text(high))
}

/// How many times better: of rates the quotient, of durations its inverse.
fn ratio(ours: Option<&Vec<Measure>>, theirs: Option<&Vec<Measure>>) -> String {
    let value = (|| {
        let (ours, theirs) = (ours?, theirs?);
        let seconds = ours.first()?.unit == "s";
        let (a, b) = (median(ours)?, median(theirs)?);
        Some(if seconds { b / a } else { a / b })
    })();
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
}

/// The whole table in Markdown.
pub(crate) fn markdown(results: &Results) -> String {
    let names = ["local", "fuse", "gluster", "gluster-tuned", "cairn"];
    let mut out = String::from("| workload | unit |");
    for name in names {
        let _ = write!(out, " {name} |");
    }
    out.push_str(" cairn / fuse | cairn / gluster-tuned |\n|");
    out.push_str(&" --- |".repeat(names.len() + 4));
    out.push('\n');
    let any = results.figures.values().next();
    let order: Vec<String> = workloads_in_order(any.map(|m| m.keys().cloned().collect()));
    for workload in order {
        let of = |target: &str| results.figures.get(target).and_then(|m| m.get(&workload));
        let unit = names
            .iter()
            .find_map(|n| of(n)?.first())
            .map_or("", |m| m.unit.as_str());
        let _ = write!(out, "| {workload} | {unit} |");
        for name in names {
            let _ = write!(out, " {} |", cell(of(name)));
        }
        let (ours, fuse, gluster) = (of("cairn"), of("fuse"), of("gluster-tuned"));
        let _ = writeln!(out, " {} | {} |", ratio(ours, fuse), ratio(ours, gluster));
    }
    out
}

fn workloads_in_order(names: Option<Vec<String>>) -> Vec<String> {
    let order = [
        "seq_write_1m",
        "seq_read_1m_cold",
        "rand_write_4k_fdatasync",
        "rand_write_4k_direct_16_one_file",
        "rand_write_4k_direct_16_files",
        "rand_read_4k_direct_16",
        "create_4k",
        "create_4k_fsync",
        "stat_cold",
        "stat_warm",
        "ls_lr_cold",
        "read_4k_cold",
        "rename",
        "unlink",
        "tar_xf",
        "git_clone",
    ];
    let mut names = names.unwrap_or_default();
    names.sort_by_key(|name| order.iter().position(|o| o == name).unwrap_or(order.len()));
    names
}

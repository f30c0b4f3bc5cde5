//! Reports as one self-contained page.

use std::fmt;

use super::escape::Escaped;
use super::{RunReport, chart, from_fault_s, run_text};
use crate::verdict::{PromiseVerdict, Row};
use crate::workload::Kind;

/// Runs of one drill that are drawn: the worst.
const DRAWN: usize = 3;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --c0: #2563eb; --c1: #d97706; --c2: #059669; --c3: #9333ea; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1040px; padding: 0 1rem; }
h1, h2, h4 { line-height: 1.2; } h4 { margin: 1rem 0 .2rem; font-weight: 600; font-size: 13px; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11px; fill: currentColor; opacity: .7; }
.left { text-anchor: end; } .below { text-anchor: middle; }
.grid { stroke: var(--line); fill: none; }
.mark { stroke-width: 1.5; fill: none; } .fault { stroke: #dc2626; } .heal { stroke: #16a34a; }
.phase { stroke: #888; stroke-dasharray: 3 3; }
.dots { stroke-width: 3; stroke-linecap: round; fill: none; opacity: .55; }
.line { stroke-width: 1.5; fill: none; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.key { display: inline-block; width: .7em; height: .7em; margin: 0 .3em 0 1em; border-radius: 50%; }
.k0 { background: var(--c0); } .k1 { background: var(--c1); } .k2 { background: var(--c2); }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 14px; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left; vertical-align: top; }
pre { overflow-x: auto; font-size: 12px; background: #8881; padding: .7rem; }
.met { color: #16a34a; } .missed { color: #dc2626; font-weight: 600; }
";

/// A page of runs, with the promises that they were compared with, if any.
pub fn html_page(title: &str, rows: &[Row], runs: &[RunReport]) -> String {
    Page { title, rows, runs }.to_string()
}

struct Page<'a> {
    title: &'a str,
    rows: &'a [Row],
    runs: &'a [RunReport],
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_page(f, self.title, self.rows, self.runs)
    }
}

fn write_page(
    out: &mut fmt::Formatter<'_>,
    title: &str,
    rows: &[Row],
    runs: &[RunReport],
) -> fmt::Result {
    let title = Escaped(title);
    writeln!(out, "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">")?;
    writeln!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>"
    )?;
    writeln!(out, "<style>{STYLE}</style>\n<body>\n<h1>{title}</h1>")?;
    if !rows.is_empty() {
        write_rows(out, rows)?;
    }
    let mut names: Vec<&str> = Vec::new();
    for run in runs {
        if !names.contains(&run.drill.as_str()) {
            names.push(&run.drill);
        }
    }
    for name in names {
        let of_drill: Vec<&RunReport> = runs.iter().filter(|run| run.drill == name).collect();
        write_drill(out, &of_drill)?;
    }
    writeln!(out, "</body>\n</html>")
}

fn write_rows(out: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    writeln!(
        out,
        "<table>\n<tr><th>promise</th><th>stated</th><th>aim</th><th>measured</th></tr>"
    )?;
    for row in rows {
        write!(out, "<tr><td>{}</td>", Escaped(row.promise))?;
        for column in [&row.stated, &row.aim] {
            let (class, word) = match column.verdict {
                PromiseVerdict::Met => ("met", "met"),
                PromiseVerdict::Missed => ("missed", "missed"),
                PromiseVerdict::NotStated => ("", ""),
                PromiseVerdict::NotMeasured => ("", "not measured"),
            };
            write!(
                out,
                "<td>{}<br><span class=\"{class}\">{word}</span></td>",
                Escaped(column.text)
            )?;
        }
        writeln!(out, "<td>{}</td></tr>", Escaped(&row.measured))?;
    }
    writeln!(out, "</table>")
}

fn write_drill(out: &mut fmt::Formatter<'_>, runs: &[&RunReport]) -> fmt::Result {
    let Some(first) = runs.first() else { return Ok(()) };
    writeln!(out, "<section>\n<h2>{}: {}</h2>", Escaped(&first.drill), Escaped(&first.title))?;
    writeln!(out, "<p>{}</p>", Escaped(&first.about))?;
    if runs.len() > 1 {
        let all: Vec<RunReport> = runs.iter().map(|run| (*run).clone()).collect();
        writeln!(out, "<pre>{}</pre>", Escaped(&super::runs_text(&all)))?;
    }
    let mut drawn = runs.to_vec();
    drawn.sort_by(|a, b| b.strong_rto_ms().total_cmp(&a.strong_rto_ms()));
    drawn.truncate(DRAWN);
    for run in drawn {
        write_run(out, run)?;
    }
    writeln!(out, "</section>")
}

fn write_run(out: &mut fmt::Formatter<'_>, run: &RunReport) -> fmt::Result {
    writeln!(out, "<h3>run {}</h3>", run.run)?;
    writeln!(out, "<table>\n<tr><th>seconds from the fault</th><th>what happened</th></tr>")?;
    for mark in &run.marks {
        let at_s = from_fault_s(run, mark.at_ms);
        writeln!(out, "<tr><td>{at_s:+.3}</td><td>{}</td></tr>", Escaped(&mark.text))?;
    }
    writeln!(out, "</table>\n<p>")?;
    for region in 0..run.topology.len() {
        writeln!(out, "<span class=\"key k{region}\"></span>region-{}", region + 1)?;
    }
    writeln!(out, "</p>")?;
    for kind in Kind::ALL {
        chart::latency(out, run, kind)?;
    }
    write!(out, "<p>")?;
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        writeln!(out, "<span class=\"key k{number}\"></span>{kind}")?;
    }
    writeln!(out, "</p>")?;
    chart::throughput(out, run, &run.answers)?;
    chart::lag(out, run)?;
    writeln!(out, "<pre>{}</pre>", Escaped(&run_text(run)))
}

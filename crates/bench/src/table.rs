//! The results of a run as a Markdown table.

use std::fmt::Write;

use crate::report::{CellReport, Report};

pub fn render(report: &Report) -> String {
    let mut text = String::from(
        "| operation | http | connections | operations | ops/s | errors | p50 ms | p99 ms | max ms | conflicts | unsent |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for cell in &report.cells {
        text.push_str(&row(cell));
    }
    for cell in &report.cells {
        if let Some(error) = &cell.first_error {
            text.push_str(&first_error(cell, error));
        }
    }
    if report.interrupted {
        text.push_str("\nInterrupted: this is what was measured until then.\n");
    }
    text
}

fn row(cell: &CellReport) -> String {
    format!(
        "| {} | {} | {} | {} | {:.1} | {} | {:.3} | {:.3} | {:.3} | {} | {} |\n",
        cell.operation.name(),
        cell.http.name(),
        cell.connections,
        cell.operations,
        cell.throughput_ops_per_s,
        cell.errors,
        cell.p50_ms,
        cell.p99_ms,
        cell.max_ms,
        cell.conflicts,
        cell.unsent,
    )
}

fn first_error(cell: &CellReport, error: &str) -> String {
    let mut line = format!("\nFirst error of {} {} {}: ", cell.operation.name(), cell.http.name(), cell.connections);
    for (index, part) in error.lines().enumerate() {
        // Writing to a string cannot fail.
        write!(line, "{}{part}", if index == 0 { "" } else { " " }).ok();
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn renders_markdown() {
        assert_eq!(
            render(&example()),
            "| operation | http | connections | operations | ops/s | errors | p50 ms | p99 ms | max ms | conflicts | unsent |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n\
             | write | h1 | 16 | 61172 | 12234.4 | 0 | 1.247 | 3.500 | 20.031 | 0 | 0 |\n\
             | strong-read | h2 | 16 | 61172 | 12234.4 | 3 | 1.247 | 3.500 | 20.031 | 5 | 7 |\n\
             \n\
             First error of strong-read h2 16: status 503: no leader | yet\n\
             \n\
             Interrupted: this is what was measured until then.\n"
        );
    }
}

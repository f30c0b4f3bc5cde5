//! The results of a run as a Markdown table.

use std::fmt::Write;

use crate::report::{CellReport, Report};

pub fn render(report: &Report) -> String {
    let mut text = String::from(
        "| operation | http | connections | operations | ops/s | errors | p50 ms | p99 ms | max ms | conflicts | unsent |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let rows = report.cells.iter().map(row);
    if report.cells.iter().any(|cell| cell.cpu_us_per_operation.is_some()) {
        text = text.replacen(" unsent |\n", " unsent | CPU us/op |\n", 1).trim_end().to_owned()
            + "---:|\n";
        for (row, cell) in rows.zip(&report.cells) {
            let cpu =
                cell.cpu_us_per_operation.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}"));
            text.push_str(&format!("{} {cpu} |\n", row.trim_end()));
        }
    } else {
        text.extend(rows);
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
    let mut line = format!(
        "\nFirst error of {} {} {}: ",
        cell.operation.name(),
        cell.http.name(),
        cell.connections
    );
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
    fn cpu_time_is_one_more_column_where_it_was_asked_for() {
        let mut report = example();
        report.cells[0].cpu_us_per_operation = Some(12.34);
        let table = render(&report);
        let lines: Vec<&str> = table.lines().take(4).collect();
        assert!(
            lines[0].ends_with("| unsent | CPU us/op |") && lines[1].ends_with("|---:|---:|"),
            "{table}"
        );
        assert!(lines[2].ends_with("| 0 | 12.3 |") && lines[3].ends_with("| 7 | - |"), "{table}");
        let columns = |line: &str| line.matches('|').count();
        assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{table}");
    }

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

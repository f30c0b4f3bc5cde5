//! The tables of a document.

/// The cells of each row of the first table below a heading (`## Limits`), without those of its
/// head. A cell in backticks is what lies between them.
pub fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let lines = document.lines().skip_while(|line| *line != heading);
    let lines = lines.skip_while(|line| !line.starts_with('|'));
    let rows = lines.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(cell).collect()).collect()
}

fn cell(text: &str) -> String {
    let text = text.trim();
    let inside = |fence: &str| text.strip_prefix(fence)?.strip_suffix(fence);
    inside("``").or_else(|| inside("`")).unwrap_or(text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_a_heading_is_read_without_its_head_and_its_backticks() {
        let document = "## One\n| a |\n|---|\n| no |\n## Two\n\ntext\n\n| a | b |\n|---|---|\n\
                        | case 1 | `x y` |\n| case 2 | `` the `field` `` |\n\n| c |\n|---|\n| no |\n";
        let rows = [["case 1", "x y"], ["case 2", "the `field`"]];
        assert_eq!(table(document, "## Two"), rows);
        assert!(table(document, "## Three").is_empty());
    }
}

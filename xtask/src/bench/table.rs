//! The result: tables, remarks, and the bounds that were met or missed, as Markdown.

use std::fmt::Write;

/// One table with its heading and remarks.
#[derive(Debug, Default)]
pub struct Section {
    /// Heading.
    pub title: String,
    /// What was measured, in a sentence or two.
    pub about: String,
    /// Column headings.
    pub columns: Vec<String>,
    /// Cells, one vector per row.
    pub rows: Vec<Vec<String>>,
    /// What the reader must know besides.
    pub remarks: Vec<String>,
    /// The promises this section checks.
    pub bounds: Vec<Bound>,
}

/// A promised limit and what was measured.
#[derive(Debug, Clone)]
pub struct Bound {
    /// What is limited.
    pub name: String,
    /// The promise.
    pub limit: f64,
    /// The measured value.
    pub measured: f64,
    /// Unit after both numbers; may be empty.
    pub unit: &'static str,
    /// Whether the limit is the least that is good enough (throughput) and not the most.
    pub at_least: bool,
}

impl Bound {
    /// Whether the promise is kept.
    pub fn met(&self) -> bool {
        if self.at_least { self.measured >= self.limit } else { self.measured <= self.limit }
    }

    fn row(&self) -> Vec<String> {
        let direction = if self.at_least { "at least" } else { "at most" };
        vec![
            self.name.clone(),
            format!("{direction} {}{}", self.limit, self.unit),
            format!("{:.2}{}", self.measured, self.unit),
            if self.met() { "met".to_owned() } else { "**missed**".to_owned() },
        ]
    }
}

/// The whole document.
#[derive(Debug)]
pub struct Document {
    /// Heading.
    pub title: &'static str,
    /// How it came about.
    pub about: &'static str,
    /// Where it was measured, in lines.
    pub machine: Vec<String>,
    /// What the reader must know besides.
    pub remarks: Vec<String>,
    /// Its tables.
    pub sections: Vec<Section>,
}

impl Document {
    /// As Markdown, the promises first.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n\n", self.title, self.about);
        for line in self.machine.iter().chain(&self.remarks) {
            let _ = writeln!(text, "- {line}");
        }
        let bounds: Vec<Vec<String>> = self.sections.iter().flat_map(|s| &s.bounds).map(Bound::row).collect();
        if !bounds.is_empty() {
            text.push_str("\n## Promises\n\n");
            table(&mut text, &["what", "promise", "measured", ""].map(str::to_owned), &bounds);
        }
        for section in &self.sections {
            section.write(&mut text);
        }
        text
    }
}

impl Section {
    fn write(&self, text: &mut String) {
        let _ = write!(text, "\n## {}\n\n{}\n\n", self.title, self.about);
        table(text, &self.columns, &self.rows);
        if !self.remarks.is_empty() {
            text.push('\n');
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "- {remark}");
        }
    }
}

/// A Markdown table whose columns line up as plain text, too.
fn table(text: &mut String, columns: &[String], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.chain(columns.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut line = |cells: &[String]| {
        for (column, width) in widths.iter().enumerate() {
            let cell = cells.get(column).map_or("", String::as_str);
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
    };
    line(columns);
    line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
    for row in rows {
        line(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_says_whether_it_was_met_in_its_own_direction() {
        let most = Bound { name: "ratio".into(), limit: 0.15, measured: 0.2, unit: "", at_least: false };
        let least = Bound { at_least: true, ..most.clone() };
        assert!(!most.met() && least.met());
        assert_eq!(most.row(), ["ratio", "at most 0.15", "0.20", "**missed**"]);
    }

    #[test]
    fn every_row_of_a_table_has_every_column() {
        let mut text = String::new();
        table(&mut text, &["a".to_owned(), "long heading".to_owned()], &[vec!["value".to_owned()]]);
        assert_eq!(text, "| a     | long heading |\n| ----- | ------------ |\n| value |              |\n");
    }
}

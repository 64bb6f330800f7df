//! What goes to stdout: tables for people, JSON for programs.
//!
//! A listing is declared once, as columns over a row type; `-o wide` shows all of them, `-o table` those
//! that fit a terminal, `-o json` the row type's own fields.

use std::io::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// Version of every JSON document.
pub const SCHEMA: u32 = 1;

/// Form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum Form {
    /// Columns that fit a terminal
    #[default]
    Table,
    /// All columns
    Wide,
    /// JSON with raw numbers, for programs
    Json,
}

/// A column of a listing.
pub struct Column<T> {
    title: &'static str,
    wide_only: bool,
    number: bool,
    cell: fn(&T) -> String,
}

impl<T> Column<T> {
    /// A column of text.
    pub const fn text(title: &'static str, cell: fn(&T) -> String) -> Column<T> {
        Column { title, wide_only: false, number: false, cell }
    }

    /// A column of numbers, aligned to the right.
    pub const fn number(title: &'static str, cell: fn(&T) -> String) -> Column<T> {
        Column { title, wide_only: false, number: true, cell }
    }

    /// Shown only in the wide form.
    pub const fn wide(mut self) -> Column<T> {
        self.wide_only = true;
        self
    }
}

/// Prints a listing. `key` is the name of the rows in JSON.
pub fn list<T: Serialize>(
    form: Form,
    key: &'static str,
    rows: &[T],
    columns: &[Column<T>],
) -> Result<(), Failure> {
    match form {
        Form::Json => json(key, &rows),
        Form::Table | Form::Wide => print(&table(form, rows, columns)),
    }
}

/// Prints one JSON document: the schema's version and `value` under `key`.
pub fn json(key: &'static str, value: &impl Serialize) -> Result<(), Failure> {
    let document = serde_json::json!({ "schema": SCHEMA, key: value });
    print(&format!("{document:#}\n"))
}

/// Like [`json`], with a second value under a key of its own.
pub fn json_with(
    (key, value): (&'static str, &impl Serialize),
    (other_key, other): (&'static str, &impl Serialize),
) -> Result<(), Failure> {
    let document = serde_json::json!({ "schema": SCHEMA, key: value, other_key: other });
    print(&format!("{document:#}\n"))
}

/// Prints text as it is.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn table<T>(form: Form, rows: &[T], columns: &[Column<T>]) -> String {
    let shown: Vec<&Column<T>> =
        columns.iter().filter(|column| form == Form::Wide || !column.wide_only).collect();
    let mut table = Table::new();
    // No line is ever broken: whoever reads columns with a script sees one row per line.
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(shown.iter().map(|column| column.title));
    for row in rows {
        table.add_row(shown.iter().map(|column| (column.cell)(row)));
    }
    for (at, column) in shown.iter().enumerate() {
        if let (true, Some(cells)) = (column.number, table.column_mut(at)) {
            cells.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        // The preset pads every cell by one; nothing is wanted at the edges.
        text.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
        text.push('\n');
    }
    text
}

/// `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// `3d 4h`, `5m 12s`, `830ms`: the two greatest units.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m {}s", seconds % 60),
        3_600..86_400 => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Like [`age`]; `-` for none.
pub fn age_or_dash(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), age)
}

/// Milliseconds since 1970.
pub fn epoch_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, milliseconds)
}

/// `2026-01-31T12:00:05.250Z` of milliseconds since 1970; `-` before then.
pub fn utc(ms: i64) -> String {
    let Ok(ms) = u64::try_from(ms) else { return "-".to_owned() };
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last one.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, fraction) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:03}Z")
}

/// Text for a terminal: on one line, without control characters, so many characters at most.
pub fn line(text: &str, characters: usize) -> String {
    let escaped = |character: char| {
        let (plain, escape) = match character.is_control() {
            true => (None, Some(character.escape_default())),
            false => (Some(character), None),
        };
        plain.into_iter().chain(escape.into_iter().flatten())
    };
    let mut shown: String = text.chars().take(characters).flat_map(escaped).collect();
    if text.chars().nth(characters).is_some() {
        shown.push('…');
    }
    shown
}

/// Whole milliseconds.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Row {
        name: &'static str,
        size_bytes: u64,
    }

    const COLUMNS: &[Column<Row>] = &[
        Column::text("NAME", |row: &Row| row.name.to_owned()),
        Column::number("SIZE", |row: &Row| bytes(row.size_bytes)),
        Column::number("BYTES", |row: &Row| row.size_bytes.to_string()).wide(),
    ];

    #[test]
    fn wide_shows_more_than_table_and_neither_frames() {
        let rows = [Row { name: "a", size_bytes: 5 }, Row { name: "long", size_bytes: 3 << 20 }];
        let narrow = table(Form::Table, &rows, COLUMNS);
        assert_eq!(narrow, "NAME     SIZE\na         5 B\nlong  3.0 MiB\n");
        assert!(table(Form::Wide, &rows, COLUMNS).contains("3145728"));
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(age(Duration::from_millis(830)), "830ms");
        assert_eq!(age(Duration::from_secs(312)), "5m 12s");
        assert_eq!(utc(1_769_860_805_250), "2026-01-31T12:00:05.250Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!((utc(0).as_str(), utc(-1).as_str()), ("1970-01-01T00:00:00.000Z", "-"));
        utc(i64::MAX);
        assert_eq!(age(Duration::from_secs(3 * 86_400 + 4 * 3_600)), "3d 4h");
    }
}

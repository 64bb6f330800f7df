//! `compare`: result B held against result A; exit code 1 for a regression, 2 where they are not comparable.

use super::Usage;
use crate::args::Compare as Args;
use crate::compare::{Comparison, Judgement, Side};
use crate::html;
use crate::outcome::PAGE_FILE;
use crate::report::write_json;

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let (before, after) = (Side::read(&args.before)?, Side::read(&args.after)?);
    let mut against = before.differences(&after);
    against.extend(before.unfit());
    against.extend(after.unfit());
    if !against.is_empty() && !args.force {
        let list: String = against.iter().map(|reason| format!("\n  {reason}")).collect();
        let text = format!("these results cannot be compared (--force does it anyway):{list}");
        return Err(Usage(text).into());
    }
    let comparison = Comparison::of(&before, &after, args.tolerance);
    if comparison.rows.is_empty() {
        return Err(Usage("the results have no figure in common".to_owned()).into());
    }
    let list = |names: &[String]| names.join(", ");
    println!("A  {}\nB  {}\n", list(&comparison.before), list(&comparison.after));
    println!("{}", comparison.table());
    println!("resampled: {}; tolerance {:.1} %", comparison.resampled, args.tolerance * 100.0);
    for reason in &against {
        println!("forced though they differ: {reason}");
    }
    for remark in &comparison.remarks {
        println!("note: {remark}");
    }
    let worse: Vec<&str> = comparison
        .rows
        .iter()
        .filter(|row| row.judgement == Judgement::Regression)
        .map(|row| row.figure.as_str())
        .collect();
    match worse.is_empty() {
        true => println!("no regression"),
        false => println!("regression: {}", worse.join(", ")),
    }
    if let Some(directory) = &args.out {
        write_json(directory, "compare.json", &comparison)?;
        std::fs::write(
            directory.join(PAGE_FILE),
            html::compare_page(&comparison, &before, &after)?,
        )?;
        eprintln!("wrote {}", directory.join(PAGE_FILE).display());
    }
    Ok(u8::from(comparison.regression))
}

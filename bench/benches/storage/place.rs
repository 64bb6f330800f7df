//! Where a benchmark measures, and where its result goes.

use anyhow::Context as _;
use clap::Args;
use std::path::PathBuf;

/// Where, and where to.
#[derive(Debug, Args)]
pub struct Place {
    /// Folder on the disk to measure; a temporary one is made in it
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,
    /// Folder for the result as JSON
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl Place {
    /// A folder of its own, gone when it is dropped.
    pub fn folder(&self) -> anyhow::Result<tempfile::TempDir> {
        let made = tempfile::Builder::new().prefix("ringmq-bench-").tempdir_in(&self.dir);
        made.with_context(|| format!("making a folder in {}", self.dir.display()))
    }
}

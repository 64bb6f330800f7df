//! `limits`: raw disk and loopback.

use crate::args::Limits;

#[cfg(target_os = "linux")]
pub(super) fn run(args: &Limits) -> anyhow::Result<()> {
    use serde::Serialize;

    use crate::environment::Environment;
    use crate::report::{SCHEMA, figures_table, write_json};

    #[derive(Serialize)]
    struct Document {
        schema: u32,
        environment: Environment,
        #[serde(flatten)]
        limits: crate::limits::Limits,
    }

    let limits = crate::limits::measure(&args.dir, args.duration)?;
    let environment = Environment::read(&args.dir);
    println!("{}\n", environment.summary());
    let rows = [
        ("durable write, 4 KiB", &limits.durable_write_4kib),
        ("loopback, 256 B, two CPUs", &limits.loopback_round_trip_256b_two_cpus),
        ("loopback, 256 B, one CPU", &limits.loopback_round_trip_256b_one_cpu),
    ];
    println!("{}", figures_table(&rows));
    println!(
        "sequential write, 1 MiB x 4   {:.2} GB/s\nloopback, one stream          {:.2} GB/s",
        limits.sequential_write_1mib_qd4_bytes_per_second / 1e9,
        limits.loopback_one_stream_bytes_per_second / 1e9
    );
    if let Some(directory) = &args.out {
        write_json(directory, "limits.json", &Document { schema: SCHEMA, environment, limits })?;
        eprintln!("wrote {}", directory.join("limits.json").display());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn run(_: &Limits) -> anyhow::Result<()> {
    anyhow::bail!("the raw disk is measured through io_uring, which only Linux has")
}

//! `limits`: raw disk and loopback.

use crate::args::Limits;

#[cfg(target_os = "linux")]
pub(super) fn run(args: &Limits) -> anyhow::Result<()> {
    use crate::environment::Environment;
    use crate::limits::kept::{self, Document};
    use crate::report::figures_table;

    let limits = crate::limits::measure(&args.dir, args.duration)?;
    let environment = Environment::read(&args.dir);
    println!("{}\n", environment.summary());
    let rows = [
        ("durable write, 4 KiB", &limits.durable_write_4kib),
        ("loopback, 256 B, two CPUs", &limits.loopback_round_trip_256b_two_cpus),
        ("loopback, 256 B, one CPU", &limits.loopback_round_trip_256b_one_cpu),
    ];
    println!("{}", figures_table(&rows));
    let rates = [
        ("sequential write, 1 MiB x 4", Some(limits.sequential_write_1mib_qd4_bytes_per_second)),
        ("loopback, one stream", Some(limits.loopback_one_stream_bytes_per_second)),
        ("sendfile of a cold file", limits.sendfile_cold_bytes_per_second),
    ];
    for (name, rate) in rates {
        match rate {
            Some(rate) => println!("{name:<30}{:.2} GB/s", rate / 1e9),
            None => println!("{name:<30}refused here"),
        }
    }
    let document = Document::new(environment, limits);
    if let Some(directory) = &args.out {
        kept::keep(&document, &[directory])?;
        eprintln!("wrote {}", directory.join(kept::FILE).display());
    }
    // Later runs on this host are held against it; where there is no place for it, they say so.
    if let Some(cache) = kept::cache_directory()
        && let Err(error) = kept::keep(&document, &[&cache])
    {
        eprintln!("not kept for later runs: {error:#}");
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn run(_: &Limits) -> anyhow::Result<()> {
    anyhow::bail!("the raw disk is measured through io_uring, which only Linux has")
}

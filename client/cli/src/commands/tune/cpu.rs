//! CPUs: clock, clock source, and who interrupts the broker's cores.

use std::collections::BTreeMap;

use super::Finding;
use super::host::Host;
use crate::values::Cpus;

/// Interrupts since boot from which on somebody is worth moving.
const INTERRUPTS_MIN: u64 = 10_000;
/// So many are named.
const NAMED_MAX: usize = 4;

pub(super) fn checks(host: &Host, broker: Option<&Cpus>) -> Vec<Finding> {
    vec![governor(host), clock_source(host), interrupts(host, broker)]
}

fn governor(host: &Host) -> Finding {
    let finding = Finding::new(
        "CPU governor",
        "a core that clocks down when it is idle takes long to answer the next message",
    );
    let cpus = host.names("sys/devices/system/cpu");
    let is_cpu =
        |name: &&String| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
    let mut governors: BTreeMap<String, usize> = BTreeMap::new();
    for cpu in cpus.iter().filter(is_cpu) {
        let path = format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor");
        if let Some(governor) = host.text(&path) {
            *governors.entry(governor).or_default() += 1;
        }
    }
    let found: Vec<String> =
        governors.iter().map(|(governor, count)| format!("{governor} on {count}")).collect();
    match (governors.len(), governors.contains_key("performance")) {
        (0, _) => finding.unknown("not ours to set here (a virtual machine's clock is its host's)"),
        (1, true) => finding.good(found.join(", ")),
        _ => finding.warn(found.join(", "), "cpupower frequency-set -g performance"),
    }
}

fn clock_source(host: &Host) -> Finding {
    let finding =
        Finding::new("clock source", "the time is asked for several times for every message");
    let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    match host.text(path) {
        None => finding.unknown("it does not say"),
        Some(source) if ["hpet", "acpi_pm", "jiffies", "xen"].contains(&source.as_str()) => finding
            .warn(
                format!("{source}: a system call or a slow device each time"),
                format!("echo tsc > /{path} (or kvm-clock, as available_clocksource says)"),
            ),
        Some(source) => finding.good(source),
    }
}

/// An interrupt that comes often.
struct Interrupt {
    number: String,
    name: String,
    on_broker: u64,
}

fn interrupts(host: &Host, broker: Option<&Cpus>) -> Finding {
    let finding = Finding::new(
        "interrupts",
        "a device's interrupt on a broker's core takes its time in the middle of a message",
    );
    let Some(table) = host.text("proc/interrupts") else {
        return finding.unknown("/proc/interrupts cannot be read");
    };
    let mut lines = table.lines();
    let columns: Vec<u32> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("CPU")?.parse().ok())
        .collect();
    let mine = |cpu: &u32| broker.is_none_or(|broker| broker.contains(*cpu));
    let others: Vec<u32> = columns.iter().copied().filter(|cpu| !mine(cpu)).collect();
    if others.is_empty() {
        let found =
            "the broker has every CPU: there is none to move them to (--cpus names its own)";
        return finding.unknown(found);
    }
    let mut busy: Vec<Interrupt> =
        lines.filter_map(|line| interrupt(line, &columns, mine)).collect();
    // A device with an interrupt on every CPU has them where they belong, and NVMe's cannot be moved.
    busy.retain(|interrupt| {
        interrupt.on_broker >= INTERRUPTS_MIN && !interrupt.name.contains("nvme")
    });
    busy.sort_by_key(|interrupt| std::cmp::Reverse(interrupt.on_broker));
    if busy.is_empty() {
        return finding.good("devices interrupt other CPUs than the broker's");
    }
    let named = |interrupt: &Interrupt| {
        format!("{} ({}): {}", interrupt.number, interrupt.name, interrupt.on_broker)
    };
    let found: Vec<String> = busy.iter().take(NAMED_MAX).map(named).collect();
    let list = others.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let moved: Vec<String> = busy
        .iter()
        .take(NAMED_MAX)
        .map(|at| format!("echo {list} > /proc/irq/{}/smp_affinity_list", at.number))
        .collect();
    finding.warn(
        format!("on the broker's CPUs, since boot: {}", found.join(", ")),
        format!("{} (and stop irqbalance, or ban the CPUs in it)", moved.join("; ")),
    )
}

/// ` 36:   0   8241645 PCI-MSIX-0000:00:02.0   1-edge   virtio1-req.0`; only numbered ones are devices'.
fn interrupt(line: &str, columns: &[u32], mine: impl Fn(&u32) -> bool) -> Option<Interrupt> {
    let (number, rest) = line.trim().split_once(':')?;
    number.parse::<u32>().ok()?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let counts = words.get(..columns.len())?;
    let on_broker = columns
        .iter()
        .zip(counts)
        .filter(|(cpu, _)| mine(cpu))
        .map(|(_, count)| count.parse::<u64>().unwrap_or(0))
        .sum();
    let name = words.last()?.to_string();
    Some(Interrupt { number: number.to_owned(), name, on_broker })
}

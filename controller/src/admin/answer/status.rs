//! The controller and every node at a glance.

use super::*;

pub(super) async fn status(office: &Office) -> Result<Value, Refusal> {
    let (core, devices, meta) =
        office.handle.call(|turn, _| (turn.core.status(), turn.core.list_devices(), turn.meta.clone())).await?;
    let break_glass = ask(office, |core| value(&core.list_break_glass(clock::now()))).await?;
    let time = ask(office, |core| value(&core.clock_view(clock::now()))).await?;
    let events = ask(office, |core| value(&core.list_event_streams())).await?;
    let now = clock::now();
    let on_disk = std::fs::read_to_string(&office.config.policy).ok();
    let memory = std::fs::read_to_string("/proc/self/statm").ok();
    let resident = memory.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()).map(|pages| pages * 4_096);
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "url": office.config.url,
        "started": office.started.wall,
        "uptime_s": now.monotonic.since(office.started.monotonic).as_secs(),
        "now": now.wall,
        "core": value(&core),
        "clock": time,
        "break_glass": break_glass,
        "events": events,
        "policy": {
            "revision": meta.policy_revision,
            "applied": meta.policy_applied,
            "applied_by": meta.policy_applied_by,
            "document_differs": on_disk.as_deref() != Some(meta.policy_text.as_str()),
        },
        "certificate_until": office.certificates.current().not_after,
        "connections": {
            "open": office.limits.open(),
            "accepted": office.limits.counters.accepted.load(std::sync::atomic::Ordering::Relaxed),
            "refused": office.limits.counters.refused.load(std::sync::atomic::Ordering::Relaxed),
            "handshakes_failed": office.limits.counters.handshakes_failed.load(std::sync::atomic::Ordering::Relaxed),
        },
        "resident_bytes": resident,
        "nodes": value(&devices),
    }))
}

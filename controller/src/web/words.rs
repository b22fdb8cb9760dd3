//! Times, spans and QR codes for pages.

use std::time::Duration;

use maud::{Markup, html};
use postern_common::time::WallTime;

/// Writes a span roughly: `40 s`, `9 min`, `3 h`, `2 days`.
pub(super) fn span(span: Duration) -> String {
    match span.as_secs() {
        0 => "1 s".into(),
        seconds @ 1..60 => format!("{seconds} s"),
        seconds @ 60..3_600 => format!("{} min", seconds / 60),
        seconds @ 3_600..172_800 => format!("{} h", (seconds + 1_800) / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Writes the time of day in UTC, with the date where it is another day than today.
fn clock(at: WallTime, now: WallTime) -> String {
    let (Some(at), Some(now)) = (at.to_timestamp(), now.to_timestamp()) else { return "no end".into() };
    let (at, now) = (at.to_zoned(jiff::tz::TimeZone::UTC), now.to_zoned(jiff::tz::TimeZone::UTC));
    let form = if at.date() == now.date() { "%H:%M UTC" } else { "%-d %B, %H:%M UTC" };
    at.strftime(form).to_string()
}

/// Writes a time to come: `18:00 UTC, in 4 h`.
pub(super) fn until(at: WallTime, now: WallTime) -> Markup {
    html! {
        time datetime=(at) { (clock(at, now)) }
        @if at > now { ", in " (span(at.since(now))) } @else { ", over" }
    }
}

/// Writes a time that has passed: `3 min ago, 12:41 UTC`.
pub(super) fn ago(at: WallTime, now: WallTime) -> Markup {
    html! { (span(now.since(at))) " ago, " time datetime=(at) { (clock(at, now)) } }
}

/// Writes a text in which commands stand between backquotes, as explanations write them.
pub(super) fn commands(text: &str) -> Markup {
    html! {
        @for (i, part) in text.split('`').enumerate() {
            @if i % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Draws a QR code as inline SVG; nothing if the text is too long for one.
pub(super) fn qr(text: &str, label: &str) -> Markup {
    let Ok(code) = qrcode::QrCode::with_error_correction_level(text, qrcode::EcLevel::L) else { return html! {} };
    let width = code.width();
    let mut path = String::new();
    for (i, color) in code.to_colors().into_iter().enumerate() {
        if color == qrcode::Color::Dark {
            path.push_str(&format!("M{} {}h1v1h-1z", i % width + 4, i / width + 4));
        }
    }
    let size = width + 8;
    html! {
        svg.qr role="img" aria-label=(label) viewBox=(format!("0 0 {size} {size}")) shape-rendering="crispEdges" {
            rect.qr-light width=(size) height=(size) {}
            path.qr-dark d=(path) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_like_a_clock() {
        let now = WallTime::from_millis(1_700_000_000_000); // 2023-11-14 22:13:20 UTC
        let at = |seconds: i64| WallTime::from_millis(now.as_millis() + seconds * 1_000);
        assert_eq!(
            until(at(600), now).into_string(),
            r#"<time datetime="2023-11-14T22:23:20Z">22:23 UTC</time>, in 10 min"#
        );
        assert!(until(at(7_200), now).into_string().contains("15 November, 00:13 UTC</time>, in 2 h"));
        assert!(until(at(-1), now).into_string().ends_with(", over"));
        assert!(until(WallTime::NEVER, now).into_string().contains("no end"));
        assert!(ago(at(-59), now).into_string().starts_with("59 s ago, "));
    }
}

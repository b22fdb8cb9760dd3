//! A QR code in the terminal: two modules to a character, by half blocks.

use std::io::IsTerminal;

use qrcode::{Color, EcLevel, QrCode};

use super::show;

/// Modules of quiet zone around the code, ISO/IEC 18004 §5.3.8 asks for four; two do for cameras and fit 80 columns.
const QUIET: i32 = 2;

/// Prints `text` as a code, if a person watches a terminal.
pub(super) fn print(text: &str) {
    if std::io::stdout().is_terminal() {
        draw(text).unwrap_or_default().iter().for_each(|line| show::line(line));
    }
}

/// Draws `text`; `None` if it does not fit a code. Dark modules are drawn as gaps in light ones, which is right on a dark
/// terminal, and scanners read it inverted on a light one.
fn draw(text: &str) -> Option<Vec<String>> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let width = i32::try_from(code.width()).ok()?;
    let light = |x: i32, y: i32| {
        let inside = (0..width).contains(&x) && (0..width).contains(&y);
        let at = |n: i32| usize::try_from(n).unwrap_or(0);
        !inside || code[(at(x), at(y))] == Color::Light
    };
    let rows = (-QUIET..width + QUIET).step_by(2).map(|y| {
        (-QUIET..width + QUIET)
            .map(|x| match (light(x, y), light(x, y + 1) && y + 1 < width + QUIET) {
                (true, true) => '\u{2588}',
                (true, false) => '\u{2580}',
                (false, true) => '\u{2584}',
                (false, false) => ' ',
            })
            .collect()
    });
    Some(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_square_fits_a_terminal_and_has_its_finder_patterns() {
        let lines = draw("https://ctl.corp.example/join?code=KTRM-4821").expect("fits");
        let width = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == width) && width <= 80);
        assert_eq!(lines.len(), width.div_ceil(2));
        // The finder pattern's dark border, 7 modules wide, begins after the quiet zone (ISO/IEC 18004 §5.3.2).
        let row: Vec<char> = lines[1].chars().collect();
        assert_eq!(row[..2], ['\u{2588}', '\u{2588}']);
        assert_eq!(row[2], ' ');
        assert!(row[3..8].iter().all(|c| *c == '\u{2584}'), "{row:?}");
    }
}

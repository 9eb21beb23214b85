//! Draws an address as a QR code (ISO/IEC 18004) of half blocks.
//!
//! Invariants:
//! 1. Dark is black and light is white, whatever the terminal's own colours are: most cameras refuse an inverted code.
//! 2. The quiet zone is drawn in its standard width.

use qrcodegen::{QrCode, QrCodeEcc};

/// Modules of light around the code (ISO/IEC 18004 section 6.3.8).
const QUIET_ZONE_MODULES: i32 = 4;

/// Black on white from the 256-colour palette, which is the same on all terminals; themes change only the first
/// sixteen.
const COLOURS: &str = "\x1b[38;5;16;48;5;231m";

const RESET: &str = "\x1b[0m";

/// Draws the code, each character two modules high; `None` if it does not fit into the columns and rows.
pub(super) fn draw(text: &str, columns: usize, rows: usize) -> Option<String> {
    // A screen has no dirt or creases, so the lowest error correction is enough.
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    let modules = -QUIET_ZONE_MODULES..code.size() + QUIET_ZONE_MODULES;
    let pairs = modules.clone().step_by(2);
    if modules.len() > columns || pairs.len() > rows {
        return None;
    }
    // Everything outside of the code is light.
    let line = |y: i32| {
        let blocks = modules.clone().map(|x| match (code.get_module(x, y), code.get_module(x, y + 1)) {
            (true, true) => '█',
            (true, false) => '▀',
            (false, true) => '▄',
            (false, false) => ' ',
        });
        format!("{COLOURS}{}{RESET}", blocks.collect::<String>())
    };
    Some(pairs.map(line).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the blocks back into rows of modules, dark ones `true`.
    fn modules(drawn: &str) -> Vec<Vec<bool>> {
        let row = |line: &str, dark: [char; 2]| line.chars().map(|block| dark.contains(&block)).collect();
        let lines = drawn.lines().map(|line| line.strip_prefix(COLOURS).unwrap().strip_suffix(RESET).unwrap());
        lines.flat_map(|line| [row(line, ['█', '▀']), row(line, ['█', '▄'])]).collect()
    }

    #[test]
    fn what_is_drawn_is_the_code_in_its_quiet_zone() {
        for text in [
            "https://github.com/login/device",
            "https://login.example.com/device?user_code=WDJB-MJHT",
            &format!("https://login.example.com/{}", "x".repeat(300)),
        ] {
            let drawn = draw(text, 200, 100).unwrap();
            let (read, code) = (modules(&drawn), QrCode::encode_text(text, QrCodeEcc::Low).unwrap());
            let size = usize::try_from(code.size() + 2 * QUIET_ZONE_MODULES).unwrap();
            assert!(read.iter().all(|row| row.len() == size), "{drawn}");
            // Two modules stand in a row of blocks: the last one may have a light one more.
            assert_eq!(read.len(), size.next_multiple_of(2));
            for (y, row) in (-QUIET_ZONE_MODULES..).zip(&read) {
                for (x, dark) in (-QUIET_ZONE_MODULES..).zip(row) {
                    assert_eq!(*dark, code.get_module(x, y), "{x} {y}");
                }
            }
            for light in [&read[0], &read[3], &read[size - 1], &read[size - 4]] {
                assert!(!light.contains(&true), "{drawn}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_not_drawn() {
        let text = "https://github.com/login/device";
        assert!(draw(text, 33, 17).is_some());
        assert!(draw(text, 32, 17).is_none() && draw(text, 33, 16).is_none());
        assert!(draw(&"x".repeat(3000), 1000, 1000).is_none());
    }
}

//! The capability that a sandbox's peers present.

use http::{HeaderMap, header};

use crate::secret::CapabilityHash;

/// Whether the request presents the capability. It is checked before anything else, so that without it no path, method
/// or response header differs from another.
pub(super) fn has_capability(capability: CapabilityHash, headers: &HeaderMap) -> bool {
    shown(headers).is_some_and(|text| capability.admits(text))
}

/// Returns the request's single bearer token (RFC 6750 section 2.1). The scheme is case-insensitive (RFC 9110 section
/// 11.1).
fn shown(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let (scheme, text) = line.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| text.trim_start_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bearer_token_is_shown_or_none() {
        let shown = |lines: &[&str]| {
            let headers: HeaderMap = lines.iter().map(|line| (header::AUTHORIZATION, line.parse().unwrap())).collect();
            shown(&headers).map(str::to_owned)
        };
        for right in ["Bearer abc", "bearer abc", "BEARER  abc"] {
            assert_eq!(shown(&[right]).as_deref(), Some("abc"), "{right}");
        }
        for wrong in [&[][..], &[""], &["Bearer"], &["abc"], &["Basic abc"], &["Bearer abc", "Bearer abc"]] {
            assert_eq!(shown(wrong), None, "{wrong:?}");
        }
        assert_eq!(shown(&["Bearer "]).as_deref(), Some(""));
    }
}

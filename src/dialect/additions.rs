//! Additional parameters and headers in requests.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT,
        HOST, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

use super::names::{MemberNames, PARAMETERS};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Sends the person's browser to the provider (RFC 6749 section 4.1.1).
    Authorization,
    /// Exchanges a code, or asks whether a device's code was confirmed (RFC 6749 section 4.1.3, RFC 8628 section 3.4).
    Token,
    /// Refreshes (RFC 6749 section 6).
    Refresh,
    /// Starts a device login (RFC 8628 section 3.1).
    Device,
    /// Revokes (RFC 7009 section 2.1).
    Revocation,
}

impl Request {
    /// Every request.
    pub const ALL: [Self; 5] = [Self::Authorization, Self::Token, Self::Refresh, Self::Device, Self::Revocation];

    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::Token => "token",
            Self::Refresh => "refresh",
            Self::Device => "device",
            Self::Revocation => "revocation",
        }
    }

    /// Whether the protocol sets a parameter of that name, in this request or a similar one. `code` is allowed in an
    /// authorization request: there it belongs to the answer, and Anthropic uses it to ask for a page that shows the
    /// code.
    fn sets(self, name: &str) -> bool {
        match (self, name) {
            (Self::Authorization, "code") => false,
            (_, name) => ["response_type", "state", "access_token"].iter().chain(&PARAMETERS).any(|set| *set == name),
        }
    }
}

/// Additional parameters and headers of a provider's requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Additions {
    /// Sent with every request.
    headers: Headers,
    /// Indexed by the kind of request, in the order of [`Request::ALL`].
    requests: [(Parameters, Headers); Request::ALL.len()],
}

impl Additions {
    /// Headers that go with every request.
    #[must_use]
    pub fn new(headers: Headers) -> Self {
        Self { headers, ..Self::default() }
    }

    /// Sets the additions to one kind of request.
    pub fn set(&mut self, request: Request, parameters: Parameters, headers: Headers) {
        self.requests[request as usize] = (parameters, headers);
    }

    /// The additional parameters of such a request.
    pub fn parameters(&self, request: Request) -> impl Iterator<Item = (&str, &str)> {
        self.requests[request as usize].0.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The additional headers of every request.
    #[must_use]
    pub const fn every_header(&self) -> &HeaderMap {
        &self.headers.0
    }

    /// The additional headers of such a request; its own override those of every request.
    #[must_use]
    pub fn headers(&self, request: Request) -> HeaderMap {
        let mut headers = self.headers.0.clone();
        // `extend` replaces the values of equal names.
        headers.extend(self.requests[request as usize].1.0.clone());
        headers
    }
}

/// Parameters of one kind of request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters(Vec<(String, String)>);

/// Why a parameter is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// The client itself sets it.
    #[error("is a parameter that the protocol sets")]
    Protocol,
    /// Its name is empty.
    #[error("must have a name")]
    Nameless,
}

impl Parameters {
    /// Adds a parameter to a request of a provider with these member names. A table has no name twice.
    pub fn add(
        &mut self,
        request: Request,
        names: &MemberNames,
        name: &str,
        value: &str,
    ) -> Result<(), ParameterError> {
        // Parameters in a query keep their standard names.
        let renamed = request != Request::Authorization && PARAMETERS.iter().any(|standard| names.of(standard) == name);
        if name.is_empty() {
            return Err(ParameterError::Nameless);
        }
        if renamed || request.sets(name) {
            return Err(ParameterError::Protocol);
        }
        self.0.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Whether there are no parameters.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Headers of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(HeaderMap);

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The client itself sets it: it concerns the connection, the body or the credentials.
    #[error("is a header that the client sets")]
    Client,
    /// The name is invalid.
    #[error("is not the name of a header")]
    Name,
    /// The value is invalid.
    #[error("must be visible ASCII characters, spaces and tabs")]
    Value,
    /// It was added already, perhaps in another case.
    #[error("is there twice")]
    Twice,
}

/// The headers that the client sets. `Accept` and `User-Agent` are allowed: some providers look at them.
const CLIENT: [HeaderName; 14] = [
    ACCEPT_ENCODING,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    COOKIE,
    EXPECT,
    HOST,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers that the client sets and that have no constant in `http`.
const CLIENT_TEXTS: [&str; 3] = ["keep-alive", "proxy-connection", "dpop"];

impl Headers {
    /// Adds a header.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), HeaderError> {
        let name: HeaderName = name.parse().map_err(|_| HeaderError::Name)?;
        if CLIENT.contains(&name) || CLIENT_TEXTS.contains(&name.as_str()) {
            return Err(HeaderError::Client);
        }
        // Other bytes are allowed, but their meaning is not agreed on (RFC 9110 section 5.5).
        let ascii = value.is_ascii().then(|| HeaderValue::from_str(value).ok());
        let mut value = ascii.flatten().ok_or(HeaderError::Value)?;
        // Some providers expect a key of the application in a header.
        value.set_sensitive(true);
        match self.0.insert(name, value) {
            Some(_) => Err(HeaderError::Twice),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_protocol_sets_is_no_addition_under_either_name() {
        let names = MemberNames::new([("client_id", "clientId")]).unwrap();
        let add = |request, name: &str| Parameters::default().add(request, &names, name, "x");
        for request in Request::ALL {
            for set in
                ["grant_type", "client_id", "state", "redirect_uri", "refresh_token", "resource", "scope", "token"]
            {
                assert_eq!(add(request, set), Err(ParameterError::Protocol), "{request:?} {set}");
            }
            assert_eq!(add(request, ""), Err(ParameterError::Nameless));
            assert_eq!(add(request, "audience"), Ok(()));
            let query = request == Request::Authorization;
            assert_eq!(add(request, "clientId").is_ok(), query, "{request:?}");
            assert_eq!(add(request, "code").is_ok(), query, "{request:?}");
        }
    }

    #[test]
    fn what_the_client_sets_is_no_header_and_none_goes_out_twice() {
        let add = |name: &str, value: &str| Headers::default().add(name, value);
        for set in ["authorization", "Content-Type", "HOST", "content-length", "Cookie", "Connection", "Keep-Alive"] {
            assert_eq!(add(set, "x"), Err(HeaderError::Client), "{set}");
        }
        for name in ["", "a b", "a:", "é"] {
            assert_eq!(add(name, "x"), Err(HeaderError::Name), "{name}");
        }
        for value in ["a\r\nb", "\0", "é"] {
            assert_eq!(add("x-y", value), Err(HeaderError::Value), "{value:?}");
        }
        let mut headers = Headers::default();
        headers.add("User-Agent", "a").unwrap();
        assert_eq!(headers.add("user-agent", "b"), Err(HeaderError::Twice));
    }

    #[test]
    fn a_requests_own_header_wins_over_that_of_all_requests() {
        let headers = |pairs: &[(&str, &str)]| {
            let mut headers = Headers::default();
            for (name, value) in pairs {
                headers.add(name, value).unwrap();
            }
            headers
        };
        let mut additions = Additions::new(headers(&[("User-Agent", "all"), ("X-A", "all")]));
        additions.set(Request::Refresh, Parameters::default(), headers(&[("user-agent", "own"), ("X-B", "own")]));
        let shown = |request| {
            let headers = additions.headers(request);
            let mut shown: Vec<_> =
                headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            shown.sort();
            shown
        };
        assert_eq!(shown(Request::Token), ["user-agent: all", "x-a: all"]);
        assert_eq!(shown(Request::Refresh), ["user-agent: own", "x-a: all", "x-b: own"]);
    }
}

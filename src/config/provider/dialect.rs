//! The keys that describe how a provider's OAuth 2.0 differs from the standard.

use std::time::Duration;

use url::Url;

use super::endpoint;
use crate::{
    config::{
        ConfigError,
        document::{Entry, Section},
    },
    dialect::{
        Additions, AnswerForm, Dialect, ExpiresInUnit, Headers, MemberNames, Parameters, Request, RequestForm,
        RequestFormat, SecondExchange,
    },
};

/// The longest default lifetime: no known access token lives longer, and one that did would need no refresh.
const MAX_LIFETIME: Duration = Duration::from_hours(24 * 366);

pub(super) fn read(section: &mut Section<'_>) -> Result<Dialect, ConfigError> {
    let names = match section.take("member_names") {
        None => MemberNames::default(),
        Some(entry) => member_names(entry)?,
    };
    let format = match section.take("request_format") {
        None => RequestFormat::Form,
        Some(entry) => entry.parsed(
            |text| match text {
                "form" => Some(RequestFormat::Form),
                "json" => Some(RequestFormat::Json),
                _ => None,
            },
            "must be \"form\" or \"json\"",
        )?,
    };
    let scope_separator = match section.take("scope_separator") {
        None => ' ',
        Some(entry) => entry.parsed(separator, "must be one printable ASCII character, no letter and no digit")?,
    };
    let resources = match section.take("resource") {
        None => Vec::new(),
        Some(entry) => entry.texts(resource, "must be an absolute URI without a fragment")?,
    };
    let requests = RequestForm {
        format,
        additions: additions(section, &names)?,
        scope_separator,
        scope_on_refresh: section.take("send_scope_on_refresh").map_or(Ok(false), |entry| entry.boolean())?,
        resources,
    };
    Ok(Dialect { answers: answers(section)?, names, requests })
}

fn answers(section: &mut Section<'_>) -> Result<AnswerForm, ConfigError> {
    let path = match section.take("answer_path") {
        None => Vec::new(),
        Some(entry) => entry.parsed(path, "must be the names of members, joined by dots")?,
    };
    let expires_in_unit = match section.take("expires_in_unit") {
        None => ExpiresInUnit::Seconds,
        Some(entry) => entry.parsed(
            |text| match text {
                "s" => Some(ExpiresInUnit::Seconds),
                "ms" => Some(ExpiresInUnit::Milliseconds),
                _ => None,
            },
            "must be \"s\" or \"ms\"",
        )?,
    };
    let default_lifetime = section.take("default_lifetime");
    let default_lifetime =
        default_lifetime.map(|entry| entry.duration(Duration::from_secs(1)..=MAX_LIFETIME)).transpose()?;
    Ok(AnswerForm { path, expires_in_unit, default_lifetime })
}

/// A second exchange replaces the usual refresh, so keys about the usual refresh do not apply to it.
pub(super) fn second_exchange(
    section: &mut Section<'_>,
    requests: &RequestForm,
    refresh_endpoint: bool,
) -> Result<Option<SecondExchange>, ConfigError> {
    let Some(entry) = section.take("second_exchange") else { return Ok(None) };
    let parameters = requests.additions.parameters(Request::Refresh).next().is_some();
    if refresh_endpoint || requests.scope_on_refresh || parameters {
        let problem =
            "is a GET in place of a refresh: no refresh_endpoint, send_scope_on_refresh, requests.refresh.params";
        return Err(entry.refuse(problem));
    }
    let mut table = entry.section("must be { endpoint = \"https://…\", scheme = \"…\" }")?;
    let endpoint = endpoint(&table.required("endpoint")?)?;
    let scheme = table.required("scheme")?.parsed(scheme, "must be an authentication scheme, like \"token\"")?;
    table.finish()?;
    Ok(Some(SecondExchange { endpoint, scheme }))
}

fn member_names(entry: Entry<'_>) -> Result<MemberNames, ConfigError> {
    let mut table = entry.section("must be a table of standard names and the provider's own")?;
    let entries = table.entries();
    let pairs: Vec<_> =
        entries.iter().map(|(name, entry)| Ok((name.as_str(), entry.text()?))).collect::<Result<_, _>>()?;
    MemberNames::new(pairs).map_err(|error| {
        let entry = entries.iter().find(|(name, _)| *name == error.standard);
        entry.map_or_else(|| table.refuse(error.to_string()), |(_, entry)| entry.refuse(error.to_string()))
    })
}

fn additions(section: &mut Section<'_>, names: &MemberNames) -> Result<Additions, ConfigError> {
    let mut additions = Additions::new(headers(section)?);
    let mut requests = section.section("requests")?;
    for request in Request::ALL {
        let Some(entry) = requests.take(request.name()) else { continue };
        let mut table = entry.section("must be a table")?;
        let mut parameters = Parameters::default();
        for (name, entry) in table.section("params")?.entries() {
            let added = parameters.add(request, names, &name, entry.text()?);
            added.map_err(|error| entry.refuse(error.to_string()))?;
        }
        // The browser sends the authorization request, with its own headers.
        let headers = if request == Request::Authorization { Headers::default() } else { headers(&mut table)? };
        table.finish()?;
        additions.set(request, parameters, headers);
    }
    requests.finish()?;
    Ok(additions)
}

fn headers(section: &mut Section<'_>) -> Result<Headers, ConfigError> {
    let mut headers = Headers::default();
    for (name, entry) in section.section("headers")?.entries() {
        headers.add(&name, entry.text()?).map_err(|error| entry.refuse(error.to_string()))?;
    }
    Ok(headers)
}

fn separator(text: &str) -> Option<char> {
    let mut letters = text.chars();
    let separator = letters.next().filter(|letter| *letter == ' ' || letter.is_ascii_punctuation())?;
    letters.next().is_none().then_some(separator)
}

/// RFC 8707 section 2. The text is sent as it is written, because providers compare it literally.
fn resource(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    (url.fragment().is_none() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
}

fn path(text: &str) -> Option<Vec<String>> {
    let members: Vec<String> = text.split('.').map(str::to_owned).collect();
    members.iter().all(|member| !member.is_empty()).then_some(members)
}

/// RFC 9110 section 11.1: an authentication scheme is a token.
fn scheme(text: &str) -> Option<String> {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)).then(|| text.to_owned())
}

//! A provider's names for standard members.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::secret::{FORBIDDEN_TEXT, holds_forbidden_text};

/// The parameters of requests that have a body.
pub(super) const PARAMETERS: [&str; 16] = [
    "grant_type",
    "client_id",
    "client_secret",
    "client_assertion",
    "client_assertion_type",
    "refresh_token",
    "code",
    "redirect_uri",
    "code_verifier",
    "code_challenge",
    "code_challenge_method",
    "device_code",
    "scope",
    "resource",
    "token",
    "token_type_hint",
];

/// The members of answers that are read.
const ANSWERS: [&str; 13] = [
    "access_token",
    "refresh_token",
    "token_type",
    "scope",
    "expires_in",
    "expires_at",
    "id_token",
    "error",
    "device_code",
    "user_code",
    "verification_uri",
    "verification_uri_complete",
    "interval",
];

/// The longest name, in bytes; standard names are short, too.
const LONGEST: usize = 64;

/// A provider's own names for standard members, in requests with a body and in answers. A member without an own name
/// keeps its standard name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberNames(BTreeMap<&'static str, String>);

/// Why the names are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct NameError {
    /// The standard member, as it was given.
    pub standard: String,
    /// What is wrong with it or with its name.
    pub problem: NameProblem,
}

/// What is wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// It is not a standard member.
    #[error("is no standard member that is sent or read")]
    Unknown,
    /// It is not a possible member name.
    #[error("must have 1 to 64 printable ASCII characters and no space")]
    Unfit,
    /// A refresh token never leaves, so no other member may have its name.
    #[error("must not be the name of the refresh token")]
    RefreshToken,
    /// Another member of the same request or answer has that name.
    #[error("is the name of another member")]
    Taken,
}

impl MemberNames {
    /// Takes pairs of a standard member and the provider's name for it.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, NameError> {
        let mut names = Self::default();
        for (standard, theirs) in pairs {
            let refused = |problem| NameError { standard: standard.to_owned(), problem };
            let known = PARAMETERS.iter().chain(&ANSWERS).find(|known| **known == standard);
            let known = known.ok_or_else(|| refused(NameProblem::Unknown))?;
            if theirs.is_empty() || theirs.len() > LONGEST || !theirs.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(refused(NameProblem::Unfit));
            }
            if *known != FORBIDDEN_TEXT && holds_forbidden_text(theirs) {
                return Err(refused(NameProblem::RefreshToken));
            }
            names.0.insert(known, theirs.to_owned());
        }
        match names.taken() {
            Some(standard) => Err(NameError { standard: standard.to_owned(), problem: NameProblem::Taken }),
            None => Ok(names),
        }
    }

    /// A renamed member whose name is also that of another member in the same request or answer.
    fn taken(&self) -> Option<&'static str> {
        let shared = |(standard, theirs): (&&'static str, &String)| {
            let beside = |together: &[&str]| {
                let others = together.iter().filter(|other| *other != standard);
                together.contains(standard) && others.into_iter().any(|other| self.of(other) == theirs)
            };
            (beside(&PARAMETERS) || beside(&ANSWERS)).then_some(*standard)
        };
        self.0.iter().find_map(shared)
    }

    /// The provider's name for the standard member `standard`.
    #[must_use]
    pub fn of<'a>(&'a self, standard: &'a str) -> &'a str {
        self.0.get(standard).map_or(standard, String::as_str)
    }

    /// Renames an answer's members to the standard names. The provider's name takes precedence; without it the standard
    /// name is read, because some providers use both at different endpoints.
    #[must_use]
    pub fn standard(&self, mut members: Map<String, Value>) -> Map<String, Value> {
        let read = self.0.iter().filter(|(standard, _)| ANSWERS.contains(*standard));
        let found: Vec<_> =
            read.filter_map(|(standard, theirs)| Some((*standard, members.remove(theirs.as_str())?))).collect();
        members.extend(found.into_iter().map(|(standard, value)| (standard.to_owned(), value)));
        members
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(pairs: &[(&str, &str)]) -> Result<MemberNames, NameError> {
        MemberNames::new(pairs.iter().copied())
    }

    fn standard(names: &MemberNames, members: Value) -> Value {
        let Value::Object(members) = members else { panic!("{members}") };
        names.standard(members).into()
    }

    #[test]
    fn members_are_read_by_either_name_and_the_providers_own_wins() {
        let camel = names(&[("access_token", "accessToken"), ("expires_in", "expiresIn")]).unwrap();
        for (answer, read) in [
            (json!({"accessToken": "a", "expiresIn": 1}), json!({"access_token": "a", "expires_in": 1})),
            (json!({"access_token": "a", "x": 1}), json!({"access_token": "a", "x": 1})),
            (json!({"access_token": "b", "accessToken": "a"}), json!({"access_token": "a"})),
            (json!({}), json!({})),
        ] {
            assert_eq!(standard(&camel, answer), read);
        }
        let swapped = names(&[("scope", "token_type"), ("token_type", "scope")]).unwrap();
        assert_eq!(
            standard(&swapped, json!({"scope": "s", "token_type": "t"})),
            json!({"scope": "t", "token_type": "s"})
        );
        // A parameter is no member of an answer.
        let client = names(&[("client_id", "clientId"), ("code", "authCode")]).unwrap();
        assert_eq!(
            standard(&client, json!({"clientId": "c", "authCode": "x"})),
            json!({"clientId": "c", "authCode": "x"})
        );
        assert_eq!((client.of("client_id"), client.of("grant_type")), ("clientId", "grant_type"));
    }

    #[test]
    fn names_that_could_be_taken_for_others_are_refused() {
        for (pairs, problem) in [
            (&[("accessToken", "access_token")][..], NameProblem::Unknown),
            (&[("state", "s")], NameProblem::Unknown),
            (&[("scope", "")], NameProblem::Unfit),
            (&[("scope", "a b")], NameProblem::Unfit),
            (&[("scope", "a\n")], NameProblem::Unfit),
            (&[("access_token", "refresh_token")], NameProblem::RefreshToken),
            (&[("id_token", "old_Refresh_Token")], NameProblem::RefreshToken),
            (&[("access_token", "t"), ("id_token", "t")], NameProblem::Taken),
            (&[("client_id", "client_secret")], NameProblem::Taken),
        ] {
            let standard = pairs[0].0.to_owned();
            assert_eq!(names(pairs).unwrap_err(), NameError { standard, problem }, "{pairs:?}");
        }
        for fine in [
            &[("access_token", "token")][..],
            &[("refresh_token", "old_refresh_token")],
            &[("client_id", "client_secret"), ("client_secret", "client_id")],
        ] {
            assert!(names(fine).is_ok(), "{fine:?}");
        }
    }
}

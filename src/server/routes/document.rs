//! `/openapi.yaml`: the API's contract.

use http::{Uri, header};

use super::super::{problem::Problem, request::Query};

type Document = ([(header::HeaderName, &'static str); 1], &'static str);

/// `openapi`: returns the document that this version was tested against.
pub(in crate::server) async fn openapi(uri: Uri) -> Result<Document, Problem> {
    Query::parse(&uri, &[])?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], include_str!("../../../openapi.yaml")))
}

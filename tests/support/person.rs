//! A person with a browser that can do no more than authorization servers ask for: it goes where it is sent, keeps
//! cookies, and fills in forms.

use std::collections::BTreeMap;

use url::{Position, Url, form_urlencoded};

use super::http::{Connection, Response};

/// Every client of the tests is registered with a redirect to this path.
pub(crate) const CALLBACK: &str = "/callback";

/// A page, and where it came from.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) url: Url,
    pub(crate) text: String,
}

/// Browses one server alone.
pub(crate) struct Person {
    address: String,
    cookies: BTreeMap<String, String>,
}

impl Person {
    /// Someone whose every request goes to this host and port.
    pub(crate) fn at(address: &str) -> Self {
        Self { address: address.to_owned(), cookies: BTreeMap::new() }
    }

    /// Opens an address. Gives the page in the end, or the client's address that the browser was sent to.
    pub(crate) async fn open(&mut self, url: &str) -> Result<Page, Url> {
        self.follow("GET", url.parse().unwrap(), String::new()).await
    }

    /// Sends a page's form back to where the page came from: its hidden inputs, and these answers.
    pub(crate) async fn submit(&mut self, page: &Page, answers: &[(&str, &str)]) -> Result<Page, Url> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(hidden_inputs(&page.text)).extend_pairs(answers);
        self.follow("POST", page.url.clone(), form.finish()).await
    }

    async fn follow(&mut self, method: &str, mut url: Url, form: String) -> Result<Page, Url> {
        let (mut method, mut body) = (method, form);
        for _ in 0..10 {
            let answer = self.send(method, &url, "application/x-www-form-urlencoded", body).await;
            let Some(location) = answer.header("location") else { return Ok(Page { url, text: answer.text() }) };
            url = url.join(location).unwrap();
            // Told from the server by the path alone.
            if url.path() == CALLBACK {
                return Err(url);
            }
            (method, body) = ("GET", String::new());
        }
        panic!("sent in circles, last to {url}");
    }

    /// One request, with the cookies there are.
    pub(crate) async fn send(&mut self, method: &str, url: &Url, content_type: &str, body: String) -> Response {
        let jar = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ");
        let headers = [("host", self.address.as_str()), ("cookie", &jar), ("content-type", content_type)];
        let mut connection = Connection::to_provider(&self.address).await;
        let answer = connection.request(method, &url[Position::BeforePath..Position::AfterQuery], &headers, body).await;
        for cookie in answer.headers.get_all("set-cookie") {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        answer
    }
}

/// Name and value of each hidden input of a page.
fn hidden_inputs(page: &str) -> Vec<(&str, &str)> {
    let tags = page.split("<input").skip(1).map(|tag| tag.split('>').next().unwrap_or_default());
    let attribute = |tag: &'_ str, name: &str| -> Option<(usize, usize)> {
        let start = tag.find(&format!("{name}=\""))? + name.len() + 2;
        Some((start, start + tag[start..].find('"')?))
    };
    let pairs = tags.filter(|tag| tag.contains("type=\"hidden\"")).map(|tag| {
        let ((from, to), (start, end)) = (attribute(tag, "name").unwrap(), attribute(tag, "value").unwrap_or_default());
        (&tag[from..to], &tag[start..end])
    });
    pairs.collect()
}

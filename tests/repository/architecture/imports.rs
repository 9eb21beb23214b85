//! The imports and the words of a source file.
//!
//! It reads tokens. Comments, strings and characters are no code; `crate`, `self`, `super`, groups, renamings and paths
//! in the middle of an expression are all followed; code under `#[cfg(test)]` is code. What a macro puts together out of
//! pieces, or a path inside a string (`#[serde(with = "…")]`), escapes it.

use std::collections::{BTreeMap, BTreeSet};

/// The crate's own name, by which `main.rs` calls the library.
const OWN_NAME: &str = "credproxy";

/// A module's path from the crate's root.
pub(super) type Module = Vec<String>;

/// The module that a file makes.
pub(super) fn own_path(file: &str) -> Module {
    file.trim_end_matches(".rs").split('/').map(str::to_owned).collect()
}

/// Where the file's code looks from: the crate's root for `lib.rs` and `main.rs`.
fn module_of(file: &str) -> Module {
    if ["lib.rs", "main.rs"].contains(&file) { Module::new() } else { own_path(file) }
}

/// The identifiers of a file with their lines; a macro's name with its exclamation mark.
pub(super) fn words(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let next = |index: usize| tokens.get(index + 1).map_or("", |(_, token)| token.as_str());
    let word = |(index, (line, token)): (usize, &(usize, String))| {
        (*line, if next(index) == "!" { format!("{token}!") } else { token.clone() })
    };
    tokens.iter().enumerate().map(word).collect()
}

/// Every path in the file that leads into this crate, from the root, with its line.
pub(super) fn imports(file: &str, text: &str, modules: &BTreeSet<Module>) -> Vec<(usize, Vec<String>)> {
    let mut reader = Reader { tokens: tokens(text), at: 0, inline: Vec::new(), used: Vec::new(), paths: Vec::new() };
    reader.read();
    let absolute = |found: &Found| {
        let module = [module_of(file), found.inline.clone()].concat();
        absolute(&found.path, &module, modules).map(|path| (found.line, path))
    };
    let mut names = BTreeMap::new();
    let mut seen = Vec::new();
    for (found, name) in &reader.used {
        if let Some((line, path)) = absolute(found) {
            names.insert(name.clone(), path.clone());
            seen.push((line, path));
        }
    }
    for found in &reader.paths {
        let renamed = names.get(&found.path[0]).map(|path| [path.clone(), found.path[1..].to_vec()].concat());
        seen.extend(renamed.map(|path| (found.line, path)).or_else(|| absolute(found)));
    }
    seen
}

/// The path from the crate's root; `None` if it leads elsewhere.
fn absolute(path: &[String], module: &[String], modules: &BTreeSet<Module>) -> Option<Vec<String>> {
    let first = path.first()?;
    let (mut base, mut rest) = match first.as_str() {
        "crate" | OWN_NAME => (Vec::new(), &path[1..]),
        "self" => (module.to_vec(), &path[1..]),
        "super" => (module.to_vec(), path),
        child if modules.contains(&[module, &[child.to_owned()]].concat()) => (module.to_vec(), path),
        _ => return None,
    };
    while let ["super", ..] = rest.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        base.pop();
        rest = &rest[1..];
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// A path as it is written, and where.
struct Found {
    line: usize,
    /// The inline modules around it.
    inline: Module,
    path: Vec<String>,
}

struct Reader {
    tokens: Vec<(usize, String)>,
    at: usize,
    /// The inline modules and nameless braces that are open; a brace is an empty name.
    inline: Vec<String>,
    /// What `use` brings in, and under which name.
    used: Vec<(Found, String)>,
    /// Paths elsewhere.
    paths: Vec<Found>,
}

impl Reader {
    fn token(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |(_, token)| token)
    }

    fn read(&mut self) {
        while self.at < self.tokens.len() {
            match (self.token(0), self.token(1), self.token(2)) {
                ("mod", name, "{") => {
                    self.inline.push(name.to_owned());
                    self.at += 3;
                }
                ("{", ..) => {
                    self.inline.push(String::new());
                    self.at += 1;
                }
                ("}", ..) => {
                    self.inline.pop();
                    self.at += 1;
                }
                // A visibility (`pub(in crate::server)`) imports nothing.
                ("pub", "(", _) => {
                    while !["", ")"].contains(&self.token(0)) {
                        self.at += 1;
                    }
                }
                ("use", ..) => {
                    self.at += 1;
                    self.tree(&[]);
                }
                (_, "::", _) if self.starts_path() => self.path(),
                _ => self.at += 1,
            }
        }
    }

    fn starts_path(&self) -> bool {
        let before = self.at.checked_sub(1).map_or("", |before| self.tokens[before].1.as_str());
        is_word(self.token(0)) && !["::", "."].contains(&before)
    }

    fn found(&self, path: Vec<String>) -> Found {
        let line = self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |(line, _)| *line);
        Found { line, inline: self.inline.iter().filter(|name| !name.is_empty()).cloned().collect(), path }
    }

    fn path(&mut self) {
        let mut found = self.found(vec![self.token(0).to_owned()]);
        self.at += 1;
        while self.token(0) == "::" && is_word(self.token(1)) {
            found.path.push(self.token(1).to_owned());
            self.at += 2;
        }
        self.at += usize::from(self.token(0) == "::");
        self.paths.push(found);
    }

    /// Reads one branch of a `use`, up to the comma, brace or semicolon behind it.
    fn tree(&mut self, stem: &[String]) {
        let mut path = stem.to_vec();
        loop {
            match self.token(0) {
                "{" => {
                    self.at += 1;
                    while !["}", ""].contains(&self.token(0)) {
                        self.tree(&path);
                        self.at += usize::from(self.token(0) == ",");
                    }
                    self.at += 1;
                    return;
                }
                "as" => {
                    let name = self.token(1).to_owned();
                    self.at += 2;
                    return self.brought(path, name);
                }
                "," | "}" | ";" | "" => {
                    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                        path.pop();
                    }
                    let name = path.last().cloned().unwrap_or_default();
                    return self.brought(path, name);
                }
                "::" if path.is_empty() => {
                    // `::name` is another crate, whatever its name.
                    path.push("::".to_owned());
                    self.at += 1;
                }
                "::" => self.at += 1,
                part => {
                    path.push(part.to_owned());
                    self.at += 1;
                }
            }
        }
    }

    fn brought(&mut self, path: Vec<String>, name: String) {
        let found = self.found(path);
        self.used.push((found, name));
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphanumeric() || first == '_')
}

/// The file's tokens with their lines: words, `::`, and every other character by itself. Comments are left out;
/// strings, characters and lifetimes as well.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|one: char| !one.is_alphanumeric() && one != '_').unwrap_or(rest.len());
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if first == '\'' {
            character_or_lifetime(rest)
        } else if rest.starts_with("r#") {
            2
        } else if word > 0 {
            found.push((line, rest[..word].to_owned()));
            word
        } else if rest.starts_with("::") {
            found.push((line, "::".to_owned()));
            2
        } else {
            if !first.is_whitespace() {
                found.push((line, first.to_string()));
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// The length of the string literal that `rest` begins with, if it does.
fn string(rest: &str) -> Option<usize> {
    let marked =
        ["br", "cr", "b", "c", "r", ""].into_iter().find_map(|prefix| Some((prefix, rest.strip_prefix(prefix)?)));
    let (prefix, body) = marked?;
    let hashes = if prefix.ends_with('r') { body.len() - body.trim_start_matches('#').len() } else { 0 };
    let inside = body[hashes..].strip_prefix('"')?;
    let start = rest.len() - inside.len();
    if prefix.ends_with('r') {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(inside.find(&end).map_or(rest.len(), |at| start + at + end.len()));
    }
    let mut escaped = false;
    for (at, one) in inside.char_indices() {
        match one {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

fn character_or_lifetime(rest: &str) -> usize {
    let mut inside = rest[1..].char_indices();
    match (inside.next(), inside.next()) {
        (Some((_, '\\')), Some((escaped, one))) => {
            let from = 1 + escaped + one.len_utf8();
            rest[from..].find('\'').map_or(rest.len(), |end| from + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 2,
        _ => rest[1..].find(|one: char| !one.is_alphanumeric() && one != '_').map_or(rest.len(), |end| 1 + end),
    }
}

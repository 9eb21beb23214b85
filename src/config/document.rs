//! Reads a TOML document key by key, and remembers the position of each for errors.
//!
//! The tree is walked by hand: serde's messages about a wrong value quote it, and a value may be a secret in the wrong
//! place.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// The file's name and its text.
#[derive(Clone, Copy)]
pub(super) struct Document<'a> {
    file: &'a Path,
    text: &'a str,
    /// Set when the text comes from a preset: the preset's name, and where the file names it.
    preset: Option<(&'static str, usize)>,
}

impl<'a> Document<'a> {
    /// Parses the text into its outermost table.
    pub(super) fn parse(file: &'a Path, text: &'a str) -> Result<Section<'a>, ConfigError> {
        let document = Self { file, text, preset: None };
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            line: document.line(error.span().map_or(0, |span| span.start)),
            // Only serde's messages quote the text; the error's `Display` quotes its line.
            problem: error.message().to_owned(),
        })?;
        Ok(Section::new(document, String::new(), 0, table.into_inner()))
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }

    fn refuse(&self, at: usize, key: &str, problem: impl Into<Cow<'static, str>>) -> ConfigError {
        let (at, problem) = match self.preset {
            None => (at, problem.into()),
            Some((name, named_at)) => (named_at, format!("as the preset {name} has it: {}", problem.into()).into()),
        };
        ConfigError::Refused { file: self.file.to_owned(), line: self.line(at), key: key.to_owned(), problem }
    }
}

/// A table whose keys are taken one by one. Keys that are left in the end are unknown.
pub(super) struct Section<'a> {
    document: Document<'a>,
    path: String,
    at: usize,
    table: DeTable<'a>,
    /// The keys that were asked for, to list in the error about a mistyped key.
    known: Vec<String>,
    /// The preset's table, for keys that are missing here.
    preset: Option<Box<Self>>,
}

impl<'a> Section<'a> {
    fn new(document: Document<'a>, path: String, at: usize, table: DeTable<'a>) -> Self {
        Self { document, path, at, table, known: Vec::new(), preset: None }
    }

    /// Overlays this table on a preset's, which `named` names: keys missing here are read there, in inner tables too.
    pub(super) fn overlay(&mut self, preset: &'static str, table: DeTable<'a>, named: &Entry<'_>) {
        let document = Document { preset: Some((preset, named.value_at)), ..self.document };
        self.preset = Some(Box::new(Self::new(document, self.path.clone(), self.at, table)));
    }

    /// The keys that were not taken yet.
    pub(super) fn remaining(&self) -> &DeTable<'a> {
        &self.table
    }

    /// Takes a key.
    pub(super) fn take(&mut self, name: &str) -> Option<Entry<'a>> {
        self.known.push(name.to_owned());
        let preset = self.preset.as_mut().and_then(|preset| preset.take(name));
        let Some((key, value)) = self.table.remove_entry(name) else { return preset };
        Some(Entry {
            document: self.document,
            key: self.key(name),
            at: key.span().start,
            value_at: value.span().start,
            value: value.into_inner(),
            preset: preset.map(Box::new),
        })
    }

    /// Takes a key that must exist.
    pub(super) fn required(&mut self, name: &str) -> Result<Entry<'a>, ConfigError> {
        self.take(name).ok_or_else(|| self.missing(name, "is missing"))
    }

    /// Takes a table; an empty one if it is missing.
    pub(super) fn section(&mut self, name: &str) -> Result<Self, ConfigError> {
        match self.take(name) {
            Some(entry) => entry.section("must be a table"),
            None => Ok(Self::new(self.document, self.key(name), self.at, DeTable::new())),
        }
    }

    /// Takes a table of named tables, in the order of the names.
    pub(super) fn sections(&mut self, name: &str) -> Result<Vec<(String, Self)>, ConfigError> {
        let entries = self.section(name)?.entries().into_iter();
        entries.map(|(name, entry)| Ok((name, entry.section("must be a table")?))).collect()
    }

    /// Takes all keys that are left, in order.
    pub(super) fn entries(&mut self) -> Vec<(String, Entry<'a>)> {
        self.names().into_iter().filter_map(|name| Some((name.clone(), self.take(&name)?))).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        let mut names = self.preset.as_ref().map(|preset| preset.names()).unwrap_or_default();
        names.extend(self.table.keys().map(|key| key.get_ref().to_string()));
        names
    }

    /// Refuses keys that were not taken.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        match self.table.keys().min_by_key(|key| key.span().start) {
            Some(key) => {
                let problem = format!("unknown key; known here: {}", self.known.join(", "));
                Err(self.document.refuse(key.span().start, &self.key(key.get_ref()), problem))
            }
            None => Ok(()),
        }
    }

    /// Whether every key was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// An error about a missing key.
    pub(super) fn missing(&self, name: &str, problem: impl Into<Cow<'static, str>>) -> ConfigError {
        self.document.refuse(self.at, &self.key(name), problem)
    }

    /// An error at the position of the table's name.
    pub(super) fn refuse(&self, problem: impl Into<Cow<'static, str>>) -> ConfigError {
        self.document.refuse(self.at, &self.path, problem)
    }

    fn key(&self, name: &str) -> String {
        let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        let name = if bare { Cow::Borrowed(name) } else { Cow::Owned(format!("{name:?}")) };
        if self.path.is_empty() { name.into_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// A key with its value.
pub(super) struct Entry<'a> {
    document: Document<'a>,
    key: String,
    at: usize,
    value_at: usize,
    value: DeValue<'a>,
    /// The preset's value for this key.
    preset: Option<Box<Self>>,
}

impl<'a> Entry<'a> {
    /// An error at the position of this value.
    pub(super) fn refuse(&self, problem: impl Into<Cow<'static, str>>) -> ConfigError {
        self.document.refuse(self.value_at, &self.key, problem)
    }

    /// A string. An empty one is an error everywhere.
    pub(super) fn text(&self) -> Result<&str, ConfigError> {
        let text = self.value.as_str().filter(|text| !text.is_empty());
        text.ok_or_else(|| self.refuse("must be a string that is not empty"))
    }

    /// A string that `parse` converts.
    pub(super) fn parsed<T>(
        &self,
        parse: impl FnOnce(&str) -> Option<T>,
        problem: &'static str,
    ) -> Result<T, ConfigError> {
        parse(self.text()?).ok_or_else(|| self.refuse(problem))
    }

    /// A whole number from 0 to 2^32 - 1, such as a user id.
    pub(super) fn id(&self) -> Result<u32, ConfigError> {
        let number = self.value.as_integer();
        let number = number.and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
        number.ok_or_else(|| self.refuse("must be a whole number from 0 to 4294967295"))
    }

    /// A whole number within limits.
    pub(super) fn count<T: FromStr + PartialOrd + Display>(&self, limits: RangeInclusive<T>) -> Result<T, ConfigError> {
        let number = self.value.as_integer().filter(|number| number.radix() == 10);
        let number = number.and_then(|number| number.as_str().parse().ok()).filter(|number| limits.contains(number));
        number.ok_or_else(|| self.refuse(format!("must be a whole number from {} to {}", limits.start(), limits.end())))
    }

    /// A size within limits, written like `10MiB`, in bytes.
    pub(super) fn size(&self, limits: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        let form = "must be a size in quotes, like \"10MiB\"";
        let text = self.value.as_str().ok_or_else(|| self.refuse(form))?;
        let parsed = UNITS.iter().find_map(|(name, unit)| {
            let number = text.strip_suffix(name)?;
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            Some((number.parse::<u64>().ok().filter(|_| digits)?).saturating_mul(*unit))
        });
        let size = parsed.ok_or_else(|| self.refuse(form))?;
        if limits.contains(&size) {
            return Ok(size);
        }
        let [least, most] = [limits.start(), limits.end()].map(|limit| {
            let (name, unit) = UNITS.iter().find(|(_, unit)| limit % unit == 0).unwrap_or(&("", 1));
            format!("{}{name}", limit / unit)
        });
        Err(self.refuse(format!("must be from {least} to {most}")))
    }

    /// Whether it is the string `off`.
    pub(super) fn is_off(&self) -> bool {
        self.value.as_str() == Some("off")
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Result<bool, ConfigError> {
        self.value.as_bool().ok_or_else(|| self.refuse("must be true or false"))
    }

    /// A duration within limits, written like `30s`.
    pub(super) fn duration(&self, limits: RangeInclusive<Duration>) -> Result<Duration, ConfigError> {
        let form = "must be a duration in quotes, like \"30s\"";
        let text = self.value.as_str().ok_or_else(|| self.refuse(form))?;
        let duration = humantime::parse_duration(text).map_err(|_| self.refuse(form))?;
        if limits.contains(&duration) {
            return Ok(duration);
        }
        let [least, most] = [limits.start(), limits.end()].map(|limit| humantime::format_duration(*limit));
        Err(self.refuse(format!("must be from {least} to {most}")))
    }

    /// An absolute path.
    pub(super) fn path(&self) -> Result<PathBuf, ConfigError> {
        let path = Path::new(self.text()?);
        if path.is_absolute() {
            return Ok(path.to_owned());
        }
        let hint = if path.starts_with("~") { "; ~ is not expanded" } else { "" };
        Err(self.refuse(format!("must be an absolute path: a daemon has no directory of its own{hint}")))
    }

    /// The elements of an array.
    pub(super) fn list(self) -> Result<Vec<Self>, ConfigError> {
        let DeValue::Array(values) = self.value else {
            return Err(self.document.refuse(self.value_at, &self.key, "must be a list"));
        };
        let element = |value: toml::Spanned<DeValue<'a>>| Entry {
            document: self.document,
            key: self.key.clone(),
            at: self.at,
            value_at: value.span().start,
            value: value.into_inner(),
            preset: None,
        };
        Ok(values.into_iter().map(element).collect())
    }

    /// The elements of an array of strings, each converted by `parse`.
    pub(super) fn texts<T>(
        self,
        parse: impl Fn(&str) -> Option<T>,
        problem: &'static str,
    ) -> Result<Vec<T>, ConfigError> {
        self.list()?.iter().map(|element| element.parsed(&parse, problem)).collect()
    }

    /// The value as a table.
    pub(super) fn section(self, otherwise: &'static str) -> Result<Section<'a>, ConfigError> {
        let DeValue::Table(table) = self.value else {
            return Err(self.document.refuse(self.at, &self.key, otherwise));
        };
        let mut section = Section::new(self.document, self.key, self.at, table);
        section.preset = self.preset.and_then(|preset| preset.section(otherwise).ok()).map(Box::new);
        Ok(section)
    }
}

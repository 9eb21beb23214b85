//! `credproxy providers`.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Exit, Failure, output};
use crate::{
    account::ProviderName,
    config::{Config, Preset, Variable, presets},
    provider::Flow,
};

/// Prints the presets: the login flows, the keys that a `[providers.NAME]` table needs besides `preset`, and the
/// configured providers that use them.
pub fn print_presets(config: &Config, as_json: bool) -> Result<ExitCode, Failure> {
    let presets: Vec<(Preset, Vec<&ProviderName>)> = presets()
        .map(|preset| {
            let using = config.providers.iter().filter(|provider| provider.preset == Some(preset.name));
            let using = using.map(|provider| &provider.name).collect();
            (preset, using)
        })
        .collect();
    if as_json {
        output::json(&json!({ "presets": presets.iter().map(member).collect::<Vec<_>>() }))?;
    } else {
        output::data(&table(&presets))?;
        output::note("docs/providers.md has more on each; any other provider is configured key by key");
    }
    Ok(Exit::Success.into())
}

fn member((preset, using): &(Preset, Vec<&ProviderName>)) -> Value {
    let variable =
        |variable: &Variable| json!({ "name": variable.name, "about": variable.about, "default": variable.default });
    json!({
        "name": preset.name,
        "flows": preset.flows.iter().map(|flow| flow.name()).collect::<Vec<_>>(),
        "needs": preset.needs,
        "variables": preset.variables.iter().map(variable).collect::<Vec<_>>(),
        "keys": preset.keys,
        "used_by": using.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
    })
}

fn table(presets: &[(Preset, Vec<&ProviderName>)]) -> String {
    let head = ["PRESET", "FLOWS", "NEEDS", "USED BY"].map(String::from);
    let row = |(preset, using): &(Preset, Vec<&ProviderName>)| {
        let flows: Vec<&str> = preset.flows.iter().map(|flow: &Flow| flow.name()).collect();
        let using: Vec<&str> = using.iter().map(|name| name.as_str()).collect();
        let using = if using.is_empty() { "-".to_owned() } else { using.join(", ") };
        [preset.name.to_owned(), flows.join(", "), preset.needs.join(", "), using]
    };
    output::table(&[head].into_iter().chain(presets.iter().map(row)).collect::<Vec<_>>())
}

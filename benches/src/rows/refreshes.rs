//! Refreshes of different accounts, each on the disk before it is answered.

use crate::{
    Fallible, load,
    load::{Load, closed},
    server::Server,
    stores,
    table::{Pairs, Reach, Row},
    world::{PAIRS, SHORT, World},
};

/// So many that two connections never ask for the same one.
const ACCOUNTS: usize = 512;

pub(crate) fn refreshes(world: &World) -> Fallible<Vec<Row>> {
    let ours = world.credproxy(&world.home_with(1000)?)?;
    let prototype = world.prototype()?;
    world.issuer.forget();
    let mut rows = Vec::new();
    for connections in [1, 8, 64] {
        let [rates, used] = Pairs::measure(PAIRS, [&ours, &prototype], |server| rate(world, server, connections))?;
        let what = format!("refreshes of different accounts, {connections} at once");
        let row = Row::ratio(what.clone(), "1/s", &rates);
        rows.push(if connections == 8 { row.reach(Reach::RatioAtLeast(0.6)) } else { row });
        rows.push(Row::ratio(format!("{what}: processor time of each"), "µs", &used));
    }
    Ok(rows)
}

/// Refreshes per second, and microseconds of the server's processor for each.
fn rate(world: &World, server: &Server, connections: usize) -> Fallible<[f64; 2]> {
    let requests = (1..=ACCOUNTS).map(|number| load::request("POST", &stores::refresh_target(number))).collect();
    let load = Load { socket: server.socket.clone(), requests, connections, fresh: false };
    let before = server.used()?;
    let capacity = closed(&load, SHORT)?;
    let used = server.used()?.saturating_sub(before).as_secs_f64() * 1e6;
    let calls = world.issuer.calls()?;
    if calls == u64::from(capacity.answers) {
        Ok([capacity.rate, used / f64::from(capacity.answers)])
    } else {
        Err(format!("{} answers came of {calls} calls to the provider", capacity.answers).into())
    }
}

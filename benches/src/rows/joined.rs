//! Many callers who want one account's token refreshed at once: one call to the provider, and an answer for each.

use crate::{
    Fallible, load,
    load::{Crowd, Load},
    server::Server,
    stores,
    table::{Pairs, Reach, Row},
    world::World,
};

/// How many callers, and within how many milliseconds of the provider's answer the last one is to have his.
const CROWDS: [(usize, Option<f64>); 3] = [(10, None), (1000, Some(50.0)), (10_000, Some(300.0))];

const TIMES: usize = 3;

pub(crate) fn joined(world: &World) -> Fallible<Vec<Row>> {
    let mut rows = Vec::new();
    for (callers, within) in CROWDS {
        // New servers each time: what a crowd has taken is not given back to the system.
        let ours = || world.credproxy(&world.home_with(10)?);
        let prototype = || world.prototype();
        let sides: [&dyn Fn() -> Fallible<Server>; 2] = [&ours, &prototype];
        let [calls, last, bytes] = Pairs::measure(TIMES, sides, |start| {
            world.issuer.forget();
            gather(world, &start()?, callers)
        })?;
        let row = |what: &str, unit, pairs| Row::ratio(format!("{callers} joined callers: {what}"), unit, pairs);
        rows.push(row("calls to the provider", "", &calls).reach(Reach::Exactly(1.0)));
        let last = row("from the provider's answer to the last caller's", "ms", &last);
        rows.push(match within {
            Some(millis) => last.reach(Reach::AtMost(millis)),
            None => last,
        });
        // Fewer are lost in what the allocator keeps.
        if callers >= 1000 {
            rows.push(row("memory of a waiting caller, with its connection", "bytes", &bytes));
        }
    }
    Ok(rows)
}

/// Calls to the provider; milliseconds from its answer to the last caller's; bytes for each of them while they wait.
fn gather(world: &World, server: &Server, callers: usize) -> Fallible<[f64; 3]> {
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let divisor = callers as f64;
    server.settle()?;
    let before = server.memory()?;
    let load = Load::new(server, load::request("POST", &stores::refresh_target(1)), callers);
    let mut crowd = Crowd::new(&load)?;
    world.issuer.shut();
    crowd.ask_all()?;
    server.settle()?;
    let waiting = server.memory()?;
    world.issuer.open();
    crowd.wait_for_all()?;
    let last = world.issuer.since_answer()?;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let calls = world.issuer.calls()? as f64;
    let bytes = (waiting.proportional - before.proportional) * 1024.0 * 1024.0 / divisor;
    Ok([calls, last, bytes])
}

//! A token that lasts, got over and over: beside a bare axum server that gives the same bytes.

use std::time::Duration;

use crate::{
    Fallible,
    load::{Load, closed, open, serial},
    processors::stay_on,
    server::Server,
    table::{Pairs, Reach, Row},
    world::{PAIRS, SHORT, World},
};

/// How the server is asked: the name of it, how many connections, and whether each request has one of its own.
const WAYS: [(&str, usize, bool); 4] = [
    ("1 connection", 1, false),
    ("8 connections", 8, false),
    ("64 connections", 64, false),
    ("a connection per request, 8 at once", 8, true),
];

/// The part of the slower side's capacity at which latencies are measured.
const PART: f64 = 0.5;

/// As many connections as an open load may need at once where each request has its own.
const SEATS: usize = 64;

/// Latencies have long tails, which take longer to see.
const LONG: Duration = Duration::from_secs(2);

pub(crate) fn warm(world: &World) -> Fallible<Vec<Row>> {
    let ours = world.credproxy(&world.home_with(10)?)?;
    let bare = world.bare_like(&ours)?;
    let mut rows = Vec::new();
    for way in WAYS {
        rows.extend(beside_bare("warm GET", &ours, &bare, way)?);
    }
    rows.push(on_one_processor(world, &ours, &bare)?);
    Ok(rows)
}

/// The rows of a way, with what they are to reach.
fn beside_bare(what: &str, ours: &Server, bare: &Server, way: (&str, usize, bool)) -> Fallible<[Row; 5]> {
    let [mut answers, used, median, mut tail, far_tail] = beside(what, ours, bare, way)?;
    let (_, connections, fresh) = way;
    if connections > 1 && !fresh {
        answers = answers.reach(Reach::RatioAtLeast(0.90));
    }
    if connections == 8 && !fresh {
        tail = tail.reach(Reach::RatioAtMost(1.25));
    }
    Ok([answers, used, median, tail, far_tail])
}

/// What the audit log, which is on unless told, costs the same answers; and the answers without it beside the bare server.
pub(crate) fn audit(world: &World) -> Fallible<Vec<Row>> {
    let on = world.credproxy(&world.home_with(10)?)?;
    let off = world.credproxy_with(&world.home_with(10)?, "[audit]\npath = \"off\"\n")?;
    let mut rows = Vec::from(beside("audit log on against off", &on, &off, WAYS[1])?);
    on.stop()?;
    let bare = world.bare_like(&off)?;
    for way in [WAYS[1], WAYS[2]] {
        rows.extend(beside_bare("audit log off, warm GET", &off, &bare, way)?);
    }
    Ok(rows)
}

/// Two servers that are asked in the same way: how many answers they give, what these cost, and how long they take.
fn beside(
    what: &str,
    ours: &Server,
    other: &Server,
    (way, connections, fresh): (&str, usize, bool),
) -> Fallible<[Row; 5]> {
    let loads = |connections| [ours, other].map(|server| (server, Load { fresh, ..World::get(server, connections) }));
    let [rates, used] = Pairs::measure(PAIRS, loads(connections), |(server, load)| {
        let before = server.used()?;
        let capacity = closed(load, SHORT)?;
        let used = server.used()?.saturating_sub(before).as_secs_f64() * 1e6;
        Ok([capacity.rate, used / f64::from(capacity.answers)])
    })?;
    let rate = rates.slower() * PART;
    let seats = if fresh { SEATS } else { connections };
    let [median, tail, far_tail] = Pairs::measure(PAIRS, loads(seats), |(_, load)| {
        let latencies = open(load, rate, LONG)?;
        Ok([500, 990, 999].map(|wanted| latencies.per_mille(wanted)))
    })?;
    let row = |number: &str, unit, pairs| Row::ratio(format!("{what}, {way}: {number}"), unit, pairs);
    Ok([
        row("answers", "1/s", &rates),
        row("processor time per answer", "µs", &used),
        row("p50", "µs", &median),
        row("p99", "µs", &tail),
        row("p99.9", "µs", &far_tail),
    ])
}

/// Across two processors, one connection shows the waking of the other processor and little else.
fn on_one_processor(world: &World, ours: &Server, bare: &Server) -> Fallible<Row> {
    stay_on(world.processors.server)?;
    let loads = [ours, bare].map(|server| World::get(server, 1));
    let measured = Pairs::measure(PAIRS, loads, |load| Ok([serial(load, SHORT)?.per_mille(500)]));
    stay_on(world.processors.load)?;
    let [pairs] = measured?;
    Ok(Row::ratio("warm GET, 1 connection, both on one processor: p50", "µs", &pairs).reach(Reach::RatioAtMost(1.20)))
}

//! The load generator: raw HTTP/1.1 over a Unix socket, on one thread.
//!
//! A client library would take longer than the server, and the measurement would be of it. A load asks either as fast
//! as it is answered ([`closed`], [`serial`]), which tells the capacity, or at points of time that were settled before
//! ([`open`]): then an answer's time counts from when it should have been asked for, so that a server that stalls is
//! not spared the questions of that time.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use credproxy::clock::{Clock as _, Monotonic, SystemClock};
use rustix::{
    event::{Timespec, epoll},
    fd::OwnedFd,
};

use crate::server::Server;

/// What is asked, and by how many at once.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) socket: PathBuf,
    /// Asked in turn, each a whole request.
    pub(crate) requests: Vec<Vec<u8>>,
    /// How many requests are under way at once.
    pub(crate) connections: usize,
    /// Whether each request has a connection of its own.
    pub(crate) fresh: bool,
}

impl Load {
    /// One request, over and over, on so many connections.
    pub(crate) fn new(server: &Server, request: Vec<u8>, connections: usize) -> Self {
        Self { socket: server.socket.clone(), requests: vec![request], connections, fresh: false }
    }
}

/// A request without a body.
pub(crate) fn request(method: &str, target: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

/// The whole answer to one request, as text.
pub(crate) fn head_and_body(socket: &Path, request: &[u8]) -> io::Result<String> {
    let mut one = Connection::new(socket, false)?;
    one.stream.write_all(request)?;
    let mut answer = Vec::new();
    while !whole(&answer)? {
        let mut buffer = [0; READ];
        let read = one.stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(answer).map_err(io::Error::other)
}

/// How long answers took.
#[derive(Debug)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    fn new(mut all: Vec<Duration>) -> io::Result<Self> {
        all.sort_unstable();
        if all.is_empty() { Err(io::Error::other("nothing was answered")) } else { Ok(Self(all)) }
    }

    /// The smallest that so many per thousand are no longer than; in microseconds.
    pub(crate) fn per_mille(&self, wanted: usize) -> f64 {
        let last = self.0.len() - 1;
        self.0[(self.0.len() * wanted / 1000).min(last)].as_secs_f64() * 1e6
    }
}

/// How long at the beginning nothing is counted.
const WARM_UP: Duration = Duration::from_millis(100);

/// A server that does not answer for so long has stopped.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a server gives when it is asked as fast as it answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Answers per second.
    pub(crate) rate: f64,
    /// All of them, the first and the last ones included.
    pub(crate) answers: u32,
}

/// Each connection asks again as soon as it is answered.
pub(crate) fn closed(load: &Load, time: Duration) -> io::Result<Capacity> {
    let mut crowd = Crowd::new(load)?;
    crowd.ask_all()?;
    let start = crowd.clock.monotonic();
    let (mut answers, mut counted_from) = (0_u32, None);
    let rate = loop {
        let answered = crowd.wait(Some(PATIENCE))?;
        answers += count(&answered)?;
        let now = crowd.clock.monotonic();
        match counted_from {
            None if now.since(start) >= WARM_UP => counted_from = Some((now, answers)),
            Some((since, before)) if now.since(since) >= time => {
                // What is under way is waited for: who counts a provider's calls counts these, too.
                let mut outstanding = load.connections - answered.len();
                let rate = f64::from(answers - before) / now.since(since).as_secs_f64();
                while outstanding > 0 {
                    let answered = crowd.wait(Some(PATIENCE))?;
                    answers += count(&answered)?;
                    outstanding -= answered.len();
                }
                break rate;
            }
            None | Some(_) => {}
        }
        for seat in answered {
            crowd.ask(seat)?;
        }
    };
    Ok(Capacity { rate, answers })
}

fn count(answered: &[usize]) -> io::Result<u32> {
    u32::try_from(answered.len()).map_err(io::Error::other)
}

/// One connection that is answered so many times.
pub(crate) fn repeat(load: &Load, times: usize) -> io::Result<()> {
    let mut one = Connection::new(&load.socket, false)?;
    for request in load.requests.iter().cycle().take(times) {
        one.answer(request)?;
    }
    Ok(())
}

/// One connection that waits for each answer, on a processor that it may share with the server.
pub(crate) fn serial(load: &Load, time: Duration) -> io::Result<Latencies> {
    let clock = SystemClock::new();
    let mut one = Connection::new(&load.socket, false)?;
    let (start, mut all) = (clock.monotonic(), Vec::new());
    for request in load.requests.iter().cycle() {
        let asked = clock.monotonic();
        one.answer(request)?;
        let now = clock.monotonic();
        if now.since(start) >= WARM_UP {
            all.push(now.since(asked));
        }
        if now.since(start) >= WARM_UP + time {
            break;
        }
    }
    Latencies::new(all)
}

/// Asks `rate` times per second, at points of time that follow no rhythm and are the same in every run.
pub(crate) fn open(load: &Load, rate: f64, time: Duration) -> io::Result<Latencies> {
    let mut crowd = Crowd::new(load)?;
    let mut arrivals = Arrivals { state: 0x9e37_79b9_7f4a_7c15, mean: 1.0 / rate, next: Duration::ZERO };
    let mut idle: Vec<usize> = (0..load.connections).collect();
    let mut asked_at = vec![Duration::ZERO; load.connections];
    let (mut due, mut all) = (VecDeque::new(), Vec::new());
    let start = crowd.clock.monotonic();
    loop {
        let now = crowd.clock.monotonic().since(start);
        while arrivals.next <= now {
            due.push_back(arrivals.next);
            arrivals.advance();
        }
        while let (Some(seat), Some(when)) = (idle.last().copied(), due.front().copied()) {
            idle.pop();
            due.pop_front();
            asked_at[seat] = when;
            crowd.ask(seat)?;
        }
        // Never asleep: to be woken would count as the server's.
        let answered = crowd.wait(None)?;
        let now = crowd.clock.monotonic().since(start);
        for seat in answered {
            if asked_at[seat] >= WARM_UP {
                all.push(now.saturating_sub(asked_at[seat]));
            }
            idle.push(seat);
        }
        if now >= WARM_UP + time {
            return Latencies::new(all);
        }
    }
}

/// A Poisson process: the gaps between arrivals are exponentially distributed.
struct Arrivals {
    /// Of xorshift64*, which is good enough here and needs no crate.
    state: u64,
    /// The mean gap, in seconds.
    mean: f64,
    next: Duration,
}

impl Arrivals {
    fn advance(&mut self) {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let bits = u32::try_from(self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32).unwrap_or(0);
        let uniform = (f64::from(bits) + 1.0) / (f64::from(u32::MAX) + 1.0);
        self.next += Duration::from_secs_f64(-uniform.ln() * self.mean);
    }
}

/// The connections of a [`Load`].
pub(crate) struct Crowd<'a> {
    clock: SystemClock,
    load: &'a Load,
    /// Which request is the next.
    turn: usize,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    events: Vec<epoll::Event>,
}

impl<'a> Crowd<'a> {
    /// Connects them all.
    pub(crate) fn new(load: &'a Load) -> io::Result<Self> {
        let mut crowd = Self {
            clock: SystemClock::new(),
            load,
            turn: 0,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: Vec::with_capacity(load.connections),
            events: Vec::with_capacity(1024),
        };
        for seat in 0..load.connections {
            let connection = crowd.connect(seat)?;
            crowd.connections.push(connection);
        }
        Ok(crowd)
    }

    /// Asks on every connection.
    pub(crate) fn ask_all(&mut self) -> io::Result<()> {
        (0..self.load.connections).try_for_each(|seat| self.ask(seat))
    }

    /// Waits until every connection that was asked on is answered.
    pub(crate) fn wait_for_all(&mut self) -> io::Result<()> {
        let mut outstanding = self.load.connections;
        while outstanding > 0 {
            outstanding -= self.wait(Some(PATIENCE))?.len();
        }
        Ok(())
    }

    fn connect(&self, seat: usize) -> io::Result<Connection> {
        let connection = Connection::new(&self.load.socket, true)?;
        epoll::add(&self.epoll, &connection.stream, epoll::EventData::new_u64(seat as u64), epoll::EventFlags::IN)?;
        Ok(connection)
    }

    /// Sends the next request. A socket's buffer has room for it.
    fn ask(&mut self, seat: usize) -> io::Result<()> {
        if self.load.fresh {
            self.connections[seat] = self.connect(seat)?;
        }
        let request = &self.load.requests[self.turn];
        self.turn = (self.turn + 1) % self.load.requests.len();
        self.connections[seat].stream.write_all(request)
    }

    /// The connections that are answered; an error if there are none within `patience`. Without it, those that are
    /// answered now.
    fn wait(&mut self, patience: Option<Duration>) -> io::Result<Vec<usize>> {
        let start = self.clock.monotonic();
        loop {
            let timeout = Timespec::try_from(patience.unwrap_or_default()).map_err(io::Error::other)?;
            self.events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut answered = Vec::with_capacity(self.events.len());
            for event in &self.events {
                let seat = usize::try_from(event.data.u64()).map_err(io::Error::other)?;
                if self.connections[seat].read()? {
                    answered.push(seat);
                }
            }
            match patience {
                Some(patience) if answered.is_empty() && self.late(start, patience) => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Some(_) if answered.is_empty() => {}
                Some(_) | None => return Ok(answered),
            }
        }
    }

    fn late(&self, start: Monotonic, patience: Duration) -> bool {
        self.clock.monotonic().since(start) >= patience
    }
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// What has come of the answer under way.
    answer: Vec<u8>,
}

/// Longer than most answers here.
const READ: usize = 2048;

impl Connection {
    fn new(socket: &Path, nonblocking: bool) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(nonblocking)?;
        Ok(Self { stream, answer: Vec::new() })
    }

    /// Asks, and waits.
    fn answer(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request)?;
        while !self.read()? {}
        Ok(())
    }

    /// Reads what is there; whether the answer is whole. Any answer but 200 is an error.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; READ];
        let read = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.answer.is_empty() && whole(&buffer[..read])? {
            return Ok(true);
        }
        self.answer.extend_from_slice(&buffer[..read]);
        let whole = whole(&self.answer)?;
        if whole {
            self.answer.clear();
        }
        Ok(whole)
    }
}

/// Whether an answer has come to its end.
fn whole(answer: &[u8]) -> io::Result<bool> {
    const OK: &[u8] = b"HTTP/1.1 200 ";
    const LENGTH: &[u8] = b"\r\ncontent-length: ";
    let find = |sought: &[u8]| answer.windows(sought.len()).position(|window| window == sought);
    if answer.len() >= OK.len() && !answer.starts_with(OK) {
        return Err(io::Error::other(format!("not answered: {}", String::from_utf8_lossy(answer))));
    }
    let (Some(end), Some(at)) = (find(b"\r\n\r\n"), find(LENGTH)) else { return Ok(false) };
    let digits = answer[at + LENGTH.len()..].iter().take_while(|digit| digit.is_ascii_digit());
    let length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    Ok(answer.len() >= end + 4 + length)
}

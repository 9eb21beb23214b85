//! What the measurements share: a place on the disk, the provider, and how the servers are started.

use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    Fallible,
    issuer::Issuer,
    load::{self, Load},
    processors::Processors,
    server::Server,
    stores,
};

/// What is common to all measurements of one run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) processors: Processors,
    pub(crate) issuer: Issuer,
    /// Where the programs are: beside this one.
    programs: PathBuf,
    /// Removed at the end. On the disk that the programs are on: one in memory would make every save look cheap.
    place: TempDir,
    /// The same for the sockets, whose paths must be short.
    sockets: TempDir,
}

impl World {
    pub(crate) fn new(processors: Processors) -> Fallible<Self> {
        let programs = env::current_exe()?.parent().ok_or("this program has no place")?.to_owned();
        Ok(Self {
            processors,
            issuer: Issuer::start()?,
            place: tempfile::tempdir_in(&programs)?,
            sockets: tempfile::tempdir()?,
            programs,
        })
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// A new empty directory for a server.
    pub(crate) fn home(&self) -> Fallible<PathBuf> {
        let home = tempfile::Builder::new().disable_cleanup(true).tempdir_in(self.place.path())?;
        fs::DirBuilder::new().mode(0o700).create(self.socket(home.path()).parent().ok_or("no directory")?)?;
        Ok(home.path().to_owned())
    }

    /// The socket of the server in `home`.
    fn socket(&self, home: &Path) -> PathBuf {
        self.sockets.path().join(home.file_name().unwrap_or_default()).join("socket")
    }

    /// A directory with a store of so many accounts, for one server.
    pub(crate) fn home_with(&self, accounts: usize) -> Fallible<PathBuf> {
        let home = self.home()?;
        stores::put(&self.place.path().join("stores"), accounts, &home)?;
        Ok(home)
    }

    /// credproxy as it is installed, with the store in `home`.
    ///
    /// Without a cooldown and with nothing else that would turn a question away: what is measured is the work.
    pub(crate) fn credproxy(&self, home: &Path) -> Fallible<Server> {
        self.credproxy_with(home, "")
    }

    /// The same with further tables in its configuration: the way to measure what one of them costs.
    pub(crate) fn credproxy_with(&self, home: &Path, tables: &str) -> Fallible<Server> {
        let (arguments, socket) = self.prepare(home, tables)?;
        Server::start(&self.program("credproxy"), &arguments, home, socket, self.processors)
    }

    /// The command line that serves the store in `home`, and the socket.
    pub(crate) fn prepare(&self, home: &Path, tables: &str) -> Fallible<([String; 3], PathBuf)> {
        let socket = self.socket(home);
        let store = stores::file(home);
        let config = format!(
            "[store]\nurl = \"sqlite://{}\"\n\
             [refresh]\ncooldown = \"0s\"\n\
             [sockets.host]\npath = \"{}\"\nrole = \"host\"\n\
             [providers.bench]\ntoken_endpoint = \"{}\"\nclient_id = \"bench\"\n{tables}",
            store.display(),
            socket.display(),
            self.issuer.endpoint,
        );
        let file = home.join("config.toml");
        write(&file, config.as_bytes())?;
        Ok((["--config".to_owned(), file.display().to_string(), "serve".to_owned()], socket))
    }

    /// The bare server, with the answer that `server` gives.
    pub(crate) fn bare_like(&self, server: &Server) -> Fallible<Server> {
        let home = self.home()?;
        let answer = Self::answer_of(server)?;
        write(&home.join("answer"), answer.as_bytes())?;
        let bare = self.bare(&home)?;
        if Self::answer_of(&bare)? == answer { Ok(bare) } else { Err("the two servers do not answer alike".into()) }
    }

    /// What a server answers, in the form that the bare one reads.
    pub(crate) fn answer_of(server: &Server) -> Fallible<String> {
        let answer = load::head_and_body(&server.socket, &load::request("GET", stores::TARGET))?;
        without_framing(&answer)
    }

    /// The bare server with the answer in `home`.
    pub(crate) fn bare(&self, home: &Path) -> Fallible<Server> {
        let (program, arguments, socket) = self.prepare_bare(home);
        Server::start(&program, &arguments, home, socket, self.processors)
    }

    pub(crate) fn prepare_bare(&self, home: &Path) -> (PathBuf, [PathBuf; 2], PathBuf) {
        let socket = self.socket(home);
        (self.program("bare"), [socket.clone(), home.join("answer")], socket)
    }

    /// The prototype, whose accounts all begin with their first refresh token.
    pub(crate) fn prototype(&self) -> Fallible<Server> {
        let home = self.home()?;
        let socket = self.socket(&home);
        let arguments = [&socket, &home.join("prototype.db"), Path::new(&self.issuer.endpoint)];
        Server::start(&self.program("prototype"), &arguments, &home, socket.clone(), self.processors)
    }

    /// A load that gets the token of the account without a bucket.
    pub(crate) fn get(server: &Server, connections: usize) -> Load {
        Load::new(server, load::request("GET", stores::TARGET), connections)
    }
}

/// How long one measurement of a pair takes, and how many pairs there are: odd, so that the median is one of them.
pub(crate) const SHORT: Duration = Duration::from_secs(1);
pub(crate) const PAIRS: usize = 5;

/// A private file in a private place.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Fallible<()> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(bytes)?)
}

/// The fields and the body, without what every server adds by itself.
fn without_framing(answer: &str) -> Fallible<String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer has no end of its head")?;
    let added = |line: &str| ["date: ", "content-length: "].iter().any(|name| line.starts_with(name));
    let fields: Vec<&str> = head.lines().skip(1).filter(|line| !added(line)).collect();
    Ok(format!("{}\n\n{body}", fields.join("\n")))
}

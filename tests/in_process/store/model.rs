//! Any sequence of changes by two owners, who may die, against a model of the store that is too simple to be wrong:
//! at most one living owner holds a lease, an overtaken write changes nothing, and no revision comes twice.

use std::{collections::HashSet, sync::Arc};

use credproxy::{
    account::Account,
    clock::Timestamp,
    grant::{Grant, GrantId, Version},
    secret::{AccessToken, RefreshToken, StoreKey},
    store::{
        Attempt, Claim, DeadGrant, Deleted, Expect, KnownToken, Outcome, Presentation, Put, PutGrant, RefreshState,
        Renamed, Revision, Store, memory::MemoryStore, sqlite::Sqlite,
    },
};
use proptest::{collection::vec, prelude::*};

/// Which of the states that a caller may have seen: the current one, or one that was overtaken.
#[derive(Debug, Clone, Copy)]
enum Seen {
    Current,
    Earlier,
    Never,
}

#[derive(Debug, Clone, Copy)]
enum Wanting {
    Whatever,
    Present,
    OneOf(Seen),
}

/// Which refresh token a put brings.
#[derive(Debug, Clone, Copy)]
enum Brought {
    New,
    /// The account's own.
    Own,
    /// The one that the account's last refresh replaced.
    Spent,
    /// The other account's.
    Others,
}

#[derive(Debug, Clone)]
enum Change {
    Put(Wanting, Brought),
    Rename,
    Claim(Seen, i64, u32),
    Settle(Seen, RefreshState),
    Save(Seen, RefreshState),
    Delete(Wanting),
    /// The owner dies, and another comes in its place.
    Die,
}

#[derive(Debug, Clone)]
struct Step {
    owner: usize,
    account: usize,
    change: Change,
}

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![4 => Just(Seen::Current), 1 => Just(Seen::Earlier), 1 => Just(Seen::Never)]
}

fn wanting() -> impl Strategy<Value = Wanting> {
    prop_oneof![2 => Just(Wanting::Whatever), 1 => Just(Wanting::Present), 1 => seen().prop_map(Wanting::OneOf)]
}

fn brought() -> impl Strategy<Value = Brought> {
    prop_oneof![Just(Brought::Own), Just(Brought::Spent), Just(Brought::Others)]
}

prop_compose! {
    fn refresh_state()(
        presented in proptest::option::of((any::<i64>(), any::<u32>())),
        attempt in proptest::option::of((any::<i64>(), any::<u32>(), proptest::option::of(".{0,6}"))),
        dead in proptest::option::of((any::<i64>(), any::<bool>())),
        copied in proptest::option::of(any::<i64>()),
    ) -> RefreshState {
        let at = Timestamp::from_millis;
        RefreshState {
            presented: presented.map(|(millis, count)| Presentation { at: at(millis), count }),
            attempt: attempt.map(|(millis, consecutive, code)| Attempt {
                ended_at: at(millis), outcome: Outcome::Refused, code, consecutive, not_before: at(millis.saturating_neg()),
            }),
            dead: dead.map(|(millis, answer_lost)| DeadGrant { at: at(millis), answer_lost, copied: !answer_lost }),
            copied_at: copied.map(at),
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = prop_oneof![
        3 => wanting().prop_map(|wanting| Change::Put(wanting, Brought::New)),
        4 => (wanting(), brought()).prop_map(|(wanting, brought)| Change::Put(wanting, brought)),
        1 => Just(Change::Rename),
        6 => (seen(), any::<i64>(), any::<u32>()).prop_map(|(seen, at, count)| Change::Claim(seen, at, count)),
        4 => (seen(), refresh_state()).prop_map(|(seen, refresh_state)| Change::Settle(seen, refresh_state)),
        3 => (seen(), refresh_state()).prop_map(|(seen, refresh_state)| Change::Save(seen, refresh_state)),
        1 => wanting().prop_map(Change::Delete),
        1 => Just(Change::Die),
    ];
    let step = (0..2_usize, 0..2_usize, change).prop_map(|(owner, account, change)| Step { owner, account, change });
    vec(step, 1..40)
}

#[derive(Debug, Clone)]
struct Row {
    version: Version,
    revision: Revision,
    refresh_state: RefreshState,
    lease: Option<u32>,
    /// In which version it came.
    token: Version,
}

/// What there should be.
#[derive(Debug, Default)]
struct Model {
    rows: [Option<Row>; 2],
    versions: [Vec<Version>; 2],
    revisions: [Vec<Revision>; 2],
    /// The living, by number.
    owners: [u32; 2],
    last_owner: u32,
    last_grant: u8,
    /// Refresh tokens that were presented and replaced, and whose they are.
    spent: Vec<(usize, Version)>,
}

/// Why a put's refresh token is not taken.
enum Known {
    Held(Version),
    By(usize, bool),
}

const NEVER: Version = Version { id: GrantId::from_bytes([0; 16]), generation: 1 };

impl Model {
    fn version(&self, account: usize, seen: Seen) -> Version {
        let current = self.rows[account].as_ref().map(|row| row.version);
        match seen {
            Seen::Current => current.unwrap_or(NEVER),
            Seen::Earlier => {
                self.versions[account].iter().rev().find(|known| Some(**known) != current).copied().unwrap_or(NEVER)
            }
            Seen::Never => NEVER,
        }
    }

    fn revision(&self, account: usize, seen: Seen) -> Revision {
        let current = self.rows[account].as_ref().map(|row| row.revision);
        match seen {
            Seen::Current => current.unwrap_or(Revision(u64::MAX)),
            Seen::Earlier => {
                let known = self.revisions[account].iter().rev().find(|known| Some(**known) != current);
                known.copied().unwrap_or(Revision(0))
            }
            Seen::Never => Revision(u64::MAX >> 1),
        }
    }

    fn expect(&self, account: usize, wanting: Wanting) -> (Expect, bool) {
        let current = self.rows[account].as_ref().map(|row| row.version);
        match wanting {
            Wanting::Whatever => (Expect::Whatever, true),
            Wanting::Present => (Expect::Present, current.is_some()),
            Wanting::OneOf(seen) => {
                let version = self.version(account, seen);
                (Expect::OneOf(vec![NEVER, version]), current == Some(version))
            }
        }
    }

    /// The refresh token that a put brings, and the store's answer to it if it does not take it.
    fn brought(&self, account: usize, brought: Brought, new: Version) -> (Version, Option<Known>) {
        let held = |slot: usize| self.rows[slot].as_ref().map(|row| row.token);
        let spent = self.spent.iter().rev().find(|(of, _)| *of == account).map(|(_, token)| *token);
        let token = match brought {
            Brought::New => None,
            Brought::Own => held(account),
            Brought::Spent => spent,
            Brought::Others => held(1 - account),
        };
        let token = token.unwrap_or(new);
        if held(account) == Some(token) {
            let row = self.rows[account].as_ref().unwrap();
            return (token, row.refresh_state.dead.is_none().then_some(Known::Held(row.version)));
        }
        if held(1 - account) == Some(token) {
            return (token, Some(Known::By(1 - account, false)));
        }
        let of = self.spent.iter().find(|(_, spent)| *spent == token);
        (token, of.map(|(of, _)| Known::By(*of, true)))
    }

    /// The refresh token of a record that goes, if it has been presented.
    fn spend(&mut self, account: usize, next: Option<Version>) {
        if let Some(row) = &self.rows[account]
            && row.refresh_state.presented.is_some()
            && next != Some(row.token)
        {
            self.spent.retain(|(_, token)| *token != row.token);
            self.spent.push((account, row.token));
        }
    }

    fn new_owner(&mut self, owner: usize) {
        self.last_owner += 1;
        self.owners[owner] = self.last_owner;
    }
}

fn grant(version: Version) -> Grant {
    grant_with(version, version)
}

fn grant_with(version: Version, token: Version) -> Grant {
    let name = version.to_string();
    Grant {
        version,
        access_token: AccessToken::new(format!("at-{name}")).unwrap(),
        token_type: "Bearer".into(),
        issued_at: Timestamp::from_millis(1),
        expires_at: None,
        scope: None,
        refresh_token: Some(RefreshToken::new(format!("rt-{token}")).unwrap()),
        extra: credproxy::grant::Extra::default(),
    }
}

/// A store under test.
trait StoreUnderTest {
    async fn new() -> Self;
    /// Another owner; one that is dropped has died.
    async fn owner(&self) -> Arc<dyn Store>;
}

struct InMemory(MemoryStore);

impl StoreUnderTest for InMemory {
    async fn new() -> Self {
        Self(MemoryStore::new().unwrap())
    }

    async fn owner(&self) -> Arc<dyn Store> {
        Arc::new(self.0.second_owner())
    }
}

struct OnDisk(tempfile::TempDir);

impl StoreUnderTest for OnDisk {
    async fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn owner(&self) -> Arc<dyn Store> {
        let file = self.0.path().join("store/credproxy.db");
        Arc::new(Sqlite::open(&file, StoreKey::new([7; 32]), "the test's key").await.unwrap())
    }
}

/// Makes the change in store and model, and compares what both say to it. Gives whether anything was written.
async fn make(model: &mut Model, store: &dyn Store, step: &Step, accounts: &[Account; 2]) -> bool {
    let (slot, account) = (step.account, &accounts[step.account]);
    let own = model.owners[step.owner];
    let row = model.rows[slot].clone();
    match &step.change {
        Change::Put(wanting, brought) => {
            let (expect, met) = model.expect(slot, *wanting);
            model.last_grant += 1;
            let version = Version { id: GrantId::from_bytes([model.last_grant; 16]), generation: 1 };
            let (token, known) = model.brought(slot, *brought, version);
            let put = store.put(account, &grant_with(version, token), &expect, &[]).await.unwrap();
            let expected = match (row, known) {
                _ if !met => Put::Conflict.into(),
                (_, Some(Known::Held(version))) => PutGrant::Held(version),
                (_, Some(Known::By(of, spent))) => PutGrant::Known(KnownToken { account: accounts[of].clone(), spent }),
                (Some(_), None) => Put::Replaced.into(),
                (None, None) => Put::Created.into(),
            };
            assert_eq!(put, expected);
            let written = matches!(put, PutGrant::Done(Put::Created | Put::Replaced));
            if let PutGrant::Held(held) = put {
                assert_eq!(model.rows[slot].as_ref().unwrap().version, held);
                return true;
            }
            if written {
                model.spend(slot, Some(token));
                let new =
                    Row { version, revision: Revision(0), refresh_state: RefreshState::default(), lease: None, token };
                model.rows[slot] = Some(new);
            }
            written
        }
        Change::Rename => rename(model, store, step, accounts).await,
        Change::Claim(seen, at, count) => {
            let presented = Presentation { at: Timestamp::from_millis(*at), count: *count };
            let revision = model.revision(slot, *seen);
            let claim = store.claim(account, revision, presented).await.unwrap();
            let Some(row) = row.filter(|row| row.revision == revision) else {
                assert_eq!(claim, Claim::Changed);
                return false;
            };
            if row.lease.is_some_and(|owner| owner != own && model.owners.contains(&owner)) {
                assert_eq!(claim, Claim::Held, "two living owners");
                return false;
            }
            let Claim::Taken(revision) = claim else { panic!("{claim:?} of {row:?}") };
            let refresh_state = RefreshState { presented: Some(presented), ..row.refresh_state };
            model.rows[slot] = Some(Row { lease: Some(own), refresh_state, revision, ..row });
            true
        }
        Change::Settle(seen, refresh_state) => {
            let version = model.version(slot, *seen);
            let settled = store.settle(account, version, refresh_state).await.unwrap();
            let free = |row: &Row| row.lease.is_none_or(|owner| owner == own);
            let row = row.filter(|row| row.version == version && free(row));
            assert_eq!(settled, row.is_some());
            row.is_some_and(|row| {
                model.rows[slot] = Some(Row { lease: None, refresh_state: refresh_state.clone(), ..row });
                true
            })
        }
        Change::Save(seen, refresh_state) => {
            let version = model.version(slot, *seen);
            let next = Version { generation: version.generation + 1, ..version };
            let saved = store.save(account, version, &grant(next), refresh_state).await.unwrap();
            let row = row.filter(|row| row.version == version);
            assert_eq!(saved, row.is_some());
            row.is_some_and(|row| {
                model.spent.retain(|(_, token)| *token != row.token);
                model.spent.push((slot, row.token));
                model.rows[slot] =
                    Some(Row { version: next, lease: None, refresh_state: refresh_state.clone(), token: next, ..row });
                true
            })
        }
        Change::Delete(wanting) => {
            let (expect, met) = model.expect(slot, *wanting);
            match (store.delete(account, &expect).await.unwrap(), row) {
                (Deleted::Gone(Some(gone)), Some(row)) => assert!(met && gone.version == row.version),
                (Deleted::Missing, None) => return false,
                (Deleted::Conflict, Some(_)) if !met => return false,
                (deleted, row) => panic!("{deleted:?} of {row:?}"),
            }
            model.spend(slot, None);
            model.rows[slot] = None;
            true
        }
        Change::Die => false,
    }
}

/// The renaming of one step, as [`make`] makes the other changes.
async fn rename(model: &mut Model, store: &dyn Store, step: &Step, accounts: &[Account; 2]) -> bool {
    let (slot, account, own) = (step.account, &accounts[step.account], model.owners[step.owner]);
    let row = model.rows[slot].clone();
    let other = 1 - slot;
    let renamed = store.rename(account, &accounts[other]).await.unwrap();
    let Some(row) = row else {
        assert_eq!(renamed, Renamed::Missing);
        return false;
    };
    if model.rows[other].is_some() {
        assert_eq!(renamed, Renamed::Occupied);
        return false;
    }
    if row.lease.is_some_and(|owner| owner != own && model.owners.contains(&owner)) {
        assert_eq!(renamed, Renamed::LeaseHeld);
        return false;
    }
    assert_eq!(renamed, Renamed::Done);
    model.rows[slot] = None;
    model.rows[other] = Some(Row { lease: None, ..row });
    model.spent.iter_mut().filter(|(of, _)| *of == slot).for_each(|(of, _)| *of = other);
    true
}

async fn play<B: StoreUnderTest>(steps: Vec<Step>) {
    let subject = B::new().await;
    let accounts: [Account; 2] = ["corp".parse().unwrap(), "corp/work".parse().unwrap()];
    let mut model = Model::default();
    let mut owners = [subject.owner().await, subject.owner().await];
    model.new_owner(0);
    model.new_owner(1);
    let mut revisions = [HashSet::new(), HashSet::new()];
    for step in steps {
        if matches!(step.change, Change::Die) {
            owners[step.owner] = subject.owner().await;
            model.new_owner(step.owner);
        }
        let wrote = make(&mut model, &*owners[step.owner], &step, &accounts).await;
        for (slot, account) in accounts.iter().enumerate() {
            let mine = owners[step.owner].load(account).await.unwrap();
            let theirs = owners[1 - step.owner].load(account).await.unwrap();
            if let Some(row) = &mut model.rows[slot]
                && wrote
                && (slot == step.account || matches!(step.change, Change::Rename))
            {
                let revision = mine.as_ref().expect("a record is gone").revision;
                assert!(revisions[slot].insert(revision.0), "a revision came again");
                // A claim told its revision itself.
                let told = matches!(step.change, Change::Claim(..));
                assert!(!told || row.revision == revision);
                row.revision = revision;
            }
            for record in [&mine, &theirs] {
                let Some(row) = &model.rows[slot] else {
                    assert!(record.is_none());
                    continue;
                };
                let record = record.as_ref().expect("a record is gone");
                assert_eq!((record.revision, record.grant.version), (row.revision, row.version), "{step:?}");
                assert_eq!(record.refresh_state, row.refresh_state, "{step:?}");
                let expected = grant_with(row.version, row.token).refresh_token.unwrap();
                assert!(record.grant.refresh_token.as_ref().unwrap().same_as(&expected));
            }
            if let Some(row) = &model.rows[slot] {
                model.versions[slot].push(row.version);
                model.revisions[slot].push(row.revision);
            }
        }
        let listed = owners[0].list().await.unwrap();
        assert_eq!(listed.len(), model.rows.iter().flatten().count());
    }
}

fn run<B: StoreUnderTest>(steps: Vec<Step>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play::<B>(steps));
}

/// A sequence on disk takes a hundred times as long as one in memory.
fn few() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: (usual.cases / 32).max(1), ..usual }
}

proptest! {
    #[test]
    fn the_store_in_memory_does_as_the_model(steps in steps()) {
        run::<InMemory>(steps);
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn the_store_on_disk_does_as_the_model(steps in steps()) {
        run::<OnDisk>(steps);
    }
}

//! What becomes of routes when their store is full, may not be written to, or is away: nothing is half there, it is said, and
//! what is loaded serves on.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tonic::{Code, Status};

use super::{OPTIONS, answers, asked, promote, route_file, written};
use crate::{
    commands::{fails, succeeds},
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, adders, answering, publish_adder, version},
        assert_refused, call,
        disk::SmallDisk,
        eventually,
    },
    proto::*,
};

/// A store of two versions on a disk of its own.
fn on_a_small_disk() -> Option<(Store, SmallDisk)> {
    let store = Store::new();
    let disk = SmallDisk::mount(store.path())?;
    for number in 1..=2 {
        publish_adder(&store, number);
    }
    Some((store, disk))
}

/// Ends the server before its disk: a folder can only go once nothing is mounted there.
fn end(server: Server, disk: SmallDisk) {
    let store = server.into_store();
    drop(disk);
    drop(store);
}

/// Whatever a server leaves while it writes.
fn temporary_files(store: &Store) -> Vec<PathBuf> {
    let files = fs::read_dir(store.path().join(ADDER).join(".sconce")).into_iter().flatten().flatten();
    files.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(".tmp")).collect()
}

#[tokio::test]
async fn on_a_full_disk_the_old_route_stands_and_the_retry_succeeds() {
    let Some((store, disk)) = on_a_small_disk() else { return };
    let server = Server::start(store, &OPTIONS).await;
    let mut admin = server.admin().await;
    promote(&mut admin, 1, asked("before")).await.expect("there is space");
    let before = fs::read(route_file(&server.store)).expect("it is there");
    let filler = disk.fill();
    for _ in 0..3 {
        let refused = promote(&mut admin, 2, asked("full")).await;
        let status = assert_refused("a full disk", refused, Code::ResourceExhausted, "NO_SPACE");
        assert!(status.message().contains("disk of the store is full"), "{}", status.message());
        assert_eq!(fs::read(route_file(&server.store)).expect("it is there"), before, "the old route is whole");
        let left = temporary_files(&server.store);
        assert!(left.is_empty(), "its space is not given back: {left:?}");
        assert_eq!(answering(&server, None).await.expect("it serves on"), 1);
    }
    fails(&server, &["promote", ADDER, &version(2)], 1, &["RESOURCE_EXHAUSTED (NO_SPACE)", "free some space"]);
    // It can be read all the same, also by a server that starts now.
    assert_eq!(server.describe(ADDER).await.route.expect("a route").revision, 1);
    fs::remove_file(filler).expect("it is there");
    let answer = promote(&mut admin, 2, asked("full")).await.expect("there is space again");
    assert_eq!((answer.revision, answer.repeated, answer.settled()), (2, false, Settled::Ready), "{answer:?}");
    assert_eq!(written(&server.store).history.len(), 2, "the refused ones left nothing");
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    server.assert_unharmed().await;
    end(server, disk);
}

/// Every kind of write, each of which would change something.
async fn every_write(server: &Server) -> Vec<(&'static str, Status)> {
    let mut admin = server.admin().await;
    let (model, asked) = (|| ADDER.to_owned(), || Some(asked("")));
    let (version, old) = (version(2), version(1));
    let labels = SetLabelsRequest {
        model: model(),
        set: [("prod".to_owned(), old.clone())].into(),
        asked: asked(),
        ..Default::default()
    };
    let promote = PromoteRequest { model: model(), version: version.clone(), asked: asked() };
    let rollback = RollbackRequest { model: model(), version: version.clone(), asked: asked() };
    let unpin = UnpinRequest { model: model(), asked: asked() };
    let load = LoadVersionRequest { model: model(), version, asked: asked() };
    let unload = UnloadVersionRequest { model: model(), version: super::version(3), asked: asked() };
    let disable = DisableModelRequest { model: model(), asked: asked() };
    let reload = ReloadModelRequest { model: model(), asked: asked() };
    let outcomes = [
        ("promote", admin.promote(call(promote)).await),
        ("rollback", admin.rollback(call(rollback)).await),
        ("unpin", admin.unpin(call(unpin)).await),
        ("label", admin.set_labels(call(labels)).await),
        ("load", admin.load_version(call(load)).await),
        ("unload", admin.unload_version(call(unload)).await),
        ("disable", admin.disable_model(call(disable)).await),
        ("reload", admin.reload_model(call(reload)).await),
    ];
    let refused = |(what, outcome): (&'static str, Result<_, Status>)| match outcome {
        Ok(_) => panic!("{what} was done, although nothing can be written"),
        Err(status) => (what, status),
    };
    outcomes.into_iter().map(refused).collect()
}

/// Takes the right to write away and gives it back: by the mount, or where nothing can be mounted by the modes of the folders,
/// which bind everybody but root.
enum ReadOnly {
    Mount(SmallDisk),
    Modes(Vec<PathBuf>),
}

// === impl ReadOnly ===

impl ReadOnly {
    fn prepare(store: &Store) -> Option<Self> {
        if let Some(disk) = SmallDisk::mount(store.path()) {
            return Some(Self::Mount(disk));
        }
        if rustix::process::geteuid().is_root() {
            return None;
        }
        eprintln!("but the modes of the folders do as well here");
        Some(Self::Modes(vec![store.path(), store.path().join(ADDER)]))
    }

    fn set(&self, is_read_only: bool) {
        match self {
            Self::Mount(disk) => disk.set_read_only(is_read_only),
            Self::Modes(folders) => {
                let mode = if is_read_only { 0o555 } else { 0o755 };
                let set = |folder: &Path| fs::set_permissions(folder, PermissionsExt::from_mode(mode));
                folders.iter().for_each(|folder| set(folder).expect("our folder"));
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_may_not_be_written_to_serves_and_every_write_says_so() {
    let store = Store::new();
    let Some(rights) = ReadOnly::prepare(&store) else { return };
    for number in 1..=3 {
        publish_adder(&store, number);
    }
    let store = store.file("adder/route.yaml", "stable: 1.0.1\nload: [1.0.3]\n");
    rights.set(true);
    let server = Server::start(store, &OPTIONS).await;
    assert_eq!(answering(&server, None).await.expect("it serves"), 1);
    for (what, status) in every_write(&server).await {
        let status = assert_refused(what, Err::<(), _>(status), Code::FailedPrecondition, "STORE_READ_ONLY");
        assert!(status.message().contains("at its source"), "{what}: {}", status.message());
    }
    fails(&server, &["promote", ADDER, "1.0.2"], 1, &["FAILED_PRECONDITION (STORE_READ_ONLY)", "may not be written"]);
    let info = server.admin().await.server_info(call(ServerInfoRequest {})).await.expect("info").into_inner();
    assert!(info.not_writable.contains("may not be written") && info.ready, "{info:?}");
    assert!(succeeds(&server, &["info"], "").contains("may not be written"), "`sconce info` shows it");
    // What is so already needs no write.
    let mut admin = server.admin().await;
    let same = promote(&mut admin, 1, asked("same")).await.expect("1.0.1 is stable");
    assert_eq!((same.revision, same.time.as_str()), (0, ""), "{same:?}");
    assert_eq!(answering(&server, None).await.expect("it serves on"), 1);

    rights.set(false);
    let answer = promote(&mut admin, 2, asked("again")).await.expect("it may be written to");
    assert_eq!((answer.revision, answer.settled()), (1, Settled::Ready), "{answer:?}");
    let info = server.admin().await.server_info(call(ServerInfoRequest {})).await.expect("info").into_inner();
    assert_eq!(info.not_writable, "");
    server.assert_unharmed().await;
    let store = server.into_store();
    drop(rights);
    drop(store);
}

/// Nothing is written, and what is loaded serves.
async fn assert_away(server: &Server, what: &str) {
    for (write, status) in every_write(server).await {
        let what = format!("{what}: {write}");
        let status = assert_refused(&what, Err::<(), _>(status), Code::Unavailable, "STORE_UNAVAILABLE");
        assert!(status.message().contains("serves on"), "{what}: {}", status.message());
    }
    let mut admin = server.admin().await;
    let looked = admin.refresh(call(RefreshRequest {})).await;
    assert_refused(what, looked, Code::Unavailable, "STORE_UNAVAILABLE");
    let trouble = || async {
        let info = server.admin().await.server_info(call(ServerInfoRequest {})).await.expect("info").into_inner();
        (!info.store_trouble.is_empty() && info.ready).then_some(())
    };
    eventually(&format!("{what}: it is said"), PATIENCE, trouble).await;
    assert_eq!(answering(server, None).await.expect("it serves on"), 1, "{what}");
}

/// With the store back, the same request is carried out once.
async fn assert_back(server: &Server) {
    let mut admin = server.admin().await;
    let answer = promote(&mut admin, 2, asked("meanwhile")).await.expect("the store is back");
    assert_eq!((answer.repeated, answer.settled()), (false, Settled::Ready), "{answer:?}");
    let entries = written(&server.store).history.into_iter().filter(|entry| entry.request_id == "meanwhile");
    assert_eq!(entries.count(), 1);
    answers(server, 2).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn while_the_store_is_away_nothing_is_written_and_what_is_loaded_serves() {
    let store = adders(1..=3).file("adder/route.yaml", "stable: 1.0.1\nload: [1.0.3]\n");
    let server = Server::start(store, &OPTIONS).await;
    let (place, away) = (server.store.path(), server.store.beside("away"));
    fs::rename(&place, &away).expect("a rename");
    assert_away(&server, "renamed away").await;
    let refused = promote(&mut server.admin().await, 2, asked("meanwhile")).await;
    assert_refused("renamed away", refused, Code::Unavailable, "STORE_UNAVAILABLE");
    // What is left of a store that was unmounted is an empty folder, and no place for a route.
    fs::create_dir(&place).expect("a folder");
    assert_away(&server, "unmounted").await;
    let found: Vec<_> = fs::read_dir(&place).expect("a folder").flatten().map(|entry| entry.path()).collect();
    assert!(found.is_empty(), "something was written where no store is: {found:?}");
    fs::remove_dir(&place).expect("an empty folder");
    fs::rename(&away, &place).expect("a rename");
    assert_back(&server).await;
}

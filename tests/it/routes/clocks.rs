//! The wall clock orders nothing: files with times of another year, a history of tomorrow, and a clock that is set while the
//! server runs and between two starts.
//!
//! A namespace of time (`unshare --time`) moves only the clocks that nobody sets, and setting the machine's own is not for a
//! test. So the server gets a library before the C library that adds to the wall clock what a file says.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use super::{OPTIONS, answers, asked, promote, route_file, upon, write_route, written};
use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, adders, answering, artifact, publish_adder, version},
        call, eventually,
    },
    proto::*,
};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads the file each time, so that the clock can be set while the server runs. Other clocks are as they are.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int done = (int)syscall(SYS_clock_gettime, clock, time);
    const char *name = getenv("WALL_CLOCK_FILE");
    if (done != 0 || name == NULL || clock != CLOCK_REALTIME) return done;
    char text[32] = {0};
    int file = open(name, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0) time->tv_sec += strtol(text, NULL, 10);
        close(file);
    }
    return done;
}
"#;

fn set_times(path: &Path, time: SystemTime) {
    let file = fs::File::open(path).expect("it is there");
    file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).expect("our file");
}

/// Each file of the model, the folders of its versions, and its own.
fn set_all_times(store: &Store, time: SystemTime) {
    let model = store.path().join(ADDER);
    for version in fs::read_dir(&model).expect("a folder").flatten().map(|entry| entry.path()) {
        if version.is_dir() {
            fs::read_dir(&version).expect("a folder").flatten().for_each(|file| set_times(&file.path(), time));
        }
        set_times(&version, time);
    }
    set_times(&model, time);
}

#[tokio::test]
async fn files_of_another_year_are_followed_like_any_others() {
    let now = SystemTime::now();
    for (what, first, second) in
        [("a future that ends", now + YEAR, now - YEAR), ("a past that ends", now - YEAR, now + YEAR)]
    {
        let store = adders(1..=2).file("adder/route.yaml", "stable: 1.0.1\n");
        set_all_times(&store, first);
        let server = Server::start(store, &OPTIONS).await;
        assert_eq!(answering(&server, None).await.expect("an answer"), 1, "{what}");
        // Newer by what it says, older by its time, or the other way round.
        let beside = server.store.beside("route.yaml");
        fs::write(&beside, "stable: 1.0.2\n").expect("a file");
        set_times(&beside, second);
        fs::rename(&beside, route_file(&server.store)).expect("a rename");
        answers(&server, 2).await;
        // Of the same size and the same time as the one before.
        fs::write(&beside, "stable: 1.0.1\n").expect("a file");
        set_times(&beside, second);
        fs::rename(&beside, route_file(&server.store)).expect("a rename");
        answers(&server, 1).await;
        // A version without version.yaml has to settle, whenever its files say that they were written.
        server.store.write("adder/1.0.3/model.onnx", artifact(3));
        set_times(&server.store.path().join("adder/1.0.3/model.onnx"), second);
        set_times(&server.store.path().join("adder/1.0.3"), second);
        write_route(&server, "stable: latest\n");
        answers(&server, 3).await;
        let answer = promote(&mut server.admin().await, 2, asked("one")).await.expect("it is right");
        assert_eq!((answer.revision, answer.settled()), (1, Settled::Ready), "{what}: {answer:?}");
        server.assert_unharmed().await;
    }
}

#[tokio::test]
async fn a_history_of_tomorrow_is_a_history() {
    let server = Server::start(adders(1..=2), &OPTIONS).await;
    let entry = |revision: u64, time: &str, stable: &str, id: &str| {
        format!(
            "- {{ revision: {revision}, time: '{time}', change: promote {stable}, stable: {stable}, request_id: {id} }}\n"
        )
    };
    let history = [entry(4, "2099-01-01T00:00:00Z", "1.0.2", "old"), entry(5, "1999-01-01T00:00:00Z", "1.0.1", "new")];
    write_route(&server, format!("revision: 5\nstable: 1.0.1\nhistory:\n{}", history.concat()));
    answers(&server, 1).await;
    let mut admin = server.admin().await;
    let repeated = promote(&mut admin, 2, asked("old")).await.expect("it was done");
    assert_eq!((repeated.repeated, repeated.revision), (true, 4), "{repeated:?}");
    assert_eq!(repeated.time, "2099-01-01T00:00:00Z");
    assert_eq!(answering(&server, None).await.expect("an answer"), 1, "a repeat brings nothing back");
    let next = promote(&mut admin, 2, upon(5, "next")).await.expect("revision 5 holds");
    assert_eq!(next.revision, 6);
    let order = written(&server.store).history.into_iter().map(|entry| entry.request_id);
    assert_eq!(order.collect::<Vec<_>>(), ["old", "new", "next"], "as they were written, not by their times");
    let rollback = RollbackRequest { model: ADDER.into(), asked: Some(asked("back")), ..Default::default() };
    let back = admin.rollback(call(rollback)).await.expect("1.0.1 was before").into_inner();
    assert_eq!((back.revision, back.stable.as_str()), (7, "1.0.1"));
    server.assert_unharmed().await;
}

/// The library, where there is a C compiler.
fn shim(store: &Store) -> Option<PathBuf> {
    let (source, library) = (store.beside("clock.c"), store.beside("clock.so"));
    fs::write(&source, SHIM).expect("a file");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
    match compiled {
        Ok(output) if output.status.success() => Some(library),
        other => {
            eprintln!("skipped: no C compiler that makes a clock here: {other:?}");
            None
        }
    }
}

/// Starts the server with the clock that the file beside the store sets.
async fn start(store: Store, library: &Path) -> Server {
    let clock = store.beside("wall-clock");
    let server = Server::begin_with(store, &OPTIONS, |command| {
        command.env("LD_PRELOAD", library).env("WALL_CLOCK_FILE", clock);
    })
    .await;
    server.ready().await;
    server.settled().await;
    server
}

/// Sets the server's clock to that many seconds before or after the machine's.
fn set_clock(store: &Store, seconds: i64) {
    let beside = store.beside("wall-clock.new");
    fs::write(&beside, seconds.to_string()).expect("a file");
    fs::rename(beside, store.beside("wall-clock")).expect("a rename");
}

#[tokio::test]
async fn a_clock_that_is_set_changes_nothing_but_the_times_that_are_shown() {
    let store = adders(1..=2);
    let Some(library) = shim(&store) else { return };
    set_clock(&store, 0);
    let mut server = start(store, &library).await;
    let mut revision = 0;
    let mut times = Vec::new();
    let day = 24 * 3600;
    for (round, seconds) in [0, -day, 400 * day, -3600, -20_000 * day, 0].into_iter().enumerate() {
        set_clock(&server.store, seconds);
        for number in [1, 2] {
            let id = format!("{round}-{number}");
            let answer = promote(&mut server.admin().await, number, upon(revision, &id)).await;
            let answer = answer.unwrap_or_else(|status| panic!("the clock off by {seconds} s: {status}"));
            revision += 1;
            assert_eq!((answer.revision, answer.settled()), (revision, Settled::Ready), "{seconds} s: {answer:?}");
            assert_eq!(answering(&server, None).await.expect("an answer"), number, "the clock off by {seconds} s");
            times.push(answer.time);
        }
        // And what others do is seen.
        write_route(&server, format!("revision: {revision}\nstable: 1.0.1\n"));
        answers(&server, 1).await;
        let number = 10 + round as u64;
        publish_adder(&server.store, number);
        write_route(&server, format!("revision: {revision}\nstable: {}\n", version(number)));
        answers(&server, number).await;
        if round % 2 == 1 {
            server = start(server.into_store(), &library).await;
            assert_eq!(answering(&server, None).await.expect("an answer"), number, "after a restart");
            eventually("the revision is known", PATIENCE, async || {
                (server.describe(ADDER).await.route?.revision == revision).then_some(())
            })
            .await;
        }
    }
    assert!(!times.is_sorted(), "the clock was set: {times:?}");
    server.assert_unharmed().await;
}

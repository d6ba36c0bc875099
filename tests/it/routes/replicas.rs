//! Three servers over one folder, and over one bucket: what one of them is told all of them do, and soon.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tonic::Code;

use super::{asked, assert_moved, promote, upon};
use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, adders, answering, artifact, version},
        assert_refused, call, eventually, process,
        s3::S3,
        sconce,
    },
    proto::{predict_request::Select, *},
};

pub const OPTIONS: [&str; 2] = ["--poll-interval=200ms", "--log-level=warn,sconce=info"];
const REPLICAS: usize = 3;
const VERSIONS: u64 = 3;
/// A second beyond the poll interval, which the median of what follows keeps.
const FOLLOWED_USUALLY: Duration = Duration::from_millis(1_200);
/// And what each keeps, on a busy machine in a debug build.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(10);

/// What the replicas share.
pub enum Place {
    Folder(Store),
    Bucket(S3),
}

pub struct Replicas {
    pub place: Place,
    pub servers: Vec<Server>,
    /// How long after an answer the others followed.
    followed_after: Vec<Duration>,
}

/// What replicas must agree upon.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub revision: u64,
    wanted: String,
    answering: String,
    labels: Vec<(String, String)>,
    disabled: Option<String>,
    history: Vec<String>,
    message: String,
}

// === impl Place ===

impl Place {
    pub async fn bucket() -> Option<Self> {
        let s3 = S3::start().await?;
        for number in 1..=VERSIONS {
            let folder = format!("{ADDER}/{}", version(number));
            s3.publish(&folder, &[("model.onnx", artifact(number))], false).await;
        }
        Some(Self::Bucket(s3))
    }

    /// `own` is what the server keeps for itself.
    async fn serve(&self, own: Store) -> Server {
        let server = match self {
            Place::Bucket(s3) => s3.begin(own, s3.port(), &OPTIONS).await,
            Place::Folder(shared) => {
                let mut command = sconce();
                command.arg("serve").arg("--model-store").arg(shared.path());
                Server::launch(own, command, &OPTIONS).await
            }
        };
        server.ready().await;
        server.settled().await;
        server
    }

    /// The revisions that the replicas have written down, each in its own status.
    async fn revisions_said(&self) -> Vec<u64> {
        let texts: Vec<Vec<u8>> = match self {
            Place::Folder(shared) => {
                let folder = shared.path().join(ADDER).join(".sconce/status");
                let files = fs::read_dir(folder).into_iter().flatten().flatten();
                files.filter_map(|file| fs::read(file.path()).ok()).collect()
            }
            Place::Bucket(s3) => {
                let bucket = s3.bucket(s3.port());
                let mut texts = Vec::new();
                for object in bucket.list(&format!("{ADDER}/.sconce/status")).await.expect("listed") {
                    texts
                        .extend(bucket.get(&object.path).await.expect("an answer").map(|object| object.bytes.to_vec()));
                }
                texts
            }
        };
        let statuses = texts.iter().filter_map(|text| serde_json::from_slice::<serde_json::Value>(text).ok());
        statuses.filter_map(|status| status["revision"].as_u64()).collect()
    }

    /// As a person does it: a careful one, who says so where nobody would notice.
    async fn write_route(&self, text: &str) {
        match self {
            Place::Folder(shared) => {
                let beside = shared.beside("route.yaml");
                fs::write(&beside, text).expect("a file");
                fs::rename(beside, super::route_file(shared)).expect("a rename");
            }
            Place::Bucket(s3) => {
                let bucket = s3.bucket(s3.port());
                bucket.put(&format!("{ADDER}/route.yaml"), text.to_owned()).await.expect("written");
                bucket.touch_marker().await.expect("written");
            }
        }
    }
}

// === impl Replicas ===

impl Replicas {
    pub async fn start(place: Place) -> Self {
        let servers = tokio::join!(place.serve(Store::new()), place.serve(Store::new()), place.serve(Store::new()));
        Self { place, servers: vec![servers.0, servers.1, servers.2], followed_after: Vec::new() }
    }

    /// Waits until every replica does, and remembers how long that took since `answered`.
    pub async fn all(&mut self, what: &str, answered: Instant, mut does: impl AsyncFnMut(&Server) -> bool) {
        for (place, server) in self.servers.iter().enumerate() {
            let what = format!("replica {place}: {what}");
            eventually(&what, PATIENCE, async || does(server).await.then_some(())).await;
            self.followed_after.push(answered.elapsed());
        }
    }

    pub async fn promote_on(&mut self, place: usize, number: u64, request_id: &str) -> ChangeResponse {
        let mut admin = self.servers[place].admin().await;
        let answer = promote(&mut admin, number, asked(request_id)).await;
        let answered = Instant::now();
        let answer = answer.unwrap_or_else(|status| panic!("{request_id} on replica {place}: {status}"));
        assert_eq!(answer.settled(), Settled::Ready, "{request_id}: {answer:?}");
        assert_eq!(answering(&self.servers[place], None).await.expect("an answer"), number, "{request_id}");
        let does = async |server: &Server| answering(server, None).await.expect("never without an answer") == number;
        self.all(&format!("1.0.{number} answers"), answered, does).await;
        // Who answers changes with the picture; what is shown of it comes from the same one.
        self.agree().await;
        answer
    }

    /// What all replicas show, once it is the same.
    pub async fn agree(&self) -> Picture {
        eventually("the replicas agree", PATIENCE, async || {
            let mut pictures = Vec::new();
            for server in &self.servers {
                pictures.push(picture(server).await);
            }
            let first = pictures.pop()?;
            pictures.iter().all(|other| *other == first).then_some(first)
        })
        .await
    }

    /// Kills one with what it has under way, and starts it again.
    async fn restart(&mut self, place: usize) {
        let server = self.servers.remove(place);
        process::kill(server.pid(), Signal::KILL);
        let server = self.place.serve(server.into_store()).await;
        self.servers.insert(place, server);
    }

    fn assert_soon(&mut self) {
        self.followed_after.sort_unstable();
        let (median, worst) =
            (self.followed_after[self.followed_after.len() / 2], self.followed_after[self.followed_after.len() - 1]);
        eprintln!("{} times followed: after {median:.1?}, at most {worst:.1?}", self.followed_after.len());
        assert!(median < FOLLOWED_USUALLY, "they usually follow after {median:?}");
        assert!(worst < FOLLOWED_WITHIN, "one followed after {worst:?}");
    }
}

async fn picture(server: &Server) -> Picture {
    let shown = server.describe(ADDER).await;
    let (summary, route) = (shown.summary.expect("a summary"), shown.route.expect("a route"));
    let mut labels: Vec<_> = route.labels.into_iter().collect();
    labels.sort();
    Picture {
        revision: route.revision,
        wanted: route.stable,
        answering: summary.stable,
        labels,
        disabled: route.disabled.map(|disabled| disabled.reason),
        history: route.history.into_iter().map(|entry| entry.request_id).collect(),
        message: summary.message,
    }
}

/// Promotes on each in turn, then everything else that operators do.
async fn follow(place: Place) {
    let mut replicas = Replicas::start(place).await;
    for round in 0..9 {
        let number = 1 + round as u64 % VERSIONS;
        let answer = replicas.promote_on(round % REPLICAS, number, &format!("promote-{round}")).await;
        assert_eq!(answer.revision, round as u64 + 1, "each replica knows what the others wrote");
    }
    let (mut one, mut two) = (replicas.servers[0].admin().await, replicas.servers[1].admin().await);
    let labels = SetLabelsRequest {
        model: ADDER.into(),
        set: [("prod".to_owned(), version(2))].into(),
        asked: Some(asked("labels")),
        ..Default::default()
    };
    one.set_labels(call(labels)).await.expect("it is right");
    let named = || Some(Select::Label("prod".into()));
    let labelled = async |server: &Server| answering(server, named()).await.is_ok_and(|number| number == 2);
    replicas.all("the label holds", Instant::now(), labelled).await;

    let rollback = RollbackRequest { model: ADDER.into(), asked: Some(asked("rollback")), ..Default::default() };
    let back = two.rollback(call(rollback)).await.expect("it is right").into_inner();
    assert_eq!(back.stable, version(2), "1.0.2 was stable before 1.0.3");
    let rolled = async |server: &Server| answering(server, None).await.expect("never without an answer") == 2;
    replicas.all("it is rolled back", Instant::now(), rolled).await;

    let why = Asked { reason: "an audit".into(), ..asked("disable") };
    let disable = DisableModelRequest { model: ADDER.into(), asked: Some(why) };
    one.disable_model(call(disable)).await.expect("it is right");
    let refused = async |server: &Server| {
        let Err(status) = answering(server, None).await else { return false };
        let status = assert_refused("disabled", Err::<u64, _>(status), Code::Unavailable, "MODEL_DISABLED");
        assert!(status.message().contains("an audit"), "the callers of every replica are told why: {status}");
        true
    };
    replicas.all("it is disabled", Instant::now(), refused).await;
    let enable = EnableModelRequest { model: ADDER.into(), asked: Some(asked("enable")) };
    two.enable_model(call(enable)).await.expect("it is right");
    replicas.all("it is enabled", Instant::now(), async |server| answering(server, None).await.is_ok()).await;

    let agreed = replicas.agree().await;
    assert_eq!((agreed.revision, agreed.wanted.as_str(), agreed.answering.as_str()), (13, "1.0.2", "1.0.2"));
    assert_eq!((agreed.labels, agreed.disabled), (vec![("prod".to_owned(), version(2))], None));
    assert_eq!(agreed.history[..4], ["enable", "disable", "rollback", "labels"]);
    replicas.assert_soon();
    for server in &replicas.servers {
        server.assert_unharmed().await;
    }
}

/// Two operators, each on a replica of its own, and then one of the replicas is killed with a promote under way.
async fn contend_and_be_killed(place: Place) {
    let mut replicas = Replicas::start(place).await;
    replicas.promote_on(0, 1, "first").await;
    for round in 0..5 {
        let before = replicas.agree().await.revision;
        let (mut one, mut two) = (replicas.servers[0].admin().await, replicas.servers[1].admin().await);
        let ids = [format!("one-{round}"), format!("two-{round}")];
        let answers =
            tokio::join!(promote(&mut one, 2, upon(before, &ids[0])), promote(&mut two, 3, upon(before, &ids[1])));
        let first_won = answers.0.is_ok();
        let (won, lost) = if first_won { answers } else { (answers.1, answers.0) };
        let won = won.unwrap_or_else(|status| panic!("round {round}: nobody wins: {status}"));
        assert_eq!(won.revision, before + 1, "round {round}");
        assert_moved(&format!("round {round}"), lost, before + 1);
        // The answer was lost, and the third replica is asked again.
        let (number, request_id) = if first_won { (2, &ids[0]) } else { (3, &ids[1]) };
        let mut three = replicas.servers[2].admin().await;
        let again = promote(&mut three, number, upon(before, request_id)).await.expect("it was done");
        assert_eq!((again.repeated, again.revision, &again.time), (true, won.revision, &won.time), "round {round}");
        replicas.promote_on(2, 1, &format!("back-{round}")).await;
    }
    for round in 0..6 {
        let before = replicas.agree().await;
        let (number, request_id) = (2 + round % 2, format!("killed-{round}"));
        let (mut admin, id) = (replicas.servers[0].admin().await, request_id.clone());
        let under_way = tokio::spawn(async move { promote(&mut admin, number, asked(&id)).await });
        tokio::time::sleep(Duration::from_millis(2 * round)).await;
        replicas.restart(0).await;
        let answer = under_way.await.expect("no panic");
        // Where the answer did not come, the same is asked of another replica, which then has it done, too.
        let again = replicas.promote_on(1, number, &request_id).await;
        if let Ok(answer) = answer {
            assert_eq!((again.repeated, again.revision), (true, answer.revision), "{request_id} was acknowledged");
        }
        let after = replicas.agree().await;
        assert_eq!(after.revision, before.revision + 1, "{request_id} is one change: {after:?}");
        assert_eq!(after.history.iter().filter(|entry| **entry == request_id).count(), 1, "{after:?}");
    }

    let before = replicas.agree().await.revision;
    replicas.place.write_route("stable: 1.0.1\nlabels: { champion: 1.0.2 }\n").await;
    let by_hand = async |server: &Server| {
        let shown = picture(server).await;
        (shown.answering.as_str(), shown.labels.len(), shown.revision) == ("1.0.1", 1, before)
    };
    replicas.all("what was written by hand holds", Instant::now(), by_hand).await;
    // One that is started now knows of no revision but from what the others say.
    eventually("the replicas have said what they know", PATIENCE, async || {
        replicas.place.revisions_said().await.contains(&before).then_some(())
    })
    .await;
    replicas.restart(2).await;
    let answer = replicas.promote_on(2, 2, "on-top").await;
    assert_eq!(answer.revision, before + 1, "it counts on from what was known");
    assert_eq!(replicas.agree().await.message, "", "nobody refuses it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_folder_each_follows_what_one_is_told() {
    follow(Place::Folder(adders(1..=VERSIONS))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_bucket_each_follows_what_one_is_told() {
    let Some(place) = Place::bucket().await else { return };
    follow(place).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_folder_they_agree_after_contention_kills_and_edits() {
    contend_and_be_killed(Place::Folder(adders(1..=VERSIONS))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_bucket_they_agree_after_contention_kills_and_edits() {
    let Some(place) = Place::bucket().await else { return };
    contend_and_be_killed(place).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_bucket_is_away_nothing_is_changed_and_all_serve_on() {
    let Some(place) = Place::bucket().await else { return };
    let mut replicas = Replicas::start(place).await;
    replicas.promote_on(0, 1, "before").await;
    let Place::Bucket(s3) = &mut replicas.place else { unreachable!("it is a bucket") };
    s3.stop();
    for (place, server) in replicas.servers.iter().enumerate() {
        let refused = promote(&mut server.admin().await, 2, asked("meanwhile")).await;
        assert_refused(&format!("replica {place}"), refused, Code::Unavailable, "STORE_UNAVAILABLE");
        assert_eq!(answering(server, None).await.expect("it serves on"), 1, "replica {place}");
    }
    s3.resume().await;
    // The same request, now that it can be done: on one replica, and asked again on another.
    let answer = replicas.promote_on(1, 2, "meanwhile").await;
    assert_eq!((answer.revision, answer.repeated), (2, false), "nothing was written while it was away: {answer:?}");
    let again = replicas.promote_on(2, 2, "meanwhile").await;
    assert_eq!((again.revision, again.repeated), (2, true), "{again:?}");
    let agreed = replicas.agree().await;
    assert_eq!((agreed.revision, agreed.answering.as_str()), (2, "1.0.2"));
    for server in &replicas.servers {
        server.assert_unharmed().await;
    }
}

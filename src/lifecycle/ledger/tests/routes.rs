//! What is loaded and who answers, as route.yaml says.

use super::*;

/// Who answers a call without a version.
pub fn stable(world: &World) -> Option<String> {
    world.ledger.models()[&name()].stable().map(|version| version.to_string())
}

/// The store with that route, and every load done.
pub fn settle(world: &mut World, route: &'static str, versions: &[(u64, u64)], broken: &[u64]) {
    world.route = route;
    world.list(versions);
    world.work(broken);
}

#[test]
fn a_pinned_version_answers_and_a_higher_one_does_not_take_over() {
    let mut world = World::new();
    settle(&mut world, "revision: 1\nstable: 1.0.0", &[(1, 1)], &[]);
    settle(&mut world, "revision: 1\nstable: 1.0.0", &[(1, 1), (2, 2)], &[]);
    assert_eq!(world.ready(), ["1.0.0", "2.0.0"], "`versions: latest: 1` selects the new one all the same");
    assert_eq!(stable(&world).as_deref(), Some("1.0.0"));
}

#[test]
fn a_promoted_version_answers_once_it_is_ready_and_the_one_before_stays() {
    let mut world = World::new();
    settle(&mut world, "revision: 1\nstable: 1.0.0", &[(1, 1), (2, 2), (3, 3)], &[]);
    world.route = "revision: 2\nstable: 2.0.0\nprevious: 1.0.0";
    world.list(&[(1, 1), (2, 2), (3, 3)]);
    assert_eq!(stable(&world).as_deref(), Some("1.0.0"), "until the new one is there");
    world.work(&[]);
    assert_eq!(stable(&world).as_deref(), Some("2.0.0"));
    assert_eq!(world.ready(), ["1.0.0", "2.0.0", "3.0.0"]);
}

#[test]
fn a_stable_that_fails_leaves_the_old_one_for_good() {
    let mut world = World::new();
    settle(&mut world, "revision: 1\nstable: 1.0.0", &[(1, 1), (2, 2)], &[2]);
    settle(&mut world, "revision: 2\nstable: 2.0.0\n", &[(1, 1), (2, 2)], &[2]);
    world.wait(600);
    world.work(&[2]);
    assert_eq!(stable(&world).as_deref(), Some("1.0.0"));
    let pending = world.ledger.models()[&name()].route.pending().expect("it is not taken");
    assert_eq!((pending.revision, pending.why), (2, crate::catalog::PendingWhy::Failed));
}

#[test]
fn what_was_rejected_is_neither_loaded_nor_followed() {
    let mut world = World::new();
    settle(&mut world, "rejected: [2.0.0]", &[(1, 1), (2, 2)], &[]);
    assert_eq!(world.ready(), ["1.0.0"]);
    assert_eq!(stable(&world).as_deref(), Some("1.0.0"));
    settle(&mut world, "rejected: []    ", &[(1, 1), (2, 2)], &[]);
    assert_eq!(stable(&world).as_deref(), Some("2.0.0"));
}

#[test]
fn labels_and_load_name_versions_that_model_yaml_does_not_select() {
    let mut world = World::new();
    settle(&mut world, "labels: {old: 1.0.0}\nload: [2.0.0]", &[(1, 1), (2, 2), (3, 3), (4, 4)], &[]);
    assert_eq!(world.ready(), ["1.0.0", "2.0.0", "4.0.0"]);
    settle(&mut world, "labels: {}", &[(1, 1), (2, 2), (3, 3), (4, 4)], &[]);
    assert_eq!(world.ready(), ["4.0.0"]);
}

#[test]
fn a_reload_makes_the_servables_anew_while_the_old_ones_answer() {
    let mut world = World::new();
    settle(&mut world, "", &[(1, 1)], &[]);
    world.route = "reloads: 1";
    world.list(&[(1, 1)]);
    assert_eq!(world.ready(), ["1.0.0"], "it answers meanwhile");
    assert_eq!(world.work(&[]), ["Load 1.0.0"]);
    assert_eq!(world.served, 2);
}

#[test]
fn a_version_that_the_route_names_serves_on_when_its_folder_goes() {
    let mut world = World::new();
    settle(&mut world, "revision: 1\nstable: 1.0.0", &[(1, 1), (2, 2)], &[]);
    settle(&mut world, "revision: 1\nstable: 1.0.0", &[(2, 2)], &[]);
    assert_eq!(stable(&world).as_deref(), Some("1.0.0"));
    settle(&mut world, "revision: 2\nstable: latest", &[(2, 2)], &[]);
    assert_eq!(world.ready(), ["2.0.0"]);
}

//! What makes a doubt, and what does not, by a clock of the test's own.

use std::cell::RefCell;

use super::*;

/// Two backends of one service and one of another, and what was counted of them.
struct Scene {
    watch: Watch,
    watched: Vec<Watched>,
    now: Duration,
    counts: RefCell<HashMap<u32, Outcomes>>,
    going_on: RefCell<HashMap<u32, u64>>,
    /// How often the packets of connections that go on were counted.
    asked: RefCell<u32>,
}

impl Scene {
    fn new(is_answer_seen: bool) -> Self {
        let watched = [(1, 7), (2, 7), (3, 8)].map(|(backend, service)| Watched {
            backend,
            service,
            is_answer_seen,
        });
        let mut scene = Self {
            watch: Watch::default(),
            watched: watched.to_vec(),
            now: Duration::ZERO,
            counts: RefCell::default(),
            going_on: RefCell::default(),
            asked: RefCell::default(),
        };
        assert!(scene.look().is_empty());
        scene
    }

    /// The next look.
    fn look(&mut self) -> Vec<u32> {
        self.now += SAMPLING;
        self.watch.look(
            self.now,
            &self.watched,
            |id| self.counts.borrow().get(&id).copied().unwrap_or_default(),
            |id| {
                *self.asked.borrow_mut() += 1;
                Some(self.going_on.borrow().get(&id).copied().unwrap_or_default())
            },
        )
    }

    fn count(&self, id: u32, begun: u64, answered: u64, refused: u64) {
        let mut counts = self.counts.borrow_mut();
        let counts = counts.entry(id).or_default();
        counts.begun += begun;
        counts.answered += answered;
        counts.refused += refused;
    }

    fn go_on(&self, id: u32, packets: u64) {
        *self.going_on.borrow_mut().entry(id).or_default() += packets;
    }
}

#[test]
fn a_backend_that_refuses_is_doubted_at_the_next_look() {
    let mut scene = Scene::new(true);
    scene.count(1, 10, 10, 0);
    scene.count(2, 10, 10, 0);
    assert!(scene.look().is_empty());
    // Its process dies: some were accepted before.
    scene.count(1, 10, 4, 6);
    scene.count(2, 10, 10, 0);
    assert!(scene.look().is_empty());
    scene.count(1, 10, 0, 10);
    scene.count(2, 10, 10, 0);
    assert_eq!(scene.look(), [1]);
    // One check at a time.
    scene.count(1, 10, 0, 10);
    scene.count(2, 10, 10, 0);
    assert!(scene.look().is_empty());
}

#[test]
fn a_backend_that_is_silent_is_doubted_when_it_has_had_its_time() {
    let mut scene = Scene::new(true);
    let mut looks = 0;
    loop {
        scene.count(1, 4, 0, 0);
        scene.count(2, 4, 4, 0);
        looks += 1;
        let doubted = scene.look();
        if !doubted.is_empty() {
            assert_eq!(doubted, [1]);
            break;
        }
        assert!(looks < 100);
    }
    // Eight SYNs came in the first two looks.
    assert_eq!(
        looks,
        2 + (PATIENCE.as_millis() / SAMPLING.as_millis()) as u32
    );
}

#[test]
fn an_answer_that_takes_its_time_makes_no_doubt() {
    let mut scene = Scene::new(true);
    for _ in 0..100 {
        scene.count(1, 20, 0, 0);
        scene.count(2, 20, 20, 0);
        for _ in 0..4 {
            assert!(scene.look().is_empty());
        }
        scene.count(1, 0, 1, 0);
        assert!(scene.look().is_empty());
    }
}

#[test]
fn a_flood_that_nobody_answers_says_nothing_about_anybody() {
    let mut scene = Scene::new(true);
    for _ in 0..200 {
        scene.count(1, 1_000, 0, 20);
        scene.count(2, 1_000, 0, 20);
        // Another service that answers is none of theirs.
        scene.count(3, 10, 10, 0);
        assert!(scene.look().is_empty());
    }
    // When one answers again, the other one is told from it.
    scene.count(2, 0, 1, 0);
    assert_eq!(scene.look(), [1]);
}

#[test]
fn what_a_forger_makes_of_a_live_backend_is_no_doubt_while_clients_are_served() {
    let mut scene = Scene::new(true);
    for _ in 0..200 {
        scene.count(1, 500, 1, 400);
        scene.count(2, 5, 5, 0);
        assert!(scene.look().is_empty());
    }
}

#[test]
fn a_refusal_now_and_then_is_none_either() {
    let mut scene = Scene::new(true);
    for _ in 0..20 {
        scene.count(1, 1, 0, 1);
        scene.count(2, 1, 1, 0);
        for _ in 0..90 {
            assert!(scene.look().is_empty());
        }
    }
}

#[test]
fn where_no_answers_are_seen_connections_that_do_not_go_on_make_a_doubt() {
    let mut scene = Scene::new(false);
    let serve = |scene: &Scene, id| {
        scene.count(id, 5, 0, 0);
        scene.go_on(id, 15);
    };
    for _ in 0..20 {
        serve(&scene, 1);
        serve(&scene, 2);
        assert!(scene.look().is_empty());
    }
    let mut looks = 0;
    loop {
        scene.count(1, 5, 0, 0);
        serve(&scene, 2);
        looks += 1;
        let doubted = scene.look();
        if !doubted.is_empty() {
            assert_eq!(doubted, [1]);
            break;
        }
        assert!(looks < 5, "within 125 ms");
    }
}

#[test]
fn a_flood_makes_no_doubt_there_and_few_system_calls() {
    let mut scene = Scene::new(false);
    for _ in 0..40 {
        scene.count(1, 10_000, 0, 0);
        scene.count(2, 10_000, 0, 0);
        assert!(scene.look().is_empty());
    }
    // At most one for each backend in each 50 ms.
    assert!(*scene.asked.borrow() <= 3 * 21, "{:?}", scene.asked);
    // The ends of connections and their begins are not their going on.
    for _ in 0..40 {
        scene.count(3, 100, 0, 0);
        assert!(scene.look().is_empty());
    }
}

#[test]
fn who_is_watched_no_more_is_forgotten() {
    let mut scene = Scene::new(true);
    scene.count(1, 10, 0, 2);
    scene.look();
    scene.watched.remove(0);
    scene.look();
    assert_eq!(scene.watch.backends.len(), 2);
}

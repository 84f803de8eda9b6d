//! The daemon's main task: keeps what is wanted, and answers requests in turn.

use tokio::sync::mpsc;

use crate::{
    config::Config,
    state::{Request, Status},
};

/// Runs until `shutdown` comes.
///
/// # Errors
///
/// None yet.
pub async fn run(
    config: Config,
    mut requests: mpsc::Receiver<Request>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut desired = config.desired();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let request = tokio::select! {
            request = requests.recv() => request,
            () = &mut shutdown => None,
        };
        match request {
            Some(Request::Status(answer)) => drop(answer.send(Status::default())),
            Some(Request::Services(answer)) => {
                drop(answer.send(desired.services().cloned().collect()));
            }
            Some(Request::Change(change, answer)) => drop(answer.send(desired.apply(change))),
            None => return Ok(()),
        }
    }
}

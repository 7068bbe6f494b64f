//! Who runs, and how it ends: the only place that spawns tasks. A [`Scope`] owns the tasks of one part of the
//! process; whoever made the scope ends it and waits for its tasks under a deadline. There are no detached tasks.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one part of the process, and the signal that ends them.
///
/// Clones share the tasks and the signal. A [`Scope::child`] has tasks of its own and is also ended by its parent's
/// signal.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    tasks: TaskTracker,
    ended: CancellationToken,
}

impl Scope {
    /// Makes a scope with no tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a scope that ends when this one does, or earlier. Its tasks are counted apart.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tasks: TaskTracker::new(), ended: self.ended.child_token() }
    }

    /// Runs `task` until it returns. The task is expected to watch [`Scope::ended`]; it is not aborted.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns; the tracker joins")]
        drop(tokio::spawn(self.tasks.track_future(task)));
    }

    /// Runs `task` until it returns or the scope ends, whichever comes first: the task is dropped at an await point.
    pub fn spawn_until_ended(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.spawn(async move {
            ended.run_until_cancelled(task).await;
        });
    }

    /// Runs blocking work (disk, password hashing) off the async workers and waits for its result.
    ///
    /// # Panics
    /// When the work itself panicked: the panic is passed on.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        run_blocking(work).await
    }

    /// Returns when the scope has been told to end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether the scope has been told to end.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Tells every task of this scope and of its children to end.
    pub fn end(&self) {
        self.ended.cancel();
    }

    /// How many tasks run.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until every task has returned. Answers `false` when `deadline` passed first.
    pub async fn join(&self, deadline: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok()
    }
}

/// Runs blocking work (disk, password hashing) off the async workers and waits for its result.
///
/// # Panics
/// When the work itself panicked: the panic is passed on.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away and never ran the work: there is nobody left to answer.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ending_a_parent_ends_its_child() {
        let parent = Scope::new();
        let child = parent.child();
        child.spawn_until_ended(std::future::pending());
        parent.end();
        assert!(child.join(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_is_reported() {
        let scope = Scope::new();
        scope.spawn(std::future::pending());
        scope.end();
        assert!(!scope.join(Duration::from_millis(20)).await);
    }
}

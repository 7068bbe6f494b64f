//! One task per name: started when the name appears, ended when it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use crate::shutdown::Scope;

/// Tasks by name. They run in the scope of whoever made this, which joins them; each has a signal of its own.
pub(super) struct Tasks {
    parent: Scope,
    running: BTreeMap<String, Scope>,
}

impl Tasks {
    pub(super) fn new(parent: &Scope) -> Self {
        Self { parent: parent.clone(), running: BTreeMap::new() }
    }

    /// Makes the running tasks those of `names`.
    pub(super) fn reconcile<F>(&mut self, names: impl Iterator<Item = String>, start: impl Fn(&str) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let names: BTreeSet<String> = names.collect();
        self.running.retain(|name, scope| {
            let stays = names.contains(name);
            if !stays {
                scope.end();
            }
            stays
        });
        for name in names {
            if !self.running.contains_key(&name) {
                let (signal, task) = (self.parent.child(), start(&name));
                self.running.insert(name, signal.clone());
                self.parent.spawn(async move {
                    tokio::select! {
                        () = signal.ended() => {}
                        () = task => {}
                    }
                });
            }
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for scope in self.running.values() {
            scope.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn each_name_has_one_task_while_it_is_there() {
        let parent = Scope::new();
        let started = Arc::new(AtomicUsize::new(0));
        let start = |_: &str| {
            started.fetch_add(1, Ordering::SeqCst);
            std::future::pending()
        };
        let mut tasks = Tasks::new(&parent);
        let names = |text: &str| text.chars().map(String::from).collect::<Vec<_>>().into_iter();
        tasks.reconcile(names("ab"), start);
        tasks.reconcile(names("bc"), start);
        assert_eq!(started.load(Ordering::SeqCst), 3);
        let until = tokio::time::Instant::now() + Duration::from_secs(5);
        while parent.tasks() > 2 {
            assert!(tokio::time::Instant::now() < until, "the task of a name that is gone runs on");
            tokio::task::yield_now().await;
        }
        drop(tasks);
        assert!(parent.join(Duration::from_secs(5)).await);
    }
}

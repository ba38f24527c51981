// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Notifications: what others that keep tables by PASID have to follow.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::set::SetId;
use crate::{Error, Ioasid};

/// What happened to an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Bound for the first time: from now on a device may use it.
    Bind,
    /// Bound no longer.
    Unbind,
    /// Freed: the next to get it may be somebody else.
    Free,
}

/// A notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Notification {
    /// What happened.
    pub event: Event,
    /// The id it happened to.
    pub id: Ioasid,
    /// The set it belongs to.
    pub set: SetId,
}

/// A registered notifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NotifierId(u64);

type Callback = Box<dyn FnMut(Notification) + Send>;

struct Notifier {
    id: NotifierId,
    /// The set it listens to; `None` for all.
    set: Option<SetId>,
    callback: Callback,
}

/// All that listen, in the order in which they came.
#[derive(Default)]
pub(crate) struct Notifiers {
    notifiers: Vec<Notifier>,
    next: u64,
}

impl Notifiers {
    pub(crate) fn register(&mut self, set: Option<SetId>, callback: Callback) -> NotifierId {
        let id = NotifierId(self.next);
        self.next += 1;
        self.notifiers.push(Notifier { id, set, callback });
        id
    }

    pub(crate) fn unregister(&mut self, id: NotifierId) -> Result<(), Error> {
        let index =
            self.notifiers.iter().position(|notifier| notifier.id == id).ok_or(Error::NoSuchNotifier)?;
        self.notifiers.remove(index);
        Ok(())
    }

    /// Those of a set that is gone will never hear anything again.
    pub(crate) fn forget_set(&mut self, set: SetId) {
        self.notifiers.retain(|notifier| notifier.set != Some(set));
    }

    pub(crate) fn notify(&mut self, event: Event, id: Ioasid, set: SetId) {
        for notifier in &mut self.notifiers {
            if notifier.set.is_none_or(|wanted| wanted == set) {
                (notifier.callback)(Notification { event, id, set });
            }
        }
    }
}

//! What the discovery client knows about every source and resource at this moment, for the admin interface.

use super::Inner;
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use xds_client::status::SourceState;

thread_local! {
    /// The client lives on the control thread, as the admin interface does; it cannot be shared with others.
    static CURRENT: RefCell<Weak<Inner>> = const { RefCell::new(Weak::new()) };
}

/// Makes `inner` the one that is shown.
pub(super) fn set(inner: &Rc<Inner>) {
    CURRENT.set(Rc::downgrade(inner));
}

/// All sources; empty on any other thread than the control thread.
pub fn sources() -> Vec<SourceState> {
    let inner = CURRENT.with_borrow(Weak::upgrade);
    inner.map(|inner| inner.client.snapshot()).unwrap_or_default()
}

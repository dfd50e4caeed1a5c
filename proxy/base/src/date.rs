//! The `date` header's value, formatted at most once per second and worker.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

thread_local! {
    static CACHE: RefCell<(u64, Bytes)> = const { RefCell::new((u64::MAX, Bytes::new())) };
}

/// The wall clock in IMF-fixdate form (RFC 9110 5.6.7), for example `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date() -> Bytes {
    http_date_at(SystemTime::now())
}

fn http_date_at(now: SystemTime) -> Bytes {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    CACHE.with_borrow_mut(|(cached, text)| {
        if *cached != seconds {
            *cached = seconds;
            *text = Bytes::from(httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)));
        }
        text.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_one_string() {
        let at = |millis| http_date_at(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        let first = at(784_111_777_000);
        assert_eq!(first, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_777_999).as_ptr(), first.as_ptr());
        assert_eq!(at(784_111_778_000), "Sun, 06 Nov 1994 08:49:38 GMT");
    }
}

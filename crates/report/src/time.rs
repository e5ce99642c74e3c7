//! Points in time as RFC 3339 in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-23T06:42:40.123Z`; none before 1970 and after 9999, which RFC 3339 cannot write and only a corrupt file
/// holds.
pub fn rfc3339(time: SystemTime) -> Option<String> {
    let since_epoch = time.duration_since(UNIX_EPOCH).ok()?;
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_date(seconds / 86_400)?;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let millis = since_epoch.subsec_millis();
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"))
}

/// The Gregorian date of a day counted from 1970-01-01, by counting in 400-year eras that begin on 1 March, so that
/// the leap day is the last of a year.
fn civil_date(days: u64) -> Option<(u64, u64, u64)> {
    const LAST_DAY: u64 = 2_932_896; // 9999-12-31
    const DAYS_PER_ERA: u64 = 146_097;
    if days > LAST_DAY {
        return None;
    }
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // 0 is March
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    Some((year, month, day))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_agree_with_what_date_prints() {
        // Expected values from `date -u -d @SECONDS +%FT%TZ`.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(time).as_deref(), Some(expected));
        }
        assert_eq!(
            rfc3339(UNIX_EPOCH + Duration::from_nanos(1_999_999_999)).as_deref(),
            Some("1970-01-01T00:00:01.999Z")
        );
    }

    #[test]
    fn times_that_cannot_be_written_are_none() {
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), None);
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(253_402_300_800)), None);
    }
}

//! A plan as it is written on a command line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::plan::WanPlan;

/// The longest round trip and the widest jitter that a plan takes.
const MAX_MS: f64 = 10_000.0;

/// How many regions a plan lists, besides the first.
const MAX_REGIONS: usize = 64;

/// The flaw of a written plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWanSpec {
    #[error(
        "{0:?} is not a number of milliseconds (the emulated WAN is written as in `90,190,jitter=5,dc=2`)"
    )]
    NotMilliseconds(String),
    #[error("{0:?} is out of range: the emulated WAN takes 0 to {MAX_MS} ms")]
    OutOfRange(String),
    #[error("{0:?} is no option of the emulated WAN; there are `jitter` and `dc`")]
    UnknownOption(String),
    #[error("{0:?} is given twice for the emulated WAN")]
    Twice(String),
    #[error("a part of the emulated WAN {0:?} is empty (two commas, or one at an end)")]
    EmptyPart(String),
    #[error("the emulated WAN takes at most {MAX_REGIONS} round trips, not {0}")]
    TooMany(usize),
}

impl FromStr for WanPlan {
    type Err = InvalidWanSpec;

    /// Reads round trips in ms from the first region to the second, the third and so on, and
    /// options: `jitter=MS` (each way, between regions) and `dc=MS` (the round trip between data
    /// centers of a region). Values that are not given are those of [`WanPlan::default`]; the empty
    /// text is all of the default.
    fn from_str(spec: &str) -> Result<Self, InvalidWanSpec> {
        let mut plan = Self::default();
        if spec.trim().is_empty() {
            return Ok(plan);
        }
        let (mut round_trips, mut jitter, mut data_center) = (Vec::new(), None, None);
        for part in spec.split(',').map(str::trim) {
            if part.is_empty() {
                return Err(InvalidWanSpec::EmptyPart(spec.to_owned()));
            }
            let Some((name, value)) = part.split_once('=') else {
                round_trips.push(milliseconds(part, part)?);
                continue;
            };
            let option = match name.trim() {
                "jitter" => &mut jitter,
                "dc" => &mut data_center,
                other => return Err(InvalidWanSpec::UnknownOption(other.to_owned())),
            };
            if option.replace(milliseconds(part, value.trim())?).is_some() {
                return Err(InvalidWanSpec::Twice(name.trim().to_owned()));
            }
        }
        if round_trips.len() > MAX_REGIONS {
            return Err(InvalidWanSpec::TooMany(round_trips.len()));
        }
        if !round_trips.is_empty() {
            plan.round_trips = round_trips;
        }
        plan.jitter = jitter.unwrap_or(plan.jitter);
        plan.data_center_round_trip = data_center.unwrap_or(plan.data_center_round_trip);
        Ok(plan)
    }
}

/// `part` is what an error names.
fn milliseconds(part: &str, value: &str) -> Result<Duration, InvalidWanSpec> {
    // Digits only: `f64` also reads `inf`, `nan` and `1e3`.
    let plain = value.starts_with(|first: char| first.is_ascii_digit())
        && value.chars().all(|one| one.is_ascii_digit() || one == '.');
    let parsed = value.parse::<f64>().ok().filter(|_| plain);
    let Some(number) = parsed else { return Err(InvalidWanSpec::NotMilliseconds(part.to_owned())) };
    if number > MAX_MS {
        return Err(InvalidWanSpec::OutOfRange(part.to_owned()));
    }
    Ok(Duration::from_secs_f64(number / 1000.0))
}

impl fmt::Display for WanPlan {
    /// As [`from_str`](FromStr::from_str) reads it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |duration: &Duration| duration.as_secs_f64() * 1000.0;
        for (index, round_trip) in self.round_trips.iter().enumerate() {
            write!(formatter, "{}{}", if index == 0 { "" } else { "," }, shown(round_trip))?;
        }
        if !self.jitter.is_zero() {
            write!(formatter, ",jitter={}", shown(&self.jitter))?;
        }
        if !self.data_center_round_trip.is_zero() {
            write!(formatter, ",dc={}", shown(&self.data_center_round_trip))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn specs_are_read() {
        let read = |spec: &str| spec.parse::<WanPlan>().unwrap();
        assert_eq!(read(""), WanPlan::default());
        assert_eq!(read("90,190"), WanPlan::default());
        assert_eq!(read(" 40 "), WanPlan { round_trips: vec![ms(40)], ..WanPlan::default() });
        assert_eq!(read("jitter=5"), WanPlan { jitter: ms(5), ..WanPlan::default() });
        assert_eq!(
            read("10, 20, 30, jitter=5, dc=0.5"),
            WanPlan {
                round_trips: vec![ms(10), ms(20), ms(30)],
                jitter: ms(5),
                data_center_round_trip: Duration::from_micros(500)
            }
        );
    }

    #[test]
    fn displayed_plan_parses_again() {
        for spec in ["90,190", "90,190,jitter=5", "1,2,3,jitter=0.25,dc=2"] {
            assert_eq!(spec.parse::<WanPlan>().unwrap().to_string(), spec);
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let error = |spec: &str| spec.parse::<WanPlan>().unwrap_err();
        for part in ["ninety", "-1", "nan", "inf", "1e3", "90ms", ".", "1.2.3"] {
            assert_eq!(
                error(&format!("90,{part}")),
                InvalidWanSpec::NotMilliseconds(part.to_owned()),
                "{part}"
            );
        }
        assert_eq!(error("jitter="), InvalidWanSpec::NotMilliseconds("jitter=".to_owned()));
        assert_eq!(error("10001"), InvalidWanSpec::OutOfRange("10001".to_owned()));
        assert_eq!(error("90,loss=1"), InvalidWanSpec::UnknownOption("loss".to_owned()));
        assert_eq!(error("jitter=1,90,jitter=2"), InvalidWanSpec::Twice("jitter".to_owned()));
        assert_eq!(error("90,,190"), InvalidWanSpec::EmptyPart("90,,190".to_owned()));
        assert_eq!(error(&vec!["1"; 65].join(",")), InvalidWanSpec::TooMany(65));
        assert_eq!(
            error("90,loss=1").to_string(),
            "\"loss\" is no option of the emulated WAN; there are `jitter` and `dc`"
        );
    }
}

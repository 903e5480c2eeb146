//! Median and spread of few numbers.

use serde::Serialize;

/// What is told of a series of measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Middle.
    pub(crate) median: f64,
    /// A quarter is below.
    pub(crate) lower_quartile: f64,
    /// A quarter is above.
    pub(crate) upper_quartile: f64,
    /// Smallest.
    pub(crate) min: f64,
    /// Largest.
    pub(crate) max: f64,
}

impl Summary {
    /// `None` for an empty series.
    pub(crate) fn of(series: &[f64]) -> Option<Self> {
        let mut sorted = series.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&sorted, 1, 2)?,
            lower_quartile: quantile(&sorted, 1, 4)?,
            upper_quartile: quantile(&sorted, 3, 4)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }
}

/// The value `part / whole` of the way through, between two neighbours where it falls between them.
fn quantile(sorted: &[f64], part: usize, whole: usize) -> Option<f64> {
    let distance = sorted.len().checked_sub(1)? * part;
    let (below, rest) = (distance / whole, distance % whole);
    let low = *sorted.get(below)?;
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    let share = f64::from(u32::try_from(rest).ok()?) / f64::from(u32::try_from(whole).ok()?);
    Some(low + (high - low) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles_fall_between_neighbours() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((summary.median, summary.lower_quartile, summary.upper_quartile), (2.5, 1.75, 3.25));
        assert_eq!((summary.min, summary.max), (1.0, 4.0));
        assert_eq!(Summary::of(&[7.0]).unwrap().median, 7.0);
        assert_eq!(Summary::of(&[]), None);
    }
}
